// The topology `stream`: RabbitMQ keeps the published updates, and a lost connection loses
// none. Publishers wait for RabbitMQ's confirmation: a confirmed update must arrive exactly
// once and in order, at sockets that stay connected.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import { ConfirmingPublisher } from './cluster.mjs';
import { Broker, EXCHANGE, Gateway, Network, Publisher, SECRET, Tab, runGateway, token, until } from './harness.mjs';
import { Poisoner, UNREADABLE } from './poison.mjs';

const STREAM = 'chat3-gateway.updates';

/** Longer than the gateway's maximum of 30 s, which exceeds the deadlines here: a test that waits for it fails. */
const NEVER = '10m';

/** Updates are published to them in turn. */
const USERS = ['usr_stream_a', 'usr_stream_b', 'usr.with.dots'];

let broker;

before(async () => {
  broker = await Broker.start();
  // Declares the exchange.
  await (await Publisher.connect(broker)).close();
});

const start = (env = {}, options = {}) => Gateway.start(options.broker ?? broker, { env: { RABBITMQ_TOPOLOGY: 'stream', ...env }, ...options });

/** Tabs of all users, which receive everything published from now on. */
async function tabs(gateway) {
  const tabs = await Promise.all(USERS.map((user) => Tab.open(gateway, user)));
  await gateway.metricIs('subscriptions', USERS.length);
  return Object.assign(tabs, { of: (user) => tabs[USERS.indexOf(user)] });
}

/** Asserts that confirmed updates have arrived exactly once and in order, and that no socket was closed. */
async function nothingIsLostOrDoubled(tabs, publisher, deadlineMs) {
  const confirmed = await publisher.stop();
  for (const [i, tab] of tabs.entries()) {
    const expected = confirmed.filter(({ userId }) => userId === USERS[i]).map(({ _id }) => _id);
    assert.ok(expected.length > 0);
    await tab.saw({ _id: expected.at(-1) }, deadlineMs);
    const seen = tab.ids.filter((id) => !publisher.uncertain.has(id));
    assert.deepEqual(seen, expected);
    assert.equal(new Set(tab.ids).size, tab.ids.length);
    assert.deepEqual(tab.disconnects, []);
  }
  return confirmed.length;
}

/** The ids of the updates in the stream. */
async function idsIn(broker, stream) {
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  await channel.prefetch(1000);
  const ids = new Set();
  let markers = 0;
  const consumed = (message) => {
    channel.ack(message);
    if (message.fields.exchange !== EXCHANGE) markers += 1;
    else ids.add(JSON.parse(message.content)._id);
  };
  await channel.consume(stream, consumed, { arguments: { 'x-stream-offset': 'first' } });
  // A marker, published after all of them.
  const settled = async () => {
    const before = ids.size;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return markers > 0 && ids.size === before && ids.size > 0;
  };
  await until('the end of the stream', settled);
  await connection.close();
  return ids;
}

async function confirmedGrowBy(publisher, count) {
  const target = publisher.confirmed.length + count;
  await until(`${count} more confirmed`, () => publisher.confirmed.length >= target);
}

test('updates reach the sockets of their users, on two instances, and nobody else', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const [a, b, other] = [await Tab.open(one, 'usr_live'), await Tab.open(two, 'usr_live'), await Tab.open(two, 'usr_other')];
  // A socket is let in after 2 s, also where RabbitMQ takes longer to attach the reader.
  await Promise.all([one.metricIs('subscriptions', 1), two.metricIs('subscriptions', 2)]);
  const publisher = await Publisher.connect(broker);
  for (let i = 0; i < 20; i += 1) {
    const update = publisher.update('usr_live');
    await Promise.all([a.saw(update), b.saw(update)]);
  }
  await other.saw(publisher.update('usr_other'));
  assert.equal(other.ids.length, 1);
  assert.equal(a.ids.length, 20);
  assert.equal(await one.metric('stream_holes_total'), 0);
  await until('a marker', async () => (await one.metric('stream_round_trip_seconds_count')) > 0);
  // Each instance has one reader, once it has read back what was before its start.
  await until('the readers', async () => {
    const [queue] = (await broker.queues()).filter(({ name }) => name === STREAM);
    return queue.durable === 'true' && queue.consumers === 2;
  });
  assert.equal((await one.terminate()).code, 0);
});

