// A client that loses its connection and reconnects gets exactly what it missed, or is
// told that it does not: with unmodified clients, over a network that is really cut.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { io as io3 } from 'socket.io-client-3';
import { io as io45 } from 'socket.io-client-4.5';
import { io as io46 } from 'socket.io-client-4.6';
import { io as io48 } from 'socket.io-client';

import { Broker, Gateway, Network, Poller, Publisher, Tab, rawWebsocket, testOf, token, until } from './harness.mjs';

const testOfGaps = testOf('updates that pass the gateway by');

let broker;
let gateway;
let network;
let publisher;
let users = 0;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker);
  network = await Network.to(gateway);
});

/** A user that only this test has. */
const aUser = () => `usr_recovery_${(users += 1)}`;

const WEBSOCKET = { transports: ['websocket'] };
const POLLING = { transports: ['polling'] };

/** The updates of `published`, each as its events. */
const asEvents = (published) => published.flatMap((update) => [
  { event: 'chat3:update', args: [update] },
  { event: 'message:new', args: [update.data] },
]);

/** Waits until a tab has as many events as `published` makes, and asserts that they are these, in order. */
async function sawAll(tab, published) {
  await tab.when('all events', () => tab.events.length >= 2 * published.length);
  assert.deepEqual(tab.events, asEvents(published));
}

/** Publishes `count` updates and waits until the gateway has taken them. */
async function publish(userId, count, { server = gateway, fields = {} } = {}) {
  const before = await server.metric('updates_received_total');
  const published = Array.from({ length: count }, () => publisher.update(userId, fields));
  await until('updates received', async () => (await server.metric('updates_received_total')) >= before + count, 60_000);
  return published;
}

/**
 * Waits for the end of the upgrade, if there is one. A client that loses its connection
 * during the upgrade stays between the two transports until it misses the pings: 45 s.
 */
async function upgraded({ socket }) {
  const { engine, opts } = socket.io;
  if (!opts.transports) await until('the upgrade', () => engine.transport.name === 'websocket');
}

for (const [version, connect] of [['4.6', io46], ['4.8', io48]]) {
  for (const [how, options] of [['websocket', WEBSOCKET], ['polling, then upgrade', {}], ['polling', POLLING]]) {
    test(`client ${version} over ${how}: three cuts with 60 updates in each gap, and nothing is missed or doubled`, async () => {
      const userId = aUser();
      const tab = await Tab.open(gateway, userId, { connect, url: network.url, ...options });
      const ids = new Set([tab.socket.id]);
      tab.socket.on('connect', () => ids.add(tab.socket.id));
      const published = [publisher.update(userId)];
      await tab.saw(published[0]);
      for (let cut = 1; cut <= 3; cut += 1) {
        await upgraded(tab);
        network.cut();
        await tab.when('the cut', () => tab.disconnects.length === cut);
        published.push(...await publish(userId, 60));
        network.restore();
        // A live update, right after the replay.
        published.push(publisher.update(userId));
        await tab.saw(published.at(-1));
      }
      await sawAll(tab, published);
      assert.deepEqual(tab.recovered, [false, true, true, true]);
      assert.deepEqual([...ids], [tab.socket.id], 'socket.id stays what it was');
      tab.close();
    });
  }

  test(`client ${version}: quiet connections recover too, also right after one that could not`, async () => {
    const userId = aUser();
    const tab = await Tab.open(gateway, userId, { connect, url: network.url, ...WEBSOCKET });
    network.reset();
    await tab.when('reconnected', () => tab.connects === 2);
    assert.deepEqual(tab.recovered, [false, true]);
    const { id } = tab.socket;
    const first = publisher.update(userId);
    await sawAll(tab, [first]);
    // The client keeps the last offset of a session that cannot be recovered and
    // sends it with the next one's pid, as long as that one has had no event.
    tab.socket._pid = '0'.repeat(32);
    network.reset();
    await tab.when('reconnected', () => tab.connects === 3);
    network.cut();
    await tab.when('the cut', () => tab.disconnects.length === 3);
    const missed = await publish(userId, 3);
    network.restore();
    await sawAll(tab, [first, ...missed]);
    assert.deepEqual(tab.recovered, [false, true, false, true]);
    assert.notEqual(tab.socket.id, id, 'a new session has an id of its own');
    tab.close();
  });
}

