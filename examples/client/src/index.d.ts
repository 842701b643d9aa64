// The public interface. The sources are held against it by the repository's tests.

import type { ManagerOptions, Socket, SocketOptions } from 'socket.io-client';
import type {
  AnyUpdate, ClientToServerEvents, Dialog, Envelope, EventType, Message, SectionsUpdate, ServerToClientEvents, Time, UpdateEvents, UserStats,
} from './events.d.ts';

export type * from './events.d.ts';

/** What the connection is worth, such as for a badge. */
export interface Connection {
  status:
    /** For the first time. */
    | 'connecting'
    /** Connected; `onResync` is under way, or is repeated after a pause. What arrives is held. */
    | 'syncing'
    /** Nothing is missing, and every update arrives as it happens. */
    | 'live'
    /** Lost; another attempt follows by itself. */
    | 'offline'
    /** Signed out, for `reason`. Nothing happens until `connect()`. */
    | 'refused'
    /** After `close()`. */
    | 'closed';
  /** Why it is not live: the latest error. */
  reason: string | null;
  /** How many times in a row `onResync` has failed. */
  failures: number;
  /** Live again after a loss, without a refetch. */
  recovered: boolean;
}

/** Counters of the fetched state, by which older ones that arrive later are dropped. */
export interface Fetched {
  stats: UserStats;
  /** Whose they are, where the token names no tenant and updates of several arrive. */
  tenantId?: string;
}

export interface Chat3SocketOptions<E extends Envelope = 'auto'> {
  /** The gateway, such as `https://updates.example.org`. */
  url: string;
  /**
   * Asks your backend for a token, at each connect and before the old one expires. `fresh` means that the latest token
   * was refused or expires: do not answer from a cache. If it rejects, it is called again after a pause. `null` means
   * that nobody is signed in.
   */
  getToken: (request: { fresh: boolean }) => string | null | Promise<string | null>;
  /**
   * Fetches the state: at the first connect, and whenever updates may be missing. If it rejects, or takes longer than
   * `resyncTimeoutMs`, it is called again after a pause. Ignore the answer once `signal` is aborted.
   */
  onResync?: (request: { signal: AbortSignal }) => void | Fetched | Promise<void | Fetched>;
  /** Every update (`chat3:update`): in order, none twice, and during a refetch after it. */
  onUpdate?: (update: UpdateEvents<E>['chat3:update']) => void;
  /** Handlers of the specialised events, each called right after `onUpdate`. */
  events?: { [Name in keyof UpdateEvents<E>]?: (payload: UpdateEvents<E>[Name]) => void };
  onConnection?: (connection: Connection) => void;
  /** The gateway does not accept the user's tokens, or `getToken` gave none. Called once, with the status `refused`. */
  onSignedOut?: (reason: string) => void;
  /** An operator has ended this connection. Another attempt follows by itself; `close()` prevents it. */
  onRevoked?: (reason: string | null) => void;
  /** In ms. Default: 30,000. */
  resyncTimeoutMs?: number;
  /** Options of socket.io-client, such as `path`, `transports` or `withCredentials`. */
  socket?: Partial<Omit<ManagerOptions & SocketOptions, 'auth' | 'autoConnect' | 'forceNew'>>;
}

export interface Chat3Socket<E extends Envelope = 'auto'> {
  readonly connection: Connection;
  /** The socket below, for what is not here. Leave its connection to this object. */
  readonly socket: Socket<ServerToClientEvents<E>, ClientToServerEvents>;
  /** Calls `onResync` again: now, or at the next connect. */
  resync(): void;
  /** Connects after `refused`. Elsewhere it ends the pause after a refusal, or after a `getToken` that failed. */
  connect(): void;
  /** Ends everything, for good. No callback is called any more. */
  close(): void;
}

/** Connects to chat3-gateway, in a moment; several calls make several connections. */
export function createChat3Socket<E extends Envelope = 'auto'>(options: Chat3SocketOptions<E>): Chat3Socket<E>;

/** The type of the event; undefined if the update has none. */
export function eventTypeOf(update: AnyUpdate): EventType | SectionsUpdate['eventType'] | undefined;

/** The message of an update that feeds `message:new` or `message:update`, else null. */
export function messageIn(update: AnyUpdate): Message | null;

/** The dialog of an update that feeds `dialog:update`, else null; with the user who is typing, if the update says so. */
export function dialogIn(update: AnyUpdate): Dialog | null;

export function dateOf(time: Time): Date;
