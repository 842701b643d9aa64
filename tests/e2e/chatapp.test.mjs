// CHAT3_ENVELOPE=sections: a page that reads the same fields and listens to the same
// events as antirek/chatapp's page shows every generation of Chat3: in two tabs, after a
// cut connection, and after a restart of the gateway.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Network, Publisher, Tab, freePort, generations } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

/** Without any setting but the envelope, for every generation of Chat3. */
const start = (env) => Gateway.start(broker, { env: { CHAT3_ENVELOPE: 'sections', ...env } });

/** What the page shows: one dialog is open, with its earlier messages, and it is the only one in the list. */
class Page {
  constructor(socket, userId, dialogId, earlier) {
    this.userId = userId;
    this.open = dialogId;
    this.dialogs = [{ dialogId, unreadCount: 7 }];
    this.messages = [...earlier];
    this.typing = new Map();
    this.fetches = 0;
    socket.on('chat3:update', (update) => this.update(update));
    socket.on('message:update', (update) => this.changeMessage(update.eventType ?? update.data?.context?.eventType, update.data));
    socket.on('dialog:update', () => this.fetchDialogs());
    socket.on('typing:update', (typing) => this.type(typing));
  }

  fetchDialogs() {
    this.fetches += 1;
  }

  update(update) {
    const eventType = update.eventType || update.data?.context?.eventType;
    const { message, member, dialog, context, typing } = update.data ?? {};
    const dialogId = update.dialogId || context?.dialogId || dialog?.dialogId || message?.dialogId || typing?.dialogId;
    switch (eventType) {
      case 'message.create':
        if (message) this.addMessage(message, dialogId);
        break;
      case 'message.update':
      case 'message.delete':
      case 'message.status.update':
      case 'message.reaction.add':
      case 'message.reaction.remove':
        this.changeMessage(eventType, update.data);
        break;
      case 'dialog.create':
      case 'dialog.update':
      case 'dialog.member.add':
      case 'dialog.member.remove':
      case 'dialog.member.update':
        this.fetchDialogs();
        break;
      case 'dialog.typing':
        if (typing) this.type({ dialogId, userId: typing.userId, userName: typing.userInfo?.name, expiresInMs: typing.expiresInMs });
        break;
    }
    const unreadCount = member?.state?.unreadCount;
    const listed = this.dialogs.find((known) => known.dialogId === dialogId);
    if (listed && typeof unreadCount === 'number') listed.unreadCount = unreadCount;
  }

  addMessage(message, fallback) {
    if ((message.dialogId || fallback) !== this.open) return;
    const id = message.messageId ?? message._id;
    if (!this.messages.some((known) => (known.messageId ?? known._id) === id)) this.messages.push(message);
  }

  changeMessage(eventType, data) {
    const payload = data?.message || data;
    const id = payload?.messageId || payload?._id;
    const at = this.messages.findIndex((message) => id && (message.messageId === id || message._id === id));
    if (at < 0) return;
    const message = this.messages[at];
    if (eventType !== 'message.status.update') {
      this.messages[at] = { ...message, ...payload };
      return;
    }
    const { userId, status } = payload.statusUpdate || payload;
    if (!userId || !status) return;
    const others = (message.statuses ?? []).filter((known) => known.userId !== userId);
    this.messages[at] = { ...message, statuses: [...others, { userId, status }] };
  }

  type({ dialogId, userId, userName, userInfo, expiresInMs }) {
    if (dialogId !== this.open || !userId || userId === this.userId) return;
    this.typing.set(userId, { name: userName || userInfo?.name, expiresInMs });
  }

  /** The messages as shown, in their order on the page. */
  get shown() {
    // A string is tried as a number first: an ISO time becomes its year.
    const time = ({ createdAt }) => (typeof createdAt === 'string' ? parseFloat(createdAt) || Date.parse(createdAt) : createdAt);
    return [...this.messages].sort((a, b) => time(a) - time(b)).map((message) => ({
      id: message.messageId ?? message._id,
      text: message.content,
      type: message.type?.replace('internal.', ''),
      author: message.senderInfo?.name,
      reactions: message.reactionCounts,
      statuses: (message.statuses ?? []).map(({ userId, status }) => [userId, status]),
      isDeleted: message.deleted,
      time: time(message),
    }));
  }

  get state() {
    return { shown: this.shown, unread: this.dialogs[0].unreadCount, fetches: this.fetches, typing: [...this.typing] };
  }
}

const shownOf = (page, { messageId, _id }) => page.shown.find(({ id }) => id === (messageId ?? _id));

