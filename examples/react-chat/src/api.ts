// The application's API, as the browser calls it, for everything that the gateway does
// not do. `dev-backend.ts` answers here; replace these calls with your own.

import type { Dialog, MessageStatus, Reaction } from 'chat3-gateway-client';

export interface Session {
  token: string;
  expiresAt: string;
}

export interface StoredMessage {
  id: string;
  senderId: string;
  content: string;
  createdAt: string;
  isEdited?: boolean;
}

/** A dialog as one of its members sees it. */
export interface DialogState {
  dialog: Dialog;
  members: string[];
  messages: (StoredMessage & { reactions: Reaction[]; statuses: Record<string, MessageStatus> })[];
}

export type Api = ReturnType<typeof apiOf>;

export function apiOf(user: string) {
  async function call<Result>(action: string, args: Record<string, string> = {}, signal?: AbortSignal): Promise<Result> {
    const answer = await fetch(`/api/${action}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user, ...args }),
      signal,
    });
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.error);
    return result;
  }
  return {
    session: () => call<Session>('session'),
    dialog: (signal: AbortSignal) => call<DialogState>('dialog', {}, signal),
    send: (content: string) => call<void>('send', { content }),
    edit: (id: string, content: string) => call<void>('edit', { id, content }),
    remove: (id: string) => call<void>('remove', { id }),
    react: (id: string, reaction: string) => call<void>('react', { id, reaction }),
    mark: (id: string, status: MessageStatus) => call<void>('mark', { id, status }),
    typing: () => call<void>('typing'),
    addMember: (member: string) => call<void>('addMember', { member }),
    removeMember: (member: string) => call<void>('removeMember', { member }),
  };
}
