// Who may connect: keys and their rotation, where tokens may come from, and from
// which sites. Runs without a broker: none of this waits for one.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import path from 'node:path';
import { after, before, test } from 'node:test';

import jwt from 'jsonwebtoken';

import {
  Broker, Gateway, SECRET, Tab, freePort, rawConnection, run, runGateway, temporaryFolder, testsFolder, token, until,
} from './harness.mjs';

const keyFile = (name) => path.join(testsFolder, 'fixtures', 'keys', name);
const pem = (name) => readFileSync(keyFile(name), 'utf8');

const ASYMMETRIC = {
  rsa: ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'],
  p256: ['ES256'],
  p384: ['ES384'],
  ed25519: ['EdDSA'],
};

let nowhere;

before(async () => {
  nowhere = await Broker.absent();
});

const start = (env) => Gateway.start(nowhere, { env });
const withoutSecret = { JWT_SECRET: '' };

const base64url = (value) => Buffer.from(value).toString('base64url');

/** A token signed with a private key of the fixtures; by hand for EdDSA, which jsonwebtoken lacks. */
function signed(name, { algorithm = ASYMMETRIC[name][0], keyid, claims = {} } = {}) {
  const payload = { userId: 'usr_a', ...claims };
  if (algorithm !== 'EdDSA') {
    return jwt.sign(payload, pem(`${name}.pem`), { algorithm, expiresIn: '1h', ...(keyid ? { keyid } : {}) });
  }
  const header = { alg: algorithm, ...(keyid ? { kid: keyid } : {}) };
  const body = { ...payload, exp: Math.floor(Date.now() / 1000) + 3600 };
  const message = `${base64url(JSON.stringify(header))}.${base64url(JSON.stringify(body))}`;
  return `${message}.${crypto.sign(null, Buffer.from(message), pem(`${name}.pem`)).toString('base64url')}`;
}

async function isLetIn(gateway, presented, options) {
  const tab = new Tab(gateway, presented, options);
  await tab.when('an answer', () => tab.connects > 0 || tab.error);
  tab.close();
  return tab.connects > 0;
}

async function letIn(gateway, presented, options) {
  assert.ok(await isLetIn(gateway, presented, options), 'let in');
}

async function refused(gateway, presented, message = 'invalid token', options = undefined) {
  const tab = new Tab(gateway, presented, options);
  assert.equal(await tab.refused(), message);
  tab.close();
}

/** A server of a key set, which can misbehave as such servers do. */
class KeyServer {
  /** `tls`: key and certificate, for https. */
  static async start(tls = null) {
    const server = new KeyServer();
    server.requests = 0;
    server.keys = {};
    const listener = (request, response) => {
      server.requests += 1;
      server.answer(request, response);
    };
    server.http = tls ? https.createServer(tls, listener) : http.createServer(listener);
    const port = await freePort();
    await new Promise((resolve) => server.http.listen(port, '127.0.0.1', resolve));
    server.url = tls ? `https://localhost:${port}/jwks.json` : `http://127.0.0.1:${port}/jwks.json`;
    server.works();
    servers.push(server);
    return server;
  }

  /** Answers with `keys`: from key ids to names of the fixtures or ready JWKs. */
  works() {
    this.answer = (_, response) => response.setHeader('content-type', 'application/json').end(jwks(this.keys));
  }

  answersWith(status, headers = {}, body = '') {
    this.answer = (_, response) => response.writeHead(status, headers).end(body);
  }

  async another(count = 1) {
    const goal = this.requests + count;
    await until(`${count} more reads`, () => this.requests >= goal);
  }
}

const servers = [];
after(() => {
  for (const server of servers) {
    server.http.closeAllConnections();
    server.http.close();
  }
});

function jwks(keys) {
  const jwk = ([kid, key]) => ({
    kid,
    ...(typeof key === 'string' ? crypto.createPublicKey(pem(`${key}.pub.pem`)).export({ format: 'jwk' }) : key),
  });
  return JSON.stringify({ keys: Object.entries(keys).map(jwk) });
}

test('tokens of every documented algorithm are let in, by several keys at once', async () => {
  const folder = temporaryFolder();
  const file = path.join(folder, 'keys.pem');
  writeFileSync(file, `# old\n${pem('p256.pub.pem')}# new\n${pem('p384.pub.pem')}`);
  const gateway = await start({
    JWT_PUBLIC_KEY: pem('rsa.pub.pem').replaceAll('\n', '\\n') + pem('ed25519.pub.pem'),
    JWT_PUBLIC_KEY_FILE: file,
  });
  for (const [name, algorithms] of Object.entries(ASYMMETRIC)) {
    for (const algorithm of algorithms) await letIn(gateway, signed(name, { algorithm }));
  }
  for (const algorithm of ['HS256', 'HS384', 'HS512']) await letIn(gateway, token('usr_a', {}, { algorithm }));
});

