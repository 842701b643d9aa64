// Which routing keys reach whom: without settings, with tenants, and where RabbitMQ permits some keys only.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, EXCHANGE, Gateway, Publisher, Tab, anUpdate, testOf, token } from './harness.mjs';

const testOfKeys = testOf('keys of single users');

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

const start = (env = {}) => Gateway.start(broker, { env });

/** The keys by which each generation of Chat3 publishes to a user. */
const keysOf = (tenant, user) => [
  `user.${user}.messageupdate`,
  `user.user.${user}.messageupdate`,
  `update.dialog.user.${user}.messageupdate`,
  `update.pack.user.${user}.packstatsupdate`,
  `update.dialog.user.${user}.message`,
  `update.dialog.${tenant}.user.${user}.message`,
];

/** Publishes an update by each of the keys, and returns them. */
function publishAll(keys, user, tenantId) {
  return keys.map((key) => {
    const update = anUpdate(user, { tenantId });
    publisher.publish(key, update);
    return update._id;
  });
}

test('without settings, the updates of each generation of Chat3 reach their user once, and nobody else', async () => {
  const gateway = await start();
  for (const [user, tenant, claims] of [
    ['usr_a', 'tnt_1', { tenantId: 'tnt_1' }],
    ['usr_a', 'tnt_1', {}],
    ['a.b@example.com', 'tnt.1', { tenantId: 'tnt.1' }],
    ['a.b@example.com', 'tnt_1', {}],
  ]) {
    const [tab, stranger] = await Promise.all([
      Tab.open(gateway, user, { claims }), Tab.open(gateway, 'usr_other', { claims: { tenantId: 'tnt_1' } }),
    ]);
    const expected = publishAll(keysOf(tenant, user), user, tenant);
    // Another tenant's user of the same id.
    if (claims.tenantId) publishAll(keysOf('tnt_2', user), user, 'tnt_2');
    const last = publishAll(keysOf(tenant, user).slice(0, 1), user, tenant);
    await tab.saw({ _id: last[0] });
    assert.deepEqual(tab.ids, [...expected, ...last], `${user} of ${tenant}`);
    assert.deepEqual(stranger.ids, []);
    tab.close();
    stranger.close();
  }
});

test('an update that matches several of a user’s bindings arrives once', async () => {
  const gateway = await start({ RABBITMQ_BINDING_KEYS: 'user.{userId}.*,user.{userId}.#,#.{userId}.#,user.{userId}.x' });
  const tab = await Tab.open(gateway, 'usr_twice');
  const ids = ['user.usr_twice.x', 'user.usr_twice.usr_twice.x', 'a.usr_twice'].map((key) => publishAll([key], 'usr_twice', 'tnt_default')[0]);
  await tab.saw({ _id: ids.at(-1) });
  assert.deepEqual(tab.ids, ids);
});

test('an id that looks like a placeholder is refused', async () => {
  const gateway = await start();
  for (const [user, claims, message] of [
    ['{tenantId}'.repeat(12), { tenantId: 't'.repeat(64) }, 'user id not acceptable'],
    ['{userId}', {}, 'user id not acceptable'],
    ['usr_a', { tenantId: '{userId}' }, 'tenant id not acceptable'],
  ]) {
    const tab = new Tab(gateway, token(user, claims));
    assert.equal(await tab.refused(), message);
    tab.close();
  }
});

test('a user whose keys would be too long is refused alone', async () => {
  const gateway = await start({ RABBITMQ_BINDING_KEYS: `user.{userId}.*,${'x'.repeat(150)}.{tenantId|*}.{userId}` });
  const other = await Tab.open(gateway, 'usr_short', { claims: { tenantId: 'tnt_1' } });
  const long = new Tab(gateway, token('u'.repeat(100), { tenantId: 'tnt_1' }));
  assert.equal(await long.refused(), 'user id and tenant id too long');
  assert.equal(await gateway.metric('connects_refused_total{reason="ids_too_long"}'), 1);
  long.close();
  await other.saw(publisher.update('usr_short', { tenantId: 'tnt_1' }));
  assert.equal(await gateway.metric('rabbitmq_reconnects_total'), 0);
});

test('JWT_DEFAULT_TENANT_ID is the tenant of tokens that name none', async () => {
  const gateway = await start({ RABBITMQ_BINDING_KEYS: 'update.*.{tenantId}.*.{userId}.*', JWT_DEFAULT_TENANT_ID: 'tnt_home' });
  const home = await Tab.open(gateway, 'usr_d');
  const away = await Tab.open(gateway, 'usr_d', { claims: { tenantId: 'tnt_away' } });
  const [theirs] = publishAll(['update.dialog.tnt_away.user.usr_d.message'], 'usr_d', 'tnt_away');
  const [ours] = publishAll(['update.dialog.tnt_home.user.usr_d.message'], 'usr_d', 'tnt_home');
  await Promise.all([home.saw({ _id: ours }), away.saw({ _id: theirs })]);
  assert.deepEqual([home.ids, away.ids], [[ours], [theirs]]);
});

testOfKeys('where RabbitMQ permits some of the keys, users get the updates of these, with one warning for each other key', async () => {
  await broker.ctl('add_user', 'some', 'pw');
  await broker.ctl('set_permissions', 'some', '.*', '.*', '.*');
  // The keys of one generation: for each user, and for all users at once.
  await broker.ctl('set_topic_permissions', 'some', EXCHANGE, '^$', '^update\\.\\*\\.\\*\\.([^*#]+|\\*)\\.\\*$');
  const gateway = await start({ RABBITMQ_URL: broker.url.replace('rmuser:rmpassword', 'some:pw') });
  const users = Array.from({ length: 40 }, (_, i) => `usr_${i}`);
  const tabs = await Promise.all(users.map((user) => Tab.open(gateway, user)));
  await gateway.metricIs('subscriptions', users.length);
  for (const [i, tab] of tabs.entries()) {
    publisher.update(users[i]);
    const [id] = publishAll([`update.dialog.user.${users[i]}.message`], users[i], 'tnt_default');
    await tab.saw({ _id: id });
    assert.deepEqual(tab.ids, [id]);
  }
  const warnings = [...gateway.logs.matchAll(/RabbitMQ refused a binding key.* template="([^"]+)"/g)].map(([, template]) => template);
  assert.deepEqual(warnings.sort(), ['update.*.{tenantId|*}.*.{userId}.*', 'user.*.{userId}.*', 'user.{userId}.*']);
  const refused = await gateway.metric('binding_keys_refused_total');
  assert.ok(refused >= 3 && refused <= 3 * 3, `${refused} keys refused`);
  assert.doesNotMatch(gateway.logs, /RabbitMQ refused a subscription/);
  // The gateway does not ask again either.
  const more = await Promise.all(['usr_x', 'usr_y'].map((user) => Tab.open(gateway, user)));
  await gateway.metricIs('subscriptions', users.length + more.length);
  assert.ok((await gateway.metric('binding_keys_refused_total')) <= 9);
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
  for (const tab of tabs) tab.close();
});