test('while the link is cut, sockets stay, and afterwards nothing is missing', async () => {
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const gateway = await start({ RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) });
  const all = await tabs(gateway);
  const publisher = await ConfirmingPublisher.start([broker], USERS);
  for (let cut = 1; cut <= 3; cut += 1) {
    await confirmedGrowBy(publisher, 50);
    network.cut();
    await gateway.isConnected(false);
    await confirmedGrowBy(publisher, 300);
    network.restore();
    await gateway.isConnected();
    await gateway.metricIs('rabbitmq_reconnects_total', cut);
  }
  await confirmedGrowBy(publisher, 50);
  await nothingIsLostOrDoubled(all, publisher);
  assert.equal(await gateway.metric('stream_holes_total'), 0);
  // The run of updates is unbroken: a client that comes back recovers.
  const [tab] = all;
  tab.socket.io.engine.close();
  await tab.when('the reconnect', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, true]);
});

test('who comes while the link is cut gets what is published from then on', async () => {
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const gateway = await start({ RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) });
  const before = await Tab.open(gateway, 'usr_before');
  const publisher = await Publisher.connect(broker);
  await before.saw(publisher.update('usr_before'));
  network.cut();
  await gateway.isConnected(false);
  const during = new Tab(gateway, token('usr_during'));
  await during.when('the connect', () => during.connects === 1);
  const update = publisher.update('usr_during');
  before.close();
  network.restore();
  await during.saw(update);
});

test('RabbitMQ is killed and started again: what the stream holds arrives once, no socket is closed', async () => {
  const own = await Broker.start();
  await (await Publisher.connect(own)).close();
  const gateway = await start({}, { broker: own });
  const all = await tabs(gateway);
  const publisher = await ConfirmingPublisher.start([own], USERS);
  await confirmedGrowBy(publisher, 200);
  await own.kill();
  await gateway.isConnected(false);
  await own.start();
  await gateway.isConnected();
  await confirmedGrowBy(publisher, 200);
  await publisher.stop();
  // While RabbitMQ starts, it confirms messages that it routes to a stream without a leader,
  // and loses them.
  const kept = await idsIn(own, STREAM);
  const lost = publisher.confirmed.filter(({ _id }) => !kept.has(_id)).map(({ _id }) => _id);
  publisher.confirmed = publisher.confirmed.filter(({ _id }) => kept.has(_id));
  assert.ok(publisher.confirmed.length > 300 && lost.length < 100, `RabbitMQ lost ${lost}`);
  await nothingIsLostOrDoubled(all, publisher);
  assert.equal(await gateway.metric('stream_holes_total'), 0);
});

