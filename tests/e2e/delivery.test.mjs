// An update published to RabbitMQ reaches its user's sockets: all of them, in
// order, once, as published, and nobody else's.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Network, Publisher, Tab, anUpdate, generations, testOf, token, until } from './harness.mjs';

const testOfQueues = testOf('queues of the gateway alone');

let broker;
let gateway;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker);
});

/** Waits until every message that the broker delivered for this many users is acknowledged. */
async function allIsAcknowledged(users) {
  const isAcknowledged = ({ unacknowledged }) => unacknowledged === 0;
  await until('all is acknowledged', async () => (await broker.queuesAre(users)).every(isAcknowledged));
}

/** The events of one update, by the documented table. */
function expectedEvents({ emits, body }) {
  return emits.map((event) => ({ event, args: [event === 'message:new' ? body.data : body] }));
}

for (const { since, bindingKeys, updates } of generations()) {
  test(`every update type of ${since} arrives as documented on both tabs, and on nobody else's socket`, async () => {
    const server = await Gateway.start(broker, { env: { RABBITMQ_BINDING_KEYS: bindingKeys.join(',') } });
    const recipient = updates[0].body.userId;
    const claims = { tenantId: updates[0].body.tenantId };
    const tabs = [await Tab.open(server, recipient, { claims }), await Tab.open(server, recipient, { claims })];
    const stranger = await Tab.open(server, 'usr_stranger', { claims });
    for (const { routingKey, body } of updates) publisher.publish(routingKey, body);
    const expected = updates.flatMap(expectedEvents);
    for (const tab of tabs) {
      await tab.when('all events', () => tab.events.length >= expected.length);
      assert.deepEqual(tab.events, expected);
    }
    // The sentinel, published last, is the next to arrive: nothing else was on its way.
    const key = updates[0].routingKey.replace(recipient, 'usr_stranger');
    const sentinel = anUpdate('usr_stranger', claims);
    publisher.publish(key, sentinel);
    await stranger.saw(sentinel);
    assert.deepEqual(stranger.ids, [sentinel._id]);
    for (const tab of [...tabs, stranger]) tab.close();
    await server.kill();
  });
}

test('an update that Chat3 publishes twice arrives once where DROP_REPEATED_UPDATES is set, live and recovered alike', async () => {
  const server = await Gateway.start(broker, { env: { DROP_REPEATED_UPDATES: 'true' } });
  const { updates } = generations().at(-1);
  const { userId, tenantId } = updates[0].body;
  const twice = ({ routingKey, body }) => {
    publisher.publish(routingKey, body);
    publisher.publish(routingKey, { ...body, createdAt: `1${body.createdAt}` });
  };
  const network = await Network.to(server);
  const options = { claims: { tenantId }, transports: ['websocket'] };
  const stays = await Tab.open(server, userId, options);
  const returns = await Tab.open(server, userId, { ...options, url: network.url });
  twice(updates[0]);
  const first = updates[0].emits.length;
  await returns.when('the first update', () => returns.events.length === first);
  network.cut();
  await returns.when('the cut', () => returns.disconnects.length === 1);
  updates.slice(1).forEach(twice);
  // Without an updateType, the gateway cannot tell a repeat.
  const early = anUpdate(userId, { tenantId });
  twice({ routingKey: `user.${userId}.messageupdate`, body: early });
  const expected = updates.flatMap(expectedEvents);
  const total = expected.length + 4;
  await stays.when('all events', () => stays.events.length >= total);
  network.restore();
  await returns.when('all events', () => returns.events.length >= total);
  assert.deepEqual(returns.recovered, [false, true]);
  assert.deepEqual(stays.events.slice(0, expected.length), expected);
  assert.deepEqual(stays.ids.slice(-2), [early._id, early._id]);
  assert.deepEqual(returns.events, stays.events);
  assert.deepEqual(returns.offsets, stays.offsets);
  const numbers = stays.offsets.map((offset) => parseInt(offset.split('-')[1], 16));
  assert.deepEqual(numbers, numbers.map((_, index) => numbers[0] + index), 'no number is left out');
  await server.metricIs('updates_rejected_total{reason="repeated"}', updates.length);
  stays.close();
  returns.close();
  await server.kill();
});

test('an update that is published twice arrives twice by default', async () => {
  const [{ routingKey, body }] = generations().at(-1).updates;
  const tab = await Tab.open(gateway, body.userId, { claims: { tenantId: body.tenantId } });
  publisher.publish(routingKey, body);
  publisher.publish(routingKey, body);
  await tab.when('both', () => tab.named('message:new').length === 2);
  tab.close();
});

