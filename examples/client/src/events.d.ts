// What a frontend receives from chat3-gateway and sends to it, in each envelope, for
// all generations of Chat3.
//
// Compiled against recorded updates of every generation by the repository's tests: a
// field that is missing here, or that nobody sends, fails them.

import type {
  Context, Dialog, DialogSections, Member, Message, MessageSections, Pack, PackStats, Time, Typing, User, UserPackStats, UserSections,
} from './subjects.d.ts';

export type * from './subjects.d.ts';

/** The gateway's `CHAT3_ENVELOPE`. */
export type Envelope = 'auto' | 'sections' | 'original';

/** Everything that the gateway sends: `Socket<ServerToClientEvents<'sections'>, ClientToServerEvents>`. */
export type ServerToClientEvents<E extends Envelope = 'auto'> = {
  [Name in keyof UpdateEvents<E>]: (payload: UpdateEvents<E>[Name], offset?: Offset) => void;
} & ConnectionEvents;

/** The events that carry updates, by name, with their payloads. */
export type UpdateEvents<E extends Envelope = 'auto'> = E extends 'sections'
  ? SectionsEvents
  : E extends 'original'
    ? OriginalEvents
    : AutoEvents;

export interface AutoEvents {
  /** Every update, whole. */
  'chat3:update': Chat3Update;
  /** `update.data` of `message.create`. */
  'message:new': MessageUpdate['data'];
  /** Every other `message.*`, whole. */
  'message:update': MessageUpdate;
  /** Every `dialog.*`, whole. */
  'dialog:update': DialogUpdate;
}

export interface SectionsEvents {
  /** Every update, whole. */
  'chat3:update': SectionsUpdate;
  /** The message of `message.create`. */
  'message:new': Message;
  /** Every other `message.*`, whole. */
  'message:update': SectionsMessageUpdate;
  /** Every `dialog.*` but `dialog.typing` and `dialog.counter.update`, whole. */
  'dialog:update': SectionsDialogUpdate;
  /** Who is typing. */
  'typing:update': TypingUpdate;
}

export interface OriginalEvents {
  /** Every update, whole. */
  'chat3:update': OriginalUpdate;
  /** The message of `message.create`. */
  'message:new': OriginalMessage;
  /** Every other `message.*`, whole. */
  'message:update': OriginalMessageUpdate;
  /** Every `dialog.*`, whole. */
  'dialog:update': OriginalDialogUpdate;
}

/** About the connection, not about updates. */
export interface ConnectionEvents {
  /** The token expires soon: answer with `auth:refresh`. */
  'auth:expiring': (notice: { expiresAt: string }) => void;
  /** An operator has ended this connection. */
  'auth:revoked': (notice: { reason: string | null }) => void;
  /** A newer offset, for a client that has received nothing for long. socket.io-client keeps it; ignore it. */
  'recovery:offset': (offset: Offset) => void;
}

export interface ClientToServerEvents {
  /** A new token of the same user; the connection continues with it. */
  'auth:refresh': (token: string, answer: (answer: RefreshAnswer) => void) => void;
}

export type RefreshAnswer = { ok: true; expiresAt: string | null } | { ok: false; error: string };

/** A place in the user's events, which socket.io-client keeps for recovery. Do not read it. */
export type Offset = string;

// ---- `auto`: as published ----------------------------------------------------

/** Distinguished by `eventTypeOf`. Newer versions of Chat3 may send types that are not listed here: ignore them. */
export type Chat3Update = MessageUpdate | DialogUpdate | UserUpdate;

export type MessageUpdate = UpdateFields &
  (
    | { eventType: MessageEventType; data: Message | MessageSections }
    | { sourceEventType: MessageEventType; updateType: 'update.message'; data: MessageSections }
  );

export type DialogUpdate = UpdateFields &
  (
    | { eventType: DialogEventType; data: Dialog | DialogSections }
    | { sourceEventType: EventType; updateType: 'update.dialog'; data: DialogSections }
  );

/** About the user and packs of dialogs: `chat3:update` alone. */
export type UserUpdate = UpdateFields &
  (
    | { eventType: UserEventType; data: UserSections }
    | { sourceEventType: EventType; updateType: 'update.user'; data: UserSections }
  );

// ---- `sections` ----------------------------------------------------------------

export type SectionsUpdate =
  | SectionsMessageUpdate
  | SectionsDialogUpdate
  | SectionsTypingUpdate
  | SectionsCounterUpdate
  | SectionsUserUpdate;

interface SectionsFields extends UpdateFields {
  dialogId: string | null;
  /** The event's name as published, in later generations. */
  sourceEventType?: EventType;
}

/** The sections that are always there: null where the update does not concern them. */
interface Sections {
  dialog: Dialog | null;
  member: Member | null;
  message: Message | null;
  typing: Typing | null;
  context: SectionsContext | null;
}

