// Orders that RabbitMQ keeps: they hold on instances that start later, or were cut off.

import assert from 'node:assert/strict';
import net from 'node:net';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import { Broker, Gateway, Network, Publisher, Tab, token, until } from './harness.mjs';
import { Poisoner, UNREADABLE, forgedOffset } from './poison.mjs';

const EXCHANGE = 'chat3_gateway_control';
const WEBSOCKET = { transports: ['websocket'] };

/** Longer than the gateway's maximum of 30 s, which exceeds the deadlines here: a test that waits for it fails. */
const NEVER = '10m';

/** The gateway lets sockets in after this long, whether the orders are read or not. */
const PATIENCE_MS = 5000;

const nowSeconds = () => Math.floor(Date.now() / 1000);

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

let streams = 0;

/** Settings of instances that share orders with no other test's. */
function fleet(env = {}) {
  streams += 1;
  return {
    ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: `${EXCHANGE}.${streams}`, RABBITMQ_CONTROL_STREAM: `chat3-gateway.orders.${streams}`, ...env,
  };
}

const start = (env, at = broker, options = {}) => Gateway.start(at, { env, ...options });

/** Waits until the instance has read the orders, and gets the next ones from the stream. */
const listens = (gateway) => gateway.metricIs('rabbitmq_control_stream', 1);

async function order(gateway, path, body = {}) {
  const response = await gateway.get(`/api/${path}`, { method: 'POST', headers: { authorization: 'Bearer operator' }, body: JSON.stringify(body) });
  assert.equal(response.status, 200);
  return response.json();
}

/** The token of a browser that signed in a minute ago. */
const oldToken = (userId, claims = {}) => token(userId, { iat: nowSeconds() - 60, ...claims });

async function open(gateway, bearer, options = WEBSOCKET) {
  const tab = new Tab(gateway, bearer, options);
  await tab.when('connected', () => tab.connects === 1);
  return tab;
}

async function isRefused(gateway, bearer) {
  const tab = new Tab(gateway, bearer, WEBSOCKET);
  await tab.when('an answer', () => tab.connects > 0 || tab.error);
  tab.close();
  if (tab.error) assert.equal(tab.error.message, 'token revoked');
  return Boolean(tab.error);
}

/** Publishes to the exchange of the orders, as another program would; resolves when RabbitMQ has all. */
async function publish(env, bodies, options = {}) {
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createConfirmChannel();
  for (const body of bodies) channel.publish(env.RABBITMQ_CONTROL_EXCHANGE, '', Buffer.from(body), { persistent: true, ...options });
  await channel.waitForConfirms();
  await connection.close();
}

const anHour = () => nowSeconds() + 3600;

