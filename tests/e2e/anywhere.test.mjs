// Recovery at any instance, in the topology `stream`: a client goes on where it was, whatever
// instance it comes to, or is refused and gets nothing of what it missed. Publishers wait for
// RabbitMQ's confirmation.

import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, test } from 'node:test';

import amqplib from 'amqplib';
import { io as io46 } from 'socket.io-client-4.6';

import { ConfirmingPublisher } from './cluster.mjs';
import { Broker, EXCHANGE, Gateway, Network, Publisher, Tab, anUpdate, token, until } from './harness.mjs';
import { Poisoner, UNREADABLE, forgedOffset } from './poison.mjs';

const STREAM = 'chat3-gateway.updates';

/** How clients connect. */
const CLIENTS = {
  'websocket, 4.8': { transports: ['websocket'] },
  'websocket, 4.6': { transports: ['websocket'], connect: io46 },
  'polling, 4.8': { transports: ['polling'] },
  'polling with upgrade, 4.6': { connect: io46 },
};

let broker;

before(async () => {
  broker = await Broker.start();
  // Declares the exchange.
  await (await Publisher.connect(broker)).close();
});

const start = (env = {}, options = {}) => Gateway.start(options.broker ?? broker, { env: { RABBITMQ_TOPOLOGY: 'stream', ...env }, ...options });

/** One address for several gateways: connections go to the one that was chosen last. */
class Front {
  static async of(gateway) {
    const front = new Front();
    front.links = new Set();
    front.gateway = gateway;
    const server = net.createServer((near) => {
      const far = net.connect(Number(new URL(front.gateway.url).port), '127.0.0.1');
      for (const [socket, other] of [[near, far], [far, near]]) {
        socket.on('error', () => {});
        socket.on('close', () => other.destroy());
        socket.pipe(other);
      }
      front.links.add(near);
      near.on('close', () => front.links.delete(near));
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    front.url = `http://127.0.0.1:${server.address().port}`;
    after(() => {
      front.reset();
      server.close();
    });
    return front;
  }

  /** Sends clients elsewhere, and breaks their connections. */
  moveTo(gateway) {
    this.gateway = gateway;
    this.reset();
  }

  reset() {
    for (const link of this.links) link.destroy();
  }
}

/** A tab of a user of its own for each kind of client. */
async function tabsAt(front, prefix, kinds = CLIENTS) {
  const entries = Object.entries(kinds).map(async ([kind, options], index) => {
    const userId = `${prefix}.${index}`;
    const tab = await Tab.open(front.gateway, userId, { url: front.url, ...options });
    return Object.assign(tab, { userId, kind });
  });
  return Promise.all(entries);
}

/** Asserts that each tab got exactly what was confirmed for it, in order. */
async function exactlyOnce(tabs, publisher) {
  const confirmed = await publisher.stop();
  for (const tab of tabs) {
    const expected = confirmed.filter(({ userId }) => userId === tab.userId).map(({ _id }) => _id);
    assert.ok(expected.length > 0);
    await tab.saw({ _id: expected.at(-1) });
    assert.deepEqual(tab.ids.filter((id) => !publisher.uncertain.has(id)), expected, tab.kind);
    assert.equal(new Set(tab.ids).size, tab.ids.length);
      // Each update has two events.
    await tab.when('the last event', () => tab.events.at(-1).event !== 'chat3:update');
    const pairs = tab.events.filter(({ event }) => event !== 'recovery:offset').map(({ event, args: [{ _id, entityId }] }) => `${event} ${entityId ?? _id}`);
    const messages = tab.named('chat3:update').map(({ entityId }) => [`chat3:update ${entityId}`, `message:new ${entityId}`]);
    assert.deepEqual(pairs, messages.flat(), tab.kind);
  }
}

async function confirmedGrowBy(publisher, count) {
  const target = publisher.confirmed.length + count;
  await until(`${count} more confirmed`, () => publisher.confirmed.length >= target);
}

/** Waits until each tab has connected again, and asserts how. */
async function cameBack(tabs, recovered, connects = 2) {
  for (const tab of tabs) {
    await tab.when(`${tab.kind} is back`, () => tab.connects >= connects);
    assert.equal(tab.recovered.at(-1), recovered, tab.kind);
  }
}

test('a client that comes to another instance goes on where it was', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_move');
  const ids = tabs.map((tab) => tab.socket.id);
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  for (const [move, gateway] of [two, one, two].entries()) {
    await confirmedGrowBy(publisher, 60);
    front.moveTo(gateway);
    await cameBack(tabs, true, move + 2);
  }
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce(tabs, publisher);
  assert.deepEqual(tabs.map((tab) => tab.socket.id), ids);
  assert.equal(await two.metric('recoveries_total{outcome="recovered"}'), 2 * tabs.length);
});

test('an instance is killed', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_killed');
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  await confirmedGrowBy(publisher, 60);
  front.gateway = two;
  await one.kill();
  await cameBack(tabs, true);
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce(tabs, publisher);
});

