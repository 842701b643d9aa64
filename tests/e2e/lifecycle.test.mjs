// How long a socket may stay, which sockets are sent away, and the limits on one client.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, HANDSHAKE, Network, Publisher, Tab, frame, freePort, rawConnection, testOf, token, until } from './harness.mjs';

const testOfSessions = testOf('sessions that are kept for who is away');

const WEBSOCKET = { transports: ['websocket'] };
const ADMIN = { headers: { authorization: 'Bearer operator' } };

let broker;
let publisher;
let gateway;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator', JWT_LEEWAY: '0s', JWT_EXPIRY_NOTICE: '2s' } });
});

const nowSeconds = () => Math.floor(Date.now() / 1000);

/** An order to the admin API; resolves with its answer. */
async function post(path, body, server = gateway) {
  const response = await server.get(path, {
    method: 'POST', ...ADMIN, body: body === undefined ? undefined : JSON.stringify(body),
  });
  return { status: response.status, ...(await response.json()) };
}

const events = (tab, event) => tab.events.filter((seen) => seen.event === event).map((seen) => seen.args[0]);

for (const options of [WEBSOCKET, { transports: ['polling'] }]) {
  test(`a token that expires is announced, then the transport is closed, and the client comes back with the next one and misses nothing (${options.transports})`, async () => {
    const lifetimes = ['4s', '1h'];
    const auth = (give) => give({ token: token('usr_expires', {}, { expiresIn: lifetimes.length > 1 ? lifetimes.shift() : lifetimes[0] }) });
    const expired = await gateway.metric('expired_sockets_total');
    const tab = new Tab(gateway, null, { auth, ...options });
    await tab.when('connected', () => tab.connects === 1);
    const first = publisher.update('usr_expires');
    await tab.when('the announcement', () => events(tab, 'auth:expiring').length === 1);
    const [{ expiresAt }] = events(tab, 'auth:expiring');
    const left = Date.parse(expiresAt) - Date.now();
    assert.ok(left > 0 && left <= 2000, `${left} ms`);
    assert.deepEqual(tab.disconnects, []);
    await tab.when('the end', () => tab.disconnects.length === 1);
    assert.ok(Date.now() >= Date.parse(expiresAt));
    assert.notEqual(tab.disconnects[0], 'io server disconnect');
    const second = publisher.update('usr_expires');
    await tab.saw(second);
    assert.deepEqual(tab.ids, [first._id, second._id]);
    assert.deepEqual(tab.recovered, [false, true]);
    assert.equal(await gateway.metric('expired_sockets_total'), expired + 1);
    tab.close();
  });
}

test('a client with the same old token is refused after its end, and told why', async () => {
  const tab = new Tab(gateway, token('usr_static', {}, { expiresIn: '2s' }), WEBSOCKET);
  await tab.when('connected', () => tab.connects === 1);
  assert.equal(await tab.refused(), 'token expired');
  assert.equal(tab.socket.active, false);
  tab.close();
});

test('a websocket from an unusual request ends with its token like any other', async () => {
  const short = () => token('usr_odd_query', {}, { expiresIn: '2s' });
  const direct = await rawConnection(gateway);
  direct.write(HANDSHAKE.replace('transport=websocket', 'transport=websocket=x'));
  await until('the open packet', () => direct.received.includes('0{"sid"'));
  direct.write(frame(`40${JSON.stringify({ token: short() })}`));
  await until('the CONNECT reply', () => direct.received.includes('40{"sid"'));
  const open = await (await gateway.get('/socket.io/?EIO=4&transport=polling')).text();
  const { sid } = JSON.parse(open.slice(1));
  const upgraded = await rawConnection(gateway);
  upgraded.write(HANDSHAKE.replace('transport=websocket', `transport=websocket=x&sid=${sid}`));
  await until('the upgrade', () => upgraded.received.includes('101 Switching'));
  upgraded.write(frame('2probe'));
  await until('the probe', () => upgraded.received.includes('3probe'));
  upgraded.write(frame('5'));
  upgraded.write(frame(`40${JSON.stringify({ token: short() })}`));
  await until('the CONNECT reply', () => upgraded.received.includes('40{"sid"'));
  const ends = Promise.all([direct.ended, upgraded.ended]).then(() => true);
  assert.ok(await Promise.race([ends, new Promise((resolve) => setTimeout(resolve, 15_000, false))]), 'a socket outlived its token');
});