test('cuts at any place of a burst neither lose nor double an event', async () => {
  const userId = aUser();
  const tab = await Tab.open(gateway, userId, { url: network.url });
  const published = [];
  for (let round = 0; round < 12; round += 1) {
    for (let i = 0; i < 80; i += 1) published.push(publisher.update(userId));
    await upgraded(tab);
    await new Promise((resolve) => setTimeout(resolve, round * 3));
    network.reset();
    await tab.when('reconnected', () => tab.connects === round + 2);
  }
  await sawAll(tab, published);
  assert.deepEqual(tab.recovered, [false, ...Array(12).fill(true)]);
  tab.close();
});

test('a client that comes back over another network while its old connection looks alive resumes its session', async () => {
  const server = await Gateway.start(broker);
  const lift = await Network.to(server);
  const userId = aUser();
  const tab = await Tab.open(server, userId, { url: lift.url, ...WEBSOCKET });
  const first = publisher.update(userId);
  await tab.saw(first);
  lift.blackhole();
  const missed = await publish(userId, 5, { server });
  // Like a phone that changes networks: its browser notices, the server does not.
  tab.socket.io.engine.transport.ws.terminate();
  await sawAll(tab, [first, ...missed]);
  assert.deepEqual(tab.recovered, [false, true]);
  await server.metricIs('sockets', 1);
  tab.close();
  await server.kill();
});

test('each tab of a user recovers for itself', async () => {
  const userId = aUser();
  const tabs = [await Tab.open(gateway, userId, { url: network.url, ...WEBSOCKET }), await Tab.open(gateway, userId, WEBSOCKET)];
  const first = publisher.update(userId);
  for (const tab of tabs) await tab.saw(first);
  network.cut();
  await tabs[0].when('the cut', () => tabs[0].disconnects.length === 1);
  const missed = await publish(userId, 5);
  network.restore();
  for (const tab of tabs) await sawAll(tab, [first, ...missed]);
  assert.deepEqual([tabs[0].recovered, tabs[1].recovered], [[false, true], [false]]);
  for (const tab of tabs) tab.close();
});

test('a new tab and a reloaded page start fresh', async () => {
  const userId = aUser();
  const tab = await Tab.open(gateway, userId, { url: network.url, ...WEBSOCKET });
  await tab.saw(publisher.update(userId));
  network.cut();
  await tab.when('the cut', () => tab.disconnects.length === 1);
  await publish(userId, 5);
  const reloaded = await Tab.open(gateway, userId, WEBSOCKET);
  const update = publisher.update(userId);
  await reloaded.saw(update);
  assert.deepEqual(reloaded.ids, [update._id]);
  assert.deepEqual(reloaded.recovered, [false]);
  network.restore();
  for (const each of [tab, reloaded]) each.close();
});

test('after its own disconnect() a client starts fresh, and nothing waits for it', async () => {
  const server = await Gateway.start(broker);
  for (const options of [WEBSOCKET, POLLING, {}]) {
    const userId = aUser();
    const tab = await Tab.open(server, userId, options);
    await tab.saw(publisher.update(userId));
    tab.socket.disconnect();
    await server.metricIs('subscriptions', 0);
    await server.metricIs('users_away', 0);
    tab.socket.connect();
    await tab.when('connected again', () => tab.connects === 2);
    assert.deepEqual(tab.recovered, [false, false]);
    tab.close();
  }
  await server.kill();
});

