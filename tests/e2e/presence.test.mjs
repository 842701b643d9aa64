// Who is online in the fleet: what consumers of PRESENCE_EXCHANGE are told, and what the admin API answers.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import { Broker, Gateway, Network, Publisher, Tab, runGateway, testsFolder, token, until } from './harness.mjs';
import { Poisoner, UNREADABLE } from './poison.mjs';

const GRACE_MS = 1500;

/** RabbitMQ tells the keeper within 2 s that an instance is gone; a new keeper takes a second more. */
const NOTICED_MS = 4000;

const WEBSOCKET = { transports: ['websocket'] };

let broker;

before(async () => {
  broker = await Broker.start();
  await Publisher.connect(broker);
});

let fleets = 0;

/** Settings of instances that share presence with no other test's. */
function fleet(env = {}) {
  fleets += 1;
  return { ADMIN_TOKEN: 'operator', PRESENCE_EXCHANGE: `presence.${fleets}`, PRESENCE_GRACE: `${GRACE_MS}ms`, ...env };
}

/** An instance that takes part. */
async function start(env, at = broker) {
  const gateway = await Gateway.start(at, { env });
  await gateway.metricIs('presence_connected', 1);
  return gateway;
}

/** A consumer of the events, which survives the broker's restarts as a durable queue does. */
class Consumer {
  static async of({ PRESENCE_EXCHANGE: exchange }, at = broker) {
    const consumer = new Consumer();
    Object.assign(consumer, { exchange, at, events: [] });
    await consumer.connect();
    return consumer;
  }

  async connect() {
    const connection = await amqplib.connect(this.at.url);
    connection.on('error', () => {});
    const channel = await connection.createChannel();
    channel.on('error', () => {});
    await channel.assertExchange(this.exchange, 'topic', { durable: true });
    await channel.assertQueue(`of ${this.exchange}`, { durable: true });
    await channel.bindQueue(`of ${this.exchange}`, this.exchange, 'presence.#');
    await channel.consume(`of ${this.exchange}`, (message) => {
      if (message) this.events.push({ key: message.fields.routingKey, properties: message.properties, ...JSON.parse(message.content) });
    }, { noAck: true });
    this.connection = connection;
  }

  of(userId) {
    return this.events.filter((event) => event.userId === userId);
  }

  told(userId) {
    return this.of(userId).map(({ online }) => online);
  }

  async tells(userId, expected, deadlineMs = GRACE_MS + NOTICED_MS + 5000) {
    await until(`${userId} is told ${expected}`, () => String(this.told(userId)) === String(expected), deadlineMs).catch((error) => {
      throw new Error(`${error.message}: it is ${this.told(userId)}`);
    });
  }

  /** A new keeper may repeat what the last one said: it is the last event that counts. */
  async endsWith(userId, online, deadlineMs = GRACE_MS + NOTICED_MS + 10_000) {
    await until(`${userId} is ${online}`, () => this.told(userId).at(-1) === online, deadlineMs).catch((error) => {
      throw new Error(`${error.message}: it is ${this.told(userId)}`);
    });
  }

  async close() {
    await this.connection.close().catch(() => {});
  }
}

const open = (gateway, userId, claims = { tenantId: 'tnt_a' }) => Tab.open(gateway, userId, { claims, ...WEBSOCKET });

const operator = { headers: { authorization: 'Bearer operator' } };

const ask = (gateway, body) => gateway.get('/api/presence', { ...operator, method: 'POST', body: JSON.stringify(body) });

async function states(gateway, body) {
  const response = await ask(gateway, body);
  assert.equal(response.status, 200, await response.clone().text());
  return (await response.json()).users;
}

/** Something that comes after everything else that the fleet has to say now. */
async function sentinel(gateway, consumer) {
  const userId = `usr_sentinel_${Math.random()}`;
  const tab = await open(gateway, userId);
  await consumer.tells(userId, [true]);
  tab.close();
}

