// The client package against the gateway and a real RabbitMQ: refetches, recovery, tokens.

import assert from 'node:assert/strict';
import { afterEach, before, test } from 'node:test';

import { Backend, importClient, installClient, keyFor, numbered, numberOf, subscribed, TENANT } from './client.mjs';
import { Broker, Gateway, generations, Network, Publisher, token, until } from './harness.mjs';

let broker;
let publisher;
let gateway;
let packages;
let users = 0;

const ENV = { ADMIN_TOKEN: 'operator', JWT_LEEWAY: '0s', JWT_EXPIRY_NOTICE: '4s' };

before(async () => {
  const folders = await Promise.all(['socket.io-client', 'socket.io-client-4.6'].map((socketIo) => installClient({ socketIo })));
  packages = await Promise.all(folders.map(importClient));
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: ENV });
});

const open = new Set();
afterEach(() => {
  for (const app of open) app.chat.close();
  open.clear();
});

/** An application with the client: it has a state, which `onResync` replaces and every update continues. */
class App {
  userId = `usr_client_${(users += 1)}`;
  backend = new Backend(publisher, this.userId);
  connections = [];
  events = [];
  resyncs = 0;
  signedOut = [];
  revoked = [];
  asked = [];
  /** How many updates the fetched state had, and the numbers of those handed on since. */
  stretches = [];

  /** `fetchState` may hold back the answer, or throw; `getToken` likewise. */
  static start(server, { client = packages[0], fetchState = () => {}, getToken = (app) => app.token(), ...options } = {}) {
    const app = new App();
    app.gateway = server.metric ? server : gateway;
    const on = (event) => (payload) => app.events.push([event, payload]);
    app.chat = client.createChat3Socket({
      url: server.url,
      getToken: (request) => {
        app.asked.push(request.fresh);
        return getToken(app, request);
      },
      onResync: async (request) => {
        app.resyncs += 1;
        const known = app.backend.published;
        const fetched = await fetchState(app, request);
        if (!request.signal.aborted) app.stretches.push({ known, numbers: [] });
        return fetched;
      },
      onUpdate: (update) => {
        app.events.push(['chat3:update', update]);
        if (update.data.message) app.stretches.at(-1).numbers.push(numberOf(update));
      },
      events: { 'message:new': on('message:new'), 'dialog:update': on('dialog:update'), 'typing:update': on('typing:update') },
      onConnection: ({ ...connection }) => app.connections.push(connection),
      onSignedOut: (reason) => app.signedOut.push(reason),
      onRevoked: (reason) => app.revoked.push(reason),
      ...options,
      socket: { reconnectionDelay: 50, reconnectionDelayMax: 200, ...options.socket },
    });
    open.add(app);
    return app;
  }

  token(claims = {}, options = {}) {
    return token(this.userId, { tenantId: TENANT, ...claims }, options);
  }

  get statuses() {
    return this.connections.map(({ status }) => status);
  }

  /** Waits for the status; whoever is live receives what is published from then on. */
  async is(status) {
    await until(`${status} (${JSON.stringify(this.connections)})`, () => this.chat.connection.status === status).catch((error) => {
      throw new Error(`${error.message}; now ${JSON.stringify(this.connections)}`);
    });
    if (status === 'live') await subscribed(this.gateway);
  }

  /** Waits until the newest update has been handed on. */
  async isCaughtUp() {
    await until('the newest update', () => this.stretches.at(-1)?.numbers.at(-1) === this.backend.published);
  }

  /** Nothing is missing in any stretch, nothing is twice, and all is in order. */
  isSeamless() {
    const seen = this.stretches.flatMap(({ numbers }) => numbers);
    assert.equal(new Set(seen).size, seen.length, 'none twice');
    for (const { known, numbers } of this.stretches) {
      assert.ok(numbers.length === 0 || numbers[0] <= known + 1, `${known} were fetched, then came ${numbers[0]}`);
      numbers.forEach((number, i) => assert.equal(number, numbers[0] + i));
    }
  }
}

/** An operator's order to the admin API. */
async function order(userId, body) {
  const request = { method: 'POST', headers: { authorization: 'Bearer operator' }, body: JSON.stringify(body) };
  return gateway.json(`/api/users/${userId}/disconnect`, request);
}

/** A promise that a test settles. */
function answer() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

