// One connection to the gateway: puts together what arrives (`Feed`), the state that it continues
// (`Refetch`) and the tokens (`SignIn`), and says what the connection is worth.
//
// Invariant: what is handed on continues the state that `onResync` fetched, without a gap.

import { io } from 'socket.io-client';
import { Feed } from './feed.js';
import { messageOf, Refetch } from './refetch.js';
import { SignIn } from './sign_in.js';

/** Every event that carries updates, in any envelope. */
export const EVENTS = ['chat3:update', 'message:new', 'message:update', 'dialog:update', 'typing:update'];

const RESYNC_TIMEOUT_MS = 30_000;

/** @typedef {import('./index.d.ts').Connection} Connection */
/** @typedef {(...args: any[]) => void} Callback */

/** @type {typeof import('./index.d.ts').createChat3Socket} */
export function createChat3Socket(options) {
  /** @type {import('socket.io-client').Socket} */
  const socket = io(options.url, {
    ...options.socket,
    autoConnect: false,
    // A connection shared with other sockets would be ended with this one.
    forceNew: true,
    auth: (give) => signIn.authenticate(socket, give),
  });

  let isClosed = false;
  /** Whether there was a connection before. */
  let wasConnected = false;
  /** Whether the application's state and what was handed on since make up everything until now. */
  let isSynced = false;
  let isRecovered = false;
  /** @type {string | null} */
  let problem = null;
  /** @type {string | null} */
  let refusal = null;

  /** @type {Connection} */
  let connection = { status: 'connecting', reason: null, failures: 0, recovered: false };

  /** Callbacks must not disturb what calls them: their errors are reported as uncaught ones are. */
  const call = (/** @type {Callback | undefined} */ callback, /** @type {unknown[]} */ ...args) => {
    if (isClosed) return;
    try {
      callback?.(...args);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  };

  const feed = new Feed((event, payload) => {
    if (event === 'chat3:update') call(options.onUpdate, payload);
    call(/** @type {Record<string, Callback | undefined>} */ (options.events ?? {})[event], payload);
  });

  const refetch = new Refetch({
    fetchState: options.onResync ?? (() => {}),
    timeoutMs: options.resyncTimeoutMs ?? RESYNC_TIMEOUT_MS,
    // What was dropped is in the state that is fetched now.
    onBegin: () => feed.overflowed && feed.restart(),
    objection: () => (feed.overflowed ? 'more updates arrived than can be held' : null),
    onFetched: (fetched) => {
      if (fetched?.stats) feed.startFrom(fetched);
      isSynced = true;
      feed.release();
      tell();
    },
    onFailed: () => tell(),
  });

  const signIn = new SignIn({
    getToken: options.getToken,
    onProblem: (reason) => {
      problem = reason;
      tell();
    },
    onSignedOut: (reason) => {
      refusal = reason;
      disconnect();
      tell();
      call(options.onSignedOut, reason);
    },
  });

  /** @returns {Connection} */
  const current = () => {
    const { failures, reason } = refetch;
    if (isClosed) return { status: 'closed', reason: null, failures: 0, recovered: false };
    if (refusal !== null) return { status: 'refused', reason: refusal, failures: 0, recovered: false };
    if (!socket.connected) return { status: wasConnected ? 'offline' : 'connecting', reason: problem, failures: 0, recovered: false };
    if (!isSynced) return { status: 'syncing', reason, failures, recovered: false };
    return { status: 'live', reason: null, failures: 0, recovered: isRecovered };
  };

  const tell = () => {
    const next = current();
    const keys = /** @type {(keyof Connection)[]} */ (Object.keys(next));
    if (keys.every((key) => next[key] === connection[key])) return;
    connection = next;
    call(options.onConnection, connection);
  };

  const disconnect = () => {
    signIn.stop();
    refetch.forbid();
    socket.disconnect();
  };

  const connectSoon = () => queueMicrotask(() => {
    if (!isClosed && refusal === null && !socket.active) socket.connect();
  });

  for (const event of EVENTS) socket.on(event, (payload) => feed.take(event, payload));

  socket.on('connect', () => {
    signIn.connected();
    wasConnected = true;
    problem = null;
    isRecovered = Boolean(socket.recovered) && isSynced;
    if (!socket.recovered) {
      isSynced = false;
      feed.restart();
      refetch.begin();
    }
    refetch.allow();
    tell();
  });

  socket.on('disconnect', (reason) => {
    refetch.forbid();
    problem ??= reason;
    if (!socket.active && !isClosed && refusal === null) signIn.refused(socket, reason);
    tell();
  });

  socket.on('connect_error', (error) => {
    problem = messageOf(error);
    if (!socket.active) signIn.refused(socket, problem);
    tell();
  });

  socket.io.on('close', () => signIn.lost());
  socket.on('auth:expiring', () => signIn.refresh(socket));
  socket.on('auth:revoked', (notice) => {
    problem = 'revoked';
    signIn.revoked();
    call(options.onRevoked, notice?.reason ?? null);
  });

  connectSoon();
  return {
    get connection() {
      return connection;
    },
    socket: /** @type {any} */ (socket),
    resync() {
      if (isClosed) return;
      isSynced = false;
      isRecovered = false;
      feed.hold();
      refetch.begin();
      tell();
    },
    connect() {
      if (refusal === null) return signIn.hurry();
      refusal = null;
      connectSoon();
      tell();
    },
    close() {
      if (isClosed) return;
      isClosed = true;
      disconnect();
      refetch.stop();
      tell();
    },
  };
}