test('the original documents 13 update types, and all of them are among the fixtures', () => {
  const names = generations().find(({ since }) => since.startsWith('2025-10-31')).updates.map(({ name }) => name);
  for (const name of [
    'message.create', 'message.update', 'message.delete', 'message.reaction.add', 'message.reaction.update',
    'message.reaction.remove', 'message.status.create', 'message.status.update', 'dialog.create', 'dialog.update',
    'dialog.delete', 'dialog.member.add', 'dialog.member.remove',
  ]) {
    assert.ok(names.includes(name), name);
  }
});

test('many sockets of a user get the same, each in its form, until one of them leaves or is sent away', async () => {
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator' } });
  const [user, other] = ['usr_many', 'usr_many_too'];
  const open = (userId, options) => Tab.open(server, userId, { transports: ['websocket'], ...options });
  const plain = (userId) => open(userId, { auth: { token: token(userId), recovery: false } });
  const revocable = await open(user, { claims: { jti: 'jti-many' } });
  const leaving = await open(user);
  const staying = [await open(user), await plain(user), await plain(user)];
  const others = [await open(other), await open(other)];
  const rounds = [];
  const round = async (tabs) => {
    const updates = [anUpdate(user), anUpdate(user, { eventType: 'dialog.update' })];
    rounds.push(...updates);
    for (const update of updates) publisher.publish(`user.${user}.messageupdate`, update);
    for (const tab of tabs) await tab.saw(updates[1]);
  };
  await round([revocable, leaving, ...staying]);
  leaving.close();
  await round([revocable, ...staying]);
  const headers = { authorization: 'Bearer operator', 'content-type': 'application/json' };
  const body = JSON.stringify({ until: Math.floor(Date.now() / 1000) + 3600 });
  const revoked = await fetch(`${server.url}/api/tokens/jti-many/revoke`, { method: 'POST', headers, body });
  assert.equal(revoked.status, 200);
  await round(staying);
  assert.equal(await revocable.refused(), 'token revoked');
  for (const tab of staying) {
    assert.deepEqual(tab.ids, rounds.map(({ _id }) => _id));
    assert.equal(tab.events.length, 2 * rounds.length);
  }
  assert.deepEqual(staying.map((tab) => tab.offsets.length), [2 * rounds.length, 0, 0]);
  assert.equal(new Set(staying[0].offsets).size, 2 * rounds.length);
  assert.deepEqual(leaving.ids, rounds.slice(0, 2).map(({ _id }) => _id));
  assert.deepEqual(revocable.ids, rounds.slice(0, 4).map(({ _id }) => _id));
  const sentinel = anUpdate(other);
  publisher.publish(`user.${other}.messageupdate`, sentinel);
  for (const tab of others) {
    await tab.saw(sentinel);
    assert.deepEqual(tab.ids, [sentinel._id]);
  }
  for (const tab of [...staying, ...others, revocable]) tab.close();
  await server.kill();
});

for (const [what, options] of [
  ['polling', { transports: ['polling'] }],
  ['polling, then upgrade', {}],
  ['websocket', { transports: ['websocket'] }],
]) {
  test(`a burst of 2,000 updates arrives complete and in order over ${what}`, async () => {
    const tabs = [await Tab.open(gateway, 'usr_burst', options), await Tab.open(gateway, 'usr_burst', options)];
    const published = Array.from({ length: 2000 }, () => publisher.update('usr_burst')._id);
    for (const tab of tabs) {
      await tab.when('2,000 updates', () => tab.events.length >= 4000);
      assert.deepEqual(tab.ids, published);
      // Each message:new arrives right after its chat3:update.
      tab.events.forEach(({ event }, index) => {
        assert.equal(event, index % 2 === 0 ? 'chat3:update' : 'message:new');
      });
      assert.deepEqual(tab.disconnects, []);
      tab.close();
    }
    await broker.queuesAre(0);
  });
}

