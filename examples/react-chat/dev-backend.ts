// REPLACE THIS with your own API and Chat3.
//
// A stand-in for both, in memory, inside the Vite server: it keeps one dialog,
// and for each change it publishes the same updates as Chat3, one for each member,
// through `chat3-gateway dev`. The browser calls it by src/api.ts and gets
// nothing back: the changes arrive through the gateway.
//
// It trusts the user id that the caller sends. Your backend checks its session.

import { randomBytes } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Plugin } from 'vite';
import type { Dialog, EventType, Message, MessageStatus, Reaction } from 'chat3-gateway-client';
import type { DialogState, Session, StoredMessage } from './src/api';

const TENANT = 'tnt_default';

interface Stored extends StoredMessage {
  reactions: Map<string, string>;
  statuses: Map<string, MessageStatus>;
}

type Args = Record<string, string>;

export function devBackend(gateway: string): Plugin {
  const dialog: Dialog = { _id: newId(), name: 'Weekend trip', createdBy: 'usr_alice', meta: {} };
  const members = new Set(['usr_alice', 'usr_bob']);
  const messages = new Map<string, Stored>();

  const actions: Record<string, (user: string, args: Args) => unknown> = {
    session: (user): Promise<Session> => post('/dev/tokens', { userId: user, tenantId: TENANT }),

    dialog: (user): DialogState => {
      const stored = [...messages.values()];
      return { dialog, members: [...members], messages: stored.map((message) => storedMessage(message, user)) };
    },

    send: (user, { content }) => {
      const now = new Date().toISOString();
      const id = newId();
      messages.set(id, { id, senderId: user, content, createdAt: now, reactions: new Map(), statuses: new Map() });
      publishMessage('message.create', id);
    },

    edit: (_user, { id, content }) => {
      Object.assign(find(id), { content, isEdited: true });
      publishMessage('message.update', id, { isEdited: true });
    },

    remove: (_user, { id }) => {
      publishMessage('message.delete', id, { isDeleted: true });
      messages.delete(id);
    },

    /** One reaction for each user; the same again takes it back. */
    react: (user, { id, reaction }) => {
      const { reactions } = find(id);
      const oldReaction = reactions.get(user) ?? null;
      const isTakenBack = oldReaction === reaction;
      if (isTakenBack) reactions.delete(user);
      else reactions.set(user, reaction);
      const event = isTakenBack ? 'remove' : oldReaction ? 'update' : 'add';
      publishMessage(`message.reaction.${event}`, id, (member) => ({
        reactionUpdate: {
          userId: user,
          reaction: isTakenBack ? null : reaction,
          oldReaction,
          reactionSet: reactionSet(reactions, member),
        },
      }));
    },

    mark: (user, { id, status }) => {
      // Not everything comes from here: anybody may publish in the development mode.
      const statuses = messages.get(id)?.statuses;
      if (!statuses) return;
      const oldStatus = statuses.get(user) ?? null;
      if (oldStatus === status || oldStatus === 'read') return;
      statuses.set(user, status as MessageStatus);
      const statusUpdate = { userId: user, status: status as MessageStatus, oldStatus };
      publishMessage(`message.status.${oldStatus ? 'update' : 'create'}`, id, { statusUpdate });
    },

    typing: (user) => {
      const others = [...members].filter((member) => member !== user);
      publish('dialog.typing', others, () => dialogData({ typing: { userId: user, expiresInMs: 5000 } }));
    },

    addMember: (_user, { member }) => {
      members.add(member);
      publish('dialog.member.add', members, () => dialogData());
    },

    removeMember: (_user, { member }) => {
      publish('dialog.member.remove', members, () => dialogData());
      members.delete(member);
    },
  };

  function find(id: string): Stored {
    const message = messages.get(id);
    if (!message) throw new Refusal(404, 'no such message');
    return message;
  }

  function publishMessage(
    eventType: EventType,
    id: string,
    extra: Partial<Message> | ((member: string) => Partial<Message>) = {},
  ) {
    const { senderId, content, createdAt } = find(id);
    const data: Message = { _id: id, dialogId: dialog._id, senderId, type: 'text', content, createdAt, meta: {} };
    const extraFor = (member: string) => (typeof extra === 'function' ? extra(member) : extra);
    publish(eventType, members, (member) => ({ ...data, ...extraFor(member) }));
  }

  function dialogData(extra: Partial<Dialog> = {}): Dialog {
    return { ...dialog, dialogId: dialog._id, ...extra };
  }

  /** Updates are sent one after the other, in the order of the changes; as with Chat3, no request waits for them. */
  let last: Promise<unknown> = Promise.resolve();
  function publish(eventType: EventType, to: Iterable<string>, dataFor: (member: string) => Message | Dialog) {
    for (const userId of to) {
      const update = { userId, tenantId: TENANT, generation: 'original', eventType, data: dataFor(userId) };
      last = last.then(() => post('/dev/updates', update)).catch((problem) => console.warn(problem.message));
    }
  }

  async function post(path: string, body: unknown) {
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(gateway + path, { method: 'POST', headers, body: JSON.stringify(body) }).catch(() => {
      throw new Refusal(502, noGateway(gateway));
    });
    const result = await answer.json();
    if (!answer.ok) throw new Refusal(502, `${gateway}${path}: ${result.error}`);
    return result;
  }

  async function serve(request: IncomingMessage, response: ServerResponse) {
    const answer = (status: number, body: unknown) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body ?? {}));
    };
    try {
      const action = request.url?.slice(1) ?? '';
      // Asking for JSON keeps other sites out: their browsers would have to ask first.
      const isJson = request.headers['content-type'] === 'application/json';
      if (!isJson || !Object.hasOwn(actions, action)) throw new Refusal(404, 'no such action');
      let body = '';
      for await (const chunk of request) body += chunk;
      const { user, ...args } = JSON.parse(body) as Args;
      if (action !== 'session' && !members.has(user)) throw new Refusal(403, 'You are not a member of this dialog.');
      answer(200, await actions[action](user, args));
    } catch (problem) {
      const status = problem instanceof Refusal ? problem.status : 400;
      answer(status, { error: (problem as Error).message });
    }
  }

  return {
    name: 'dev-backend',
    configureServer: async (server) => {
      server.middlewares.use('/api', serve);
      await fetch(`${gateway}/health`).catch(() => console.warn(`\n${noGateway(gateway)}\n`));
    },
    configurePreviewServer: (server) => void server.middlewares.use('/api', serve),
  };
}

function noGateway(gateway: string) {
  return `No gateway at ${gateway}. Start it with \`make run\`; if it has another port, name it here as well: \`PORT=3301 make react\`.`;
}

class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

function storedMessage({ reactions, statuses, ...message }: Stored, reader: string) {
  return { ...message, reactions: reactionSet(reactions, reader), statuses: Object.fromEntries(statuses) };
}

function reactionSet(reactions: Map<string, string>, reader: string): Reaction[] {
  const set = new Map<string, Reaction>();
  for (const [user, reaction] of reactions) {
    const entry = set.get(reaction) ?? { reaction, count: 0, me: false };
    set.set(reaction, { reaction, count: entry.count + 1, me: entry.me || user === reader });
  }
  return [...set.values()];
}

function newId(): string {
  return randomBytes(12).toString('hex');
}