export interface SectionsContext extends Omit<Context, 'eventType'> {
  eventType: SectionsUpdate['eventType'];
}

export interface SectionsMessageUpdate extends SectionsFields {
  eventType: FirstMessageEventType;
  updateType?: 'update.message';
  data: Sections & { message: Message; typing: null };
}

export interface SectionsDialogUpdate extends SectionsFields {
  eventType: Exclude<FirstDialogEventType, 'dialog.typing'>;
  updateType?: 'update.dialog';
  data: Sections & { message: null; pack?: Pack };
}

/** Has a `typing:update` of its own, with what a page shows. */
export interface SectionsTypingUpdate extends SectionsFields {
  eventType: 'dialog.typing';
  updateType?: 'update.dialog';
  data: Sections & { message: null; typing: Typing };
}

/** The dialog's unread counter after some other event: `chat3:update` alone. */
export interface SectionsCounterUpdate extends SectionsFields {
  eventType: 'dialog.counter.update';
  updateType?: 'update.dialog';
  data: Sections & { message: null; pack?: Pack };
}

export interface SectionsUserUpdate extends SectionsFields {
  eventType: FirstUserEventType;
  updateType?: 'update.user';
  data: Sections & { message: null; user?: User; packStats?: PackStats; userPackStats?: UserPackStats };
}

/** Who is typing where. */
export interface TypingUpdate {
  dialogId: string;
  userId: string;
  userName?: string;
  userInfo?: { userId?: string; name?: string; avatar: string | null };
  expiresInMs: number;
}

// ---- `original` ----------------------------------------------------------------

export type OriginalUpdate = OriginalMessageUpdate | OriginalDialogUpdate | OriginalUserUpdate;

interface OriginalFields extends UpdateFields {
  /** The event's name as published, in later generations. */
  sourceEventType?: EventType;
}

/** The other sections of `data`, behind the fields of its subject. */
interface OtherSections {
  dialog?: Dialog;
  member?: Member | null;
  context?: Context;
}

export type OriginalMessage = Message & { _id: string } & OtherSections;

export interface OriginalMessageUpdate extends OriginalFields {
  eventType: FirstMessageEventType;
  updateType?: 'update.message';
  data: OriginalMessage;
}

export interface OriginalDialogUpdate extends OriginalFields {
  eventType: FirstDialogEventType | 'dialog.messages.bulk_read';
  updateType?: 'update.dialog';
  data: Dialog & { _id: string; typing?: Typing; pack?: Pack } & OtherSections;
}

export interface OriginalUserUpdate extends OriginalFields {
  eventType: FirstUserEventType;
  updateType?: 'update.user';
  data: (User | PackStats | UserPackStats) & { _id: string } & OtherSections;
}

// ---- Every envelope ------------------------------------------------------------

/** An update in any envelope. */
export type AnyUpdate = Chat3Update | SectionsUpdate | OriginalUpdate;

export type EventType = MessageEventType | DialogEventType | UserEventType;

export type MessageEventType =
  | FirstMessageEventType
  // Chat3 since 2026-05:
  | 'message.changed'
  | 'message.reaction.changed'
  | 'message.status.changed'
  // Chat3 since 2026-08: `deleted` says whether the message was deleted or restored.
  | 'message.deleted';

/** The names of 2025, which `sections` and `original` give to all later ones. */
export type FirstMessageEventType =
  | 'message.create'
  | 'message.update'
  | 'message.delete'
  | 'message.reaction.add'
  | 'message.reaction.update'
  | 'message.reaction.remove'
  | 'message.status.create'
  | 'message.status.update';

export type DialogEventType =
  | FirstDialogEventType
  // Chat3 since 2026-05:
  | 'dialog.changed'
  | 'dialog.member.changed'
  | 'dialog.topic.changed'
  | 'dialog.messages.bulk_read';

export type FirstDialogEventType =
  | 'dialog.create'
  | 'dialog.update'
  | 'dialog.delete'
  | 'dialog.member.add'
  | 'dialog.member.remove'
  | 'dialog.member.update'
  | 'dialog.typing'
  | 'dialog.topic.create'
  | 'dialog.topic.update';

export type UserEventType =
  | FirstUserEventType
  // Chat3 since 2026-05:
  | 'user.changed'
  | 'pack.changed'
  | 'pack.dialog.add'
  | 'pack.dialog.remove';

export type FirstUserEventType =
  | 'user.add'
  | 'user.update'
  | 'user.remove'
  | 'user.stats.update'
  | 'user.pack.stats.updated'
  | 'pack.stats.updated';

/** The fields that every update has around its event. */
export interface UpdateFields {
  tenantId: string;
  /** The recipient: there is one update for each member of the dialog. */
  userId: string;
  entityId: string;
  eventId: string;
  dialogId?: string | null;
  published: boolean;
  publishedAt?: Time;
  createdAt: Time;
  /** In the first generation only. */
  _id?: string;
  updatedAt?: Time;
  __v?: number;
}
