// Clients that are refused again and again, and what they cost the clients that are not.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { before, after, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, anUpdate, testsFolder, token, until } from './harness.mjs';

const ADMIN = 'an-admin-token-of-thirty-two-bytes';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});
after(() => broker.stop());

/** Four keys, of the kinds that take longest. */
function slowKeys() {
  const spki = { publicKeyEncoding: { type: 'spki', format: 'pem' }, privateKeyEncoding: { type: 'pkcs8', format: 'pem' } };
  const pairs = [
    ...[1, 2].map(() => generateKeyPairSync('rsa', { modulusLength: 4096, ...spki })),
    ...[1, 2].map(() => generateKeyPairSync('ec', { namedCurve: 'P-384', ...spki })),
  ];
  return { pem: pairs.map((pair) => pair.publicKey).join(''), lastPrivate: pairs.at(-1).privateKey };
}

/** A request from an address of this machine that `fetch` cannot choose; resolves with its status. */
async function requestFrom(localAddress, server, target, { method = 'GET', headers = {} } = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request(server.url + target, { method, headers, localAddress, agent: false }, (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode));
    });
    request.on('error', reject);
    request.end();
  });
}

const handshakeFrom = (address, server, headers) => requestFrom(address, server, '/socket.io/?EIO=4&transport=polling', { headers });

/** A client that is refused, once. */
async function refusedOnce(server, options) {
  const tab = new Tab(server, 'no-token', options);
  const reason = await tab.refused();
  tab.close();
  return reason;
}

