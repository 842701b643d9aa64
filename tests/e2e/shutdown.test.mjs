// SIGTERM and SIGINT end the gateway in order; its clients reconnect without help.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, HANDSHAKE, Publisher, Tab, frame, freePort, rawConnection, rawWebsocket, token, until } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

/** How many messages the broker has handed out so far. */
async function handedOutSoFar() {
  const counters = await broker.ctl('eval', 'rabbit_global_counters:overview().');
  const values = [...counters.matchAll(/messages_delivered_total => (\d+)/g)].map(([, value]) => Number(value));
  assert.notEqual(values.length, 0, counters);
  return values.reduce((total, value) => total + value);
}

for (const signal of ['SIGTERM', 'SIGINT']) {
  test(`${signal} closes transports, not sockets: clients reconnect to the next gateway without help`, async () => {
    const port = await freePort();
    const first = await Gateway.start(broker, { env: { PORT: String(port) } });
    const tabs = [
      await Tab.open(first, 'usr_a'),
      await Tab.open(first, 'usr_b', { transports: ['websocket'] }),
      await Tab.open(first, 'usr_c', { transports: ['polling'] }),
    ];
    await until('the upgrade', () => tabs[0].socket.io.engine.transport.name === 'websocket');
    const exit = await first.terminate(signal);
    assert.deepEqual([exit.code, exit.signal], [0, null]);
    assert.ok(exit.ms < 10_000, `${exit.ms} ms`);
    for (const tab of tabs) {
      await tab.when('disconnected', () => tab.disconnects.length > 0);
      assert.ok(['transport close', 'transport error'].includes(tab.disconnects[0]), tab.disconnects[0]);
    }
    await broker.queuesAre(0, 0);
    const second = await Gateway.start(broker, { env: { PORT: String(port) } });
    for (const tab of tabs) await tab.when('reconnected', () => tab.connects === 2);
    // They may have connected before its link to RabbitMQ, and so before their subscriptions.
    await second.metricIs('subscriptions', 3);
    for (const [i, user] of ['usr_a', 'usr_b', 'usr_c'].entries()) {
      await tabs[i].saw(publisher.update(user));
    }
    await second.terminate();
  });
}

test('what was consumed before SIGTERM reaches the sockets', async () => {
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_flush', { reconnection: false });
  const before = await handedOutSoFar();
  const published = Array.from({ length: 1000 }, () => publisher.update('usr_flush')._id);
  await tab.when('the first update', () => tab.ids.length > 0);
  const { code } = await gateway.terminate();
  assert.equal(code, 0);
  await tab.when('disconnected', () => tab.disconnects.length > 0);
  // Without holes; updates that the broker had not delivered yet stay there.
  assert.deepEqual(tab.ids, published.slice(0, tab.ids.length));
  assert.equal(tab.ids.length, (await handedOutSoFar()) - before);
});

test('without a broker it exits as well', async () => {
  const gateway = await Gateway.start(await Broker.absent());
  await Tab.open(gateway, 'usr_a');
  const exit = await gateway.terminate();
  assert.equal(exit.code, 0);
  assert.ok(exit.ms < 10_000);
});

test('while draining it is not ready, and handshakes are turned away', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_TIMEOUT: '6s' } });
  assert.equal((await gateway.get('/ready')).status, 200);
  // A frozen broker keeps the drain waiting long enough to look at it.
  await Tab.open(gateway, 'usr_draining');
  broker.child.kill('SIGSTOP');
  try {
    const exit = gateway.terminate();
    await until('draining', async () => (await gateway.get('/ready')).status === 503);
    assert.equal((await gateway.get('/readyz')).status, 503);
    const handshake = await gateway.get('/socket.io/?EIO=4&transport=polling');
    assert.equal(handshake.status, 503);
    for (const path of ['/health', '/livez']) assert.equal((await gateway.get(path)).status, 200, path);
    const { code, ms } = await exit;
    assert.equal(code, 0);
    assert.ok(ms < 10_000, `${ms} ms`);
  } finally {
    broker.child.kill('SIGCONT');
  }
});