for (const topology of ['per-user', 'stream']) {
  const env = fleet({ RABBITMQ_TOPOLOGY: topology });

  test(`an instance that starts later knows the orders (${topology})`, async () => {
    const one = await start(env);
    await listens(one);
    const [revoked, user, reconnects] = [oldToken('usr_a', { jti: 'token-1' }), oldToken('usr_b'), oldToken('usr_c')];
    const tabs = [await open(one, revoked), await open(one, user), await open(one, reconnects)];
    assert.deepEqual(await order(one, 'tokens/token-1/revoke', { until: anHour() }), { sockets: 1, broadcast: true });
    assert.deepEqual(await order(one, 'users/usr_b/disconnect', { until: anHour() }), { sockets: 1, broadcast: true });
    assert.deepEqual(await order(one, 'users/usr_c/disconnect'), { sockets: 1, broadcast: true });
    await tabs[2].when('back', () => tabs[2].connects === 2);

    const other = await start(env);
    assert.ok(await isRefused(other, revoked));
    assert.ok(await isRefused(other, user));
    // Neither another token of that bearer, nor one that was issued after the order.
    assert.ok(!(await isRefused(other, oldToken('usr_a', { jti: 'token-2' }))));
    assert.ok(!(await isRefused(other, token('usr_b', { iat: nowSeconds() + 2 }))));
    const late = await open(other, reconnects);
    await listens(other);
    assert.equal(await other.metric('orders_read_total'), 3);
    // It hears the next ones, too, and the old ones have sent nobody away.
    assert.equal(await other.metric('revoked_sockets_total'), 0);
    await order(one, 'users/usr_c/disconnect');
    await late.when('back', () => late.connects === 2);
    assert.equal(await other.metric('revoked_sockets_total'), 1);
    // Not even an instance that has its own stream of updates confuses the two.
    for (const tab of [...tabs, late]) tab.close();
    for (const gateway of [one, other]) assert.equal((await gateway.terminate()).code, 0);
    assert.doesNotMatch(one.logs + other.logs, /control message ignored/);
  });

  test(`an instance that was cut off carries out the orders when it is back (${topology})`, async () => {
    const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
    const url = broker.url.replace(`:${broker.port}`, `:${new URL(network.url).port}`);
    const [one, cut] = [await start(env), await start({ ...env, RABBITMQ_URL: url })];
    await Promise.all([listens(one), listens(cut)]);
    const bearers = [oldToken('usr_cut_a', { jti: 'token-cut' }), oldToken('usr_cut_b'), oldToken('usr_cut_c')];
    const tabs = await Promise.all(bearers.map((bearer) => open(cut, bearer)));
    network.cut();
    await cut.metricIs('rabbitmq_control_connected', 0);
    await order(one, 'tokens/token-cut/revoke', { until: anHour() });
    await order(one, 'users/usr_cut_b/disconnect', { until: anHour(), reason: 'left' });
    await order(one, 'users/usr_cut_c/disconnect');
    // Sockets do not wait for a broker that is away.
    const flooded = Date.now();
    const newcomer = await open(cut, oldToken('usr_cut_a', { jti: 'token-other' }));
    assert.ok(Date.now() - flooded < 1500);
    network.restore();
    assert.equal(await tabs[0].refused(), 'token revoked');
    assert.equal(await tabs[1].refused(), 'token revoked');
    assert.deepEqual(tabs[1].named('auth:revoked'), [{ reason: 'left' }]);
    await tabs[2].when('back', () => tabs[2].connects === 2);
    await listens(cut);
    assert.equal(await cut.metric('revoked_sockets_total'), 3);
    assert.equal(newcomer.connects, 1);
    // Once: a second cut brings none of them again.
    network.reset();
    await cut.logged(/RabbitMQ connection for orders closed[^]*RabbitMQ connection for orders closed[^]*read to its end/);
    await listens(cut);
    assert.equal(await cut.metric('revoked_sockets_total'), 3);
    assert.equal(tabs[2].connects, 2);
    for (const tab of [...tabs, newcomer]) tab.close();
    for (const gateway of [one, cut]) await gateway.kill();
  });
}