test('a flood of forged signatures, from several addresses, keeps nobody else waiting', async (t) => {
  const { pem, lastPrivate } = slowKeys();
  // Low, so that a slow machine reaches it as well; FLOOD_REFUSALS=50 is the default setting.
  const limit = Number(process.env.FLOOD_REFUSALS ?? 2);
  const server = await Gateway.start(broker, { env: { JWT_PUBLIC_KEY: pem, MAX_CONNECTS_PER_SECOND: '0', MAX_REFUSALS_PER_SECOND: String(limit) } });
  const bystander = await Tab.open(server, 'usr_bystander', { transports: ['websocket'] });
  const addresses = Array.from({ length: 8 }, (_, i) => `127.0.0.${10 + i}`);
  const plan = { port: Number(new URL(server.url).port), addresses, connections: 10, algorithms: [['RS256', 512], ['ES384', 96]] };
  const flood = spawn(process.execPath, [path.join(testsFolder, 'e2e', 'flood.mjs'), JSON.stringify(plan)], { stdio: ['pipe', 'pipe', 'inherit'] });
  let asked = '';
  flood.stdout.on('data', (data) => (asked += data));
  const start = Date.now();
  try {
    await until('the first refusals', () => /Connection refused/.test(server.logs), 60_000);
    const sent = new Map();
    const waits = [];
    bystander.socket.on('chat3:update', ({ _id }) => waits.push(Date.now() - sent.get(_id)));
    let newcomer;
    for (let i = 0; i < 200; i += 1) {
      const update = anUpdate('usr_bystander');
      sent.set(update._id, Date.now());
      publisher.publish('user.usr_bystander.messageupdate', update);
      // A token of the key that is tried last works like any other.
      if (i === 100) newcomer = Tab.open(server, 'usr_newcomer', { auth: { token: token('usr_newcomer', {}, { secret: lastPrivate, algorithm: 'ES384' }) } });
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    await until('all updates', () => waits.length === 200, 60_000);
    (await newcomer).close();
    waits.sort((a, b) => a - b);
    t.diagnostic(`half of the updates within ${waits[100]} ms, 99 of 100 within ${waits[197]} ms, all within ${waits[199]} ms`);
    // Not the time that it needs, on a shared machine, but far less than a queue of verifications would take.
    assert.ok(waits[197] < 5_000, `99 of 100 updates came within ${waits[197]} ms, the last one within ${waits[199]} ms`);
    const seconds = (Date.now() - start) / 1000;
    const refused = await server.metric('connects_refused_total{reason="token_invalid"}');
    // For each address, five seconds' worth at once and then the limit, and those that were already on their way.
    assert.ok(refused <= addresses.length * (5 * limit + limit * seconds + plan.connections), `${refused} tokens were verified in ${seconds} s`);
    const turnedAway = await server.metric('connects_refused_total{reason="address_refusals"}');
    t.diagnostic(`${refused} verified, ${turnedAway} turned away, in ${seconds} s`);
    assert.ok(turnedAway > 0);
    const lines = server.logs.split('\n').filter((line) => /too many refused connections/.test(line));
    assert.ok(lines.length >= 1 && lines.length <= 2 * seconds + 2, `${lines.length} lines in ${seconds} s`);
  } finally {
    flood.stdin.end();
    await until('the end of the flood', () => asked !== '' || flood.exitCode !== null);
  }
  bystander.close();
  await server.kill();
});

test('a user who renews with forged tokens on all sockets keeps nobody at the same address waiting', async () => {
  const { pem, lastPrivate } = slowKeys();
  const server = await Gateway.start(broker, { env: { JWT_PUBLIC_KEY: pem } });
  const signed = (user) => token(user, {}, { secret: lastPrivate, algorithm: 'ES384' });
  const [head, claims] = signed('usr_renews').split('.');
  const [sockets, each] = [20, 45];
  const tabs = await Promise.all(Array.from({ length: sockets }, () => Tab.open(server, 'usr_renews', { auth: { token: signed('usr_renews') }, transports: ['websocket'] })));
  for (const tab of tabs) {
    for (let i = 0; i < each; i += 1) tab.socket.emit('auth:refresh', `${head}.${claims}.${randomBytes(96).toString('base64url')}`, () => {});
  }
  const refused = () => server.metric('refreshes_refused_total{reason="token_invalid"}');
  await until('the first refusals', refused);
  const newcomer = await Tab.open(server, 'usr_newcomer', { auth: { token: signed('usr_newcomer') } });
  const verified = await refused();
  assert.ok(verified < (sockets * each) / 2, `${verified} forged tokens were verified before one that is not`);
  // A token of a socket that has left is not verified any more.
  for (const tab of tabs) tab.close();
  await server.metricIs('sockets', 1);
  const rest = await refused();
  assert.ok(rest < (sockets * each) / 2, `${rest} were verified`);
  newcomer.close();
  await server.kill();
});

test('an address that is refused too often is turned away, then let in again, and others are let in', async () => {
  const server = await Gateway.start(broker, { env: { MAX_REFUSALS_PER_SECOND: '1' } });
  const quick = { transports: ['websocket'], reconnection: false };
  const tabs = [];
  for (let i = 0; i < 8; i += 1) {
    tabs.push(new Tab(server, `no-token-${i}`, quick));
    await tabs[i].when('an answer', () => tabs[i].error);
  }
  for (const tab of tabs) tab.close();
  assert.equal(tabs[0].error.message, 'invalid token');
  assert.equal(await handshakeFrom('127.0.0.1', server), 429);
  assert.equal(await handshakeFrom('127.0.0.2', server), 200);
  await until('its turn', async () => (await handshakeFrom('127.0.0.1', server)) === 200);
  const tab = await Tab.open(server, 'usr_again');
  tab.close();
  assert.ok((await server.metric('connects_refused_total{reason="address_refusals"}')) > 0);
  await server.kill();
});

test('behind a trusted proxy the refused are counted by the address that it names, an IPv6 network as one', async () => {
  const server = await Gateway.start(broker, { env: { MAX_REFUSALS_PER_SECOND: '1', TRUSTED_PROXIES: '127.0.0.1' } });
  const from = (address) => ({ 'x-forwarded-for': address });
  for (let i = 0; i < 8; i += 1) {
    // From any address of its network.
    const tab = new Tab(server, `no-token-${i}`, { transports: ['websocket'], reconnection: false, extraHeaders: from(`2001:db8::${i}`) });
    await tab.when('an answer', () => tab.error);
    tab.close();
  }
  assert.equal(await handshakeFrom('127.0.0.1', server, from('2001:db8::ffff')), 429);
  assert.equal(await handshakeFrom('127.0.0.1', server, from('2001:db8:0:1::1')), 200);
  assert.equal(await handshakeFrom('127.0.0.1', server), 200);
  await server.kill();
});

for (const transports of [['websocket'], ['polling']]) {
  test(`a client that comes back at once with the token that was refused is slowed down, and no other (${transports})`, async () => {
    const server = await Gateway.start(broker);
    const expired = token('usr_storm', {}, { expiresIn: -60 });
    const tab = new Tab(server, expired, { transports });
    let refusals = 0;
    tab.socket.on('connect_error', (error) => {
      assert.equal(error.message, 'token expired');
      refusals += 1;
      tab.socket.connect();
    });
    const start = Date.now();
    await tab.when('refusals', () => refusals >= 4, 30_000);
    // Half a second before the second attempt, one before the third, two before the fourth.
    assert.ok(Date.now() - start >= 3_400, `4 refusals in ${Date.now() - start} ms`);
    // The next attempt waits. Other tokens do not.
    const others = Date.now();
    assert.equal(await refusedOnce(server, { transports }), 'invalid token');
    const good = await Tab.open(server, 'usr_storm', { transports });
    good.close();
    assert.ok(Date.now() - others < 3_000, `others waited ${Date.now() - others} ms`);
    assert.ok(refusals <= 5, `${refusals} refusals`);
    tab.close();
    await server.kill();
  });
}

test('wrong admin tokens are counted, do not fill the log, and are slowed down by address', async () => {
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: ADMIN } });
  const stats = (address, bearer) => requestFrom(address, server, '/api/stats', { headers: { authorization: `Bearer ${bearer}` } });
  const answers = [];
  for (let i = 0; i < 40; i += 1) answers.push(await stats('127.0.0.2', `guess-${i}`));
  const wrong = answers.filter((status) => status === 401).length;
  assert.ok(wrong >= 5 && wrong < 40, `${wrong} guesses were looked at`);
  assert.equal(answers.at(-1), 429);
  // Guessing right does not help while it is slowed down; the operator is somewhere else.
  assert.equal(await stats('127.0.0.2', ADMIN), 429);
  assert.equal(await stats('127.0.0.1', ADMIN), 200);
  await server.metricIs('admin_refused_total{reason="wrong_token"}', wrong);
  await server.metricIs('admin_refused_total{reason="address_refusals"}', 40 - wrong + 1);
  await server.logged(/admin token refused/);
  assert.ok(server.logs.match(/admin token refused/g).length < 10);
  assert.doesNotMatch(server.logs, /guess-/);
  await until('its turn', async () => (await stats('127.0.0.2', ADMIN)) === 200);
  await server.kill();
});