test('a public key is no secret, and a token cannot ask for no signature', async () => {
  const gateway = await start({ ...withoutSecret, JWT_PUBLIC_KEY_FILE: keyFile('rsa.pub.pem') });
  const [, payload, signature] = signed('rsa').split('.');
  const hs = (secret) => {
    const message = `${base64url('{"alg":"HS256","typ":"JWT"}')}.${payload}`;
    return `${message}.${crypto.createHmac('sha256', secret).update(message).digest('base64url')}`;
  };
  const publicPem = pem('rsa.pub.pem');
  const der = crypto.createPublicKey(publicPem).export({ type: 'spki', format: 'der' });
  for (const secret of [publicPem, publicPem.trim(), der, '']) await refused(gateway, hs(secret));
  for (const alg of ['none', 'None', 'HS256', 'RS384', 'ES256', 'EdDSA']) {
    const header = base64url(JSON.stringify({ alg }));
    await refused(gateway, `${header}.${payload}.${signature}`);
    await refused(gateway, `${header}.${payload}.`);
  }
  await refused(gateway, signed('p256'));
  await refused(gateway, token('usr_a'));
  await letIn(gateway, signed('rsa'));
});

for (const [what, env, pattern] of [
  ['a public key as the secret', { JWT_SECRET: pem('rsa.pub.pem') }, /JWT_SECRET is a public key.*JWT_PUBLIC_KEY/],
  ['a private key', { JWT_PUBLIC_KEY: pem('p256.pem') }, /JWT_PUBLIC_KEY holds a private key/],
  ['a certificate', { JWT_PUBLIC_KEY_FILE: keyFile('certificate.pem') }, /JWT_PUBLIC_KEY_FILE .*openssl x509/],
  ['a key file that is not there', { JWT_PUBLIC_KEY_FILE: '/nowhere.pem' }, /JWT_PUBLIC_KEY_FILE.*\/nowhere\.pem/],
  ['a short RSA key', { JWT_PUBLIC_KEY: pem('rsa1024.pub.pem') }, /under 2048 bits/],
  ['a key set that is not there', { JWT_JWKS: '/nowhere.json' }, /JWT_JWKS cannot be read/],
  ['a key set that is none', { JWT_JWKS: keyFile('rsa.pub.pem') }, /JWT_JWKS is no JSON Web Key Set/],
  ['a key set over plain http', { JWT_JWKS: 'http://issuer.example.com/jwks' }, /JWT_JWKS.*http:\/\/ to another host/],
  ['a leeway of hours', { JWT_LEEWAY: '2h' }, /JWT_LEEWAY.*10min/],
  ['an origin below a top-level domain', { CORS_ORIGIN: '*.com' }, /CORS_ORIGIN.*\*\.com/],
]) {
  test(`with ${what} it does not start, and says why in one line`, async () => {
    const { code, stdout, stderr } = await runGateway(['serve'], { env: { LOG_FILE: '', PORT: '0', ...env } });
    assert.equal(code, 78, stderr);
    assert.match(stderr, pattern);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
    assert.equal(stdout, '');
    // Neither half of a key is repeated.
    assert.doesNotMatch(stderr, /MII|MHc|BEGIN [A-Z]+ PRIVATE/);
  });
}

test('a weak secret is warned of once, and works', async () => {
  const secret = 'short';
  const gateway = await start({ JWT_SECRET: secret });
  await letIn(gateway, token('usr_a', {}, { secret }));
  await letIn(gateway, token('usr_a', {}, { secret }));
  assert.equal(gateway.logs.match(/WARN.*JWT_SECRET is weak/g)?.length, 1);
  assert.doesNotMatch(gateway.logs, /short/);
});

test('an expiry can be made optional, and the leeway set', async () => {
  const gateway = await start({ JWT_REQUIRE_EXP: 'false', JWT_LEEWAY: '2m' });
  await letIn(gateway, token('usr_a', {}, { expiresIn: null }));
  await letIn(gateway, token('usr_a', {}, { expiresIn: -60 }));
  await refused(gateway, token('usr_a', {}, { expiresIn: -180 }), 'token expired');
});