test('an instance is shut down', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_stopped');
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  await confirmedGrowBy(publisher, 60);
  front.gateway = two;
  assert.equal((await one.terminate()).code, 0);
  await cameBack(tabs, true);
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce(tabs, publisher);
});

for (const signal of ['SIGTERM', 'SIGKILL']) {
  test(`the only instance is restarted after ${signal}`, async () => {
    const one = await start();
    const front = await Front.of(one);
    const tabs = await tabsAt(front, `usr_restart_${signal}`);
    const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
    await confirmedGrowBy(publisher, 60);
    await one.terminate(signal);
    await confirmedGrowBy(publisher, 200);
    front.gateway = await start();
    await cameBack(tabs, true);
    await confirmedGrowBy(publisher, 60);
    await exactlyOnce(tabs, publisher);
    await front.gateway.logged(/RabbitMQ stream read back/);
    assert.equal(await front.gateway.metric('history_reading'), 0);
  });
}

test('websockets go from instance to instance without sticky sessions', async () => {
  const gateways = await Promise.all([start(), start(), start()]);
  const front = await Front.of(gateways[0]);
  // Each connection to the next one.
  let turn = 0;
  Object.defineProperty(front, 'gateway', { get: () => gateways[(turn += 1) % gateways.length] });
  const websockets = Object.fromEntries(Object.entries(CLIENTS).filter(([kind]) => kind.startsWith('websocket')));
  const tabs = await tabsAt(front, 'usr_round', websockets);
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  for (let round = 0; round < 6; round += 1) {
    await confirmedGrowBy(publisher, 30);
    front.reset();
    await cameBack(tabs, true, round + 2);
  }
  await confirmedGrowBy(publisher, 30);
  await exactlyOnce(tabs, publisher);
});

test('while an instance has no link to RabbitMQ, its clients go on elsewhere, and others come to it', async () => {
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const [one, two] = [await start({ RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) }), await start()];
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_cut');
  const stays = await Tab.open(one, 'usr_cut.0', { transports: ['websocket'] });
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  await confirmedGrowBy(publisher, 60);
  network.cut();
  const restoreAt = Date.now() + 20_000;
  await one.isConnected(false);
  await confirmedGrowBy(publisher, 200);
  // What is newer than all that an instance has is waited for, and refused after 5 s.
  front.moveTo(two);
  await cameBack(tabs, true);
  await until('the end of the cut', () => Date.now() > restoreAt, 30_000);
  network.restore();
  await one.isConnected();
  front.moveTo(one);
  await cameBack(tabs, true, 3);
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce([...tabs, Object.assign(stays, { userId: 'usr_cut.0', kind: 'stays' })], publisher);
  assert.deepEqual(stays.disconnects, []);
});