test('an order sends away in any case, and is remembered for a year at most', async () => {
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: ADMIN } });
  const post = (path, body) => server.get(path, {
    method: 'POST', body, headers: { authorization: `Bearer ${ADMIN}`, 'content-type': 'application/json' },
  });
  const tab = await Tab.open(server, 'usr_sent_away', { transports: ['websocket'] });
  const until2100 = Date.UTC(2100, 0) / 1000;
  const answer = await (await post('/api/users/usr_sent_away/disconnect', JSON.stringify({ until: until2100 }))).json();
  assert.equal(answer.sockets, 1);
  const aYear = Date.now() / 1000 + 366 * 24 * 3600;
  assert.ok(Math.abs(answer.until - aYear) < 60, `until ${answer.until}, ${aYear} is a year ahead`);
  assert.equal(await tab.refused(), 'token revoked');
  for (const body of ['[]', '["alice"]', '[null]', ' [ ]', '"alice"', 'null', '1']) {
    const response = await post('/api/users/usr_sent_away/disconnect', body);
    assert.equal(response.status, 400, body);
    assert.match((await response.json()).error, /JSON object/);
  }
  tab.close();
  await server.kill();
});

test('a short admin token is warned of at the start', async () => {
  const server = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'short' } });
  await server.logged(/ADMIN_TOKEN is weak/);
  assert.doesNotMatch(server.logs, /short/);
  await server.kill();
});

test('it leaves no core dump, and lets no other user read its memory', async () => {
  const server = await Gateway.start(broker);
  const limits = readFileSync(`/proc/${server.child.pid}/limits`, 'utf8');
  assert.match(limits, /Max core file size +0 /);
  // The files of a process in /proc belong to its user, unless it may not be dumped.
  if (process.getuid() !== 0) assert.equal(statSync(`/proc/${server.child.pid}/mem`).uid, 0);
  await server.kill();
});
