// What a frontend receives from chat3-gateway and sends to it, for all
// generations of Chat3. Copy this file.
//
//   const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(url, …);
//
// It is compiled against recorded updates of every generation by
// tests/e2e/react.test.mjs: a field that is missing here fails that test.

export interface ServerToClientEvents {
  /** Every update, whole. */
  'chat3:update': (update: Chat3Update, offset?: Offset) => void;
  /** `update.data` of `message.create`; with `CHAT3_ENVELOPE=sections`, its message. */
  'message:new': (data: MessageUpdate['data'], offset?: Offset) => void;
  /** Every other `message.*`, whole. */
  'message:update': (update: MessageUpdate, offset?: Offset) => void;
  /** Every `dialog.*`, whole. */
  'dialog:update': (update: DialogUpdate, offset?: Offset) => void;
  /** With `CHAT3_ENVELOPE=sections` alone: `dialog.typing`, instead of `dialog:update`. */
  'typing:update': (typing: TypingUpdate, offset?: Offset) => void;
  /** The token expires soon: answer with `auth:refresh`. */
  'auth:expiring': (notice: { expiresAt: string }) => void;
  /** An operator has ended this connection. */
  'auth:revoked': (notice: { reason: string | null }) => void;
}

export interface ClientToServerEvents {
  /** A new token of the same user; the connection continues with it. */
  'auth:refresh': (token: string, answer: (answer: RefreshAnswer) => void) => void;
}

export type RefreshAnswer = { ok: true; expiresAt: string | null } | { ok: false; error: string };

/** A place in the user's events, which socket.io-client keeps for recovery. Do not read it. */
export type Offset = string;

// ---- Updates ----------------------------------------------------------------

/** Distinguished by `eventTypeOf`. Newer versions of Chat3 may send types that are not listed here: ignore them. */
export type Chat3Update = MessageUpdate | DialogUpdate | UserUpdate;

export type MessageUpdate = Envelope &
  (
    | { eventType: MessageEventType; data: Message | MessageSections }
    | { sourceEventType: MessageEventType; updateType: 'update.message'; data: MessageSections }
  );

export type DialogUpdate = Envelope &
  (
    | { eventType: DialogEventType; data: Dialog | DialogSections }
    | { sourceEventType: EventType; updateType: 'update.dialog'; data: DialogSections }
  );

/** About the user and packs of dialogs: `chat3:update` alone. */
export type UserUpdate = Envelope &
  (
    | { eventType: UserEventType; data: UserSections }
    | { sourceEventType: EventType; updateType: 'update.user'; data: UserSections }
  );

/** Who is typing where. */
export interface TypingUpdate {
  dialogId: string;
  userId: string;
  userName?: string;
  userInfo?: { userId?: string; name?: string; avatar: string | null };
  expiresInMs: number;
}

export type EventType = MessageEventType | DialogEventType | UserEventType;

export type MessageEventType =
  | 'message.create'
  | 'message.update'
  | 'message.delete'
  | 'message.reaction.add'
  | 'message.reaction.update'
  | 'message.reaction.remove'
  | 'message.status.create'
  | 'message.status.update'
  // Chat3 since 2026-05:
  | 'message.changed'
  | 'message.reaction.changed'
  | 'message.status.changed'
  // Chat3 since 2026-08: `deleted` says whether the message was deleted or restored.
  | 'message.deleted';

export type DialogEventType =
  | 'dialog.create'
  | 'dialog.update'
  | 'dialog.delete'
  | 'dialog.member.add'
  | 'dialog.member.remove'
  | 'dialog.member.update'
  | 'dialog.typing'
  | 'dialog.topic.create'
  | 'dialog.topic.update'
  // Chat3 since 2026-05:
  | 'dialog.changed'
  | 'dialog.member.changed'
  | 'dialog.topic.changed'
  | 'dialog.messages.bulk_read'
  // CHAT3_ENVELOPE=sections alone, and without a `dialog:update`:
  | 'dialog.counter.update';

export type UserEventType =
  | 'user.add'
  | 'user.update'
  | 'user.changed'
  | 'user.remove'
  | 'user.stats.update'
  | 'user.pack.stats.updated'
  | 'pack.stats.updated'
  | 'pack.changed'
  | 'pack.dialog.add'
  | 'pack.dialog.remove';

