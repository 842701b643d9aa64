// What updates are about, in every generation of Chat3: messages, dialogs, members, users and packs.

import type { EventType } from './events.d.ts';

/** ISO 8601 in the first generation, later milliseconds since 1970 with a fraction: see `dateOf`. */
export type Time = string;

export type Meta = Record<string, unknown>;

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
  pack?: Pack;
  context: Context;
}

export interface UserSections {
  dialog?: null;
  member?: null;
  message?: null;
  typing?: null;
  user?: User;
  packStats?: PackStats;
  userPackStats?: UserPackStats;
  context: Context;
}

export interface Pack {
  packId: string;
  tenantId?: string;
  createdAt?: Time;
  meta?: Meta;
  stats?: Record<string, number>;
}

export interface User {
  userId: string;
  type?: string;
  name?: string;
  meta?: Meta;
  stats?: UserStats;
}

export type PackStats = { packId: string; lastUpdatedAt?: Time } & PackCounts;

export interface UserPackStats {
  packId: string;
  userId: string;
  tenantId?: string;
  unreadCount: number;
  unreadBySenderType?: UnreadBySender[];
  lastUpdatedAt?: Time;
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