test('auth:refresh extends the stay in place, for the same user and tenant only', async () => {
  const first = token('usr_refresh', { tenantId: 'tnt_1' }, { expiresIn: '8s' });
  const tab = new Tab(gateway, first, WEBSOCKET);
  await tab.when('connected', () => tab.connects === 1);
  const refresh = (value) => tab.socket.timeout(5000).emitWithAck('auth:refresh', value);
  for (const [value, error] of [
    [token('usr_other', { tenantId: 'tnt_1' }), 'token of another user'],
    [token('usr_refresh', { tenantId: 'tnt_2' }), 'token of another user'],
    [token('usr_refresh'), 'token of another user'],
    [token('usr_refresh', { tenantId: 'tnt_1' }, { secret: 'another-secret-of-thirty-two-bytes' }), 'invalid token'],
    [token('usr_refresh', { tenantId: 'tnt_1' }, { expiresIn: '-1h' }), 'token expired'],
    ['', 'token missing'],
    [null, 'token missing'],
    [{ token: 'x' }, 'invalid token'],
    ['x'.repeat(20_000), 'invalid token'],
  ]) {
    assert.deepEqual(await refresh(value), { ok: false, error });
  }
  const next = token('usr_refresh', { tenantId: 'tnt_1' }, { expiresIn: '1h' });
  const answer = await refresh(next);
  assert.equal(answer.ok, true);
  const endOf = (jwt) => JSON.parse(Buffer.from(jwt.split('.')[1], 'base64url')).exp * 1000;
  assert.equal(Date.parse(answer.expiresAt), endOf(next));
  // A token is valid to the end of its last second; here time itself is under test.
  await new Promise((resolve) => setTimeout(resolve, endOf(first) + 1500 - Date.now()));
  assert.deepEqual(tab.disconnects, []);
  await tab.saw(publisher.update('usr_refresh', { tenantId: 'tnt_1' }));
  // An event that asks for no answer gets none, and does no harm.
  tab.socket.emit('auth:refresh', next);
  tab.socket.emit('auth:refresh');
  await tab.saw(publisher.update('usr_refresh', { tenantId: 'tnt_1' }));
  tab.close();
});

for (const options of [WEBSOCKET, { transports: ['polling'] }]) {
  test(`an operator sends a user away, with a reason, and refuses the tokens of before (${options.transports})`, async () => {
    const userId = `usr_revoked_${options.transports}`;
    const old = token(userId, { tenantId: 'tnt_1', iat: nowSeconds() - 10 });
    const tabs = [new Tab(gateway, old, options), new Tab(gateway, old, options)];
    const bystander = await Tab.open(gateway, 'usr_bystander');
    const otherTenant = new Tab(gateway, token(userId, { tenantId: 'tnt_2', iat: nowSeconds() - 10 }), options);
    for (const tab of [...tabs, otherTenant]) await tab.when('connected', () => tab.connects === 1);
    const answer = await post(`/api/users/${userId}/disconnect`, { tenantId: 'tnt_1', reason: 'Пароль изменён', until: nowSeconds() + 3600 });
    assert.deepEqual(answer, { status: 200, sockets: 2, broadcast: false });
    publisher.update(userId, { tenantId: 'tnt_1' });
    for (const tab of tabs) {
      assert.equal(await tab.refused(), 'token revoked');
      // The farewell is short: a client that is between two polls may miss it.
      const isMissed = options !== WEBSOCKET && events(tab, 'auth:revoked').length === 0;
      if (!isMissed) assert.deepEqual(events(tab, 'auth:revoked'), [{ reason: 'Пароль изменён' }]);
      assert.deepEqual(tab.ids, []);
    }
    // A token issued afterwards is accepted, for a new session.
    const again = new Tab(gateway, token(userId, { tenantId: 'tnt_1', iat: nowSeconds() + 2 }), options);
    await again.when('connected', () => again.connects === 1);
    assert.deepEqual(again.recovered, [false]);
    assert.deepEqual([bystander.disconnects, otherTenant.disconnects], [[], []]);
    for (const tab of [...tabs, bystander, otherTenant, again]) tab.close();
  });
}