test('a new key of a key set is found when a token names it, and an old one is dropped', async () => {
  const server = await KeyServer.start();
  server.keys = { old: 'rsa' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url });
  await letIn(gateway, signed('rsa', { keyid: 'old' }));
  // Without an id, every key of the set is tried.
  await letIn(gateway, signed('rsa'));
  await refused(gateway, signed('p256', { keyid: 'old' }));
  server.keys = { new: 'p256' };
  const requests = server.requests;
  await letIn(gateway, signed('p256', { keyid: 'new' }));
  assert.equal(server.requests, requests + 1);
  await refused(gateway, signed('rsa', { keyid: 'old' }));
  await refused(gateway, signed('rsa', { keyid: 'new' }));
});

test('a key set is read again from time to time', async () => {
  const server = await KeyServer.start();
  server.keys = { a: 'rsa' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url, JWT_JWKS_REFRESH: '200ms' });
  await letIn(gateway, signed('rsa'));
  server.keys = { b: 'p384' };
  await server.another(2);
  await letIn(gateway, signed('p384'));
  await refused(gateway, signed('rsa'));
});

test('whatever the URL does, the last good keys stay in use', async () => {
  const server = await KeyServer.start();
  server.keys = { a: 'rsa' };
  const elsewhere = await KeyServer.start();
  elsewhere.keys = { b: 'p256' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url, JWT_JWKS_REFRESH: '200ms' });
  await letIn(gateway, signed('rsa', { keyid: 'a' }));
  const good = await gateway.metric('jwks_reads_total{outcome="ok"}');
  assert.ok(good >= 1);
  const set = jwks({ b: 'p256' });
  for (const fault of [
    () => server.answersWith(503, {}, set),
    () => server.answersWith(302, { location: elsewhere.url }),
    () => server.answersWith(200, {}, 'not JSON'),
    () => server.answersWith(200, {}, '{"keys":[]}'),
    () => server.answersWith(200, {}, `${set}${' '.repeat(300_000)}`),
    () => (server.answer = (request) => request.socket.destroy()),
    () => (server.answer = (_, response) => response.writeHead(200, { 'content-length': 1000 }).write('{')),
    () => server.http.close() && server.http.closeAllConnections(),
  ]) {
    const failed = await gateway.metric('jwks_reads_total{outcome="failed"}');
    fault();
    await until('a failed read', async () => (await gateway.metric('jwks_reads_total{outcome="failed"}')) > failed);
    await letIn(gateway, signed('rsa', { keyid: 'a' }));
    await refused(gateway, signed('p256'));
  }
  assert.equal(elsewhere.requests, 0);
  // One line per outage, with the reason.
  assert.equal(gateway.logs.match(/WARN.*JWT_JWKS not read/g).length, 1);
  assert.match(gateway.logs, /JWT_JWKS not read.*503/);
  await new Promise((resolve) => server.http.listen(new URL(server.url).port, '127.0.0.1', resolve));
  server.works();
  await gateway.logged(/JWT_JWKS read again/);
});

test('a URL that sends endless answers, or more keys than anybody has, holds nobody up and fills no log', async () => {
  const server = await KeyServer.start();
  const secret = (_, i) => [`short-${i}`, { kty: 'oct', k: 'eHg' }];
  server.keys = { ...Object.fromEntries(Array.from({ length: 3000 }, secret)), a: 'rsa' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url, JWT_JWKS_REFRESH: '200ms' });
  await letIn(gateway, signed('rsa', { keyid: 'a' }));
  const line = await gateway.logged(/.*Keys in JWT_JWKS are not used.*/);
  assert.ok(line[0].length < 5000, `a line of ${line[0].length}`);
  const early = 'HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n'.repeat(1000);
  let poured = 0;
  server.answer = ({ socket }) => {
    const pour = () => {
      poured += 1;
      if (socket.writable && socket.write(early)) setImmediate(pour);
      else socket.once('drain', pour);
    };
    pour();
  };
  await until('it pours', () => poured > 20);
  for (let i = 0; i < 20; i += 1) {
    const asked = Date.now();
    await gateway.json('/health');
    assert.ok(Date.now() - asked < 5000, `/health took ${Date.now() - asked} ms`);
  }
  await letIn(gateway, signed('rsa', { keyid: 'a' }));
  await gateway.logged(/JWT_JWKS not read/, 60_000);
  await gateway.kill();
});

