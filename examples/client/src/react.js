// The React hook: a `createChat3Socket` that lives as long as its component. React 18 and later.
//
// StrictMode and fast refresh run effects twice: the first socket is closed before it begins to
// connect, so the gateway sees one.

import { useCallback, useEffect, useRef, useState } from 'react';
import { createChat3Socket, EVENTS } from './socket.js';

/** @typedef {import('./index.d.ts').Connection} Connection */

/** @type {Connection} */
const CONNECTING = { status: 'connecting', reason: null, failures: 0, recovered: false };

/** @type {Connection} */
const CLOSED = { status: 'closed', reason: null, failures: 0, recovered: false };

/** @typedef {import('./index.d.ts').Chat3Socket<any>} Chat */
/** @typedef {import('./react.d.ts').ChatUpdatesOptions<any>} Options */

/** @type {typeof import('./react.d.ts').useChatUpdates} */
export function useChatUpdates(options) {
  const { url, user, enabled = true } = options;
  /** Which connection this render wants. A state that belongs to another one says nothing about it. */
  const wanted = JSON.stringify([url, user, enabled]);
  const [known, setKnown] = useState({ of: '', connection: CONNECTING });
  const connection = !enabled ? CLOSED : known.of === wanted ? known.connection : CONNECTING;
  const chat = useRef(/** @type {Chat | null} */ (null));

  // The callbacks of the latest render, so that a render neither reconnects nor leaves old ones behind.
  const latest = useRef(/** @type {Options} */ (options));
  useEffect(() => {
    latest.current = options;
  });

  useEffect(() => {
    if (!enabled) return;
    const { resyncTimeoutMs, socket } = latest.current;
    const mine = createChat3Socket({
      url,
      resyncTimeoutMs,
      socket,
      getToken: (request) => latest.current.getToken(request),
      onResync: (request) => latest.current.onResync?.(request),
      onUpdate: (update) => latest.current.onUpdate?.(update),
      events: Object.fromEntries(EVENTS.map((name) => [name, (/** @type {unknown} */ payload) => handlerOf(latest.current, name)?.(payload)])),
      onConnection: (connection) => {
        setKnown({ of: wanted, connection });
        latest.current.onConnection?.(connection);
      },
      onSignedOut: (reason) => latest.current.onSignedOut?.(reason),
      onRevoked: (reason) => latest.current.onRevoked?.(reason),
    });
    chat.current = mine;
    return () => {
      mine.close();
      chat.current = null;
      setKnown({ of: '', connection: CONNECTING });
    };
  }, [wanted]);

  const resync = useCallback(() => chat.current?.resync(), []);
  const connect = useCallback(() => chat.current?.connect(), []);
  return { connection, resync, connect, chat };
}

/**
 * @param {Options} options
 * @param {string} name
 * @returns {((payload: unknown) => void) | undefined}
 */
function handlerOf(options, name) {
  return /** @type {any} */ (options.events)?.[name];
}
