// docs/asyncapi.yaml is a valid AsyncAPI document, and describes what the gateway
// really sends: every event of every fixture is checked against it.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { before, test } from 'node:test';

import Ajv from 'ajv';
import { io } from 'socket.io-client';
import { parse } from 'yaml';

import { Broker, Gateway, Publisher, Tab, generations, testsFolder, token } from './harness.mjs';

const docs = path.join(testsFolder, '..', 'docs');
const asyncapi = parse(readFileSync(path.join(docs, 'asyncapi.yaml'), 'utf8'));

// Strict mode refuses unknown keywords, such as misspelt ones.
const ajv = new Ajv({ strict: true, strictTypes: false, strictRequired: false, allowUnionTypes: true, allErrors: true });
ajv.addVocabulary(['components']);
ajv.addSchema({ $id: 'asyncapi', components: asyncapi.components });

const schema = (pointer) => {
  const validate = ajv.getSchema(`asyncapi#/components/${pointer}`);
  assert.ok(validate, pointer);
  return validate;
};
const messages = Object.fromEntries(Object.entries(asyncapi.components.messages)
  .map(([key, { name }]) => [key, { name, validate: schema(`messages/${key}/payload`) }]));
const byEvent = Object.fromEntries(Object.entries(messages)
  .filter(([key]) => key !== 'authRefresh' && key !== 'authRefreshAnswer')
  .map(([, { name, validate }]) => [name, validate]));

function holds(validate, payload, what) {
  assert.ok(validate(payload), `${what}: ${ajv.errorsText(validate.errors)} in ${JSON.stringify(payload)}`);
}

let broker;
let publisher;
let gateway;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator', JWT_LEEWAY: '0s', JWT_EXPIRY_NOTICE: '6s', MAX_SOCKETS_PER_USER: '1' } });
});

test('the document is valid AsyncAPI 3.0', () => {
  const definition = createRequire(import.meta.url)('@asyncapi/specs/schemas/3.0.0-without-$id.json');
  const meta = new Ajv({ strict: false, logger: false, validateFormats: false }).compile(definition);
  assert.ok(meta(asyncapi), JSON.stringify(meta.errors, null, 1));
  assert.equal(meta({ ...asyncapi, channels: { updates: { adress: '/' } } }), false);
});

test('every reference in it leads somewhere', () => {
  const look = (node) => {
    if (typeof node !== 'object' || node === null) return;
    if (typeof node.$ref === 'string') {
      const target = node.$ref.slice(2).split('/').reduce((at, key) => at?.[key], asyncapi);
      assert.ok(node.$ref.startsWith('#/') && target, node.$ref);
    }
    Object.values(node).forEach(look);
  };
  look(asyncapi);
  for (const name of Object.keys(asyncapi.components.schemas)) schema(`schemas/${name}`);
});