test('the first socket of a user in the fleet and the end of the last one are told, once each', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const [one, other] = [await start(env), await start(env)];
  const started = Date.now();
  const first = await open(one, 'usr.a@x');
  await consumer.tells('usr.a@x', [true]);
  const [event] = consumer.of('usr.a@x');
  const { key, properties, ...body } = event;
  assert.equal(key, 'presence.tnt_a.usr.a@x');
  assert.deepEqual(Object.keys(body), ['tenantId', 'userId', 'online', 'at', 'since', 'instance', 'sockets']);
  assert.deepEqual([body.tenantId, body.sockets, properties.contentType, properties.deliveryMode], ['tnt_a', 1, 'application/json', 2]);
  assert.ok(body.since >= started - 1000 && body.since <= body.at && body.at <= Date.now() + 1000, JSON.stringify(body));

  // A second socket on another instance, and the first one goes.
  const second = await open(other, 'usr.a@x');
  const users = { userIds: ['usr.a@x', 'usr_nobody'], tenantId: 'tnt_a' };
  for (const gateway of [one, other]) {
    await until('both sockets', async () => (await states(gateway, users))['usr.a@x'].sockets === 2);
    assert.deepEqual(await states(gateway, users), {
      'usr.a@x': { online: true, sockets: 2, since: body.since }, usr_nobody: { online: false, sockets: 0, since: null },
    });
    const here = await gateway.json('/api/users/usr.a%40x', operator);
    assert.deepEqual(here, { isSubscribed: true, sockets: 1, fleet: { online: true, sockets: 2, since: body.since } });
  }
  first.close();
  await until('one socket', async () => (await states(one, users))['usr.a@x'].sockets === 1);
  await new Promise((resolve) => setTimeout(resolve, GRACE_MS + 500));
  await sentinel(other, consumer);
  assert.deepEqual(consumer.told('usr.a@x'), [true]);

  // The user reloads the page, which reconnects to the other instance within the grace.
  second.close();
  await until('no socket', async () => (await states(one, users))['usr.a@x'].sockets === 0);
  assert.equal((await states(one, users))['usr.a@x'].online, true);
  const third = await open(one, 'usr.a@x');
  await new Promise((resolve) => setTimeout(resolve, GRACE_MS + 500));
  await sentinel(other, consumer);
  assert.deepEqual(consumer.told('usr.a@x'), [true]);

  const left = Date.now();
  third.close();
  await consumer.tells('usr.a@x', [true, false]);
  const [, last] = consumer.of('usr.a@x');
  assert.deepEqual([last.sockets, last.online], [0, false]);
  assert.ok(last.at - last.since >= GRACE_MS && Math.abs(last.since - left) < 1000, JSON.stringify(last));
  assert.deepEqual((await states(other, users))['usr.a@x'], { online: false, sockets: 0, since: null });
  const kept = await Promise.all([one, other].map((gateway) => gateway.metric('presence_keeper')));
  assert.equal(kept[0] + kept[1], 1, 'one keeper');
  const keeper = [one, other][kept.indexOf(1)];
  const counted = (event) => keeper.metric(`presence_events_total{event="${event}"}`);
  assert.deepEqual([await counted('online') >= 1, await counted('offline') >= 1], [true, true]);
  await consumer.close();
});

test('users of one id in several tenants, or in none, are several users', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const gateway = await start(env);
  const tabs = [await open(gateway, 'usr_b', { tenantId: 't1' }), await open(gateway, 'usr_b', { tenantId: 't2' }), await open(gateway, 'usr_b', {})];
  await consumer.tells('usr_b', [true, true, true]);
  assert.deepEqual(consumer.of('usr_b').map(({ key }) => key).sort(), ['presence.-.usr_b', 'presence.t1.usr_b', 'presence.t2.usr_b']);
  assert.deepEqual(consumer.of('usr_b').map(({ tenantId }) => tenantId).sort(), [null, 't1', 't2']);
  assert.equal((await states(gateway, { userIds: ['usr_b'] })).usr_b.sockets, 3);
  assert.equal((await states(gateway, { userIds: ['usr_b'], tenantId: 't1' })).usr_b.sockets, 1);
  assert.equal((await states(gateway, { userIds: ['usr_b'], tenantId: 't3' })).usr_b.online, false);
  for (const tab of tabs) tab.close();
  await consumer.close();
});