test('a user who is only sent away comes back at once, and recovers nothing', async () => {
  const tab = await Tab.open(gateway, 'usr_kicked', WEBSOCKET);
  await tab.saw(publisher.update('usr_kicked'));
  assert.equal((await post('/api/users/usr_kicked/disconnect')).sockets, 1);
  await tab.when('back', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
  tab.close();
});

testOfSessions('a revoked user who is away can no longer recover', async () => {
  const tab = await Tab.open(gateway, 'usr_away', { reconnection: false, ...WEBSOCKET });
  tab.socket.io.engine.transport.ws.terminate();
  const state = () => gateway.json('/api/users/usr_away', ADMIN);
  await until('the end of the socket', async () => (await state()).sockets === 0);
  assert.deepEqual(await state(), { isSubscribed: true, sockets: 0 });
  await post('/api/users/usr_away/disconnect');
  await until('the end of the subscription', async () => !(await state()).isSubscribed);
  tab.close();
});

test('a token is revoked by its id, on the socket that holds it, on refresh, and on connect', async () => {
  const [stolen, good] = ['jti-stolen', 'jti-good'].map((jti) => token('usr_token', { jti }));
  const tabs = [new Tab(gateway, stolen, WEBSOCKET), new Tab(gateway, good, WEBSOCKET)];
  for (const tab of tabs) await tab.when('connected', () => tab.connects === 1);
  const answer = await post('/api/tokens/jti-stolen/revoke', { until: nowSeconds() + 3600 });
  assert.deepEqual(answer, { status: 200, sockets: 1, broadcast: false });
  assert.equal(await tabs[0].refused(), 'token revoked');
  const refresh = await tabs[1].socket.timeout(5000).emitWithAck('auth:refresh', stolen);
  assert.deepEqual(refresh, { ok: false, error: 'token revoked' });
  assert.deepEqual(tabs[1].disconnects, []);
  for (const tab of tabs) tab.close();
});

test('whoever is revoked, or whose token expires, while the CONNECT waits does not get in', async () => {
  const own = await Broker.start();
  const server = await Gateway.start(own, { env: { ADMIN_TOKEN: 'operator', JWT_LEEWAY: '0s' } });
  // A broker that does not answer, so that the subscription is not ready.
  own.child.kill('SIGSTOP');
  const revoked = new Tab(server, token('usr_waits', { jti: 'waits' }), WEBSOCKET);
  const announced = new Tab(server, token('usr_short', {}, { expiresIn: '10s' }), WEBSOCKET);
  await server.metricIs('sockets', 2);
  // It ends 1 to 2 s from now, its last second included: before the CONNECT has waited for 2 s.
  const expired = new Tab(server, token('usr_ends', {}, { expiresIn: '1s' }), WEBSOCKET);
  assert.equal((await post('/api/tokens/waits/revoke', { until: nowSeconds() + 3600 }, server)).status, 200);
  assert.equal(await revoked.refused(), 'token revoked');
  assert.equal(await expired.refused(), 'token expired');
  await announced.when('the announcement', () => events(announced, 'auth:expiring').length === 1);
  own.child.kill('SIGCONT');
  for (const tab of [revoked, expired, announced]) tab.close();
  await server.kill();
  await own.stop();
});

test('a token for ever, or in milliseconds, is only a token', async () => {
  const tab = await Tab.open(gateway, 'usr_long', WEBSOCKET);
  const long = token('usr_long', { exp: Date.now() + 3_600_000 }, { expiresIn: null });
  const answer = await tab.socket.timeout(5000).emitWithAck('auth:refresh', long);
  assert.deepEqual(answer, { ok: true, expiresAt: '9999-12-31T23:59:59Z' });
  const forever = token('usr_long', { exp: Number.MAX_SAFE_INTEGER }, { expiresIn: null });
  assert.equal((await tab.socket.timeout(5000).emitWithAck('auth:refresh', forever)).ok, true);
  await tab.saw(publisher.update('usr_long'));
  assert.doesNotMatch(gateway.logs, /panicked/);
  tab.close();
});

test('orders that make no sense are answered with the reason, and change nothing', async () => {
  for (const [path, body, error] of [
    ['/api/users/%2A/disconnect', {}, /userId not acceptable/],
    ['/api/users/u/disconnect', { tenantId: '#' }, /tenantId not acceptable/],
    ['/api/users/u/disconnect', { until: nowSeconds() - 1 }, /until is over/],
    ['/api/users/u/disconnect', { until: 'tomorrow' }, /invalid type/],
    ['/api/users/u/disconnect', { untill: 1 }, /unknown field/],
    ['/api/users/u/disconnect', { userId: 'v' }, /named in the path/],
    ['/api/users/u/disconnect', { reason: 'x'.repeat(600) }, /reason/],
    ['/api/tokens/t/revoke', { tenantId: 'tnt_1' }, /either userId or tokenId/],
  ]) {
    const answer = await post(path, body);
    assert.equal(answer.status, 400, JSON.stringify(answer));
    assert.match(answer.error, error);
  }
  const stranger = await gateway.get('/api/users/u/disconnect', { method: 'POST' });
  assert.equal(stranger.status, 401);
});

test('one user has a limited number of sockets; a further one is refused and told why', async () => {
  const server = await Gateway.start(broker, { env: { MAX_SOCKETS_PER_USER: '2' } });
  const tabs = [await Tab.open(server, 'usr_many'), await Tab.open(server, 'usr_many')];
  const third = new Tab(server, token('usr_many'));
  assert.equal(await third.refused(), 'too many connections of this user');
  tabs.push(third, await Tab.open(server, 'usr_few'));
  tabs[0].close();
  await server.metricIs('sockets', 2);
  third.socket.connect();
  await third.when('connected', () => third.connects === 1);
  assert.equal(await server.metric('connects_refused_total{reason="too_many_sockets"}'), 1);
  for (const tab of tabs) tab.close();
  await server.kill();
});

test('a user with all the sockets that they may have can still come back for what they missed', async () => {
  const server = await Gateway.start(broker, { env: { MAX_SOCKETS_PER_USER: '1' } });
  const network = await Network.to(server);
  const tab = await Tab.open(server, 'usr_back', { url: network.url, ...WEBSOCKET });
  // The server does not notice the loss of the connection.
  network.blackhole();
  tab.socket.io.engine.transport.ws.terminate();
  await tab.when('back', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, true]);
  tab.close();
  await server.kill();
});