test('a second signal ends it at once', async () => {
  const gateway = await Gateway.start(broker);
  await Tab.open(gateway, 'usr_twice');
  broker.child.kill('SIGSTOP');
  try {
    const exit = gateway.terminate();
    await gateway.logged(/Shutting down/);
    // Twice within 300 ms counts once: here time itself is under test.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    gateway.child.kill('SIGTERM');
    const { code, ms } = await exit;
    assert.equal(code, 130);
    assert.ok(ms < 6000, `${ms} ms`);
  } finally {
    broker.child.kill('SIGCONT');
  }
});

test('for SHUTDOWN_DELAY it is not ready, and still serves and lets clients in', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_DELAY: '3s' } });
  const before = await Tab.open(gateway, 'usr_before', { reconnection: false });
  const exit = gateway.terminate();
  await until('not ready', async () => (await gateway.get('/ready')).status === 503);
  assert.equal((await gateway.get('/readyz')).status, 503);
  for (const path of ['/health', '/livez']) assert.equal((await gateway.get(path)).status, 200, path);
  const meanwhile = await Tab.open(gateway, 'usr_meanwhile', { reconnection: false });
  await before.saw(publisher.update('usr_before'));
  await meanwhile.saw(publisher.update('usr_meanwhile'));
  assert.deepEqual([before.disconnects, meanwhile.disconnects], [[], []]);
  const { code, ms } = await exit;
  assert.equal(code, 0);
  assert.ok(ms >= 3000 && ms < 8000, `${ms} ms`);
  for (const tab of [before, meanwhile]) await tab.when('disconnected', () => tab.disconnects.length > 0);
});

test('a second signal ends it at once, in SHUTDOWN_DELAY too', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_DELAY: '1m' } });
  const exit = gateway.terminate();
  await gateway.logged(/Not ready any more/);
  // Twice within 300 ms counts once: here time itself is under test.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  gateway.child.kill('SIGTERM');
  const { code, ms } = await exit;
  assert.equal(code, 130);
  assert.ok(ms < 6000, `${ms} ms`);
});

test('SIGTERM under full load: what was consumed arrived, without a hole, on every socket', async () => {
  // Time enough for ten thousand updates on a busy machine.
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_TIMEOUT: '30s' } });
  const users = Array.from({ length: 50 }, (_, i) => `usr_load_${i}`);
  const tabs = await Promise.all(users.map((user) => Tab.open(gateway, user, { reconnection: false, transports: ['websocket'] })));
  const published = new Map(users.map((user) => [user, []]));
  const before = await handedOutSoFar();
  const timer = setInterval(() => {
    for (const user of users) for (let i = 0; i < 5; i += 1) published.get(user).push(publisher.update(user)._id);
  }, 20);
  await tabs[0].when('updates flow', () => tabs[0].ids.length > 100);
  const exit = await gateway.terminate();
  clearInterval(timer);
  assert.equal(exit.code, 0);
  assert.ok(exit.ms < 30_000, `${exit.ms} ms`);
  for (const [i, user] of users.entries()) {
    await tabs[i].when('disconnected', () => tabs[i].disconnects.length === 1);
    assert.deepEqual(tabs[i].ids, published.get(user).slice(0, tabs[i].ids.length), user);
    // Both events of an update, or neither.
    assert.equal(tabs[i].events.length, 2 * tabs[i].ids.length);
  }
  const arrived = tabs.reduce((sum, tab) => sum + tab.ids.length, 0);
  const handedOut = (await handedOutSoFar()) - before;
  assert.ok(handedOut > 1000, `${handedOut}`);
  assert.equal(arrived, handedOut);
});

