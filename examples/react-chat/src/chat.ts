// The state of the screen, as a function of the fetched state and the updates that
// follow it. Applying an update twice changes nothing: those that arrived during the
// fetch may be in the fetched state already.

import { dateOf, dialogIn, eventTypeOf, messageIn, type Chat3Update, type Message, type MessageStatus, type Reaction } from 'chat3-gateway-client';
import type { DialogState } from './api';

export interface ChatMessage {
  id: string;
  senderId: string;
  content: string;
  at: Date;
  isEdited: boolean;
  reactions: Reaction[];
  /** By reader. */
  statuses: Record<string, MessageStatus>;
}

export interface Chat {
  title: string;
  members: string[];
  messages: ChatMessage[];
  /** Who is typing, and until when that is assumed, in ms since 1970. */
  typing: Record<string, number>;
}

export const EMPTY_CHAT: Chat = { title: '', members: [], messages: [], typing: {} };

export type ChatAction = { type: 'fetched'; state: DialogState } | { type: 'update'; update: Chat3Update };

/** `me` is the user at the screen. */
export function chatReducer(me: string) {
  return (chat: Chat, action: ChatAction): Chat =>
    action.type === 'fetched' ? stored(chat, action.state) : updated(chat, action.update, me);
}

/** Whether an update says that the members changed, or that a deleted message was restored. It lacks the details: these must be fetched. */
export function isToBeFetched(update: Chat3Update): boolean {
  const eventType = eventTypeOf(update) ?? '';
  if (eventType === 'message.deleted') return messageIn(update)?.deleted === false;
  return ['dialog.member.add', 'dialog.member.remove'].includes(eventType);
}

function stored(chat: Chat, { dialog, members, messages }: DialogState): Chat {
  return {
    title: dialog.name ?? '',
    members,
    messages: messages.map(({ createdAt, isEdited = false, ...message }) => ({ ...message, at: dateOf(createdAt), isEdited })),
    typing: chat.typing,
  };
}

function updated(chat: Chat, update: Chat3Update, me: string): Chat {
  const message = messageIn(update);
  if (message) return withMessage(chat, eventTypeOf(update) ?? '', message, me);
  const dialog = dialogIn(update);
  if (!dialog) return chat;
  const typing = dialog.typing
    ? { ...chat.typing, [dialog.typing.userId]: Date.now() + dialog.typing.expiresInMs }
    : chat.typing;
  return { ...chat, title: dialog.name ?? chat.title, typing };
}

function withMessage(chat: Chat, eventType: string, message: Message, me: string): Chat {
  const id = message._id ?? message.messageId;
  if (!id) return chat;
  if (eventType === 'message.delete' || message.isDeleted || message.deleted) {
    return { ...chat, messages: chat.messages.filter((known) => known.id !== id) };
  }
  const known = chat.messages.find((known) => known.id === id);
  // A change of a message that is not on the screen.
  if (!known && eventType !== 'message.create') return chat;
  const next: ChatMessage = {
    id,
    senderId: message.senderId,
    content: message.content ?? known?.content ?? '',
    at: message.createdAt ? dateOf(message.createdAt) : (known?.at ?? new Date()),
    isEdited: message.isEdited ?? message.edited ?? known?.isEdited ?? false,
    reactions: reactionsOf(eventType, message, known?.reactions ?? [], me),
    statuses: statusesOf(message, known?.statuses ?? {}),
  };
  const typing = { ...chat.typing };
  if (!known) delete typing[message.senderId];
  const messages = known ? chat.messages.map((other) => (other === known ? next : other)) : [...chat.messages, next];
  return { ...chat, messages, typing };
}

function reactionsOf(eventType: string, message: Message, known: Reaction[], me: string): Reaction[] {
  const { reactionUpdate, reactionCounts } = message;
  if (reactionUpdate?.reactionSet) return reactionUpdate.reactionSet;
  // In an update about a reaction, missing counts mean that the last reaction was removed.
  const none = eventType.startsWith('message.reaction.') ? {} : null;
  const counts: Record<string, number> | null = reactionUpdate?.counts ?? reactionCounts ?? none;
  if (!counts) return known;
  const isMine = (reaction: string) =>
    reactionUpdate?.userId === me
      ? reactionUpdate.reaction === reaction
      : known.some((entry) => entry.reaction === reaction && entry.me);
  return Object.entries(counts).map(([reaction, count]) => ({ reaction, count, me: isMine(reaction) }));
}

function statusesOf({ statuses, statusUpdate }: Message, known: Record<string, MessageStatus>) {
  const next = { ...known };
  for (const { userId, status } of statuses ?? []) next[userId] = status;
  if (statusUpdate) next[statusUpdate.userId] = statusUpdate.status;
  return next;
}