/** What must be true of the page after an event, given what was published and what the page showed before. */
const checks = {
  'message.create'(page, { message, createdAt }, was) {
    assert.equal(page.shown.length, was.shown.length + 1);
    const last = page.shown.at(-1);
    assert.equal(last.text, message.content);
    assert.equal(last.type, 'text');
    assert.equal(last.time, parseFloat(message.createdAt ?? createdAt), 'its own time, or its update\'s');
    if (message.senderInfo) assert.equal(last.author, message.senderInfo.name ?? message.senderInfo.meta.displayName);
  },
  'message.update'(page, { message }, was) {
    const shown = shownOf(page, message);
    assert.equal(shown.text, message.content);
    assert.equal(shown.isDeleted, message.deleted);
    assert.deepEqual(page.shown.map(({ id }) => id), was.shown.map(({ id }) => id), 'nothing moves');
  },
  'message.delete'(page, { message }) {
    assert.equal(shownOf(page, message).isDeleted, message.deleted);
  },
  'message.status.update'(page, { message }) {
    if (!message.statusUpdate) return;
    const { userId, status } = message.statusUpdate;
    assert.deepEqual(shownOf(page, message).statuses.find(([id]) => id === userId), [userId, status]);
  },
  'message.reaction'(page, { message }) {
    const { reactionSet, counts } = message.reactionUpdate ?? {};
    const expected = reactionSet ? Object.fromEntries(reactionSet.map(({ reaction, count }) => [reaction, count]))
      : counts ?? message.reactionCounts;
    if (expected) assert.deepEqual(shownOf(page, message).reactions, expected);
  },
  'dialog.typing'(page, { typing }, was) {
    const { userId, userInfo } = typing;
    const name = userInfo?.name ?? userInfo?.meta?.displayName;
    assert.deepEqual(page.typing.get(userId), { name, expiresInMs: typing.expiresInMs });
    assert.ok(name);
    assert.equal(page.fetches, was.fetches, 'typing is no reason to fetch the dialogs');
  },
  'dialog.counter.update'(page, { member }, was) {
    assert.equal(page.state.unread, member.state.unreadCount);
    assert.equal(page.fetches, was.fetches, 'a counter is no reason to fetch the dialogs');
  },
  dialog(page, _, was) {
    assert.ok(page.fetches > was.fetches, 'the dialogs are fetched');
  },
  user(page, _, was) {
    assert.deepEqual(page.state, was);
  },
};

const checkOf = (name) => checks[name] ?? checks[name.split('.').slice(0, 2).join('.')] ?? checks[name.split('.')[0]];

/** What was published, whatever the generation. */
function published({ data, createdAt }) {
  return { createdAt, ...(data.message || data.dialog || data.user ? data : { message: data, dialog: data }) };
}

for (const { since, updates } of generations()) {
  const { userId } = updates[0].body;
  const dialogId = updates.find(({ emits }) => emits.includes('message:new')).sections.body.dialogId;
  const ids = new Set(updates.map(({ sections }) => sections.body.data.message?.messageId));
  ids.delete(updates.find(({ emits }) => emits.includes('message:new')).body.entityId);
  ids.delete(undefined);
  const earlier = [...ids].map((messageId) => ({ messageId, dialogId, createdAt: '1763475632066.375732' }));
  const page = (tab) => new Page(tab.socket, userId, dialogId, earlier);
  const total = updates.flatMap(({ sections }) => sections.emits).length;

  test(`the page shows each update of ${since}, in both tabs, after a cut and after a restart`, async () => {
    const port = String(await freePort());
    const gateway = await start({ PORT: port });
    const network = await Network.to(gateway);
    // As chatapp's backend makes them: without a tenant.
    const options = { claims: { phone: '79990000000' }, transports: ['websocket'] };
    const tabs = await Promise.all([Tab.open(gateway, userId, options), Tab.open(gateway, userId, options)]);
    const returns = await Tab.open(gateway, userId, { ...options, url: network.url });
    const pages = tabs.map(page);
    const returned = page(returns);

    let sent = 0;
    for (const [number, { name, routingKey, body, sections }] of updates.entries()) {
      const { eventType } = sections.body;
      if (eventType === 'dialog.typing') for (const each of [...pages, returned]) each.open = sections.body.dialogId;
      const before = structuredClone(pages[0].state);
      publisher.publish(routingKey, body);
      sent += sections.emits.length;
      await Promise.all(tabs.map((tab) => tab.when(`${name}, all of it`, () => tab.events.length >= sent)));
      try {
        checkOf(eventType)?.(pages[0], published(body), before);
      } catch (error) {
        error.message = `${name} as ${eventType}: ${error.message}`;
        throw error;
      }
      assert.deepEqual(pages[1].state, pages[0].state, `${name}, in the other tab`);
      if (number === 0) {
        await returns.when('the first update', () => returns.events.length === sent);
        network.cut();
        await returns.when('the cut', () => returns.disconnects.length === 1);
      }
    }
    assert.equal(sent, total);
    const events = tabs[0].events;
    assert.deepEqual(events.map(({ event }) => event), updates.flatMap(({ sections }) => sections.emits));
    for (const { event, args } of events.filter(({ event }) => event === 'chat3:update' || event === 'typing:update')) {
      assert.equal(args.length, 1, event);
    }
    assert.deepEqual(tabs[0].named('chat3:update'), updates.map(({ sections }) => sections.body));
    assert.deepEqual(tabs[0].named('typing:update'), updates.flatMap(({ sections }) => sections.typing ?? []));

    network.restore();
    await returns.when('what it missed', () => returns.events.length >= total);
    assert.deepEqual(returns.recovered, [false, true]);
    assert.equal(JSON.stringify(returns.events), JSON.stringify(events), 'a replay is to the letter');
    assert.deepEqual(returns.offsets, tabs[0].offsets);
    assert.deepEqual(returned.state, pages[0].state);

    await gateway.kill();
    const again = await start({ PORT: port });
    await tabs[0].when('connected again', () => tabs[0].connects === 2);
    await again.metricIs('subscriptions', 1);
    pages[0].messages = [];
    pages[0].open = dialogId;
    publisher.publish(updates[0].routingKey, updates[0].body);
    await tabs[0].when('an update after the restart', () => tabs[0].events.length >= total + updates[0].sections.emits.length);
    assert.equal(pages[0].shown.length, 1);
    tabs.forEach((tab) => tab.close());
    returns.close();
    await again.kill();
  });
}