test('a gap that is too long, too large, or longer than the window is not filled, not even in part', async () => {
  for (const [what, window, outcome, outage] of [
    ['too many updates', '30s', 'gap', (userId, server) => publish(userId, 21, { server })],
    ['too many bytes', '30s', 'gap', (userId, server) => publish(userId, 3, { server, fields: { data: { filler: 'x'.repeat(9000) } } })],
    ['too long', '3s', 'unknown', async (userId, server) => {
      await publish(userId, 1, { server });
      await server.metricIs('recoveries_lost_total{reason="expired"}', 1);
    }],
  ]) {
    const server = await Gateway.start(broker, {
      env: { RECOVERY_WINDOW: window, RECOVERY_MAX_UPDATES: '20', RECOVERY_MAX_BYTES: '20000' },
    });
    const lift = await Network.to(server);
    const userId = aUser();
    const tab = await Tab.open(server, userId, { url: lift.url, ...WEBSOCKET });
    const first = publisher.update(userId);
    await tab.saw(first);
    lift.cut();
    await tab.when('the cut', () => tab.disconnects.length === 1);
    await outage(userId, server);
    await until('all is taken', async () =>
      (await server.metric('updates_kept_total')) + (await server.metric('updates_delivered_total')) ===
      (await server.metric('updates_received_total')));
    lift.restore();
    await tab.when('reconnected', () => tab.connects === 2);
    const next = publisher.update(userId);
    await tab.saw(next);
    assert.deepEqual(tab.ids, [first._id, next._id], what);
    assert.deepEqual(tab.recovered, [false, false], what);
    // From here on recovery works again.
    lift.reset();
    await tab.when('reconnected', () => tab.connects === 3);
    assert.equal(tab.recovered.at(-1), true, what);
    assert.equal(await server.metric(`recoveries_total{outcome="${outcome}"}`), 1, what);
    tab.close();
    await server.kill();
  }
});

test('the window begins when the loss is noticed, and updates missed before that are kept', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '3s' } });
  const lift = await Network.to(server);
  const userId = aUser();
  const tab = await Tab.open(server, userId, { url: lift.url, ...WEBSOCKET });
  lift.blackhole();
  const missed = publisher.update(userId);
  // Kept, if the socket was not live yet.
  await until('it has come', async () => (await server.metric('updates_delivered_total')) + (await server.metric('updates_kept_total')) === 1);
  // Longer than the window, and neither end notices.
  await pause(4500);
  assert.equal(await server.metric('sockets'), 1);
  lift.reset();
  await tab.saw(missed);
  assert.deepEqual(tab.recovered, [false, true]);
  tab.close();
  await server.kill();
});

test('when the window is over, nothing of the user is left', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '3s' } });
  const lift = await Network.to(server);
  const tab = await Tab.open(server, aUser(), { url: lift.url, ...WEBSOCKET });
  lift.cut();
  await server.metricIs('users_away', 1);
  await server.metricIs('users', 0);
  await server.metricIs('sockets', 0);
  assert.equal(await server.metric('subscriptions'), 1);
  await server.metricIs('subscriptions', 0);
  await server.metricIs('users_away', 0);
  assert.equal(await server.metric('recovery_bytes'), 0);
  assert.equal(await server.metric('recoveries_lost_total{reason="expired"}'), 1);
  tab.close();
  await server.kill();
});