test('when the gateway is full, clients keep trying and get in when there is room', async () => {
  const server = await Gateway.start(broker, { env: { MAX_SOCKETS: '1' } });
  const first = await Tab.open(server, 'usr_first');
  const second = new Tab(server, token('usr_second'));
  await second.when('a failed try', () => second.error);
  assert.equal(second.socket.active, true);
  assert.equal((await server.get('/socket.io/?EIO=4&transport=polling')).status, 503);
  first.close();
  await second.when('connected', () => second.connects === 1);
  assert.ok((await server.metric('connects_refused_total{reason="server_full"}')) > 0);
  second.close();
  await server.kill();
});

test('handshakes are limited by address, behind trusted proxies by the one that they name', async () => {
  const server = await Gateway.start(broker, { env: { MAX_CONNECTS_PER_SECOND: '1', TRUSTED_PROXIES: '127.0.0.0/8' } });
  const handshakes = async (count, forwarded) => {
    const statuses = [];
    for (let i = 0; i < count; i += 1) {
      const response = await server.get('/socket.io/?EIO=4&transport=polling', { headers: { 'x-forwarded-for': forwarded } });
      statuses.push(response.status);
    }
    return statuses;
  };
  assert.deepEqual(await handshakes(5, '9.9.9.9, 192.0.2.1'), Array(5).fill(200));
  // One more is allowed each second, but not five at once.
  const allowed = async (forwarded) => (await handshakes(10, forwarded)).filter((status) => status !== 429);
  assert.ok((await allowed('9.9.9.9, 192.0.2.1')).length < 5);
  // A header written by the client does not help it.
  assert.ok((await allowed('8.8.8.8, 192.0.2.1')).length < 5);
  assert.deepEqual(await handshakes(1, '192.0.2.2'), [200]);
  assert.ok((await server.metric('connects_refused_total{reason="address_rate"}')) > 0);
  await server.kill();
});

