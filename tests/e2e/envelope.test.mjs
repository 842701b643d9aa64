// CHAT3_ENVELOPE=original: a frontend that was written for the documented shape
// works with every generation of Chat3, live and after a recovered reconnect.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Network, Publisher, Tab, generations, runGateway } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

const start = (bindingKeys) => Gateway.start(broker, {
  env: { CHAT3_ENVELOPE: 'original', RABBITMQ_BINDING_KEYS: bindingKeys.join(',') },
});

/** The events of one update. Flat bodies already have the documented shape. */
function expectedEvents({ emits, body, original = body }) {
  return emits.map((event) => ({ event, args: [event === 'message:new' ? original.data : original] }));
}

/** The chat in the original's documentation, with its handlers verbatim. */
class Chat {
  constructor({ socket }) {
    this.messages = [];
    this.shown = [];
    this.reactions = [];
    this.refreshed = 0;
    socket.on('chat3:update', (update) => {
      switch (update.eventType) {
        case 'message.create':
          this.messages.push(update.data);
          break;
        case 'message.reaction.add':
          this.reactions.push([update.entityId, update.data.reactionCounts]);
          break;
      }
    });
    socket.on('message:new', (message) => this.shown.push(message));
    socket.on('dialog:update', (update) => {
      assert.ok(update.dialogId);
      this.refreshed += 1;
    });
  }
}

for (const { since, bindingKeys, updates } of generations()) {
  const { userId, tenantId } = updates[0].body;
  const expected = updates.flatMap(expectedEvents);

  test(`every update type of ${since} arrives in the documented shape, live and recovered alike`, async () => {
    const gateway = await start(bindingKeys);
    const network = await Network.to(gateway);
    const options = { claims: { tenantId }, transports: ['websocket'] };
    const stays = await Tab.open(gateway, userId, options);
    const returns = await Tab.open(gateway, userId, { ...options, url: network.url });
    publisher.publish(updates[0].routingKey, updates[0].body);
    const first = updates[0].emits.length;
    await returns.when('the first update', () => returns.events.length === first);
    network.cut();
    await returns.when('the cut', () => returns.disconnects.length === 1);
    for (const { routingKey, body } of updates.slice(1)) publisher.publish(routingKey, body);
    await stays.when('all events', () => stays.events.length >= expected.length);
    network.restore();
    await returns.when('all events', () => returns.events.length >= expected.length);
    assert.deepEqual(returns.recovered, [false, true]);
    assert.deepEqual(stays.events, expected);
    // Verbatim: even the order of the fields is the same.
    assert.equal(JSON.stringify(returns.events), JSON.stringify(stays.events));
    assert.deepEqual(returns.offsets, stays.offsets);
    await gateway.metricIs('updates_rejected_total{reason="not_an_update"}', 0);
    await gateway.kill();
  });

  test(`the documented chat works with ${since}: a message is added once, with its text, id and time`, async () => {
    const gateway = await start(bindingKeys);
    const tab = await Tab.open(gateway, userId, { claims: { tenantId } });
    const chat = new Chat(tab);
    for (const { routingKey, body } of updates) publisher.publish(routingKey, body);
    await tab.when('all events', () => tab.events.length >= expected.length);
    const created = updates.filter(({ emits }) => emits.includes('message:new'));
    assert.equal(created.length, 1);
    assert.equal(chat.messages.length, 1);
    assert.deepEqual(chat.shown, chat.messages);
    const [message] = chat.messages;
    const { data } = created[0].body;
    assert.equal(message.content, (data.message ?? data).content);
    assert.equal(message._id, created[0].body.entityId);
    assert.equal(message.type, 'text');
    assert.ok(Date.parse(message.createdAt) > Date.parse('2025-10-31'));
    assert.equal(message.meta.channelType, (data.message ?? data).meta.channelType);
    assert.equal(chat.reactions.length, 1 + Number(since === '2026-02'), 'its changed event is there under both names');
    for (const [messageId, counts] of chat.reactions) {
      assert.ok(messageId);
      assert.deepEqual(Object.values(counts), [1]);
    }
    assert.equal(chat.refreshed, updates.filter(({ emits }) => emits.includes('dialog:update')).length);
    tab.close();
    await gateway.kill();
  });
}

test('bodies of an unknown shape, and those without any, are treated as without the setting', async () => {
  const gateway = await start(['user.{userId}.*']);
  const tab = await Tab.open(gateway, 'usr_odd', { claims: { tenantId: 'tnt_default' } });
  const own = { tenantId: 'tnt_default', userId: 'usr_odd' };
  const odd = [
    { ...own, eventType: 'message.update', data: ['a', 'list'] },
    { ...own, sourceEventType: 'message.create', updateType: 'update.message', data: { message: 'text' } },
    { ...own },
  ];
  for (const body of odd) publisher.publish('user.usr_odd.messageupdate', body);
  const foreign = { tenantId: 'tnt_other', userId: 'usr_odd', eventType: 'message.create', data: { message: { messageId: 'm' } } };
  publisher.publish('user.usr_odd.messageupdate', foreign);
  publisher.publish('user.usr_odd.messageupdate', Buffer.from('{"userId":"usr_odd"'));
  const last = publisher.update('usr_odd');
  await tab.saw(last);
  assert.deepEqual(tab.named('chat3:update'), [...odd, last]);
  assert.equal(await gateway.metric('updates_rejected_total{reason="foreign_tenant"}'), 1);
  assert.equal(await gateway.metric('updates_rejected_total{reason="not_json"}'), 1);
  tab.close();
  await gateway.kill();
});

test('an unknown shape is reported as a mistake', async () => {
  const { code, stderr } = await runGateway(['serve'], { env: { CHAT3_ENVELOPE: 'flat', JWT_SECRET: 'x'.repeat(32) } });
  assert.equal(code, 78);
  assert.match(stderr, /CHAT3_ENVELOPE \(--chat3-envelope\): "flat" is none of auto, original/);
});