test('a URL that does not answer keeps nobody with a known key waiting, and made-up key ids ask it rarely', async () => {
  const server = await KeyServer.start();
  server.keys = { a: 'rsa' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url });
  await letIn(gateway, signed('rsa', { keyid: 'a' }));
  server.answer = () => {}; // accepts, and stays silent
  const requests = server.requests;
  const attack = Array.from({ length: 20 }, (_, i) => isLetIn(gateway, signed('rsa', { keyid: `made-up-${i}` })));
  await until('the read has begun', () => server.requests > requests);
  const begin = Date.now();
  await Promise.all(Array.from({ length: 20 }, () => letIn(gateway, signed('rsa', { keyid: 'a' }))));
  // A token that waits for the read waits for five seconds.
  assert.ok(Date.now() - begin < 4000, `took ${Date.now() - begin} ms`);
  assert.deepEqual([...new Set(await Promise.all(attack))], [false]);
  // Nine seconds at most, which leave time for one read: five seconds of waiting, five of pause.
  assert.equal(server.requests, requests + 1);
});

test('a key set over https is read from a server that its CA vouches for, and from no other', async () => {
  const folder = temporaryFolder();
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-keyout', 'key.pem', '-out', 'cert.pem', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-addext', 'basicConstraints=critical,CA:FALSE'];
  await run('openssl', args, { cwd: folder });
  const file = (name) => path.join(folder, name);
  const server = await KeyServer.start({ key: readFileSync(file('key.pem')), cert: readFileSync(file('cert.pem')) });
  server.keys = { a: 'rsa' };
  const ca = { JWT_JWKS_CA_FILE: file('cert.pem') };
  await letIn(await start({ ...withoutSecret, JWT_JWKS: server.url, ...ca }), signed('rsa'));
  const requests = server.requests;
  const strict = await start({ ...withoutSecret, JWT_JWKS: server.url });
  await strict.logged(/JWT_JWKS not read.*UnknownIssuer/);
  const elsewhere = await start({ ...withoutSecret, JWT_JWKS: server.url.replace('localhost', '127.0.0.1'), ...ca });
  await elsewhere.logged(/JWT_JWKS not read.*not valid for name/);
  assert.equal(server.requests, requests);
});

test('a gateway may start before its key server, and lets clients in once that is up', async () => {
  const server = await KeyServer.start();
  server.keys = { a: 'rsa' };
  server.answersWith(503);
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url, JWT_JWKS_REFRESH: '500ms' });
  await gateway.logged(/JWT_JWKS not read.*503/);
  server.works();
  await letIn(gateway, signed('rsa'));
});

test('secrets that a URL publishes, and keys that are not understood, are left out with a warning', async () => {
  const server = await KeyServer.start();
  const k = base64url(SECRET);
  server.keys = { shared: { kty: 'oct', k }, unknown: { kty: 'new' }, encryption: { kty: 'RSA', n: 'AQAB', e: 'AQAB', use: 'enc' }, a: 'rsa' };
  const gateway = await start({ ...withoutSecret, JWT_JWKS: server.url, JWT_JWKS_REFRESH: '200ms' });
  await letIn(gateway, signed('rsa', { keyid: 'a' }));
  await refused(gateway, token('usr_a'));
  await refused(gateway, jwt.sign({ userId: 'usr_a' }, SECRET, { keyid: 'shared', expiresIn: '1h' }));
  await server.another(3);
  const warnings = gateway.logs.match(/WARN.*Keys in JWT_JWKS are not used.*/g);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /shared.*secret.*unknown.*encryption/);
  assert.ok(!gateway.logs.includes(k));
});

test('a key set in a file may hold secrets, and is read again', async () => {
  const file = path.join(temporaryFolder(), 'jwks.json');
  const secret = (text) => ({ kty: 'oct', k: base64url(text) });
  const by = (text, keyid) => jwt.sign({ userId: 'usr_a' }, text, { keyid, expiresIn: '1h' });
  const [first, second] = ['1', '2'].map((digit) => digit.repeat(40));
  writeFileSync(file, jwks({ first: secret(first) }));
  const gateway = await start({ ...withoutSecret, JWT_JWKS: file });
  await letIn(gateway, by(first, 'first'));
  writeFileSync(file, jwks({ first: secret(first), second: secret(second) }));
  await letIn(gateway, by(second, 'second'));
  await letIn(gateway, by(first, 'first'));
  await refused(gateway, by(second, 'first'));
});

test('a token may come as a bearer token, in auth or in the Authorization header', async () => {
  const gateway = await start({});
  const good = token('usr_a');
  const header = { auth: {}, extraHeaders: { authorization: `Bearer ${good}` } };
  await letIn(gateway, `Bearer ${good}`);
  for (const transports of [['websocket'], ['polling']]) await letIn(gateway, undefined, { ...header, transports });
  // The token in auth takes precedence.
  await refused(gateway, undefined, 'invalid token', { ...header, auth: { token: 'x' } });
  await refused(gateway, undefined, 'token missing', { auth: {}, extraHeaders: { authorization: `Basic ${good}` } });
});

