// Users are online and nothing arrives: the gateway finds out whether their updates are
// published with keys that it does not bind.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { Broker, EXCHANGE, Gateway, Publisher, Tab, anUpdate, until } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

const DEAD = /binding keys match none of the updates that are published for users online here/g;

const start = (env) => Gateway.start(broker, { env: { RABBITMQ_SILENCE_CHECK: '500ms', ...env } });

/** Publishes to `userId` as today's Chat3 does, again and again, until `stop` is called. */
function publishing(userId, { tenantId = 'tnt_default', key = `update.dialog.${tenantId}.user.${userId}.message`, body, on = publisher } = {}) {
  const timer = setInterval(() => on.publish(key, body ?? anUpdate(userId, { tenantId, note: 'B0dy' })), 50);
  after(() => clearInterval(timer));
  return { stop: () => clearInterval(timer) };
}

const looks = (gateway, outcome) => gateway.metric(`rabbitmq_silence_looks_total{outcome="${outcome}"}`);

/** Waits for looks with that finding, and asserts that there was no alarm. */
async function noAlarm(gateway, outcome) {
  await until(`a look with the outcome ${outcome}`, async () => (await looks(gateway, outcome)) > 0);
  assert.equal(await gateway.metric('rabbitmq_bindings_dead'), 0);
  assert.doesNotMatch(gateway.logs, DEAD);
}

for (const topology of ['per-user', 'shared', 'firehose', 'stream']) {
  test(`${topology}: a dead binding is reported once, and following the advice makes updates arrive`, async () => {
    const env = { RABBITMQ_TOPOLOGY: topology };
    const gateway = await start({ ...env, RABBITMQ_BINDING_KEYS: 'update.*.*.{userId}.*' });
    const [alice] = await Promise.all([Tab.open(gateway, 'alice'), Tab.open(gateway, 'bob', { claims: { tenantId: 'tnt_default' } })]);
    const dead = publishing('alice');
    await gateway.logged(DEAD);
    await gateway.metricIs('rabbitmq_bindings_dead', 1);
    await until('more looks', async () => (await looks(gateway, 'dead')) > 1);
    assert.equal(gateway.logs.match(DEAD).length, 1);
    assert.ok(!gateway.logs.includes('B0dy'));
    const [, value] = gateway.logs.match(/advice="?set RABBITMQ_BINDING_KEYS='([^']*)', or leave it unset/);
    assert.equal(value, 'update.*.{tenantId|*}.*.{userId}.*');
    // Nothing of the look is on the link, and nothing is left of it.
    assert.equal(await gateway.metric('rabbitmq_reconnects_total'), 0);
    for (const RABBITMQ_BINDING_KEYS of [value, undefined]) {
      const mended = await start({ ...env, RABBITMQ_BINDING_KEYS });
      const tab = await Tab.open(mended, 'alice');
      await tab.when('an update', () => tab.events.length > 0);
      assert.equal(await mended.metric('rabbitmq_bindings_dead'), 0);
      await mended.kill();
    }
    dead.stop();
    // As soon as an update arrives, the silence is over.
    const alive = publishing('alice', { key: 'update.dialog.user.alice.message' });
    await alice.when('an update', () => alice.events.length > 0);
    await gateway.metricIs('rabbitmq_bindings_dead', 0);
    alive.stop();
    await until('no queue of a look is left', async () => !(await broker.ctl('list_queues', '--no-table-headers', 'name')).includes('.look.'));
    assert.equal((await gateway.terminate()).code, 0);
  });

  test(`${topology}: a quiet exchange and updates for others are no alarm`, async () => {
    const gateway = await start({ RABBITMQ_TOPOLOGY: topology, RABBITMQ_BINDING_KEYS: 'user.{userId}.*' });
    await Tab.open(gateway, 'carl', { claims: { tenantId: 'tnt_1' } });
    await noAlarm(gateway, 'quiet');
    const others = [
      // For a user who is not here, for another tenant's user of that id, of no generation, and no update at all.
      publishing('dora'),
      publishing('carl', { tenantId: 'tnt_2' }),
      publishing('carl', { tenantId: 'tnt_1', key: 'orders.carl.update' }),
      publishing('carl', { tenantId: 'tnt_1', key: 'update.dialog.user.carl.message', body: Buffer.from('{}') }),
    ];
    await noAlarm(gateway, 'others');
    for (const { stop } of others) stop();
    await gateway.kill();
  });
}

test('with updates that arrive, or without users, there is nothing to look for', async () => {
  const busy = await start();
  const tab = await Tab.open(busy, 'emil');
  const [idle, off] = [await start(), await start({ RABBITMQ_SILENCE_CHECK: '0' })];
  await Tab.open(off, 'fritz');
  const updates = [publishing('emil'), publishing('fritz', { key: 'other.fritz.x' })];
  // Time enough for several looks.
  await tab.when('updates', () => tab.events.length > 100);
  for (const gateway of [busy, idle, off]) {
    for (const outcome of ['quiet', 'others', 'matched', 'dead', 'refused', 'failed']) assert.equal(await looks(gateway, outcome), 0, outcome);
  }
  for (const { stop } of updates) stop();
  for (const gateway of [busy, idle, off]) await gateway.kill();
});

test('each of two instances finds what concerns its users', async () => {
  const [wrong, right] = [await start({ RABBITMQ_BINDING_KEYS: 'user.{userId}.*' }), await start()];
  await Tab.open(wrong, 'gina');
  const tab = await Tab.open(right, 'hans');
  const updates = [publishing('gina'), publishing('hans')];
  await wrong.logged(DEAD);
  await tab.when('an update', () => tab.events.length > 0);
  assert.equal(await right.metric('rabbitmq_bindings_dead'), 0);
  assert.doesNotMatch(right.logs, DEAD);
  for (const { stop } of updates) stop();
  for (const gateway of [wrong, right]) await gateway.kill();
});

test('where topic permissions confine it, it looks with the keys that they allow, or says that it may not', async () => {
  await broker.ctl('add_user', 'confined', 'its-Password-7');
  await broker.ctl('set_permissions', 'confined', '^chat3-gateway\\.', '^chat3-gateway\\.', `^(chat3-gateway\\..*|${EXCHANGE})$`);
  const topic = (read) => broker.ctl('set_topic_permissions', 'confined', EXCHANGE, '^$', read);
  const env = { RABBITMQ_URL: broker.url.replace('rmuser:rmpassword', 'confined:its-Password-7'), RABBITMQ_BINDING_KEYS: 'user.{userId}.*' };
  const dead = publishing('ida');
  await topic('^user\\.[^*#]+\\.\\*$');
  const narrow = await start({ RABBITMQ_TOPOLOGY: 'per-user', ...env });
  await Tab.open(narrow, 'ida');
  // The permitted keys bring no updates, so nothing is known.
  await noAlarm(narrow, 'quiet');
  await narrow.kill();
  // As in docs/SECURITY.md, for the default.
  await topic('^(user(\\.\\*)?|update\\.\\*\\.\\*|update\\.\\*\\.([^*#]+|\\*)\\.\\*)\\.[^*#]+\\.\\*$');
  const wide = await start({ RABBITMQ_TOPOLOGY: 'per-user', ...env });
  await Tab.open(wide, 'ida');
  await wide.logged(DEAD);
  assert.equal(await wide.metric('rabbitmq_reconnects_total'), 0);
  await wide.kill();
  dead.stop();
});