test('what an instance no longer has is refused, and nothing of it is sent', async () => {
  const settings = { RECOVERY_TOTAL_BYTES: '20000' };
  const [one, two] = await Promise.all([start(settings), start(settings)]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_beyond', { 'websocket, 4.8': CLIENTS['websocket, 4.8'] });
  const [tab] = tabs;
  const publisher = await Publisher.connect(broker);
  await tab.saw(publisher.update(tab.userId));
  tab.socket.io.reconnection(false);
  front.reset();
  await tab.when('the loss', () => tab.disconnects.length === 1);
  for (let i = 0; i < 100; i += 1) publisher.update(tab.userId);
  await until('the last of them', async () => (await two.metric('updates_unclaimed_total')) > 90);
  front.gateway = two;
  tab.socket.connect();
  await cameBack(tabs, false);
  await tab.saw(publisher.update(tab.userId));
  assert.equal(tab.ids.length, 2);
  assert.equal(await two.metric('recoveries_total{outcome="gap"}'), 1);
});

test('the stream is deleted: nobody goes on, at any instance', async () => {
  const own = { RABBITMQ_STREAM: 'chat3-gateway.anew' };
  const [one, two] = await Promise.all([start(own), start(own)]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_anew', { 'websocket, 4.8': CLIENTS['websocket, 4.8'] });
  const [tab] = tabs;
  const publisher = await Publisher.connect(broker);
  await tab.saw(publisher.update(tab.userId));
  tab.socket.io.reconnection(false);
  front.reset();
  await tab.when('the loss', () => tab.disconnects.length === 1);
  await broker.ctl('delete_queue', 'chat3-gateway.anew');
  for (const gateway of [one, two]) await gateway.metricIs('stream_holes_total', 1);
  const three = await start(own);
  front.gateway = three;
  tab.socket.connect();
  await cameBack(tabs, false);
  await tab.saw(publisher.update(tab.userId));
  assert.equal(tab.ids.length, 2);
});

test('secrets take each other\'s place', async () => {
  const [former, next] = ['a-former-secret-of-the-fleet', 'the-next-secret-of-the-fleet'];
  const starts = [former, `${next},${former}`, next].map((RECOVERY_SECRET) => start({ RECOVERY_SECRET }));
  const [one, both, two] = await Promise.all(starts);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_rotated', { 'websocket, 4.8': CLIENTS['websocket, 4.8'] });
  const publisher = await Publisher.connect(broker);
  await tabs[0].saw(publisher.update(tabs[0].userId));
  front.moveTo(both);
  await cameBack(tabs, true, 2);
  front.moveTo(two);
  await cameBack(tabs, false, 3);
  assert.equal(await two.metric('recoveries_total{outcome="unreadable"}'), 1);
  // What was signed with the new one is known to those that have it.
  await tabs[0].saw(publisher.update(tabs[0].userId));
  front.moveTo(both);
  await cameBack(tabs, true, 4);
  for (const gateway of [one, both, two]) assert.doesNotMatch(gateway.logs, /secret-of-the-fleet/);
});

test('the pid of one user is nothing in the hands of another', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const tab = await Tab.open(one, 'usr_robbed', { transports: ['websocket'] });
  const publisher = await Publisher.connect(broker);
  await tab.saw(publisher.update('usr_robbed'));
  const pid = tab.socket._pid;
  assert.ok(pid.length > 60 && pid.length < 90, pid);
  const offset = tab.offsets.at(-1);
  publisher.update('usr_robbed');
  const thief = await Tab.open(two, 'usr_thief', { auth: { token: token('usr_thief'), pid, offset }, transports: ['websocket'] });
  await thief.saw(publisher.update('usr_thief'));
  assert.equal(thief.ids.length, 1);
  assert.notEqual(thief.socket._pid, pid);
  assert.equal(await two.metric('recoveries_total{outcome="unreadable"}'), 1);
  for (const gateway of [one, two]) assert.ok(!gateway.logs.includes(pid));
});

test('a client that is sent nothing for long still goes on where it was', async () => {
  const settings = { RECOVERY_WINDOW: '4s' };
  const [one, two] = await Promise.all([start(settings), start(settings)]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_quiet');
  const others = await ConfirmingPublisher.start([broker], ['usr_somebody_else']);
  const publisher = await Publisher.connect(broker);
  for (const tab of tabs) await tab.saw(publisher.update(tab.userId));
  await new Promise((resolve) => setTimeout(resolve, 12_000));
  for (const tab of tabs) assert.ok(tab.named('recovery:offset').length + tab.offsets.length > 2, tab.kind);
  front.moveTo(two);
  await cameBack(tabs, true);
  for (const tab of tabs) await tab.saw(publisher.update(tab.userId));
  for (const tab of tabs) assert.equal(tab.ids.length, 2);
  await others.stop();
});

test('a client comes back after its own disconnect, and goes on exactly where it was', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_own_accord', { 'websocket, 4.8': CLIENTS['websocket, 4.8'] });
  const [tab] = tabs;
  const publisher = await Publisher.connect(broker);
  await tab.saw(publisher.update(tab.userId));
  tab.socket.disconnect();
  await until('the disconnect', async () => (await one.metric('sockets')) === 0);
  const missed = publisher.update(tab.userId);
  front.gateway = two;
  tab.socket.connect();
  await cameBack(tabs, true);
  await tab.saw(missed);
  assert.equal(tab.ids.length, 2);
});

test('a message that nobody can read is stepped over while reading back', async () => {
  const one = await start();
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_poisoned', { 'websocket, 4.8': CLIENTS['websocket, 4.8'] });
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  await confirmedGrowBy(publisher, 30);
  await one.kill();
  const poisoner = await Poisoner.connect(broker);
  const [[, message]] = Object.entries(UNREADABLE);
  await poisoner.publish(tabs[0].userId, message);
  await confirmedGrowBy(publisher, 30);
  const next = await start();
  await next.logged(/stepped over while reading back/);
  // On a busy machine, three connections may take longer than a client waits.
  await next.logged(/RabbitMQ stream read back/);
  front.gateway = next;
  await cameBack(tabs, true);
  await confirmedGrowBy(publisher, 30);
  await exactlyOnce(tabs, publisher);
});

/** The period that attempts to read back are counted in. */
const periodNow = () => Math.floor(Date.now() / 300_000);

test('an instance whose predecessors ended while they read back does not read', async () => {
  const env = { INSTANCE_NAME: 'doomed' };
  const first = await start(env);
  await first.logged(/RabbitMQ stream read back/);
  const left = async () => (await broker.queues()).map(({ name }) => name).filter((name) => name.includes('.doomed.'));
  await until('no trace of it', async () => (await left()).length === 0);
  const connection = await amqplib.connect(broker.url);
  after(() => connection.close().catch(() => {}));
  const channel = await connection.createChannel();
  const period = periodNow();
  for (const number of [0, 1, 2]) {
    await channel.assertQueue(`chat3-gateway.reading.${STREAM}.doomed.${period}.${number}`, { durable: true, arguments: { 'x-expires': 600_000 } });
  }
  const second = await start(env);
  await second.logged(/stream not read back: the last instances here ended while they read/, 30_000);
  assert.equal((await second.json('/ready')).history.state, 'read');
  for (const number of [0, 1, 2]) await channel.deleteQueue(`chat3-gateway.reading.${STREAM}.doomed.${period}.${number}`);
});

test('an instance that survives reading back leaves no trace of it, though it lost RabbitMQ or was stopped meanwhile', async () => {
  const publisher = await Publisher.connect(broker);
  const channel = await publisher.connection.createConfirmChannel();
  const stream = 'chat3-gateway.long';
  await channel.assertQueue(stream, { durable: true, arguments: { 'x-queue-type': 'stream' } });
  // Reading them back takes some seconds.
  const content = Buffer.from(JSON.stringify(anUpdate('usr_nobody')));
  for (let i = 0; i < 40_000; i += 1) channel.sendToQueue(stream, content);
  await channel.waitForConfirms();
  const exists = async (queue) => {
    const asking = await publisher.connection.createChannel();
    asking.on('error', () => {});
    return asking.checkQueue(queue).then(() => asking.close()).then(() => true, () => false);
  };
  const isReading = async () => {
    const names = [0, 1].map((earlier) => `chat3-gateway.reading.${stream}.survivor.${periodNow() - earlier}.0`);
    return (await exists(names[0])) || exists(names[1]);
  };
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const env = { RABBITMQ_STREAM: stream, INSTANCE_NAME: 'survivor', RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) };
  const first = await start(env);
  await until('it reads', isReading);
  network.cut();
  await first.logged(/RabbitMQ stream not read back/);
  assert.ok(await isReading());
  network.restore();
  await until('its trace is gone', async () => !(await isReading()), 20_000);
  await first.terminate();

  const second = await start(env);
  await until('it reads', isReading);
  assert.equal((await second.json('/ready')).history.state, 'reading');
  await second.terminate();
  assert.equal(await isReading(), false);
  await channel.deleteQueue(stream);
});