test('the stream is deleted: it is made anew, and sockets that stayed are told to refetch', async () => {
  const gateway = await start({ RABBITMQ_STREAM: 'chat3-gateway.doomed', RABBITMQ_RECONNECT_DELAY: NEVER });
  const tab = await Tab.open(gateway, 'usr_doomed');
  const publisher = await Publisher.connect(broker);
  for (let i = 0; i < 10; i += 1) await tab.saw(publisher.update('usr_doomed'));
  await broker.ctl('delete_queue', 'chat3-gateway.doomed');
  await gateway.metricIs('stream_holes_total', 1);
  await tab.when('the reconnect', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  assert.equal(await gateway.metric('resyncs_total'), 1);
  await tab.saw(publisher.update('usr_doomed'));
  assert.equal(new Set(tab.ids).size, 11);
  assert.equal(tab.ids.length, 11);
});

test('messages that cannot be read are stepped over, and nothing else is missing', async () => {
  const gateway = await start({ RABBITMQ_STREAM: 'chat3-gateway.poisoned', RABBITMQ_RECONNECT_DELAY: NEVER });
  const all = await tabs(gateway);
  const poisoner = await Poisoner.connect(broker);
  const publisher = await ConfirmingPublisher.start([broker], USERS, { pauseMs: 1 });
  let poisons = 0;
  // RabbitMQ rewrites a header of the type L as one that can be read.
  const unreadable = Object.entries(UNREADABLE).filter(([what]) => !what.endsWith('type L'));
  // Each costs three connections, and 20 a minute are made without a pause.
  for (const [, message] of unreadable) {
    await confirmedGrowBy(publisher, 50);
    await poisoner.publish(USERS[0], message);
    poisons += 1;
    await gateway.metricIs('messages_unreadable_total', poisons);
  }
  await confirmedGrowBy(publisher, 50);
  await nothingIsLostOrDoubled(all, publisher);
  assert.equal(gateway.logs.match(/in the stream stepped over/g).length, poisons);
  assert.equal(await gateway.metric('stream_holes_total'), 0);
});

test('a reader that stops is replaced', async () => {
  const stream = 'chat3-gateway.silent';
  const gateway = await start({ RABBITMQ_STREAM: stream });
  const tab = await Tab.open(gateway, 'usr_silent');
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  // Equivalent to a reader that stops: no message arrives.
  await channel.unbindQueue(stream, `${stream}.markers`, '');
  await channel.unbindQueue(stream, EXCHANGE, '#');
  await gateway.metricIs('stream_stops_total', 1, 40_000);
  await gateway.logged(/connection closed reason=the reader of the stream has stopped/);
  const publisher = await Publisher.connect(broker);
  await gateway.metricIs('rabbitmq_reconnects_total', 1);
  await until('the subscription', async () => (await gateway.metric('subscriptions')) === 1);
  await tab.saw(publisher.update('usr_silent'));
  assert.deepEqual(tab.disconnects, []);
  await connection.close();
});

test('a stream with other limits is used as it is; what is no stream is refused, with what to do', async () => {
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  await channel.assertQueue('chat3-gateway.older', { durable: true, arguments: { 'x-queue-type': 'stream', 'x-max-age': '5m' } });
  await channel.assertQueue('chat3-gateway.classic', { durable: true });
  const gateway = await start({ RABBITMQ_STREAM: 'chat3-gateway.older' });
  await gateway.logged(/RabbitMQ has the stream with other limits.*inequivalent arg 'x-max/);
  const tab = await Tab.open(gateway, 'usr_older');
  await tab.saw((await Publisher.connect(broker)).update('usr_older'));
  const refused = await start({ RABBITMQ_STREAM: 'chat3-gateway.classic' }, { connected: false });
  await refused.logged(/406 PRECONDITION_FAILED.*name another in RABBITMQ_STREAM/);
  await connection.close();
});

test('the exchange that does not exist yet is waited for', async () => {
  const own = await Broker.start();
  const gateway = await start({}, { broker: own });
  const tab = new Tab(gateway, token('usr_early'));
  await tab.when('the connect', () => tab.connects === 1);
  await gateway.logged(/RabbitMQ exchange not found/);
  const publisher = await Publisher.connect(own);
  // Who came before the subscription is told to fetch once more.
  await tab.when('the reconnect', () => tab.connects === 2);
  await tab.saw(publisher.update('usr_early'));
});

test('the rights that the documentation grants are enough, and doctor tells what is missing', async () => {
  await broker.ctl('add_user', 'reader', 'its-Password-7');
  await broker.ctl('set_permissions', 'reader', '^chat3-gateway\\.', '^chat3-gateway\\.', '^(chat3-gateway\\..*|chat3_updates)$');
  await broker.ctl('set_topic_permissions', 'reader', EXCHANGE, '^$', '^#$');
  const url = broker.url.replace('rmuser:rmpassword', 'reader:its-Password-7');
  const env = { RABBITMQ_URL: url, RABBITMQ_STREAM: 'chat3-gateway.granted' };
  const doctor = async (more = {}) => {
    const settings = { RABBITMQ_TOPOLOGY: 'stream', JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', ...env, ...more };
    const { stdout } = await runGateway(['doctor', '--json', '--listen', '1s'], { env: settings });
    return JSON.parse(stdout).findings.filter(({ check }) => check === 'stream').map(({ status, finding }) => `${status}: ${finding}`);
  };
  assert.deepEqual(await doctor(), ['ok: chat3-gateway.granted does not exist yet: serve makes it; RabbitMQ has streams']);
  const gateway = await start(env);
  const tab = await Tab.open(gateway, 'usr_granted');
  await tab.saw((await Publisher.connect(broker)).update('usr_granted'));
  assert.deepEqual(await doctor(), ['ok: chat3-gateway.granted exists as serve declares it']);
  assert.match(String(await doctor({ RABBITMQ_STREAM_MAX_AGE: '2h' })), /^warning: .*other limits.*x-max-age/);
  assert.match(String(await doctor({ RABBITMQ_STREAM: 'chat3-gateway.classic' })), /^problem: .*exists and is no stream/);
  assert.match(String(await doctor({ RABBITMQ_STREAM: 'elsewhere' })), /^problem: may not/);
  // The trial has left nothing behind.
  assert.doesNotMatch(await broker.ctl('list_queues', 'name'), /doctor/);
});