test('updates that pour in while a socket upgrades are neither lost nor doubled', async () => {
  // More than engineioxide's default polling payload, right around the upgrade.
  const filler = 'ж'.repeat(5000);
  const first = await Tab.open(gateway, 'usr_upgrade');
  for (let round = 0; round < 5; round += 1) {
    const tab = new Tab(gateway, first.socket.auth.token);
    await tab.when('connected', () => tab.connects === 1);
    const published = [];
    for (let i = 0; i < 60; i += 1) {
      published.push(publisher.update('usr_upgrade', { data: { filler } })._id);
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await tab.when('all updates', () => tab.ids.includes(published.at(-1)));
    const since = tab.ids.slice(tab.ids.indexOf(published[0]));
    assert.deepEqual(since, published);
    tab.close();
  }
  first.close();
});

test('a connected socket is subscribed: what is published after connect arrives', async () => {
  for (let round = 0; round < 20; round += 1) {
    const tab = await Tab.open(gateway, `usr_fresh_${round}`, { transports: ['websocket'] });
    const update = publisher.update(`usr_fresh_${round}`);
    await tab.saw(update);
    tab.close();
  }
});

test('a body is forwarded byte for byte', async () => {
  const auth = { token: token('usr_raw'), recovery: false };
  const tab = new Tab(gateway, null, { auth, transports: ['websocket'] });
  await tab.when('connected', () => tab.connects === 1);
  const frames = [];
  tab.socket.io.engine.on('packet', ({ type, data }) => type === 'message' && frames.push(data));
  // Number formats, key order, escapes and spacing, all of which a decoder would normalise.
  const body = '{ "userId":"usr_raw", "tenantId":"t", "n":1.10, "f":1782133682669.8088, "big":12345678901234567890,"eventType":"message.update","e":"\\u0416\\/","data":{ "z":1,"a":2} }';
  publisher.publish('user.usr_raw.messageupdate', Buffer.from(body));
  await tab.when('both events', () => tab.events.length === 2);
  assert.deepEqual(frames, [`2["chat3:update",${body}]`, `2["message:update",${body}]`]);
  tab.close();
});

test('half an emoji, as Chat3 cuts long messages, does not stop a message', async () => {
  const tab = await Tab.open(gateway, 'usr_half');
  const body = '{"userId":"usr_half","eventType":"message.create","_id":"half","data":{"content":"cut \\ud83d"}}';
  publisher.publish('user.usr_half.messageupdate', Buffer.from(body));
  await tab.when('both events', () => tab.events.length === 2);
  assert.deepEqual(tab.named('message:new'), [{ content: 'cut \ud83d' }]);
  tab.close();
});

for (const transports of [['polling'], ['websocket']]) {
  test(`a body of 200 KB arrives over ${transports}`, async () => {
    const tab = await Tab.open(gateway, 'usr_large', { transports });
    const update = publisher.update('usr_large', { data: { content: 'я'.repeat(100_000) } });
    await tab.when('both events', () => tab.events.length === 2);
    assert.deepEqual(tab.named('chat3:update')[0], update);
    assert.deepEqual(tab.named('message:new')[0], update.data);
    tab.close();
  });
}

testOfQueues('online users have a queue, shared by their tabs, and users who left have none', async () => {
  await broker.queuesAre(0);
  const a1 = await Tab.open(gateway, 'usr_q1');
  const a2 = await Tab.open(gateway, 'usr_q1');
  const b = await Tab.open(gateway, 'usr_q2');
  const queues = await broker.queuesAre(2);
  for (const queue of queues) {
    assert.equal(queue.consumers, 1);
    assert.deepEqual([queue.exclusive, queue.autoDelete, queue.durable], ['true', 'true', 'false']);
    assert.doesNotMatch(queue.name, /usr_/);
  }
  a1.close();
  const update = publisher.update('usr_q1');
  await a2.saw(update);
  await broker.queuesAre(2);
  a2.close();
  await broker.queuesAre(1);
  b.close();
  await broker.queuesAre(0);
  await gateway.metricIs('subscriptions', 0);
  await gateway.logged(/subscribed to updates user_id=usr_q1/);
  await gateway.logged(/unsubscribed from updates user_id=usr_q1/);
});

test('everything received is acknowledged', async () => {
  const tab = await Tab.open(gateway, 'usr_ack');
  let last;
  for (let i = 0; i < 500; i += 1) last = publisher.update('usr_ack');
  await tab.saw(last);
  // More than the prefetch arrived; an empty queue proves the rest.
  await allIsAcknowledged(1);
  tab.close();
});

test('a user who leaves and returns at once is subscribed', async () => {
  for (let round = 0; round < 30; round += 1) {
    const tab = await Tab.open(gateway, 'usr_churn', { transports: ['websocket'] });
    await tab.saw(publisher.update('usr_churn'));
    tab.close();
  }
  await broker.queuesAre(0);
  await gateway.metricIs('users', 0);
});

const poison = [
  ['not JSON', 'not_json', Buffer.from('not json at all')],
  ['truncated JSON', 'not_json', Buffer.from('{"userId":"usr_poison"')],
  ['empty', 'empty', Buffer.alloc(0)],
  ['binary', 'not_json', Buffer.from([0xff, 0xfe, 0x00, 0x80, 0x01])],
  ['an array', 'not_an_update', Buffer.from('["usr_poison"]')],
  ['a string', 'not_an_update', Buffer.from('"usr_poison"')],
  ['null', 'not_an_update', Buffer.from('null')],
  ['an object without userId', 'not_an_update', Buffer.from('{"eventType":"message.create"}')],
  ['a userId that is a number', 'not_an_update', Buffer.from('{"userId":1,"eventType":"message.create"}')],
  ['a userId given twice', 'not_an_update', Buffer.from('{"userId":"usr_poison","userId":"usr_poison"}')],
  ['50,000 levels deep', 'too_deep', Buffer.from(`{"userId":"usr_poison","data":${'['.repeat(50_000)}${']'.repeat(50_000)}}`)],
  ['8 MB', 'too_large', Buffer.from(`{"userId":"usr_poison","data":"${'x'.repeat(8 << 20)}"}`)],
  ["another user's", 'foreign_user', Buffer.from(JSON.stringify(anUpdate('usr_other')))],
  ["another tenant's", 'foreign_tenant', Buffer.from(JSON.stringify(anUpdate('usr_poison', { tenantId: 'tnt_other' })))],
  ['without a tenant', 'foreign_tenant', Buffer.from(JSON.stringify(anUpdate('usr_poison', { tenantId: undefined })))],
];

for (const [what, reason, body] of poison) {
  test(`a body that is ${what} is counted and settled, and the next good update arrives`, async () => {
    const tab = await Tab.open(gateway, 'usr_poison', { claims: { tenantId: 'tnt_default' } });
    const before = await gateway.metric(`updates_rejected_total{reason="${reason}"}`);
    publisher.publish('user.usr_poison.messageupdate', body);
    const good = publisher.update('usr_poison');
    await tab.saw(good);
    assert.deepEqual(tab.ids, [good._id]);
    await gateway.metricIs(`updates_rejected_total{reason="${reason}"}`, before + 1);
    await allIsAcknowledged(1);
    tab.close();
    await broker.queuesAre(0);
  });
}

test('a publisher of nothing but nonsense does not fill the log', async () => {
  const server = await Gateway.start(broker);
  const tab = await Tab.open(server, 'usr_nonsense');
  const start = Date.now();
  for (let i = 0; i < 3000; i += 1) publisher.publish('user.usr_nonsense.messageupdate', Buffer.from(i % 2 ? 'nonsense' : ''));
  await tab.saw(publisher.update('usr_nonsense'));
  const seconds = (Date.now() - start) / 1000;
  const lines = server.logs.split('\n').filter((line) => line.includes('Update rejected'));
  // Two reasons; for each, a line at once and then one a second.
  assert.ok(lines.length >= 2 && lines.length <= 2 * (seconds + 2), `${lines.length} lines in ${seconds} s`);
  for (const reason of ['empty', 'not_json']) assert.equal(await server.metric(`updates_rejected_total{reason="${reason}"}`), 1500);
  tab.close();
  await server.kill();
});

test('two tenants\' users of the same id see their own updates only', async () => {
  const of = (tenantId) => ({ claims: { tenantId } });
  const one = await Tab.open(gateway, 'carl', of('tnt_1'));
  const two = await Tab.open(gateway, 'carl', of('tnt_2'));
  const first = publisher.update('carl', { tenantId: 'tnt_1' });
  const second = publisher.update('carl', { tenantId: 'tnt_2' });
  await one.saw(first);
  await two.saw(second);
  const sentinels = ['tnt_1', 'tnt_2'].map((tenantId) => publisher.update('carl', { tenantId }));
  await one.saw(sentinels[0]);
  await two.saw(sentinels[1]);
  assert.deepEqual(one.ids, [first._id, sentinels[0]._id]);
  assert.deepEqual(two.ids, [second._id, sentinels[1]._id]);
  one.close();
  two.close();
});

test('every update received is delivered, kept for users who may come back, or rejected', async () => {
  const names = ['updates_received_total', 'updates_delivered_total', 'updates_kept_total', 'updates_rejected_total', 'update_latency_seconds_count'];
  let sums;
  // The counters follow the events.
  await until('the sums agree', async () => {
    const text = await (await gateway.get('/metrics')).text();
    sums = names.map((name) => [...text.matchAll(new RegExp(`^chat3_gateway_${name}(?:\\{.*\\})? (\\d+)`, 'gm'))]
      .reduce((total, [, value]) => total + Number(value), 0));
    const [received, delivered, kept, rejected, measured] = sums;
    // What the socket did not take at once of a burst was kept until it did.
    return delivered + kept > 6000 && measured > 1000 && received === delivered + kept + rejected;
  }).catch((error) => {
    throw new Error(`${error.message}: ${names.map((name, i) => `${name} ${sums[i]}`).join(', ')}`);
  });
});