test('a token in the query is ignored unless that is switched on, and is never logged', async () => {
  const good = token('usr_a');
  const query = { auth: {}, query: { token: good } };
  const gateway = await start({ RUST_LOG: 'trace' });
  await refused(gateway, undefined, 'token missing', query);
  const allowing = await start({ JWT_ALLOW_QUERY: 'true', RUST_LOG: 'trace,tungstenite::protocol=trace' });
  for (const transports of [['websocket'], ['polling'], ['polling', 'websocket']]) {
    await letIn(allowing, undefined, { ...query, transports });
  }
  await refused(allowing, undefined, 'invalid token', { ...query, query: { token: `${good}x` } });
  await refused(allowing, undefined, 'invalid token', { ...query, auth: { token: 'x' } });
  // The same for a token in the header.
  await letIn(allowing, undefined, { auth: {}, extraHeaders: { authorization: `Bearer ${good}` } });
  for (const { logs } of [gateway, allowing]) {
    assert.match(logs, /TRACE|DEBUG/);
    assert.ok(!logs.includes(good.split('.')[2]), logs.split('\n').find((line) => line.includes(good.split('.')[2])));
  }
});

const polling = '/socket.io/?EIO=4&transport=polling';

async function websocketStatus(gateway, ...headers) {
  const socket = await rawConnection(gateway);
  const lines = [
    'GET /socket.io/?EIO=4&transport=websocket HTTP/1.1', 'Host: x', 'Connection: Upgrade', 'Upgrade: websocket',
    'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', ...headers,
  ];
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  await until('an answer', () => socket.received.includes('\r\n'));
  socket.destroy();
  return Number(socket.received.split(' ')[1]);
}

test('only pages of the listed origins may open a websocket or poll; other clients send no origin', async () => {
  const gateway = await start({ CORS_ORIGIN: 'https://chat.example.com,https://*.example.org' });
  for (const origin of ['https://chat.example.com', 'https://a.example.org', 'https://a.b.example.org']) {
    assert.equal(await websocketStatus(gateway, `Origin: ${origin}`), 101, origin);
    const response = await gateway.get(polling, { headers: { origin } });
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('access-control-allow-origin'), origin);
  }
  const metric = 'connects_refused_total{reason="foreign_origin"}';
  for (const origin of [
    'https://evil.com', 'http://chat.example.com', 'https://example.org', 'http://a.example.org', 'https://chat.example.com.evil.com',
    'https://chat.example.com:8443', 'null', '',
  ]) {
    const before = await gateway.metric(metric);
    assert.equal(await websocketStatus(gateway, `Origin: ${origin}`), 403, origin);
    for (const method of ['GET', 'POST']) {
      const response = await gateway.get(polling, { method, headers: { origin: origin || 'x' } });
      assert.equal(response.status, 403);
      assert.equal(response.headers.get('access-control-allow-origin'), null);
    }
    await gateway.metricIs(metric, before + 3);
  }
  assert.equal(await websocketStatus(gateway, 'Origin: https://chat.example.com', 'Origin: https://evil.com'), 403);
  assert.match(gateway.logs, /Connection refused: its origin is not in CORS_ORIGIN peer="?127\.0\.0\.1:\d+"? origin="https:\/\/evil\.com"/);
  assert.equal(await websocketStatus(gateway), 101);
  await letIn(gateway, token('usr_a'));
  await letIn(gateway, token('usr_a'), { extraHeaders: { origin: 'https://chat.example.com' } });
  assert.ok(!(await connects(gateway, { origin: 'https://evil.com' })));
  // Browsers have no business with probes and the admin API.
  assert.equal((await gateway.get('/health', { headers: { origin: 'https://evil.com' } })).status, 200);
});

test('without a list, pages of every origin may connect', async () => {
  const gateway = await start({});
  for (const origin of ['https://anything.example', 'null', 'x']) {
    assert.equal(await websocketStatus(gateway, `Origin: ${origin}`), 101);
    assert.equal((await gateway.get(polling, { headers: { origin } })).status, 200);
  }
});

/** Whether the real client gets in with these headers; it retries without end, so the first answer counts. */
async function connects(gateway, extraHeaders) {
  return isLetIn(gateway, token('usr_a'), { extraHeaders, transports: ['websocket'], reconnection: false });
}