test('it connects, fetches once, and hands on every update with its specialised event', async () => {
  const app = App.start(gateway);
  assert.equal(app.chat.connection.status, 'connecting');
  await app.is('live');
  app.backend.publish(3);
  await app.isCaughtUp();
  assert.deepEqual(app.statuses, ['syncing', 'live']);
  assert.equal(app.resyncs, 1);
  assert.deepEqual(app.events.map(([event]) => event), Array(3).fill(['chat3:update', 'message:new']).flat());
  assert.deepEqual(app.events[1][1], app.events[0][1].data);
  assert.deepEqual(app.asked, [false]);
  app.isSeamless();
});

for (const version of [0, 1]) {
  const name = ['socket.io-client 4.8', 'socket.io-client 4.6'][version];

  test(`after a cut, what was missed follows without a refetch (${name})`, async () => {
    const network = await Network.to(gateway);
    const app = App.start(network, { client: packages[version] });
    await app.is('live');
    for (let cuts = 1; cuts <= 3; cuts += 1) {
      app.backend.publish(2);
      await app.isCaughtUp();
      network.cut();
      await app.is('offline');
      app.backend.publish(3);
      network.restore();
      await app.is('live');
      assert.equal(app.chat.connection.recovered, true);
      await app.isCaughtUp();
    }
    assert.equal(app.resyncs, 1);
    assert.equal(app.stretches[0].numbers.length, 15);
    app.isSeamless();
  });

  test(`after a restart of the gateway the state is fetched anew, and updates continue it in order, none twice (${name})`, async () => {
    const first = await Gateway.start(broker, { env: ENV });
    const app = App.start(first, { client: packages[version] });
    await app.is('live');
    app.backend.publish(3);
    await app.isCaughtUp();
    await first.terminate();
    await app.is('offline');
    app.backend.publish(4);
    const second = await Gateway.start(broker, { env: { ...ENV, PORT: new URL(first.url).port } });
    app.gateway = second;
    await app.is('live');
    assert.equal(app.chat.connection.recovered, false);
    app.backend.publish(2);
    await app.isCaughtUp();
    assert.deepEqual(app.stretches, [{ known: 0, numbers: [1, 2, 3] }, { known: 7, numbers: [8, 9] }]);
    assert.equal(app.resyncs, 2);
    await second.terminate();
  });
}

test('a refetch that fails twice is repeated, and what arrived meanwhile follows it in order', async () => {
  let attempts = 0;
  const app = App.start(gateway, {
    fetchState: async () => {
      attempts += 1;
      if (attempts <= 2) throw new Error(`no backend ${attempts}`);
    },
  });
  for (const failures of [1, 2]) {
    await until(`failure ${failures}`, () => app.chat.connection.failures === failures);
    assert.deepEqual(app.chat.connection, { status: 'syncing', reason: `no backend ${failures}`, failures, recovered: false });
    app.backend.publish(2);
  }
  await app.is('live');
  await app.isCaughtUp();
  app.backend.publish();
  await app.isCaughtUp();
  assert.deepEqual(app.stretches.map(({ numbers }) => numbers), [[1, 2, 3, 4, 5]]);
  assert.equal(app.resyncs, 3);
});

test('updates during the refetch are handed on after it, in order, with their specialised events', async () => {
  const held = answer();
  const app = App.start(gateway, { fetchState: () => held.promise });
  await app.is('syncing');
  app.backend.publish(20);
  // They have arrived when another socket of the user has them.
  const witness = App.start(gateway, { getToken: () => app.token() });
  await witness.is('live');
  app.backend.publish();
  await until('the witness has the last', () => witness.events.length >= 2);
  assert.deepEqual([app.events, app.chat.connection.status], [[], 'syncing']);
  held.resolve();
  await app.isCaughtUp();
  assert.deepEqual(app.stretches, [{ known: 0, numbers: Array.from({ length: 21 }, (_, i) => i + 1) }]);
  assert.deepEqual(app.events.slice(-2).map(([event]) => event), ['chat3:update', 'message:new']);
});

test('more updates during a refetch than can be held lead to another one, which they precede', async () => {
  const held = answer();
  const app = App.start(gateway, { fetchState: () => app.resyncs === 1 && held.promise });
  let arrived = 0;
  app.chat.socket.on('chat3:update', () => (arrived += 1));
  await app.is('syncing');
  app.backend.publish(2500);
  await until('they have arrived', () => arrived === 2500);
  held.resolve();
  await until('the objection', () => app.chat.connection.failures === 1);
  assert.equal(app.chat.connection.reason, 'more updates arrived than can be held');
  await app.is('live');
  app.backend.publish();
  await app.isCaughtUp();
  // The useless state was shown, and nothing handed on before the next one.
  assert.deepEqual(app.stretches, [{ known: 0, numbers: [] }, { known: 2500, numbers: [2501] }]);
  assert.equal(app.resyncs, 2);
});

