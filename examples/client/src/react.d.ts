import type { Chat3Socket, Chat3SocketOptions, Connection } from './index.d.ts';
import type { Envelope } from './events.d.ts';

export interface ChatUpdatesOptions<E extends Envelope = 'auto'> extends Chat3SocketOptions<E> {
  /** Who is signed in. Another user gets another connection; so does a change of `url` or `enabled`, and of nothing else. */
  user?: string | null;
  /** Whether to connect at all. Default: true. */
  enabled?: boolean;
}

export interface ChatUpdates<E extends Envelope = 'auto'> {
  connection: Connection;
  /** As the socket's. */
  resync: () => void;
  connect: () => void;
  /** The connection below, in `current`; null before the first effect and while there is none. */
  chat: { readonly current: Chat3Socket<E> | null };
}

/**
 * One connection for as long as the component lives. Every callback is the one of the latest render. Call it once, near
 * the root: each call is a connection.
 */
export function useChatUpdates<E extends Envelope = 'auto'>(options: ChatUpdatesOptions<E>): ChatUpdates<E>;