test('the refusals are those of PROTOCOL.md', () => {
  const page = readFileSync(path.join(docs, 'PROTOCOL.md'), 'utf8');
  const [, section] = page.split('## connect_error');
  const table = section.split('\n## ')[0].matchAll(/^\| `([^`]+)` \|/gm);
  const documented = [...table].map(([, text]) => text).filter((text) => text !== 'error.message');
  assert.deepEqual(documented, asyncapi.components.schemas.ConnectError.enum);
});

for (const envelope of ['auto', 'original', 'sections']) {
  for (const { since, bindingKeys, updates } of generations()) {
    test(`the events of ${since}, ${envelope}, are as described, and a wrong field is noticed`, async () => {
      const server = await Gateway.start(broker, { env: { CHAT3_ENVELOPE: envelope, RABBITMQ_BINDING_KEYS: bindingKeys.join(',') } });
      const { userId, tenantId } = updates[0].body;
      const tab = await Tab.open(server, userId, { claims: { tenantId } });
      for (const { routingKey, body } of updates) publisher.publish(routingKey, body);
      const expected = updates.flatMap(({ emits, sections }) => (envelope === 'sections' ? sections.emits : emits));
      await tab.when('all events', () => tab.events.length >= expected.length);
      assert.deepEqual(tab.events.map(({ event }) => event), expected);
      for (const { event, args: [payload] } of tab.events) {
        holds(byEvent[event], payload, event);
        if (envelope === 'original' && event !== 'message:new') {
          holds(schema('schemas/OriginalUpdate'), payload, `original ${event}`);
        }
        if (envelope === 'sections' && event.endsWith(':update') && event !== 'typing:update') {
          holds(schema('schemas/SectionsUpdate'), payload, `sections ${event}`);
        }
        for (const mutated of mutations(payload)) {
          assert.equal(byEvent[event](mutated), false, `${event}: ${JSON.stringify(mutated)}`);
        }
      }
      const offset = schema('schemas/Offset');
      assert.equal(tab.offsets.length, tab.events.length);
      for (const value of tab.offsets) holds(offset, value, 'the offset');
      tab.close();
      await server.kill();
    });
  }
}

/** Copies of a payload, each with one field of a wrong type. */
function* mutations(payload) {
  const known = new Set([
    'tenantId', 'userId', 'entityId', 'eventId', 'eventType', 'sourceEventType', 'updateType', 'data', 'createdAt', 'published',
    'message', 'dialog', 'member', 'context', 'typing', 'user', '_id', 'messageId', 'dialogId', 'senderId', 'content', 'type', 'meta',
    'reactionCounts', 'reactionUpdate', 'statusUpdate', 'stats', 'unreadCount', 'updatedFields', 'expiresInMs', 'packStats', 'userPackStats',
    'deleted', 'deletedBy', 'edited', 'editedBy',
  ]);
  const paths = [];
  const walk = (node, at) => {
    for (const [key, value] of Object.entries(node)) {
      if (!known.has(key)) continue;
      paths.push([...at, key]);
      // The operator decides what metadata holds.
      if (key !== 'meta' && typeof value === 'object' && value !== null && !Array.isArray(value)) walk(value, [...at, key]);
    }
  };
  walk(payload, []);
  assert.ok(paths.length > ('expiresInMs' in payload ? 2 : 5));
  for (const where of paths) {
    const copy = structuredClone(payload);
    const parent = where.slice(0, -1).reduce((node, key) => node[key], copy);
    const was = parent[where.at(-1)];
    parent[where.at(-1)] = typeof was === 'boolean' ? 'true' : [{ wrong: was }];
    if (JSON.stringify(was) !== 'null') yield copy;
  }
}

test('an update of another event type is neither a message:update nor a dialog:update', () => {
  const update = { userId: 'u', eventType: 'message.update', data: {} };
  holds(byEvent['message:update'], update, 'message.update');
  for (const eventType of ['message.create', 'dialog.update', 'user.add']) {
    assert.equal(byEvent['message:update']({ ...update, eventType }), false, eventType);
  }
  assert.equal(byEvent['message:update']({ ...update, updateType: 'update.dialog' }), false);
  assert.equal(byEvent['dialog:update'](update), false);
  assert.equal(byEvent['message:new']({ content: 'without an author' }), false);
  assert.equal(byEvent['chat3:update']({ eventType: 'message.create' }), false);
  assert.equal(schema('schemas/OriginalUpdate')({ userId: 'u', eventType: 'message.changed', data: {} }), false);
});

test('the announcement, the refresh and the order to leave are as described', async () => {
  const tokens = [token('usr_access', {}, { expiresIn: '9s' }), token('usr_access')];
  const auth = (give) => give({ token: tokens.length > 1 ? tokens.shift() : tokens[0] });
  const tab = new Tab(gateway, null, { auth, transports: ['websocket'] });
  await tab.when('connected', () => tab.connects === 1);
  await tab.when('the announcement', () => tab.named('auth:expiring').length === 1);
  const refresh = async (next) => {
    holds(messages.authRefresh.validate, next, 'the token');
    const answer = await tab.socket.timeout(5000).emitWithAck('auth:refresh', next);
    holds(messages.authRefreshAnswer.validate, answer, 'the answer');
    return answer.ok;
  };
  assert.equal(await refresh(token('usr_other')), false);
  assert.equal(await refresh(token('usr_access', {}, { expiresIn: '-1h' })), false);
  assert.equal(await refresh(tokens[0]), true);
  for (const reason of ['Пароль изменён', undefined]) {
    const [connects, revoked] = [tab.connects, tab.named('auth:revoked').length];
    await gateway.get('/api/users/usr_access/disconnect', {
      method: 'POST', headers: { authorization: 'Bearer operator' }, body: JSON.stringify({ reason }),
    });
    await tab.when('sent away and back', () => tab.named('auth:revoked').length > revoked && tab.connects > connects);
  }
  assert.deepEqual(tab.events.map(({ event }) => event), ['auth:expiring', 'auth:revoked', 'auth:revoked']);
  for (const { event, args } of tab.events) {
    assert.equal(args.length, 1);
    holds(byEvent[event], args[0], event);
  }
  assert.equal(byEvent['auth:expiring']({ expiresAt: 1782133641 }), false);
  assert.equal(byEvent['auth:revoked']({}), false);
  assert.equal(messages.authRefreshAnswer.validate({ ok: true, error: 'token expired' }), false);
  assert.equal(messages.authRefresh.validate({ token: 'x.y.z' }), false);
  tab.close();
});

test('each refusal is as described', async () => {
  const first = await Tab.open(gateway, 'usr_many');
  const strict = await Gateway.start(broker, {
    env: { RABBITMQ_BINDING_KEYS: `${'x'.repeat(150)}.{tenantId}.{userId}.*`, JWT_ISSUER: 'https://issuer', JWT_AUDIENCE: 'chat' },
  });
  const issued = { iss: 'https://issuer', aud: 'chat' };
  const now = Math.floor(Date.now() / 1000);
  const refusals = [
    [gateway, undefined, 'token missing'],
    [gateway, 'no token', 'invalid token'],
    [gateway, token('usr_a', {}, { expiresIn: '-1h' }), 'token expired'],
    [gateway, token('usr_a', { nbf: now + 3600 }), 'token not valid yet'],
    [gateway, token('usr_a', {}, { expiresIn: null }), 'token without expiry'],
    [gateway, token(undefined), 'token without user id'],
    [gateway, token('usr_*'), 'user id not acceptable'],
    [gateway, token('usr_a', { tenantId: 'tnt #' }), 'tenant id not acceptable'],
    [gateway, token('usr_many'), 'too many connections of this user'],
    [strict, token('usr_a', { aud: issued.aud }), 'token issuer not accepted'],
    [strict, token('usr_a', { iss: issued.iss }), 'token audience not accepted'],
    [strict, token('usr_a', issued), 'token without tenant id'],
    [strict, token('u'.repeat(110), { ...issued, tenantId: 'tnt_a' }), 'user id and tenant id too long'],
  ];
  const seen = new Set();
  for (const [server, bad, text] of refusals) {
    const tab = new Tab(server, bad);
    assert.equal(await tab.refused(), text);
    holds(byEvent.connect_error, { message: tab.error.message }, text);
    seen.add(text);
    tab.close();
  }
  const old = token('usr_gone', { iat: now - 10 });
  await gateway.get('/api/users/usr_gone/disconnect', {
    method: 'POST', headers: { authorization: 'Bearer operator' }, body: JSON.stringify({ until: now + 3600 }),
  });
  const gone = new Tab(gateway, old);
  const elsewhere = new Tab(gateway, token('usr_a'), { connect: (url, options) => io(`${url}/admin`, options) });
  for (const tab of [gone, elsewhere]) {
    seen.add(await tab.refused());
    holds(byEvent.connect_error, { message: tab.error.message }, tab.error.message);
    tab.close();
  }
  assert.deepEqual([...seen].sort(), [...asyncapi.components.schemas.ConnectError.enum].sort());
  assert.equal(byEvent.connect_error({ message: 'xhr poll error' }), false);
  first.close();
  await strict.kill();
});
