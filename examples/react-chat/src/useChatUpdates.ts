// The hook: one connection to chat3-gateway for as long as the component lives.
// Copy this file and chat3-events.ts.

import { useCallback, useEffect, useRef, useState } from 'react';
import { io, type Socket } from 'socket.io-client';
import type { Chat3Update, ClientToServerEvents, ServerToClientEvents } from './chat3-events';

const GATEWAY_URL: string = import.meta.env.VITE_GATEWAY_URL ?? `http://${location.hostname}:3001`;

export interface Connection {
  status:
    | 'connecting' //   for the first time
    | 'must-refetch' // connected, but earlier updates may be missing: fetch the state, then call `fetched`
    | 'live' //         connected, and nothing is missing
    | 'reconnecting' // lost; socket.io-client retries on its own
    | 'recovered' //    live again, and the missed updates have been or are being delivered
    | 'refused'; //     for `reason`; socket.io-client does not retry: pass a new token
  reason?: string;
}

export type ChatSocket = Socket<ServerToClientEvents, ClientToServerEvents>;

/** Calls `onUpdate` with every update of the token's user. A new token makes a new connection; null makes none. */
export function useChatUpdates(token: string | null, onUpdate: (update: Chat3Update) => void) {
  const [connection, setConnection] = useState<Connection>({ status: 'connecting' });
  const [expiresAt, setExpiresAt] = useState<string | null>(null);
  const socket = useRef<ChatSocket | null>(null);
  const isFetched = useRef(false);
  const refreshedToken = useRef<string | null>(null);

  // The newest callback, so that a render neither reconnects nor leaves an old one behind.
  const latestOnUpdate = useRef(onUpdate);
  useEffect(() => {
    latestOnUpdate.current = onUpdate;
  });

  useEffect(() => {
    if (token === null) return;
    isFetched.current = false;
    refreshedToken.current = null;
    setConnection({ status: 'connecting' });

    // `auth` as a function: each reconnect presents the newest token.
    const mine: ChatSocket = io(GATEWAY_URL, { auth: (give) => give({ token: refreshedToken.current ?? token }) });
    socket.current = mine;

    mine.on('chat3:update', (update) => latestOnUpdate.current(update));
    mine.on('connect', () => {
      // `recovered` concerns updates only: a fetch that the loss interrupted must be repeated.
      if (!mine.recovered) isFetched.current = false;
      setConnection({ status: isFetched.current ? 'recovered' : 'must-refetch' });
    });
    mine.on('disconnect', () => setConnection({ status: 'reconnecting' }));
    mine.on('connect_error', (error) => {
      if (!mine.active) setConnection({ status: 'refused', reason: error.message });
    });
    mine.on('auth:expiring', (notice) => setExpiresAt(notice.expiresAt));

    return () => {
      mine.removeAllListeners(); // its `disconnect` does not concern the next socket
      mine.disconnect();
    };
  }, [token]);

  /** Call this when the state has been fetched, after `must-refetch`. */
  const fetched = useCallback(() => {
    isFetched.current = true;
    setConnection((now) => (now.status === 'must-refetch' ? { status: 'live' } : now));
  }, []);

  /** Continues with a new token of the same user, without a reconnect. For when `expiresAt` changes. */
  const refresh = useCallback(async (newToken: string) => {
    refreshedToken.current = newToken;
    const answer = await socket.current?.timeout(5000).emitWithAck('auth:refresh', newToken);
    if (answer && !answer.ok) throw new Error(answer.error);
  }, []);

  return { connection, fetched, expiresAt, refresh, socket };
}