test('what waits for a socket that lags reaches it before a shutdown', async () => {
  const gateway = await Gateway.start(broker);
  const socket = await rawWebsocket(gateway, 'usr_late');
  socket.pause();
  const content = 'x'.repeat(20_000);
  // The system's buffers take the first megabytes.
  for (let i = 1; i <= 400; i += 1) publisher.update('usr_late', { data: { _id: `msg_late_${i}`, content } });
  await gateway.metricIs('updates_received_total', 400);
  assert.ok((await gateway.metric('updates_kept_total')) > 0);
  // The gateway checks ever more rarely whether the client takes something: time itself is under test.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  socket.resume();
  const { code, ms } = await gateway.terminate();
  assert.equal(code, 0);
  assert.ok(ms < 10_000, `${ms} ms`);
  await socket.ended;
  const arrived = [...socket.received.matchAll(/"message:new",\{"_id":"msg_late_(\d+)"/g)].map(([, number]) => Number(number));
  assert.deepEqual(arrived, Array.from({ length: 400 }, (_, i) => i + 1));
});

test('with a client that takes nothing and a frozen broker it still exits in time', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_TIMEOUT: '4s' } });
  const stuck = await Tab.open(gateway, 'usr_stuck', { transports: ['websocket'] });
  stuck.socket.io.engine.transport.ws._socket?.pause();
  for (let i = 0; i < 200; i += 1) publisher.update('usr_stuck', { data: { content: 'x'.repeat(50_000) } });
  await until('updates are consumed', async () => (await gateway.metric('updates_received_total')) > 100);
  broker.child.kill('SIGSTOP');
  try {
    const { code, ms } = await gateway.terminate();
    assert.equal(code, 0);
    assert.ok(ms < 8000, `${ms} ms`);
  } finally {
    broker.child.kill('SIGCONT');
  }
});

test('connections are closed over the spread, not in one wave', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_SPREAD: '1500ms' } });
  const tabs = await Promise.all(Array.from({ length: 150 }, (_, i) => Tab.open(gateway, `usr_${i}`, { reconnection: false, transports: ['websocket'] })));
  const closings = [];
  for (const tab of tabs) tab.socket.on('disconnect', () => closings.push(Date.now()));
  const { code, ms } = await gateway.terminate();
  assert.equal(code, 0);
  await until('all are disconnected', () => closings.length === tabs.length);
  const spread = Math.max(...closings) - Math.min(...closings);
  assert.ok(spread > 700, `${spread} ms`);
  const inAnyHalfSecond = Math.max(...closings.map((time) => closings.filter((other) => other >= time && other < time + 500).length));
  assert.ok(inAnyHalfSecond < 125, `${inAnyHalfSecond} within half a second`);
  assert.ok(ms < 5000, `${ms} ms`);
});

test('a client that is between handshake and CONNECT is not told anything final', async () => {
  const gateway = await Gateway.start(broker);
  const begun = await rawConnection(gateway);
  begun.write(HANDSHAKE);
  await until('the open packet', () => begun.received.includes('0{"sid"'));
  // A broker that does not answer keeps the shutdown from ending at once.
  await Tab.open(gateway, 'usr_holding');
  broker.child.kill('SIGSTOP');
  try {
    const exit = gateway.terminate();
    await until('draining', async () => (await gateway.get('/ready')).status === 503);
    begun.write(frame(`40${JSON.stringify({ token: token('usr_begun') })}`));
    await begun.ended;
    assert.doesNotMatch(begun.received, /44\{/);
    assert.equal((await exit).code, 0);
  } finally {
    broker.child.kill('SIGCONT');
  }
});

test('a client that has left before, and connections that come at the end, do not disturb a shutdown', async () => {
  const gateway = await Gateway.start(broker);
  await Tab.open(gateway, 'usr_stays');
  // The gateway looks after a socket that has left once more, 10 s later.
  const left = await rawWebsocket(gateway, 'usr_left');
  left.write(frame('41'));
  await gateway.metricIs('sockets', 1);
  await new Promise((resolve) => setTimeout(resolve, 3000));
  broker.child.kill('SIGSTOP');
  // With a broker that does not answer, most of the shutdown comes behind the sockets' end.
  const exit = gateway.terminate();
  const idle = [];
  const opening = setInterval(() => rawConnection(gateway).then((socket) => idle.push(socket), () => {}), 200);
  try {
    assert.equal((await exit).code, 0);
    assert.ok(idle.length > 5, `${idle.length}`);
    assert.doesNotMatch(gateway.logs, /panicked/);
    assert.doesNotMatch(gateway.logs, /not closed in time what="listener"/);
  } finally {
    clearInterval(opening);
    broker.child.kill('SIGCONT');
  }
});