test('another instance and a restarted one do not recover, and say so', async () => {
  const [one, other] = [await Gateway.start(broker), await Gateway.start(broker)];
  const userId = aUser();
  const tab = await Tab.open(one, userId, WEBSOCKET);
  await tab.saw(publisher.update(userId));
  const seen = tab.ids.length;
  tab.socket.io.uri = other.url;
  await one.kill();
  await tab.when('reconnected', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  await tab.saw(publisher.update(userId));
  assert.equal(tab.ids.length, seen + 1);
  tab.close();
  await other.kill();
});

testOfGaps('updates that were missed while RabbitMQ was away make a recovery impossible', async () => {
  const own = await Broker.start();
  const ownPublisher = await Publisher.connect(own);
  const server = await Gateway.start(own);
  const lift = await Network.to(server);
  const userId = aUser();
  const tab = await Tab.open(server, userId, { url: lift.url, ...WEBSOCKET });
  await tab.saw(ownPublisher.update(userId));
  await own.kill();
  await server.isConnected(false);
  await own.start();
  // As Chat3 would: a broker that is killed may forget a young exchange.
  const publisherAgain = await Publisher.connect(own);
  await server.metricIs('subscriptions', 1);
  // The socket never noticed. But it has not had every update, even if it has the newest.
  await tab.saw(publisherAgain.update(userId));
  lift.reset();
  await tab.when('reconnected', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  lift.reset();
  await tab.when('reconnected', () => tab.connects === 3);
  assert.deepEqual(tab.recovered, [false, false, true]);
  tab.close();
  await server.kill();
  await own.stop();
});

test('a replay larger than a socket may lag behind is paced and complete', async () => {
  const server = await Gateway.start(broker, {
    env: { RECOVERY_MAX_UPDATES: '20000', RECOVERY_MAX_BYTES: String(64 << 20) },
  });
  const lift = await Network.to(server);
  for (const options of [WEBSOCKET, POLLING, {}]) {
    const userId = aUser();
    const tab = await Tab.open(server, userId, { url: lift.url, ...options });
    const first = publisher.update(userId);
    await tab.saw(first);
    await upgraded(tab);
    lift.cut();
    await tab.when('the cut', () => tab.disconnects.length === 1);
    // More packets, and more bytes, than one socket's buffer takes.
    const small = await publish(userId, 6_000, { server });
    const large = await publish(userId, 200, { server, fields: { eventType: 'message.update', data: { filler: 'я'.repeat(50_000) } } });
    // A polling session does not notice the cut and is given up for its full buffer.
    const slow = await server.metric('slow_sockets_total');
    lift.restore();
    await tab.saw(large.at(-1), 60_000);
    assert.deepEqual(tab.ids, [first, ...small, ...large].map((update) => update._id));
    assert.deepEqual(tab.recovered, [false, true]);
    assert.equal(tab.disconnects.length, 1);
    assert.equal(await server.metric('slow_sockets_total'), slow);
    tab.close();
  }
  await server.kill();
});

test('a stolen pid opens nothing without a token of its user', async () => {
  const userId = aUser();
  const tab = await Tab.open(gateway, userId, { url: network.url, claims: { tenantId: 'tnt_default' }, ...WEBSOCKET });
  await tab.saw(publisher.update(userId));
  const stolen = { pid: tab.socket._pid, offset: tab.offsets.at(-1) };
  assert.match(stolen.pid, /^[0-9a-f]{32}$/);
  network.cut();
  await tab.when('the cut', () => tab.disconnects.length === 1);
  const missed = await publish(userId, 3);
  for (const [thiefId, claims] of [[aUser(), { tenantId: 'tnt_default' }], [userId, { tenantId: 'tnt_other' }], [userId, {}]]) {
    const auth = { token: token(thiefId, claims), ...stolen };
    const thief = new Tab(gateway, null, { auth, ...WEBSOCKET });
    await thief.when('connected', () => thief.connects === 1);
    const sentinel = publisher.update(thiefId, { tenantId: claims.tenantId ?? 'tnt_default' });
    if (thiefId === userId && claims.tenantId === undefined) missed.push(sentinel);
    await thief.saw(sentinel);
    assert.deepEqual(thief.ids, [sentinel._id]);
    thief.close();
  }
  const without = new Tab(gateway, null, { auth: stolen, ...WEBSOCKET });
  assert.equal(await without.refused(), 'token missing');
  without.close();
  // Its owner can still use it.
  network.restore();
  await tab.saw(missed.at(-1));
  assert.equal(tab.recovered.at(-1), true);
  assert.deepEqual(tab.ids.slice(1), missed.map((update) => update._id));
  tab.close();
});

test('whatever is sent as pid and offset, the socket is let in fresh and the gateway stays up', async () => {
  const userId = aUser();
  const owner = await Tab.open(gateway, userId, WEBSOCKET);
  await owner.saw(publisher.update(userId));
  const pid = owner.socket._pid;
  const log = owner.offsets.at(-1).split('-')[0];
  const before = await gateway.metric('recoveries_total{outcome="unreadable"}');
  const unreadable = [
    { pid: 5 }, { pid: {} }, { pid: '' }, { pid: 'x'.repeat(32) }, { pid: 'x'.repeat(50_000) },
    { pid: '0'.repeat(32), offset: 'nonsense' }, { pid, offset: 7 }, { pid, offset: `${log}-` }, { pid, offset: `${log}--1` },
    { pid, offset: `${log}-${'f'.repeat(17)}` },
  ];
  for (const fields of [...unreadable, { pid: '0'.repeat(32) }, { pid, offset: `${log}-ffffffffffffffff` }]) {
    const tab = new Tab(gateway, null, { auth: { token: token(userId), ...fields }, ...WEBSOCKET });
    await tab.when('connected', () => tab.connects === 1);
    assert.equal(tab.recovered[0], false, JSON.stringify(fields).slice(0, 80));
    const update = publisher.update(userId);
    await tab.saw(update);
    assert.deepEqual(tab.ids, [update._id]);
    tab.close();
  }
  assert.equal(await gateway.metric('recoveries_total{outcome="unreadable"}'), before + unreadable.length);
  owner.close();
});

test('pids and tokens are never logged, at whatever level', async () => {
  const server = await Gateway.start(broker, { env: { RUST_LOG: 'trace,tungstenite::protocol=trace' } });
  const lift = await Network.to(server);
  for (const options of [WEBSOCKET, POLLING]) {
    const secret = token(aUser());
    const tab = new Tab(server, secret, { url: lift.url, ...options });
    await tab.when('connected', () => tab.connects === 1);
    const pid = tab.socket._pid;
    lift.cut();
    await tab.when('the cut', () => tab.disconnects.length === 1);
    lift.restore();
    await tab.when('reconnected', () => tab.connects === 2);
    assert.deepEqual(tab.recovered, [false, true]);
    await server.logged(/Connection recovery/);
    assert.ok(!server.logs.includes(pid));
    assert.ok(!server.logs.includes(secret));
    tab.close();
  }
  await server.kill();
});

for (const [version, connect] of [['3.1', io3], ['4.5', io45]]) {
  test(`client ${version}, which cannot recover, gets every event as before`, async () => {
    const userId = aUser();
    const tab = await Tab.open(gateway, userId, { connect, url: network.url });
    const first = publisher.update(userId);
    await sawAll(tab, [first]);
    await upgraded(tab);
    network.reset();
    await tab.when('reconnected', () => tab.connects === 2);
    await sawAll(tab, [first, publisher.update(userId)]);
    tab.close();
  });
}

test('a client that opts out, and every client where recovery is off, is sent no offset and no pid', async () => {
  const on = await Gateway.start(broker);
  const off = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '0' } });
  for (const [server, fields] of [[on, { recovery: false }], [off, {}]]) {
    const userId = aUser();
    const lift = await Network.to(server);
    const tab = new Tab(server, null, { auth: { token: token(userId), ...fields }, url: lift.url });
    await tab.when('connected', () => tab.connects === 1);
    await sawAll(tab, [publisher.update(userId)]);
    assert.deepEqual(tab.offsets, []);
    assert.equal(tab.socket._pid, undefined);
    assert.equal(await server.metric('recovery_updates'), 0);
    await upgraded(tab);
    lift.cut();
    await server.metricIs('sockets', 0);
    assert.equal(await server.metric('users_away'), 0);
    await server.metricIs('subscriptions', 0);
    tab.close();
  }
  for (const server of [on, off]) await server.kill();
});