test('requests about many users are bounded, and refused where they make no sense', async () => {
  const gateway = await start(fleet());
  const ids = Array.from({ length: 1000 }, (_, index) => `usr_${index}`);
  assert.equal(Object.keys(await states(gateway, { userIds: ids })).length, 1000);
  for (const [body, status] of [
    [{ userIds: [...ids, 'usr_more'] }, 400], [{ userIds: ['*'] }, 400], [{ userIds: ['a'], tenantId: '#' }, 400], [{}, 400], [{ userIds: ['a'], x: 1 }, 400],
    [{ userIds: ['x'.repeat(300_000)] }, 413],
  ]) assert.equal((await ask(gateway, body)).status, status, JSON.stringify(body).slice(0, 60));
  assert.equal((await gateway.get('/api/presence', { method: 'POST', body: '{"userIds":[]}' })).status, 401);
  const without = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator' } });
  assert.equal((await ask(without, { userIds: ['a'] })).status, 501);
  assert.deepEqual(await without.json('/api/users/a', operator), { isSubscribed: false, sockets: 0 });
});

test('users of an instance that is killed are offline after the grace, unless they are elsewhere, whoever was the keeper', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const gateways = [await start(env), await start(env), await start(env)];
  for (const victim of [0, 1]) {
    const survivor = gateways[2];
    const [gone, returns, both] = ['gone', 'returns', 'both'].map((name) => `usr_${name}_${victim}`);
    const tabs = [await open(gateways[victim], gone), await open(gateways[victim], returns), await open(gateways[victim], both), await open(survivor, both)];
    for (const userId of [gone, returns, both]) await consumer.endsWith(userId, true);
    await until('both sockets', async () => (await states(survivor, { userIds: [both] }))[both].sockets === 2);
    await gateways[victim].kill();
    tabs[1].close();
    tabs.push(await open(survivor, returns));
    await consumer.endsWith(gone, false);
    await until('one socket', async () => (await states(survivor, { userIds: [both] }))[both].sockets === 1);
    await new Promise((resolve) => setTimeout(resolve, GRACE_MS));
    for (const userId of [returns, both]) assert.ok(!consumer.told(userId).includes(false), `${userId}: ${consumer.told(userId)}`);
    for (const tab of tabs) tab.close();
    await consumer.endsWith(both, false);
  }
  await consumer.close();
});

test('what a fleet that died had published is put right when one instance starts again', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const first = await start(env);
  const tabs = [await open(first, 'usr_gone'), await open(first, 'usr_back')];
  for (const userId of ['usr_gone', 'usr_back']) await consumer.tells(userId, [true]);
  await first.kill();
  for (const tab of tabs) tab.close();
  const second = await start(env);
  const back = await open(second, 'usr_back');
  await consumer.endsWith('usr_gone', false);
  assert.ok(!consumer.told('usr_back').includes(false));
  back.close();
  await consumer.endsWith('usr_back', false);
  await consumer.close();
});

test('after a restart of the broker, what changed meanwhile is told', async () => {
  const own = await Broker.start();
  await Publisher.connect(own);
  const env = fleet();
  const consumer = await Consumer.of(env, own);
  const [one, other] = [await start(env, own), await start(env, own)];
  const tabs = Object.fromEntries(await Promise.all(['stays', 'leaves', 'moves'].map(async (name) => [name, await open(one, `usr_${name}`)])));
  for (const name of ['stays', 'leaves', 'moves']) await consumer.tells(`usr_${name}`, [true]);
  await sentinel(one, consumer);
  await own.kill();
  assert.equal((await ask(one, { userIds: ['usr_stays'] })).status, 503);
  assert.equal((await one.json('/api/users/usr_stays', operator)).fleet, null);
  tabs.leaves.close();
  tabs.moves.close();
  const [moved, came] = ['usr_moves', 'usr_comes'].map((userId) => new Tab(other, token(userId, { tenantId: 'tnt_a' }), WEBSOCKET));
  await own.start();
  await consumer.connect();
  await consumer.endsWith('usr_comes', true, 120_000);
  await consumer.endsWith('usr_leaves', false, 120_000);
  for (const gateway of [one, other]) await gateway.metricIs('presence_connected', 1);
  await sentinel(one, consumer);
  for (const name of ['stays', 'moves']) assert.ok(!consumer.told(`usr_${name}`).includes(false), `${name}: ${consumer.told(`usr_${name}`)}`);
  for (const tab of [tabs.stays, moved, came]) tab.close();
  await consumer.close();
});