test('who came before an instance had a place in the stream is told to fetch, whatever came since', async () => {
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  network.cut();
  const gateway = await start({ RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) }, { connected: false });
  const tab = new Tab(gateway, token('usr_first'), { transports: ['websocket'] });
  await tab.when('the connect', () => tab.connects === 1);
  const publisher = await ConfirmingPublisher.start([broker], ['usr_first'], { pauseMs: 2 });
  await confirmedGrowBy(publisher, 20);
  network.restore();
  await tab.when('the reconnect', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  const count = tab.ids.length;
  await confirmedGrowBy(publisher, 20);
  const confirmed = await publisher.stop();
  await tab.saw(confirmed.at(-1));
  // From the second connect on, nothing is missing.
  const later = tab.ids.slice(count);
  const all = confirmed.map(({ _id }) => _id);
  assert.deepEqual(later, all.slice(all.indexOf(later[0])));
});

test('what RabbitMQ no longer keeps is a gap, and who stayed is told', async () => {
  const stream = 'chat3-gateway.short';
  const connection = await amqplib.connect(broker.url);
  after(() => connection.close().catch(() => {}));
  const channel = await connection.createChannel();
  const limits = { 'x-queue-type': 'stream', 'x-max-length-bytes': 200_000, 'x-stream-max-segment-size-bytes': 100_000 };
  await channel.assertQueue(stream, { durable: true, arguments: limits });
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const env = { RABBITMQ_STREAM: stream, RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${port}`) };
  const gateway = await start(env);
  const tab = await Tab.open(gateway, 'usr_retained', { transports: ['websocket'] });
  const publisher = await Publisher.connect(broker);
  await tab.saw(publisher.update('usr_retained'));
  network.cut();
  await gateway.isConnected(false);
  for (let i = 0; i < 2_000; i += 1) publisher.update('usr_retained', { padding: 'x'.repeat(1_000) });
  await until('the end of the first segment', async () => {
    const { messageCount } = await channel.checkQueue(stream);
    return messageCount > 0 && messageCount < 1_500;
  });
  network.restore();
  await gateway.metricIs('stream_holes_total', 1);
  await tab.when('the reconnect', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  const count = tab.ids.length;
  await tab.saw(publisher.update('usr_retained'));
  assert.ok(tab.ids.length - count < 2_000 && new Set(tab.ids).size === tab.ids.length);
});

/** The offset of the newest message of the stream. */
async function newestOffset() {
  const connection = await amqplib.connect(broker.url);
  const channel = await connection.createChannel();
  await channel.prefetch(1_000);
  let newest;
  await channel.consume(STREAM, (message) => {
    newest = message.properties.headers['x-stream-offset'];
    channel.ack(message);
  }, { arguments: { 'x-stream-offset': 'last' } });
  await until('the last message', () => newest !== undefined);
  await connection.close();
  return newest;
}

test('a place that a publisher forges hides no update from a client that comes to an instance that starts later', async () => {
  const one = await start();
  const front = await Front.of(one);
  const tab = await Tab.open(one, 'usr_forged', { url: front.url, transports: ['websocket'] });
  const [poisoner, publisher] = [await Poisoner.connect(broker), await Publisher.connect(broker)];
  await tab.saw(publisher.update('usr_forged'));
  front.moveTo({ url: 'http://127.0.0.1:9' });
  // More than is read back at the first go.
  for (let i = 0; i < 3_000; i += 1) publisher.update('usr_other');
  await publisher.channel.checkExchange(EXCHANGE);
  await one.metricIs('sockets', 0);
  const forged = forgedOffset(await newestOffset() + 4);
  await poisoner.publishTo(EXCHANGE, 'user.usr_other.x', forged, JSON.stringify(anUpdate('usr_other')));
  const missed = [1, 2, 3, 4].map(() => publisher.update('usr_forged'));
  await publisher.channel.checkExchange(EXCHANGE);
  const later = await start();
  await later.logged(/stream (not )?read back/);
  front.moveTo(later);
  await tab.when('back', () => tab.connects === 2);
  if (tab.recovered.at(-1)) {
    await tab.saw(missed.at(-1));
    assert.deepEqual(tab.ids.slice(1), missed.map(({ _id }) => _id));
  }
  await later.logged(/stream not read back/);
  await poisoner.close();
  tab.close();
  for (const gateway of [one, later]) await gateway.kill();
});