test('when memory for recovery is full, the users away longest lose theirs first', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_TOTAL_BYTES: '60000' } });
  const lift = await Network.to(server);
  const tabs = [];
  for (let i = 0; i < 3; i += 1) {
    const tab = await Tab.open(server, aUser(), { url: lift.url, reconnection: false, ...WEBSOCKET });
    tab.userId = `usr_recovery_${users}`;
    tabs.push(tab);
  }
  // The users leave one after the other.
  for (const [index, tab] of tabs.entries()) {
    tab.socket.io.engine.transport.ws.terminate();
    await server.metricIs('users_away', index + 1);
  }
  for (const tab of tabs) {
    for (let i = 0; i < 3; i += 1) publisher.update(tab.userId, { data: { filler: 'x'.repeat(8000) } });
  }
  await server.metricIs('recoveries_lost_total{reason="memory"}', 1);
  assert.ok((await server.metric('recovery_bytes')) <= 60_000);
  for (const tab of tabs) tab.socket.connect();
  for (const tab of tabs) await tab.when('reconnected', () => tab.connects === 2);
  assert.deepEqual(tabs.map((tab) => tab.recovered.at(-1)), [false, true, true]);
  for (const tab of tabs.slice(1)) await tab.when('the missed updates', () => tab.ids.length === 3);
  assert.equal(tabs[0].ids.length, 0);
  for (const tab of tabs) tab.close();
  await server.kill();
});