test('a socket that sends event after event is closed, and nobody else', async () => {
  const server = await Gateway.start(broker);
  const other = await Tab.open(server, 'usr_quiet');
  const socket = await rawConnection(server);
  socket.write(HANDSHAKE);
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  socket.write(frame(`40${JSON.stringify({ token: token('usr_noisy') })}`));
  await until('the CONNECT reply', () => socket.received.includes('40{"sid"'));
  // As many as a careless frontend might send.
  for (let i = 0; i < 30; i += 1) socket.write(frame('42["typing",{}]'));
  const update = publisher.update('usr_noisy');
  await until('an update', () => socket.received.includes(update._id));
  for (let i = 0; i < 200; i += 1) socket.write(frame('42["typing",{}]'));
  await socket.ended;
  assert.equal(await server.metric('noisy_sockets_total'), 1);
  assert.deepEqual(other.disconnects, []);
  other.close();
  await server.kill();
});

test('with ADMIN_ADDR, metrics and the admin API are on that listener alone', async () => {
  const port = await freePort();
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator', ADMIN_ADDR: `127.0.0.1:${port}` } });
  const admin = (path, options) => fetch(`http://127.0.0.1:${port}${path}`, options);
  for (const path of ['/metrics', '/api/stats', '/api/users/u']) {
    assert.equal((await server.get(path, ADMIN)).status, 404, path);
    assert.equal((await admin(path, ADMIN)).status, 200, path);
  }
  assert.equal((await admin('/api/stats')).status, 401);
  assert.equal((await admin('/socket.io/?EIO=4&transport=polling')).status, 404);
  for (const path of ['/health', '/livez', '/ready', '/readyz']) {
    assert.equal((await server.get(path)).status, 200);
    assert.equal((await admin(path)).status, 200);
  }
  const { code } = await server.terminate();
  assert.equal(code, 0);
});