test('a session that an order ended is recovered at no instance, not even at one that starts later', async () => {
  const env = fleet({ RABBITMQ_TOPOLOGY: 'stream' });
  const [one, two] = [await start(env), await start(env)];
  await Promise.all([listens(one), listens(two)]);
  let target = one;
  const links = new Set();
  const front = net.createServer((near) => {
    if (!target) return near.destroy();
    const far = net.connect(Number(new URL(target.url).port), '127.0.0.1');
    for (const [socket, other] of [[near, far], [far, near]]) socket.on('error', () => {}).on('close', () => other.destroy()).pipe(other);
    return links.add(near);
  });
  await new Promise((resolve) => front.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${front.address().port}`;
  const users = ['usr_ended', 'usr_ended_early', 'usr_goes_on'];
  const tabs = await Promise.all(users.map((userId) => Tab.open(one, userId, { url, ...WEBSOCKET })));
  const [ended, early, bystander] = tabs;
  await one.metricIs('subscriptions', users.length);
  for (const [i, tab] of tabs.entries()) await tab.saw(publisher.update(users[i]));
  const moveTo = async (gateway, meanwhile) => {
    target = null;
    for (const link of links) link.destroy();
    await until('all are away', async () => (await one.metric('sockets')) + (await two.metric('sockets')) === 0);
    target = await meanwhile();
    assert.equal(gateway ?? target, target);
  };
  // The instance that it was on need not be the one that is asked.
  await moveTo(two, async () => {
    await order(two, 'users/usr_ended/disconnect');
    return two;
  });
  for (const tab of tabs) await tab.when('back', () => tab.connects === 2);
  assert.deepEqual([ended, early, bystander].map((tab) => tab.recovered.at(-1)), [false, true, true]);
  let later;
  await moveTo(undefined, async () => {
    await order(one, 'users/usr_ended_early/disconnect');
    later = await start(env);
    return later;
  });
  for (const tab of tabs) await tab.when('back', () => tab.connects === 3);
  assert.deepEqual([early, bystander].map((tab) => tab.recovered.at(-1)), [false, true]);
  for (const tab of tabs) tab.close();
  front.close();
  for (const gateway of [one, two, later]) await gateway.kill();
});

test('with an empty stream, sockets are let in at once', async () => {
  const gateway = await start(fleet());
  const begun = Date.now();
  await (await open(gateway, token('usr_first'))).close();
  const ms = Date.now() - begun;
  assert.ok(ms < 2500, `${ms} ms`);
  await gateway.logged(/control stream read to its end.*orders\W+0/);
  await gateway.kill();
});

test('ten thousand kept orders are read before the first socket is let in', async (t) => {
  const env = fleet();
  const one = await start(env);
  await listens(one);
  const orders = Array.from({ length: 10_000 }, (_, i) => JSON.stringify({ tokenId: `token-${i}`, until: anHour() }));
  await publish(env, orders, { timestamp: Date.now() });
  await one.kill();
  const begun = Date.now();
  const other = await start(env, broker, { connected: false });
  assert.ok(await isRefused(other, token('usr_a', { jti: 'token-9999' })));
  const ms = Date.now() - begun;
  await listens(other);
  const [, took] = await other.logged(/read to its end.*took\W+([\d.]+\w+)/);
  t.diagnostic(`answered ${ms} ms after the start of the process; read in ${took}`);
  assert.equal(await other.metric('orders_read_total'), 10_000);
  assert.doesNotMatch(other.logs, /let in before the kept orders were read/);
  assert.ok(await isRefused(other, token('usr_a', { jti: 'token-0' })));
  // An order from before fills no log.
  assert.ok(other.logs.split('\n').length < 50);
  await other.kill();
});

test('sockets are let in without RabbitMQ, and the orders are carried out on them when they are read', async () => {
  const env = fleet();
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const url = broker.url.replace(`:${broker.port}`, `:${new URL(network.url).port}`);
  const one = await start(env);
  await listens(one);
  await order(one, 'users/usr_early/disconnect', { until: anHour() });
  const before = Date.now() - 50_000;
  await publish(env, [
    JSON.stringify({ userId: 'usr_history', at: before }),
    JSON.stringify({ userId: 'usr_old', until: anHour(), at: before }),
    JSON.stringify({ userId: 'usr_newer', until: anHour(), at: before }),
  ]);
  network.cut();
  const other = await start({ ...env, RABBITMQ_URL: url }, broker, { connected: false });
  const begun = Date.now();
  const [early, bystander] = [await open(other, oldToken('usr_early')), await open(other, oldToken('usr_late'))];
  assert.ok(Date.now() - begun < PATIENCE_MS);
  // Who came back after an order that only disconnects is not disconnected again, nor who has a token that it accepts.
  const [history, old, newer] = [await open(other, oldToken('usr_history')), await open(other, oldToken('usr_old')), await open(other, token('usr_newer'))];
  const during = await open(other, oldToken('usr_during'));
  await order(one, 'users/usr_during/disconnect');
  network.restore();
  assert.equal(await early.refused(), 'token revoked');
  assert.equal(await old.refused(), 'token revoked');
  await during.when('back', () => during.connects === 2);
  await listens(other);
  assert.equal(await other.metric('revoked_sockets_total'), 3);
  for (const tab of [bystander, history, newer]) {
    assert.equal(tab.connects, 1);
    tab.close();
  }
  for (const tab of [early, old, during]) tab.close();
  for (const gateway of [one, other]) await gateway.kill();
});

test('a socket waits for the orders, but not for ever', async () => {
  const env = fleet();
  // What accepts connections and never answers.
  const silent = await Network.to({ url: 'http://127.0.0.1:9' });
  silent.server.removeAllListeners('connection');
  const gateway = await start({ ...env, RABBITMQ_URL: silent.url.replace('http', 'amqp'), RABBITMQ_CONNECT_TIMEOUT: '1h' }, null);
  const begun = Date.now();
  await open(gateway, token('usr_patient'));
  const ms = Date.now() - begun;
  assert.ok(ms >= PATIENCE_MS - 100 && ms < PATIENCE_MS + 2000, `${ms} ms`);
  await gateway.logged(/let in before the kept orders were read/);
  await gateway.kill();
});

/** The URL of a user without a right to write markers: the end of the stream shows by five seconds of silence. */
async function withoutMarkers(env) {
  const names = `${env.RABBITMQ_CONTROL_EXCHANGE}|${env.RABBITMQ_CONTROL_STREAM}`.replaceAll('.', '\\.');
  const [name, own] = [`unmarked.${streams}`, `chat3-gateway\\..*|${names}`];
  await broker.ctl('add_user', name, 'unmarked');
  await broker.ctl('set_permissions', name, `^(${own})$`, `^(chat3-gateway\\.(?!.*markers).*|${names})$`, `^(${own}|chat3_updates)$`);
  return broker.url.replace('rmuser:rmpassword', `${name}:unmarked`);
}

test('a socket that waits for the orders and then for its subscription is let in before its session ends', async () => {
  const env = fleet({ RABBITMQ_UPDATES_EXCHANGE: 'not_yet' });
  const gateway = await start({ ...env, RABBITMQ_URL: await withoutMarkers(env) }, broker, { connected: false });
  const begun = Date.now();
  const tab = await open(gateway, token('usr_waits'));
  const ms = Date.now() - begun;
  assert.ok(ms > PATIENCE_MS && ms < 9500, `${ms} ms`);
  tab.close();
  await gateway.kill();
});

test('orders outlive a restart of the broker, and a stream that is deleted is made anew', async () => {
  const own = await Broker.start();
  const env = fleet();
  const one = await start(env, own);
  await listens(one);
  const tab = await open(one, oldToken('usr_restart'));
  await order(one, 'tokens/token-restart/revoke', { until: anHour() });
  await order(one, 'users/usr_restart/disconnect');
  await tab.when('back', () => tab.connects === 2);
  await own.kill();
  await one.metricIs('rabbitmq_control_connected', 0);
  await own.start();
  await one.metricIs('rabbitmq_control_stream', 1, 60_000);
  const other = await start(env, own);
  assert.ok(await isRefused(other, token('usr_a', { jti: 'token-restart' })));
  assert.equal(tab.connects, 2);

  await own.ctl('delete_queue', env.RABBITMQ_CONTROL_STREAM);
  // The consumer is cancelled, or the connection ends with an internal error of RabbitMQ's.
  await other.logged(/read to its end[^]*(ended the consumer|connection for orders closed)[^]*read to its end/, 60_000);
  await one.logged(/read to its end[^]*read to its end[^]*(ended the consumer|connection for orders closed)[^]*read to its end/, 60_000);
  await Promise.all([listens(one), listens(other)]);
  await order(other, 'users/usr_restart/disconnect');
  await tab.when('back once more', () => tab.connects === 3);
  assert.equal(await one.metric('revoked_sockets_total'), 2);
  // What the instances know, they still know.
  assert.ok(await isRefused(one, token('usr_a', { jti: 'token-restart' })));
  tab.close();
  for (const gateway of [one, other]) await gateway.kill();
});

test('where the stream is not permitted, orders reach the instances that are there, and the stream is used once it can be', async () => {
  const env = fleet({ RABBITMQ_CONTROL_STREAM: 'other.orders' });
  const rights = (more) => broker.ctl('set_permissions', 'limited', ...['', '', '|chat3_updates'].map((rest) => `^(chat3-gateway\\..*|${EXCHANGE}.*${rest}${more})$`));
  await broker.ctl('add_user', 'limited', 'limited');
  await rights('');
  const url = broker.url.replace('rmuser:rmpassword', 'limited:limited');
  const [one, other] = [await start({ ...env, RABBITMQ_URL: url }), await start({ ...env, RABBITMQ_URL: url })];
  for (const gateway of [one, other]) {
    await gateway.logged(/RabbitMQ control stream not usable.*ACCESS_REFUSED/);
    await gateway.metricIs('rabbitmq_control_connected', 1);
    assert.equal(await gateway.metric('rabbitmq_control_stream'), 0);
  }
  const tab = await open(other, oldToken('usr_limited'));
  await order(one, 'users/usr_limited/disconnect');
  await tab.when('back', () => tab.connects === 2);

  await rights('|other\\.orders.*');
  await Promise.all([one, other].map((gateway) => gateway.metricIs('rabbitmq_control_stream', 1, 60_000)));
  await order(one, 'users/usr_limited/disconnect', { until: anHour() });
  assert.equal(await tab.refused(), 'token revoked');
  assert.equal(await other.metric('revoked_sockets_total'), 2);
  for (const gateway of [one, other]) assert.equal(gateway.logs.match(/control stream not usable/g).length, 1);
  const third = await start({ ...env, RABBITMQ_URL: url });
  assert.ok(await isRefused(third, oldToken('usr_limited')));
  await until('no queue is left', async () => !(await broker.queues()).some(({ name }) => name.includes('.control')));
  tab.close();
  for (const gateway of [one, other, third]) await gateway.kill();
});

test('a queue of that name, or no name, leaves orders to those who are there', async () => {
  const env = fleet();
  await publisher.channel.assertQueue(env.RABBITMQ_CONTROL_STREAM, { durable: true });
  const one = await start(env);
  await one.logged(/RabbitMQ control stream not usable/);
  const other = await start({ ...env, RABBITMQ_CONTROL_STREAM: '' });
  for (const gateway of [one, other]) await gateway.metricIs('rabbitmq_control_connected', 1);
  const tab = await open(other, oldToken('usr_queue'));
  assert.equal((await order(one, 'users/usr_queue/disconnect')).broadcast, true);
  await tab.when('back', () => tab.connects === 2);
  assert.doesNotMatch(other.logs, /control stream/);
  tab.close();
  for (const gateway of [one, other]) await gateway.kill();
});

test('a stream with other limits is used as it is', async () => {
  const env = fleet();
  const one = await start(env);
  await listens(one);
  const other = await start({ ...env, REVOCATIONS_KEPT: '48h' });
  await other.logged(/RabbitMQ has the stream of orders with other limits/);
  await listens(other);
  for (const gateway of [one, other]) await gateway.kill();
});

test('messages that cannot be read are stepped over, wherever they are, and end no connection of the updates', async () => {
  const env = fleet({ RABBITMQ_RECONNECT_DELAY: NEVER });
  const poisoner = await Poisoner.connect(broker);
  const poison = () => poisoner.publishTo(env.RABBITMQ_CONTROL_EXCHANGE, '', UNREADABLE['a message id that is not UTF-8']);
  // The very first message of the stream is one of them: it is there before any gateway.
  await publisher.channel.assertExchange(env.RABBITMQ_CONTROL_EXCHANGE, 'fanout', { durable: true });
  const limits = { 'x-queue-type': 'stream', 'x-max-age': '86400s', 'x-max-length-bytes': 100_000_000, 'x-stream-max-segment-size-bytes': 1_000_000 };
  await publisher.channel.assertQueue(env.RABBITMQ_CONTROL_STREAM, { durable: true, arguments: limits });
  await publisher.channel.bindQueue(env.RABBITMQ_CONTROL_STREAM, env.RABBITMQ_CONTROL_EXCHANGE, '');
  await poison();
  await publish(env, [JSON.stringify({ tokenId: 'behind-the-first', until: anHour() })]);
  const one = await start(env);
  await listens(one);
  assert.ok(await isRefused(one, token('usr_a', { jti: 'behind-the-first' })));
  assert.equal(await one.metric('messages_unreadable_total'), 1);

  const tab = await open(one, oldToken('usr_poisoned'));
  await poison();
  await poison();
  await publish(env, [JSON.stringify({ userId: 'usr_poisoned' })]);
  await tab.when('back', () => tab.connects === 2);
  await listens(one);
  await one.logged(/stepped over/);
  assert.equal(await one.metric('rabbitmq_reconnects_total'), 0);
  // Another instance meets all of them.
  const other = await start(env);
  await listens(other);
  assert.ok(await isRefused(other, token('usr_a', { jti: 'behind-the-first' })));
  assert.equal(await other.metric('orders_read_total'), 2);
  assert.equal(await other.metric('rabbitmq_reconnects_total'), 0);
  await poisoner.close();
  tab.close();
  for (const gateway of [one, other]) assert.equal((await gateway.terminate()).code, 0);
});

test('a place that a publisher forges hides no order, before or behind it', async () => {
  const env = fleet();
  const one = await start(env);
  await listens(one);
  const bearers = [];
  const revocation = () => {
    const jti = `token-${bearers.length}`;
    bearers.push(oldToken('usr_forged', { jti }));
    return JSON.stringify({ tokenId: jti, until: anHour() });
  };
  const poisoner = await Poisoner.connect(broker);
  for (const offset of [2 ** 50, 0, 1, -1, 2 ** 61, 'first']) {
    await poisoner.publishTo(env.RABBITMQ_CONTROL_EXCHANGE, '', forgedOffset(offset), revocation());
    await publish(env, [revocation()]);
  }
  await poisoner.close();
  await until('the last order', () => isRefused(one, bearers.at(-1)));
  for (const bearer of bearers) assert.ok(await isRefused(one, bearer));
  assert.equal(await one.metric('rabbitmq_control_stream'), 1);
  const later = await start(env);
  await listens(later);
  for (const bearer of bearers) assert.ok(await isRefused(later, bearer));
  assert.doesNotMatch(one.logs + later.logs, /control stream not usable/);
  for (const gateway of [one, later]) await gateway.kill();
});

test('an instance that attaches the stream anew lets sockets in meanwhile', async () => {
  // It does so twice as often as orders are forgotten.
  const env = fleet({ REVOCATIONS_KEPT: '1min' });
  const gateway = await start({ ...env, RABBITMQ_URL: await withoutMarkers(env) });
  await gateway.logged(/RabbitMQ does not take a marker[^]*read to its end[^]*RabbitMQ does not take a marker/, 60_000);
  const begun = Date.now();
  const tab = await open(gateway, oldToken('usr_renewed'));
  const ms = Date.now() - begun;
  assert.ok(ms < 2000, `${ms} ms`);
  // What comes meanwhile is carried out on those who were let in.
  await publish(env, [JSON.stringify({ userId: 'usr_renewed', until: anHour() })]);
  assert.equal(await tab.refused(), 'token revoked');
  await gateway.kill();
});

test('orders of older gateways and of other programs hold as well, and older gateways understand ours', async () => {
  const env = fleet();
  const one = await start(env);
  await listens(one);
  // What a gateway without a stream gets.
  const seen = [];
  const { queue } = await publisher.channel.assertQueue('', { exclusive: true });
  await publisher.channel.bindQueue(queue, env.RABBITMQ_CONTROL_EXCHANGE, '');
  await publisher.channel.consume(queue, (message) => seen.push(message), { noAck: true });
  await order(one, 'users/usr_x/disconnect', { tenantId: 'tnt_a', reason: 'left', until: anHour() });
  await until('the order', () => seen.length > 0);
  const [{ content, properties }] = seen;
  const fields = ['userId', 'tenantId', 'tokenId', 'reason', 'until', 'issuedBefore'];
  assert.deepEqual(Object.keys(JSON.parse(content)).filter((name) => !fields.includes(name)), []);
  assert.ok(Math.abs(properties.timestamp - Date.now()) < 10_000);
  assert.equal(seen.length, 1);

  await publish(env, [
    '{"surprise":1}', '[]', '', 'x'.repeat(20_000),
    JSON.stringify({ userId: 'usr_old', issuedBefore: nowSeconds() }),
    JSON.stringify({ userId: 'usr_old_until', issuedBefore: nowSeconds(), until: anHour() }),
    JSON.stringify({ userId: 'usr_at', until: anHour(), at: Date.now() - 30_000 }),
    JSON.stringify({ userId: 'usr_no_time', until: anHour() }),
  ]);
  const other = await start(env);
  assert.ok(await isRefused(other, oldToken('usr_old_until')));
  assert.ok(await isRefused(other, oldToken('usr_at')));
  assert.ok(await isRefused(other, oldToken('usr_no_time')));
  // Issued after the time that the order gives.
  assert.ok(!(await isRefused(other, token('usr_at', { iat: nowSeconds() - 10 }))));
  assert.ok(!(await isRefused(other, oldToken('usr_old'))));
  await other.logged(/RabbitMQ control message ignored/);
  for (const gateway of [one, other]) await gateway.kill();
});

test('a flood on the control exchange holds up no update and no order', async () => {
  const env = fleet();
  const gateway = await start(env);
  await listens(gateway);
  const tab = await open(gateway, oldToken('usr_flooded'));
  await gateway.metricIs('subscriptions', 1);
  const flooded = Date.now();
  const flood = publish(env, Array.from({ length: 20_000 }, (_, i) => (i % 2 ? '{"a":' : JSON.stringify({ userId: `usr_${i}` }))));
  let slowest = 0;
  for (let i = 0; i < 20; i += 1) {
    const begun = Date.now();
    await tab.saw(publisher.update('usr_flooded'));
    slowest = Math.max(slowest, Date.now() - begun);
  }
  await flood;
  await publish(env, [JSON.stringify({ userId: 'usr_flooded', until: anHour() })]);
  assert.equal(await tab.refused(), 'token revoked');
  // This process publishes the flood, and is busy with it as well.
  const whole = Date.now() - flooded;
  assert.ok(slowest < Math.max(1000, whole / 3), `an update took ${slowest} ms of ${whole}`);
  assert.ok(gateway.logs.split('\n').length < 200);
  await gateway.kill();
});