test('an instance that is cut off counts as gone until it is back', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const keeper = await start(env);
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const url = broker.url.replace(`:${broker.port}`, `:${new URL(network.url).port}`);
  const cut = await start({ ...env, RABBITMQ_URL: url });
  const tab = await open(cut, 'usr_cut');
  await consumer.tells('usr_cut', [true]);
  network.reset();
  await cut.metricIs('presence_connected', 1);
  await sentinel(keeper, consumer);
  assert.deepEqual(consumer.told('usr_cut'), [true]);
  network.cut();
  await consumer.tells('usr_cut', [true, false]);
  network.restore();
  await consumer.tells('usr_cut', [true, false, true]);
  tab.close();
  await consumer.tells('usr_cut', [true, false, true, false]);
  await consumer.close();
});

test('what an operator deletes at RabbitMQ is made again, and nobody is told anything wrong', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const gateway = await start(env);
  const fleetName = `chat3-gateway.presence.${env.PRESENCE_EXCHANGE}`;
  const tab = await open(gateway, 'usr_stays');
  await consumer.tells('usr_stays', [true]);
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  for (const destroy of [
    () => channel.deleteQueue(`${fleetName}.keeper`), () => channel.deleteQueue(`${fleetName}.ledger`), () => channel.deleteExchange(fleetName),
  ]) {
    await destroy();
    await sentinel(gateway, consumer).catch(() => sentinel(gateway, consumer));
    assert.ok(!consumer.told('usr_stays').includes(false));
  }
  // What no gateway wrote is left aside.
  for (const key of ['keeper', 'all']) channel.publish(fleetName, key, Buffer.from('{"is":"nonsense"'));
  await sentinel(gateway, consumer);
  tab.close();
  await consumer.endsWith('usr_stays', false);
  await connection.close();
  await consumer.close();
});

test('in a fleet where nothing else happens, another instance takes over from a keeper that is killed', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const gateways = [await start(env), await start(env)];
  await until('a keeper', async () => (await gateways[0].metric('presence_keeper')) === 1);
  const tab = await open(gateways[0], 'usr_night');
  await consumer.tells('usr_night', [true]);
  await gateways[0].kill();
  tab.close();
  await consumer.endsWith('usr_night', false);
  assert.equal(await gateways[1].metric('presence_keeper'), 1);
  await consumer.close();
});

test("a consumer's queue that takes no more keeps no event from the others", async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const gateway = await start(env);
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  await channel.assertQueue('full', { arguments: { 'x-max-length': 1, 'x-overflow': 'reject-publish' } });
  await channel.bindQueue('full', env.PRESENCE_EXCHANGE, 'presence.#');
  const ids = ['usr_f1', 'usr_f2', 'usr_f3', 'usr_f4'];
  for (const userId of ids) {
    const tab = await open(gateway, userId);
    await consumer.tells(userId, [true]);
    tab.close();
  }
  for (const userId of ids) await consumer.tells(userId, [true, false]);
  await gateway.logged(/RabbitMQ presence events not confirmed/);
  assert.ok((await gateway.metric('presence_unconfirmed_total')) >= 4);
  assert.doesNotMatch(gateway.logs, /connection for presence not made, or lost/);
  await channel.deleteQueue('full');
  await connection.close();
  await consumer.close();
});