test('one order reaches all instances over the control exchange, by HTTP or by a message', async () => {
  const env = { ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control' };
  const [one, other] = [await Gateway.start(broker, { env }), await Gateway.start(broker, { env })];
  const open = async (server, userId) => {
    const tab = new Tab(server, token(userId, { iat: nowSeconds() - 10 }), WEBSOCKET);
    await tab.when('connected', () => tab.connects === 1);
    return tab;
  };
  const tabs = [await open(one, 'usr_everywhere'), await open(other, 'usr_everywhere')];
  const answer = await post('/api/users/usr_everywhere/disconnect', { reason: 'left', until: nowSeconds() + 3600 }, one);
  assert.deepEqual(answer, { status: 200, sockets: 1, broadcast: true });
  for (const tab of tabs) {
    assert.equal(await tab.refused(), 'token revoked');
    assert.deepEqual(events(tab, 'auth:revoked'), [{ reason: 'left' }]);
  }
  // Once: the instance that was given the order does not carry it out again.
  assert.equal(await one.metric('revoked_sockets_total'), 1);

  const more = [await open(one, 'usr_message'), await open(other, 'usr_message')];
  const order = (body) => publisher.channel.publish('chat3_gateway_control', '', Buffer.from(body));
  for (const nonsense of ['', '[]', '{}', '{"userId":"*"}', '{"userId":"usr_message","surprise":1}', '\xff']) order(nonsense);
  order(JSON.stringify({ userId: 'usr_message', until: nowSeconds() + 3600 }));
  for (const tab of more) assert.equal(await tab.refused(), 'token revoked');
  await one.logged(/RabbitMQ control message ignored/);

  for (const tab of [...tabs, ...more]) tab.close();
  for (const server of [one, other]) await server.kill();
});

test('what is no order is not read far, fills no log and is not quoted at length, and orders behind it are carried out', async () => {
  const server = await Gateway.start(broker, { env: { RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control' } });
  const tab = new Tab(server, token('usr_behind'), WEBSOCKET);
  await tab.when('connected', () => tab.connects === 1);
  const send = (text) => publisher.channel.publish('chat3_gateway_control', '', Buffer.from(text));
  const start = Date.now();
  for (let i = 0; i < 2000; i += 1) send('{"a":');
  for (let i = 0; i < 20; i += 1) send(JSON.stringify({ ['secret'.repeat(2000)]: i }));
  for (let i = 0; i < 10; i += 1) send(JSON.stringify({ userId: 'usr_behind', reason: ' '.repeat(8 << 20) }));
  assert.equal(tab.connects, 1);
  send(JSON.stringify({ userId: 'usr_behind', until: nowSeconds() + 3600 }));
  assert.equal(await tab.refused(), 'token revoked');
  const seconds = (Date.now() - start) / 1000;
  const lines = server.logs.split('\n').filter((line) => line.includes('control message ignored'));
  assert.ok(lines.length >= 1 && lines.length <= seconds + 2, `${lines.length} lines in ${seconds} s`);
  for (const line of lines) assert.ok(line.length < 500, `a line of ${line.length}`);
  assert.equal(await server.metric('rabbitmq_reconnects_total'), 0);
  tab.close();
  await server.kill();
});

test('a control exchange that RabbitMQ refuses costs no update', async () => {
  await publisher.channel.assertExchange('chat3_gateway_wrong', 'topic', { durable: true });
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_wrong' } });
  await server.logged(/RabbitMQ control exchange not usable/);
  const tab = await Tab.open(server, 'usr_uncontrolled');
  await tab.saw(publisher.update('usr_uncontrolled'));
  assert.deepEqual(await post('/api/users/usr_uncontrolled/disconnect', undefined, server), { status: 200, sockets: 1, broadcast: false });
  await tab.when('back', () => tab.connects === 2);
  tab.close();
  await server.kill();
});

test('the way between instances is back after a loss of the broker', async () => {
  const env = { ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control' };
  const [one, other] = [await Gateway.start(broker, { env }), await Gateway.start(broker, { env })];
  await broker.ctl('close_all_connections', 'test');
  publisher = await Publisher.connect(broker);
  for (const server of [one, other]) await server.logged(/RabbitMQ connection closed[^]*RabbitMQ connected/);
  const tab = await Tab.open(other, 'usr_later');
  assert.equal((await post('/api/users/usr_later/disconnect', {}, one)).broadcast, true);
  await tab.when('back', () => tab.connects === 2);
  tab.close();
  for (const server of [one, other]) await server.kill();
});

test('a control exchange that is deleted costs no update, is reported, and is made anew', async () => {
  await publisher.channel.deleteExchange('chat3_gateway_control');
  const env = { ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control' };
  const server = await Gateway.start(broker, { env });
  const tab = await Tab.open(server, 'usr_deleted');
  await publisher.channel.deleteExchange('chat3_gateway_control');
  const order = () => post('/api/users/usr_somebody/disconnect', {}, server);
  await until('the end of broadcasts', async () => !(await order()).broadcast);
  await server.logged(/RabbitMQ closed the control channel/);
  await tab.saw(publisher.update('usr_deleted'));
  await until('broadcasts again', async () => (await order()).broadcast);
  await server.metricIs('rabbitmq_control_connected', 1);
  assert.doesNotMatch(server.logs, /RabbitMQ connection closed/);
  tab.close();
  await server.kill();
});

test('a broker that is short of memory delays orders, which is reported; updates and newcomers are not affected', async () => {
  const env = { ADMIN_TOKEN: 'operator', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control' };
  const alarmed = await Broker.start();
  const updates = await Publisher.connect(alarmed);
  const [one, other] = [await Gateway.start(alarmed, { env }), await Gateway.start(alarmed, { env })];
  const tab = await Tab.open(other, 'usr_alarm');
  const order = () => post('/api/users/usr_alarm/disconnect', {}, one);
  await alarmed.ctl('set_vm_memory_high_watermark', '0.000001');
  await until('the alarm', async () => /memory/i.test(await alarmed.ctl('eval', 'rabbit_alarm:get_alarms().')));
  // No order waits behind the one that RabbitMQ does not accept.
  for (let i = 0; i < 2; i += 1) assert.deepEqual(await order(), { status: 200, sockets: 0, broadcast: false });
  await one.logged(/RabbitMQ control message not sent in time/);
  assert.equal(await one.metric('orders_not_broadcast_total'), 2);
  // RabbitMQ answers on the other connection: newcomers are subscribed.
  const newcomer = await Tab.open(one, 'usr_newcomer');
  await one.metricIs('subscriptions', 1);
  await alarmed.ctl('set_vm_memory_high_watermark', '0.9');
  // The first order arrives late.
  await tab.when('sent away', () => tab.connects === 2);
  await until('broadcasts again', async () => (await order()).broadcast);
  await newcomer.saw(updates.update('usr_newcomer'));
  assert.equal(await one.metric('rabbitmq_reconnects_total'), 0);
  for (const socket of [tab, newcomer]) socket.close();
  for (const server of [one, other]) await server.kill();
});