/** The fields that every update has around its event. */
export interface Envelope {
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

/** ISO 8601 in the first generation, later milliseconds since 1970 with a fraction: see `dateOf`. */
export type Time = string;

export type Meta = Record<string, unknown>;

// ---- The subjects of updates --------------------------------------------------

/** `data` of the first generation's `message.*`, and `data.message` of the later ones. */
export interface Message {
  /** The message's id: one of the two. */
  _id?: string;
  messageId?: string;
  tenantId?: string;
  dialogId?: string;
  senderId: string;
  senderInfo?: UserInfo;
  type: string;
  content?: string;
  createdAt?: Time;
  updatedAt?: Time;
  meta?: Meta;
  quotedMessage?: Message | null;
  topicId?: string | null;
  topic?: { topicId: string; meta?: Meta } | null;
  isEdited?: boolean;
  isDeleted?: boolean;
  deletedAt?: Time | number;
  /** Since 2026-08, as the three below. */
  deleted?: boolean;
  deletedBy?: string;
  edited?: boolean;
  editedAt?: Time | number;
  editedBy?: string;
  reactionCounts?: Record<string, number>;
  reactionUpdate?: ReactionUpdate;
  statuses?: { userId: string; status: MessageStatus; createdAt?: Time; updatedAt?: Time }[];
  statusUpdate?: { userId: string; status: MessageStatus; oldStatus?: MessageStatus | null };
  statusMessageMatrix?: { userType: string; status: MessageStatus; count: number }[];
}

export type MessageStatus = 'unread' | 'delivered' | 'read';

/** Who reacted how, and all reactions after that: `counts` in 2025, `reactionSet` since then. */
export interface ReactionUpdate {
  userId: string;
  reaction: string | null;
  oldReaction?: string | null;
  counts?: Record<string, number>;
  reactionSet?: Reaction[];
}

export interface Reaction {
  reaction: string;
  count: number;
  /** Whether the update's recipient is among them. */
  me: boolean;
}

/** `data` of the first generation's `dialog.*`, and `data.dialog` of the later ones. */
export interface Dialog {
  /** The dialog's id: `_id` in the first generation. */
  _id?: string;
  dialogId?: string;
  tenantId?: string;
  name?: string;
  createdBy?: string | null;
  createdAt?: Time;
  updatedAt?: Time;
  meta?: Meta;
  dialogMemberMeta?: Meta;
  stats?: { unreadCount: number };
  isDeleted?: boolean;
  member?: Member;
  typing?: Typing;
}

/** The recipient's own membership in the dialog. */
export interface Member {
  userId: string;
  role?: string;
  joinedAt?: Time;
  meta?: Meta;
  state?: {
    unreadCount: number | null;
    lastSeenAt?: Time | null;
    lastMessageAt?: Time | null;
    isActive?: boolean | null;
  };
}

export interface Typing {
  userId: string;
  expiresInMs: number;
  timestamp?: number;
  userInfo?: UserInfo;
}

export interface UserInfo {
  userId: string;
  tenantId?: string;
  name?: string;
  type?: string;
  createdAt?: Time;
  updatedAt?: Time;
  lastActiveAt?: Time;
  meta?: Meta;
}

// ---- `data` of the later generations: one section for each thing ----------------
// With CHAT3_ENVELOPE=sections those that are absent are null.

export interface MessageSections {
  message: Message;
  dialog: Dialog | null;
  member?: Member | null;
  typing?: null;
  context: Context;
}

export interface DialogSections {
  dialog: Dialog;
  member?: Member | null;
  message?: null;
  typing?: Typing | null;
  pack?: { packId: string; tenantId?: string; createdAt?: Time; meta?: Meta; stats?: Record<string, number> };
  context: Context;
}

export interface UserSections {
  dialog?: null;
  member?: null;
  message?: null;
  typing?: null;
  user?: { userId: string; type?: string; name?: string; meta?: Meta; stats?: UserStats };
  packStats?: { packId: string; lastUpdatedAt?: Time } & PackCounts;
  userPackStats?: {
    packId: string;
    userId: string;
    tenantId?: string;
    unreadCount: number;
    unreadBySenderType?: UnreadBySender[];
    lastUpdatedAt?: Time;
  };
  context: Context;
}

export interface PackCounts {
  dialogCount: number;
  messageCount: number;
  uniqueMemberCount: number;
  sumMemberCount: number;
  uniqueTopicCount: number;
  sumTopicCount: number;
}

export interface UserStats {
  dialogCount: number;
  unreadDialogsCount: number;
  totalUnreadCount: number;
  totalMessagesCount: number;
  statsVersion?: number;
  lastUpdatedAt?: Time;
  unreadBySenderType?: UnreadBySender[];
  'packs.messages.totalUnreadCount'?: number;
  'packs.messages.unreadBySenderType'?: UnreadBySender[];
  'packs.messages.lastUpdatedAt'?: number;
}

export interface UnreadBySender {
  fromType: string;
  countUnread: number;
}

/** Why this update was sent, and what has changed. */
export interface Context {
  version?: number;
  eventType?: EventType;
  sourceEventType?: EventType;
  sourceEventId?: string;
  entityId?: string;
  dialogId?: string | null;
  messageId?: string | null;
  packId?: string | null;
  userId?: string | null;
  includedSections?: string[];
  updatedFields?: string[];
  uiTarget?: string;
  reason?: string;
}

// ---- Reading updates of every generation ----------------------------------------

/** The type of the event; undefined if the update has none. */
export function eventTypeOf(update: Chat3Update): EventType | undefined {
  const { eventType, sourceEventType, data } = update as {
    eventType?: EventType;
    sourceEventType?: EventType;
    data?: { context?: Context };
  };
  return eventType ?? sourceEventType ?? data?.context?.eventType;
}

/** The message of an update that feeds `message:new` or `message:update`, else null. */
export function messageIn(update: Chat3Update): Message | null {
  if (!isAbout(update, 'message')) return null;
  const { data } = update as MessageUpdate;
  return 'context' in data ? data.message : data;
}

/** The dialog of an update that feeds `dialog:update`, else null; with the user who is typing, if the update says so. */
export function dialogIn(update: Chat3Update): Dialog | null {
  if (!isAbout(update, 'dialog')) return null;
  const { data } = update as DialogUpdate;
  return 'context' in data ? { ...data.dialog, typing: data.typing ?? undefined } : data;
}

function isAbout(update: Chat3Update, kind: 'message' | 'dialog'): boolean {
  if (!update.data) return false;
  if ('updateType' in update) return update.updateType === `update.${kind}`;
  return eventTypeOf(update)?.startsWith(`${kind}.`) ?? false;
}

export function dateOf(time: Time): Date {
  return new Date(/^[\d.]+$/.test(time) ? Number(time) : time);
}