test('a flood for users who are away does not pass the memory for recovery by far, however long they may come back', async () => {
  const [limit, mebibyte, count] = [8_000_000, 1_000_000, 100];
  const env = { RECOVERY_TOTAL_BYTES: String(limit), RECOVERY_MAX_BYTES: String(2 * mebibyte), RECOVERY_WINDOW: '1h' };
  const server = await Gateway.start(broker, { env });
  const lift = await Network.to(server);
  const ids = Array.from({ length: count }, aUser);
  await Promise.all(ids.map((id) => Tab.open(server, id, { url: lift.url, reconnection: false, ...WEBSOCKET })));
  lift.cut();
  await server.metricIs('users_away', count);
  // Most of a megabyte: each update counts for a few bytes more than its body.
  for (const id of ids) publisher.update(id, { data: { filler: 'x'.repeat(mebibyte - 1000) } });
  let most = 0;
  await until('all came', async () => {
    const [kept, received] = await Promise.all(['recovery_bytes', 'updates_received_total'].map((name) => server.metric(name)));
    most = Math.max(most, kept);
    return received === count;
  });
  assert.ok(most < (count * mebibyte) / 2, `${most} bytes were kept`);
  await until('less than the limit', async () => (await server.metric('recovery_bytes')) <= limit);
  await server.kill();
});

for (const [how, count, maxBytes] of [['far behind', 1, '200000'], ['less than is kept', 2, '9000000']]) {
  test(`where memory is short, sockets that lag (${how}) are closed before anybody else loses recovery`, async () => {
    const env = { RECOVERY_TOTAL_BYTES: '3000000', RECOVERY_MAX_BYTES: maxBytes, RECOVERY_WINDOW: '40s', SOCKET_WRITE_TIMEOUT: '100s' };
    const server = await Gateway.start(broker, { env });
    const quiet = await Tab.open(server, aUser(), WEBSOCKET);
    const userId = aUser();
    const tab = await Tab.open(server, userId, { reconnection: false, ...WEBSOCKET });
    const seen = await publish(userId, 1, { server });
    await tab.saw(seen[0]);
    const slow = [];
    for (let i = 0; i < count; i += 1) {
      const slowId = aUser();
      const socket = await rawWebsocket(server, slowId);
      socket.pause();
      slow.push(socket);
      // The system's buffers take some megabytes.
      for (let n = 0; n < 380; n += 1) publisher.update(slowId, { data: { filler: 'x'.repeat(20_000) } });
    }
    await server.metricIs('slow_sockets_total', count);
    await server.logged(/closing a socket that does not keep up.*memory is short/);
    tab.socket.io.engine.transport.ws.terminate();
    await server.metricIs('users', 1);
    const missed = await publish(userId, 5, { server });
    tab.socket.connect();
    await sawAll(tab, [...seen, ...missed]);
    assert.deepEqual(tab.recovered, [false, true]);
    assert.equal(quiet.disconnects.length, 0);
    for (const each of [tab, quiet]) each.close();
    for (const socket of slow) socket.destroy();
    await server.kill();
  });
}

test('thousands of small updates reach every kind of client, also without offsets', async () => {
  const off = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '0' } });
  const clients = [];
  for (const [server, fields] of [[gateway, {}], [gateway, { recovery: false }], [off, {}]]) {
    for (const transport of [WEBSOCKET, POLLING]) {
      const userId = aUser();
      const tab = await Tab.open(server, userId, { auth: { token: token(userId), ...fields }, ...transport });
      clients.push({ userId, tab });
    }
  }
  const kept = async () => (await gateway.metric('updates_kept_total')) + (await off.metric('updates_kept_total'));
  const before = await kept();
  // Each time less than the limit on what may be on its way. If an event counted for 8
  // bytes more than it has, all sockets would seem to lag in the end.
  for (let sent = 0; sent < 4000;) {
    for (let i = 0; i < 40; i += 1) for (const { userId } of clients) publisher.update(userId, { data: {} });
    sent += 40;
    for (const { tab } of clients) await tab.when(`${sent} updates`, () => tab.ids.length === sent);
  }
  assert.equal(await kept(), before);
  for (const { tab } of clients) {
    assert.deepEqual(tab.disconnects, []);
    tab.close();
  }
  await off.kill();
});

