// The topology `stream` in a real cluster whose nodes die: the node that the gateway is
// connected to, and the node that leads the stream.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Cluster, ConfirmingPublisher } from './cluster.mjs';
import { Gateway, Publisher, Tab, until } from './harness.mjs';

const STREAM = 'chat3-gateway.updates';

/** The first attempt after a loss may find the stream without a leader. */
const RECONNECT_DELAY = '1s';

const USERS = ['usr_cluster_a', 'usr_cluster_b'];

let cluster;

before(async () => {
  cluster = await Cluster.start();
  // Declares the exchange.
  await (await Publisher.connect(cluster.nodes[0])).close();
});

async function confirmedGrowBy(publisher, count) {
  const target = publisher.confirmed.length + count;
  await until(`${count} more confirmed`, () => publisher.confirmed.length >= target, 60_000);
}

for (const [what, victim] of [
  ['the node that the gateway is connected to', (gateway) => cluster.nodeOf(gateway)],
  ['the node that leads the stream', () => cluster.leaderOf(STREAM)],
]) {
  test(`${what} is killed: nothing confirmed is missing or doubled, and no socket is closed`, async () => {
    const gateway = await Gateway.start(cluster, { env: { RABBITMQ_TOPOLOGY: 'stream', RABBITMQ_RECONNECT_DELAY: RECONNECT_DELAY } });
    const tabs = await Promise.all(USERS.map((user) => Tab.open(gateway, user)));
    await gateway.metricIs('subscriptions', USERS.length);
    const node = await victim(gateway);
    const others = cluster.nodes.filter((other) => other !== node);
    const publisher = await ConfirmingPublisher.start(others, USERS);
    await confirmedGrowBy(publisher, 200);
    await node.kill();
    await confirmedGrowBy(publisher, 200);
    await node.start();
    await confirmedGrowBy(publisher, 200);
    const confirmed = await publisher.stop();
    for (const [i, tab] of tabs.entries()) {
      const expected = confirmed.filter(({ userId }) => userId === USERS[i]).map(({ _id }) => _id);
      await tab.saw({ _id: expected.at(-1) }, 40_000);
      assert.deepEqual(tab.ids.filter((id) => !publisher.uncertain.has(id)), expected);
      assert.equal(new Set(tab.ids).size, tab.ids.length);
      assert.deepEqual(tab.disconnects, []);
    }
    assert.equal(await gateway.metric('stream_holes_total'), 0);
    assert.equal((await gateway.terminate()).code, 0);
  });
}