test('a message in the ledger that cannot be read is taken out, and all else is kept', async () => {
  const env = fleet();
  const consumer = await Consumer.of(env);
  const first = await start(env);
  const tab = await open(first, 'usr_before');
  await consumer.tells('usr_before', [true]);
  // A page each: what comes back to the queue does not keep the order of more than nine.
  for (let i = 0; i < 12; i += 1) {
    const visitor = await open(first, `usr_page_${i}`);
    await consumer.tells(`usr_page_${i}`, [true]);
    visitor.close();
  }
  const poisoner = await Poisoner.connect(broker);
  await poisoner.publishTo(`chat3-gateway.presence.${env.PRESENCE_EXCHANGE}`, 'ledger', UNREADABLE['a message id that is not UTF-8']);
  await poisoner.close();
  await first.kill();
  tab.close();
  const second = await Gateway.start(broker, { env });
  await second.logged(/a page that the AMQP library cannot read is taken out/, 60_000);
  await consumer.endsWith('usr_before', false, 60_000);
  for (let i = 0; i < 12; i += 1) await consumer.endsWith(`usr_page_${i}`, false, 60_000);
  const later = await open(second, 'usr_later');
  await consumer.tells('usr_later', [true]);
  later.close();
  await consumer.close();
});

test('the documented rights suffice, and the doctor knows them', async () => {
  const security = readFileSync(path.join(testsFolder, '..', 'docs', 'SECURITY.md'), 'utf8');
  const [, documented] = /```sh\nrabbitmqctl set_permissions -p \/ chat3_gateway \\\n([^`]*chat3_presence[^`]*)```/.exec(security);
  const patterns = [...documented.matchAll(/'([^']*)'/g)].map(([, pattern]) => pattern);
  await broker.ctl('add_user', 'chat3_presence_user', 'a-password');
  const url = broker.url.replace('rmuser:rmpassword', 'chat3_presence_user:a-password');
  const env = { ...fleet(), PRESENCE_EXCHANGE: 'chat3_presence', RABBITMQ_URL: url, RABBITMQ_TOPOLOGY: 'per-user' };
  const [, before] = /(rabbitmqctl set_permissions -p \/ chat3_gateway '[^\n]*)/.exec(security);
  await broker.ctl('set_permissions', '-p', '/', 'chat3_presence_user', ...[...before.matchAll(/'([^']*)'/g)].map(([, pattern]) => pattern));
  const doctor = () => runGateway(['doctor'], { env: { JWT_SECRET: 'a-secret-for-tests-of-thirty-two-bytes', LOG_FILE: '', PORT: '0', ...env } });
  assert.match((await doctor()).stdout, /✗ presence .*no right to declare chat3_presence/);
  const refused = await Gateway.start(broker, { env });
  await refused.logged(/RabbitMQ connection for presence not made, or lost.*ACCESS_REFUSED/);
  await refused.kill();
  await broker.ctl('set_permissions', '-p', '/', 'chat3_presence_user', ...patterns);
  const examined = (await doctor()).stdout;
  assert.match(examined, /✓ presence /, examined);
  const consumer = await Consumer.of(env);
  const gateway = await start(env);
  const tab = await open(gateway, 'usr_rights');
  await consumer.tells('usr_rights', [true]);
  tab.close();
  await consumer.tells('usr_rights', [true, false]);
  assert.match((await doctor()).stdout, /✓ presence /);
  await consumer.close();
});

test('in the development mode, this process is the fleet', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'], env: { ADMIN_TOKEN: 'operator' } });
  const tab = await open(gateway, 'usr_dev');
  assert.deepEqual(await states(gateway, { userIds: ['usr_dev', 'usr_other'] }), {
    usr_dev: { online: true, sockets: 1, since: null }, usr_other: { online: false, sockets: 0, since: null },
  });
  assert.deepEqual((await gateway.json('/api/users/usr_dev', operator)).fleet, { online: true, sockets: 1, since: null });
  tab.close();
});