test('a replay whose client leaves in its midst, or takes nothing of it, comes to an end', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '9s', SOCKET_WRITE_TIMEOUT: '2s', MAX_SOCKETS_PER_USER: '2' } });
  const userId = aUser();
  const auth = { token: token(userId) };
  const pids = [];
  for (let i = 0; i < 2; i += 1) {
    const poller = await Poller.connect(server, auth);
    pids.push(await poller.pid());
    await poller.post('1');
  }
  await server.metricIs('sockets', 0);
  for (let i = 0; i < 60; i += 1) publisher.update(userId, { eventType: 'message.update', data: { filler: 'x'.repeat(10_000) } });
  await server.metricIs('updates_kept_total', 60);
  const [leaver, idler] = [await Poller.connect(server, { ...auth, pid: pids[0] }), await Poller.connect(server, { ...auth, pid: pids[1] })];
  await server.metricIs('recoveries_total{outcome="recovered"}', 2);
  await leaver.post('1');
  // The other client answers pings, but does not poll any more.
  await server.metricIs('slow_sockets_total', 1);
  await server.metricIs('sockets', 0);
  assert.equal((await idler.post('3')).status, 400);
  await server.metricIs('subscriptions', 0);
  assert.equal(await server.metric('recovery_bytes'), 0);
  const tab = await Tab.open(server, userId);
  tab.close();
  await server.kill();
});

test('taking over one\'s own session again and again takes nobody\'s place', async () => {
  const server = await Gateway.start(broker, { env: { MAX_SOCKETS_PER_USER: '3', MAX_SOCKETS: '20' } });
  const auth = { token: token(aUser()) };
  const pid = await (await Poller.connect(server, auth)).pid();
  for (let i = 0; i < 60; i += 1) await Poller.connect(server, { ...auth, pid });
  await server.metricIs('sockets', 1);
  const other = await Tab.open(server, aUser());
  assert.equal(await server.metric('connects_refused_total{reason="server_full"}'), 0);
  other.close();
  await server.kill();
});

test('memory is taken from the users away longest at that time, and not from those who keep nothing', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_TOTAL_BYTES: '60000' } });
  const [idle, first, second] = await Promise.all(['idle', 'first', 'second'].map(async (name) => {
    const userId = `${aUser()}_${name}`;
    return Object.assign(await Tab.open(server, userId, { reconnection: false, ...WEBSOCKET }), { userId });
  }));
  let away = 0;
  const drop = async (tab) => {
    tab.socket.io.engine.transport.ws.terminate();
    await server.metricIs('users_away', (away += 1));
  };
  const comeBack = async (tab) => {
    const connects = tab.connects + 1;
    tab.socket.connect();
    await tab.when('back', () => tab.connects === connects);
    away -= 1;
  };
  await drop(idle);
  await drop(first);
  await comeBack(first);
  await drop(second);
  await drop(first);
  for (const { userId } of [first, second]) {
    for (let i = 0; i < 4; i += 1) publisher.update(userId, { eventType: 'message.update', data: { filler: 'x'.repeat(8000) } });
  }
  await server.metricIs('recoveries_lost_total{reason="memory"}', 1);
  away -= 1;
  for (const tab of [idle, first, second]) await comeBack(tab);
  assert.deepEqual([idle, first, second].map((tab) => tab.recovered.at(-1)), [true, true, false]);
  for (const tab of [idle, first, second]) tab.close();
  await server.kill();
});

// What must be true of every run of a client: each session (a connect that was not
// recovered, and the recovered ones after it) sees one unbroken run of the events
// published since it began, and nothing of what it was told it missed.