test('a fetch under way outlives a recovered cut, and is aborted by a lost session', async () => {
  const network = await Network.to(gateway);
  const answers = [answer(), answer()];
  const aborted = [];
  const app = App.start(network, {
    fetchState: (app, { signal }) => {
      const attempt = app.resyncs - 1;
      signal.addEventListener('abort', () => aborted.push(attempt));
      return answers[attempt].promise;
    },
  });
  await app.is('syncing');
  app.backend.publish();
  await until('a place to recover from', () => app.chat.socket._lastOffset);
  network.cut();
  await app.is('offline');
  app.backend.publish();
  network.restore();
  await app.is('syncing');
  assert.equal(app.resyncs, 1);
  // An order ends the session.
  await order(app.userId, {});
  await until('another fetch', () => app.resyncs === 2);
  assert.deepEqual(aborted, [0]);
  app.backend.publish();
  answers[0].resolve();
  answers[1].resolve();
  await app.isCaughtUp();
  assert.deepEqual(app.stretches.map(({ numbers }) => numbers), [[3]]);
  assert.equal(app.resyncs, 2);
});

test('no fetch begins while the connection is lost: the next session may need another', async () => {
  const network = await Network.to(gateway);
  const app = App.start(network, {
    fetchState: () => {
      throw new Error('no backend');
    },
  });
  await until('a failure', () => app.chat.connection.failures === 1);
  network.cut();
  await app.is('offline');
  const begun = app.resyncs;
  // The pause after the first failure is 2 s at most, after the second 4 s.
  await new Promise((resolve) => setTimeout(resolve, 4500));
  assert.equal(app.resyncs, begun);
  network.restore();
  await until('the next fetch', () => app.resyncs > begun);
});

test('the application may ask for a refetch, which holds what arrives', async () => {
  const held = answer();
  const app = App.start(gateway, { fetchState: () => app.resyncs === 2 && held.promise });
  await app.is('live');
  app.chat.resync();
  assert.equal(app.chat.connection.status, 'syncing');
  await until('the fetch', () => app.resyncs === 2);
  const witness = App.start(gateway, { getToken: () => app.token() });
  await witness.is('live');
  app.backend.publish();
  await until('the witness has it', () => witness.events.length > 0);
  assert.deepEqual(app.events, []);
  held.resolve();
  await app.isCaughtUp();
  assert.equal(app.chat.connection.status, 'live');
});

test('an update that is published twice is handed on once, and counters never go back', async () => {
  const app = App.start(gateway);
  await app.is('live');
  const twice = numbered(1, app.userId);
  for (const createdAt of ['1790773641618.1', '1790773641618.2']) publisher.publish(keyFor(app.userId), { ...twice, createdAt });
  const { body } = generations().at(-1).updates.find(({ name }) => name === 'message.create/update.user');
  for (const statsVersion of [6, 8, 7, 9]) {
    const counters = structuredClone({ ...body, userId: app.userId, eventId: `evt_count_${statsVersion}` });
    Object.assign(counters.data.user, { userId: app.userId, stats: { ...counters.data.user.stats, statsVersion } });
    publisher.publish(`update.user.${TENANT}.user.${app.userId}.user`, counters);
  }
  publisher.publish(keyFor(app.userId), numbered(2, app.userId));
  await until('the last', () => app.events.at(-1)?.[1].message?.content === '2');
  const updates = app.events.filter(([event]) => event === 'chat3:update').map(([, update]) => update);
  const seen = updates.map(({ data }) => data.message?.content ?? data.user.stats.statsVersion);
  assert.deepEqual(seen, ['1', 6, 8, 9, '2']);
  assert.equal(app.events.filter(([event]) => event === 'message:new').length, 2);
});

test('with sections, typing has its event, and an update published twice has one', async () => {
  const sections = await Gateway.start(broker, { env: { ...ENV, CHAT3_ENVELOPE: 'sections' } });
  const app = App.start(sections);
  await app.is('live');
  const { updates } = generations().at(-1);
  const { body, sections: { typing } } = updates.find(({ name }) => name === 'dialog.typing/update.dialog');
  for (let i = 0; i < 2; i += 1) publisher.publish(keyFor(app.userId), { ...body, userId: app.userId });
  app.backend.publish();
  await until('the message', () => app.events.at(-1)?.[0] === 'message:new');
  assert.deepEqual(app.events.map(([event]) => event), ['chat3:update', 'typing:update', 'chat3:update', 'message:new']);
  assert.deepEqual(app.events[1][1], typing);
  await sections.kill();
});

