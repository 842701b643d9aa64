// Who is let in, and what clients that are refused are told.

import assert from 'node:assert/strict';
import { test, before } from 'node:test';

import jwt from 'jsonwebtoken';

import { Broker, Gateway, Publisher, SECRET, Tab, token } from './harness.mjs';

let broker;
let gateway;

before(async () => {
  broker = await Broker.start();
  await Publisher.connect(broker); // creates the exchange, as Chat3 would
  gateway = await Gateway.start(broker);
});

const valid = (claims, options) => token('usr_a', claims, options);

for (const [what, auth, message, reason] of [
  ['no token', {}, 'token missing', 'token_missing'],
  ['no auth at all', null, 'token missing', 'token_missing'],
  ['an empty token', { token: '' }, 'token missing', 'token_missing'],
  ['a token that is no string', { token: { a: 1 } }, 'invalid token', 'token_invalid'],
  ['garbage', { token: 'garbage' }, 'invalid token', 'token_invalid'],
  ['a token signed with another secret', { token: valid({}, { secret: 'x'.repeat(32) }) }, 'invalid token', 'token_invalid'],
  ['an unsigned token', { token: jwt.sign({ userId: 'usr_a' }, null, { algorithm: 'none' }) }, 'invalid token', 'token_invalid'],
  ['an expired token', { token: valid({}, { expiresIn: -60 }) }, 'token expired', 'token_expired'],
  ['a token without expiry', { token: valid({}, { expiresIn: null }) }, 'token without expiry', 'token_without_expiry'],
  ['a token for later', { token: valid({ nbf: 4e9 }) }, 'token not valid yet', 'token_not_yet_valid'],
  ['a token without user id', { token: jwt.sign({}, SECRET, { expiresIn: '1h' }) }, 'token without user id', 'user_id_missing'],
  ['the user id *', { token: token('*') }, 'user id not acceptable', 'user_id_invalid'],
  ['the user id #', { token: token('#') }, 'user id not acceptable', 'user_id_invalid'],
  ['a user id with a wildcard', { token: token('usr_*') }, 'user id not acceptable', 'user_id_invalid'],
  ['a user id with whitespace', { token: token('a b') }, 'user id not acceptable', 'user_id_invalid'],
  ['a user id with a control character', { token: token('a\u0007') }, 'user id not acceptable', 'user_id_invalid'],
  ['an empty user id', { token: token('') }, 'user id not acceptable', 'user_id_invalid'],
  ['an over-long user id', { token: token('a'.repeat(300)) }, 'user id not acceptable', 'user_id_invalid'],
  ['a tenant id with a wildcard', { token: valid({ tenantId: '#' }) }, 'tenant id not acceptable', 'tenant_id_invalid'],
]) {
  test(`${what} is refused with "${message}"`, async () => {
    const before = await gateway.metric(`connects_refused_total{reason="${reason}"}`);
    const tab = new Tab(gateway, undefined, { auth });
    assert.equal(await tab.refused(), message);
    assert.equal(tab.error.data, undefined);
    assert.equal(tab.connects, 0);
    tab.close();
    await gateway.metricIs(`connects_refused_total{reason="${reason}"}`, before + 1);
  });
}

for (const algorithm of ['HS256', 'HS384', 'HS512']) {
  test(`${algorithm} tokens are let in`, async () => {
    const tab = new Tab(gateway, valid({}, { algorithm }));
    await tab.when('connected', () => tab.connects === 1);
    tab.close();
  });
}

test('refusals leave no socket, user or queue behind, and no token in the log', async () => {
  await gateway.metricIs('sockets', 0);
  await gateway.metricIs('users', 0);
  await broker.queuesAre(0);
  assert.doesNotMatch(gateway.logs, /eyJ/);
  assert.match(gateway.logs, /Connection refused peer="127\.0\.0\.1:\d+" reason=token expired/);
});

test('user id and tenant claims can be renamed, issuer and audience required', async () => {
  const strict = await Gateway.start(broker, {
    env: { JWT_USER_ID_CLAIM: 'uid', JWT_ISSUER: 'chat3', JWT_AUDIENCE: 'web', JWT_TENANT_ID_CLAIM: 'org' },
  });
  const claims = { uid: 'usr_renamed', org: 'o1', iss: 'chat3', aud: 'web' };
  const tab = await Tab.open(strict, undefined, { claims });
  await strict.logged(/subscribed to updates user_id=usr_renamed/);
  tab.close();
  for (const [change, message] of [
    [{ iss: 'other' }, 'token issuer not accepted'],
    [{ aud: 'other' }, 'token audience not accepted'],
    [{ uid: undefined }, 'token without user id'],
  ]) {
    const refused = new Tab(strict, token(undefined, { ...claims, ...change }));
    assert.equal(await refused.refused(), message);
    refused.close();
  }
});

test('binding keys with a tenant need a tenant in the token', async () => {
  const tenants = await Gateway.start(broker, { env: { RABBITMQ_BINDING_KEYS: '{tenantId}.user.{userId}.*' } });
  const refused = new Tab(tenants, token('usr_a'));
  assert.equal(await refused.refused(), 'token without tenant id');
  refused.close();
  const tab = await Tab.open(tenants, 'usr_a', { claims: { tenantId: 't1' } });
  const bindings = await broker.ctl('list_bindings', '--no-table-headers', 'routing_key');
  assert.match(bindings, /^t1\.user\.usr_a\.\*$/m);
  tab.close();
});

test('browsers of the listed origins only may read the answers', async () => {
  const listed = await Gateway.start(broker, { env: { CORS_ORIGIN: 'https://chat.example.com' } });
  const handshake = (server, origin) =>
    server.get('/socket.io/?EIO=4&transport=polling', { headers: { origin } });
  const allowed = await handshake(listed, 'https://chat.example.com');
  assert.equal(allowed.headers.get('access-control-allow-origin'), 'https://chat.example.com');
  const foreign = await handshake(listed, 'https://evil.example.com');
  assert.equal(foreign.headers.get('access-control-allow-origin'), null);
  const any = await handshake(gateway, 'https://anything.example');
  assert.equal(any.headers.get('access-control-allow-origin'), '*');
});