/** A reproducible source of random numbers in [0, 1): mulberry32, by Tommy Ettinger. */
function randomFrom(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Model {
  constructor() {
    this.published = [];
    this.sessions = [];
  }

  /** The events of everything published, in order. */
  get events() {
    return this.published.flatMap((id) => [`chat3:update ${id}`, `message:new ${id}`]);
  }

  /** The client connected; `known` is how many events the gateway had taken when it began to. */
  connected(recovered, known) {
    if (!recovered) this.sessions.push({ after: known * 2, seen: [] });
    else assert.ok(this.sessions.length > 0, 'the first connect has nothing to recover');
  }

  saw(event) {
    this.sessions.at(-1).seen.push(event);
  }

  check() {
    const { events } = this;
    let last = -1;
    for (const { after, seen } of this.sessions) {
      if (seen.length === 0) continue;
      const first = events.indexOf(seen[0]);
      assert.ok(first > last, 'a session repeats what one before it has seen');
      assert.ok(first >= after, 'a session begins with a part of what was missed');
      assert.deepEqual(seen, events.slice(first, first + seen.length), 'a session has a hole, a double or a wrong order');
      last = first + seen.length - 1;
    }
  }
}

async function wander(server, random, steps) {
  const userId = aUser();
  const link = await Network.to(server);
  const model = new Model();
  const options = [WEBSOCKET, POLLING, {}][Math.floor(random() * 3)];
  // An update that is queued at the broker when a client returns may reach the client or not.
  // So each step waits until the gateway has taken what was published.
  let taken = 0;
  const tab = new Tab(server, token(userId), { url: link.url, randomizationFactor: 0, timeout: 2000, ...options });
  let takenBefore = 0;
  tab.socket.io.on('reconnect_attempt', () => (takenBefore = taken));
  tab.socket.on('connect', () => model.connected(tab.socket.recovered, takenBefore));
  tab.socket.onAny((event, { _id }) => model.saw(`${event} ${_id ?? ''}`));
  const probe = await Tab.open(server, userId, WEBSOCKET);
  const publishSome = async (count) => {
    for (let i = 0; i < count; i += 1) {
      const _id = `${userId}-${model.published.length}`;
      publisher.update(userId, { _id, data: { _id } });
      model.published.push(_id);
    }
    if (count > 0) await probe.saw({ _id: model.published.at(-1) });
    taken = model.published.length;
  };
  // See `upgraded`: 45 s from the last ping, which may have come within 25 s.
  const patience = 100_000;
  const connected = () => tab.when('connected', () => tab.socket.connected, patience);
  for (let step = 0; step < steps; step += 1) {
    const count = Math.floor(random() * 40);
    const time = random() * 80;
    const publishing = publishSome(count);
    switch (Math.floor(random() * 8)) {
      case 0: link.reset(); break;
      case 1: link.cut(); await pause(time); link.restore(); break;
      case 2: link.cut(); await publishing; await pause(time); link.restore(); break;
      case 3: link.blackhole(); await pause(time); link.reset(); break;
      // Slow reading.
      case 4: link.hold(); await pause(time); link.release(); break;
      case 5: link.hold(); await publishing; link.reset(); break;
      // Longer than the window.
      case 6: link.cut(); await pause(800 + time * 8); link.restore(); break;
      // More updates than are kept.
      default: link.cut(); await publishing; await publishSome(120); link.restore(); break;
    }
    await publishing;
    if (random() < 0.6) await connected();
  }
  await connected();
  // Once more, undisturbed: a live socket sees everything to the end. A socket that has not
  // noticed its last loss only looks live, and may come back fresh: it then sees what is
  // published after that.
  for (let last = null; !tab.ids.includes(last);) {
    const { connects } = tab;
    await publishSome(1);
    last = model.published.at(-1);
    await tab.when('the last update, or another connect', () => tab.ids.includes(last) || tab.connects > connects, patience);
  }
  model.check();
  const recovered = tab.recovered.filter(Boolean).length;
  for (const each of [tab, probe]) each.close();
  return { recovered, fresh: tab.recovered.length - recovered };
}

/** Twelve walks at once, and how often a reconnect was `recovered` or `fresh`. */
async function wanderAll(server, seed) {
  const walks = Array.from({ length: 12 }, (_, i) => wander(server, randomFrom(seed + i), 25));
  const ends = await Promise.allSettled(walks);
  const failed = ends.find(({ status }) => status === 'rejected');
  if (failed) throw new Error(`with RECOVERY_SEED=${seed}: ${failed.reason.message}`, { cause: failed.reason });
  const total = (what) => ends.reduce((sum, { value }) => sum + value[what], 0);
  return { seed, recovered: total('recovered'), fresh: total('fresh') };
}

test('whatever happens to the network, a client sees each event once and in order, or is told of the gap and sees nothing of it', async () => {
  const server = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '1s', RECOVERY_MAX_UPDATES: '100' } });
  const aSeed = () => Number(process.env.RECOVERY_SEED ?? Math.floor(Math.random() * 1e9));
  // Both must be frequent, or this proves nothing. A busy machine can spoil that once.
  const isProof = ({ recovered, fresh }) => recovered > 50 && fresh > 30;
  let reached = await wanderAll(server, aSeed());
  if (!isProof(reached)) reached = await wanderAll(server, aSeed());
  assert.ok(isProof(reached), JSON.stringify(reached));
  await server.kill();
});