test('whatever happens to network, session and backend, the state is continued without a gap, and nothing comes twice', async (t) => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  t.diagnostic(`SEED=${seed}`);
  let state = seed;
  /** A whole number below `limit`, by the seed. */
  const draw = (limit) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return Math.floor((state / 2 ** 31) * limit);
  };
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const network = await Network.to(gateway);
  const app = App.start(network, {
    fetchState: async () => {
      await pause(draw(200));
      if (draw(4) === 0) throw new Error('no backend');
    },
    getToken: async (app) => {
      await pause(draw(100));
      if (draw(8) === 0) throw new Error('no backend');
      return app.token();
    },
  });
  const actions = [
    () => app.backend.publish(1 + draw(5)), () => app.backend.publish(1 + draw(5)), () => app.backend.publish(1 + draw(200)),
    () => network.reset(), () => network.cut(), () => network.restore(), () => network.restore(),
    () => draw(2) === 0 && app.chat.resync(),
    () => {
      // Who forgets the session begins another one.
      if (draw(4) === 0) app.chat.socket._pid = undefined;
      network.reset();
    },
  ];
  // Keeps the user subscribed between the sessions.
  const witness = App.start(gateway, { getToken: () => app.token() });
  await Promise.all([app.is('live'), witness.is('live')]);
  const end = Date.now() + 15_000;
  while (Date.now() < end) {
    await actions[draw(actions.length)]();
    await pause(draw(150));
  }
  network.restore();
  await until('live', () => app.chat.connection.status === 'live', 60_000);
  await app.is('live');
  app.backend.publish();
  await app.isCaughtUp();
  app.isSeamless();
  t.diagnostic(`${app.backend.published} published, ${app.resyncs} fetches begun, ${app.stretches.length} done, ${app.asked.length} tokens asked`);
});

test('a newer place that the gateway sends is the client\'s alone, and the application hears nothing', async () => {
  const network = await Network.to(gateway);
  const app = App.start(network);
  await app.is('live');
  app.backend.publish();
  await app.isCaughtUp();
  const { socket } = app.chat;
  const told = app.events.length;
  const place = socket._lastOffset;
  socket._lastOffset = undefined;
  // As socket.io-client receives it; gateways without the event do not send it.
  socket.onevent({ data: ['recovery:offset', place] });
  assert.deepEqual([socket._lastOffset, app.events.length, app.statuses], [place, told, ['syncing', 'live']]);
  network.cut();
  await app.is('offline');
  network.restore();
  await app.is('live');
  assert.equal(app.chat.connection.recovered, true);
});

// ---- Tokens -------------------------------------------------------------------

test('a token is replaced before it expires, on the same connection', async () => {
  const lifetimes = ['6s', '1h'];
  const app = App.start(gateway, { getToken: (app) => app.token({}, { expiresIn: lifetimes.shift() }) });
  await app.is('live');
  const end = Date.now() + 6000;
  await until('the refresh', () => app.asked.length === 2);
  await until('the end of the first token', () => Date.now() > end + 1000);
  app.backend.publish();
  await app.isCaughtUp();
  assert.deepEqual(app.asked, [false, true]);
  assert.deepEqual(app.statuses, ['syncing', 'live']);
});

test('a token that cannot be replaced in time costs a reconnect, and no refetch', async () => {
  const network = await Network.to(gateway);
  const app = App.start(network, {
    getToken: (app) => {
      if (app.asked.length === 1) return app.token({}, { expiresIn: '5s' });
      if (app.chat.socket.connected) throw new Error('no backend');
      return app.token();
    },
  });
  await app.is('live');
  await app.is('offline');
  app.backend.publish();
  await app.is('live');
  await app.isCaughtUp();
  assert.equal(app.chat.connection.recovered, true);
  assert.equal(app.resyncs, 1);
  assert.ok(app.asked.slice(1).every((fresh) => fresh));
});

test('a backend that gives no token at first is asked again', async () => {
  const app = App.start(gateway, {
    getToken: (app) => {
      if (app.asked.length <= 2) throw new Error('no backend');
      return app.token();
    },
  });
  await until('the reason', () => app.chat.connection.reason === 'no backend');
  assert.equal(app.chat.connection.status, 'connecting');
  await app.is('live');
  assert.equal(app.asked.length, 3);
  assert.equal(await gateway.metric('connects_refused_total{reason="token_missing"}'), 0);
});

