// With no setting but URL and secret: the updates of every generation of Chat3 arrive, for
// tokens with a tenant and without, in every topology. `doctor` confirms it, finds every
// wrong setting, and its advice makes the updates arrive.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Publisher, SECRET, Tab, generations, runGateway } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

/** Opens tabs of that user, with a tenant in the token and without. */
const bothTabs = (gateway, { userId, tenantId }) => Promise.all([{ tenantId }, {}].map((claims) => Tab.open(gateway, userId, { claims })));

/** Publishes all updates, and asserts that each tab sees each of them once and in order. */
async function allArrive(updates, tabs, what) {
  const seen = tabs.map((tab) => tab.named('chat3:update').length);
  for (const { routingKey, body } of updates) publisher.publish(routingKey, body);
  const bodies = updates.map(({ body }) => body);
  for (const [index, tab] of tabs.entries()) {
    const received = () => tab.named('chat3:update').slice(seen[index]);
    await tab.when(`${updates.length} updates of ${what}`, () => received().length >= updates.length);
    assert.deepEqual(received(), bodies, what);
  }
}

/** Runs doctor while a generation is published, and returns its finding on the bindings. */
async function bindings(env, updates) {
  const timer = setInterval(() => {
    for (const { routingKey, body } of updates) publisher.publish(routingKey, body);
  }, 100);
  const { stdout } = await runGateway(['doctor', '--json', '--listen', '1s'], { env: { RABBITMQ_URL: broker.url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', ...env } })
    .finally(() => clearInterval(timer));
  return JSON.parse(stdout).findings.find(({ check }) => check === 'bindings');
}

const valueOf = ({ advice }) => advice.match(/RABBITMQ_BINDING_KEYS='([^']*)'/)[1];

for (const topology of ['per-user', 'shared', 'firehose', 'stream']) {
  const env = { RABBITMQ_TOPOLOGY: topology };

  test(`${topology}: with no setting, every update of every generation arrives`, async () => {
    const gateway = await Gateway.start(broker, { env });
    for (const { since, updates } of generations()) {
      const tabs = await bothTabs(gateway, updates[0].body);
      await allArrive(updates, tabs, since);
      for (const tab of tabs) tab.close();
    }
    await gateway.kill();
  });

  test(`${topology}: doctor is right about every generation, and following it makes updates arrive`, async () => {
    const all = generations();
    for (const [index, { since, updates }] of all.entries()) {
      const some = updates.slice(0, 3);
      const unset = await bindings(env, some);
      assert.equal(unset.status, 'ok', `${since}: ${JSON.stringify(unset)}`);
      const values = new Set([valueOf(unset)]);
      // The setting that was right for the previous generation, or, for the first one, today's.
      const others = all.at(index - 1).bindingKeys[0];
      if (others !== all[index].bindingKeys[0]) {
        const wrong = await bindings({ ...env, RABBITMQ_BINDING_KEYS: others }, some);
        assert.equal(wrong.status, 'problem', `${since} with ${others}: ${JSON.stringify(wrong)}`);
        assert.match(wrong.advice, /leave it unset/);
        values.add(valueOf(wrong));
      }
      for (const value of values) {
        const gateway = await Gateway.start(broker, { env: { ...env, RABBITMQ_BINDING_KEYS: value } });
        await allArrive(some, await bothTabs(gateway, some[0].body), `${since} with ${value}`);
        await gateway.kill();
      }
    }
  });
}