test('a token that comes too late for its connection is not sent on the next one', async () => {
  const network = await Network.to(gateway);
  const late = answer();
  const app = App.start(network, { getToken: (app) => (app.asked.length === 1 ? late.promise : app.token()) });
  await until('the first question', () => app.asked.length === 1);
  network.reset();
  await app.is('live');
  late.resolve(app.token({ jti: 'late' }));
  app.backend.publish();
  await app.isCaughtUp();
  assert.equal(app.resyncs, 1);
  assert.deepEqual(app.statuses.filter((status) => status === 'live').length, 1);
});

test('a token that comes between two connections is sent on neither', async () => {
  const network = await Network.to(gateway);
  const late = answer();
  const app = App.start(network, { getToken: (app) => (app.asked.length === 1 ? late.promise : app.token()) });
  await until('the first question', () => app.asked.length === 1);
  const { socket } = app.chat;
  const closed = new Promise((resolve) => socket.io.once('close', resolve));
  network.cut();
  await closed;
  // socket.io-client would send it as soon as it is connected again.
  let sent = 0;
  const { _sendConnectPacket } = socket;
  socket._sendConnectPacket = (auth) => ((sent += 1), _sendConnectPacket.call(socket, auth));
  late.resolve(app.token({ jti: 'late' }));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(sent, 0);
  network.restore();
  await app.is('live');
  assert.deepEqual([sent, app.resyncs], [1, 1]);
});

test('a refused token is replaced by a fresh one', async () => {
  const app = App.start(gateway, { getToken: (app, { fresh }) => app.token({}, { expiresIn: fresh ? '1h' : -3600 }) });
  await until('the refusal', () => app.chat.connection.reason === 'token expired');
  assert.equal(app.chat.connection.status, 'connecting');
  await app.is('live');
  assert.deepEqual([app.asked, app.signedOut], [[false, true], []]);
});

test('pauses after refusals can be cut short', async () => {
  const app = App.start(gateway, { getToken: (app) => app.token({}, { expiresIn: app.asked.length > 3 ? '1h' : -3600 }) });
  const begun = Date.now();
  for (const refusals of [1, 2, 3]) {
    await until(`refusal ${refusals}`, () => app.asked.length === refusals && !app.chat.socket.active);
    app.chat.connect();
  }
  await app.is('live');
  assert.ok(Date.now() - begun < 7000, 'the shortest pauses are 1, 2 and 4 s');
});

test('after an order, the client comes back with a fresh token, and fetches', async () => {
  const app = App.start(gateway, { getToken: (app, { fresh }) => (fresh ? app.token() : (app.cached ??= app.token())) });
  await app.is('live');
  await order(app.userId, { reason: 'password changed', until: Math.floor(Date.now() / 1000) + 3600 });
  await until('the notice', () => app.revoked.length === 1);
  await app.is('offline');
  await app.is('live');
  assert.deepEqual([app.revoked, app.signedOut, app.resyncs], [['password changed'], [], 2]);
});

test('a user whose tokens stay refused is signed out, and nothing happens until the application connects', async () => {
  const app = App.start(gateway);
  await app.is('live');
  app.cached = app.token();
  const inAnHour = Math.floor(Date.now() / 1000) + 3600;
  await order(app.userId, { until: inAnHour, issuedBefore: inAnHour });
  await app.is('refused');
  assert.deepEqual([app.signedOut, app.chat.connection.reason], [['token revoked'], 'token revoked']);
  const asked = app.asked.length;
  await new Promise((resolve) => setTimeout(resolve, 3000));
  assert.equal(app.asked.length, asked);
  await order(app.userId, { until: Math.floor(Date.now() / 1000) + 1, issuedBefore: 1 });
  app.chat.connect();
  await until('another attempt', () => app.asked.length > asked);
});

test('who has no token is signed out, and gets in later', async () => {
  let isSignedIn = false;
  const app = App.start(gateway, { getToken: (app) => (isSignedIn ? app.token() : null) });
  await app.is('refused');
  assert.deepEqual(app.signedOut, ['no token']);
  isSignedIn = true;
  app.chat.connect();
  await app.is('live');
  app.backend.publish();
  await app.isCaughtUp();
});

test('a closed client says nothing any more, leaves its session, and cannot be opened', async () => {
  const app = App.start(gateway);
  await app.is('live');
  await gateway.metricIs('sockets', 1);
  const told = app.connections.length;
  app.chat.close();
  app.chat.close();
  app.chat.connect();
  app.chat.resync();
  assert.equal(app.chat.connection.status, 'closed');
  await gateway.metricIs('sockets', 0);
  assert.deepEqual([app.connections.length, app.asked.length, app.resyncs], [told, 1, 1]);
  const unborn = App.start(gateway);
  unborn.chat.close();
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.deepEqual([unborn.asked, await gateway.metric('sockets')], [[], 0]);
});
