// After a gap, sockets that stayed are told: their transports are closed, and their frontends
// fetch, since the next connect is not recovered. Over every topology but `stream`, where a
// lost link is no gap (stream.test.mjs, anywhere.test.mjs).

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Network, Publisher, Tab, token, until } from './harness.mjs';

let broker;

before(async () => {
  broker = await Broker.start();
  await (await Publisher.connect(broker)).close();
});

/** A gateway whose connection to RabbitMQ can be cut. */
async function behindNetwork(env) {
  const network = await Network.to({ url: `http://127.0.0.1:${broker.port}` });
  const port = new URL(network.url).port;
  const url = broker.url.replace(`:${broker.port}`, `:${port}`);
  const gateway = await Gateway.start(broker, { env: { RESYNC_ON_GAP: 'true', ...env, RABBITMQ_URL: url } });
  return { network, gateway };
}

for (const topology of ['per-user', 'shared', 'firehose']) {
  test(`over ${topology}, who stayed while RabbitMQ was away fetches once it is back`, async () => {
    const { network, gateway } = await behindNetwork({ RABBITMQ_TOPOLOGY: topology });
    const publisher = await Publisher.connect(broker);
    const tab = await Tab.open(gateway, 'usr_stayed');
    const without = await Tab.open(gateway, 'usr_stayed', { auth: { token: token('usr_stayed'), recovery: false } });
    await tab.saw(publisher.update('usr_stayed'));
    network.cut();
    await gateway.isConnected(false);
    const missed = publisher.update('usr_stayed');
    // While RabbitMQ is away, a fetch would be out of date at once.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assert.deepEqual([tab.connects, without.connects], [1, 1]);
    network.restore();
    await gateway.isConnected();
    for (const each of [tab, without]) {
      await each.when('the reconnect', () => each.connects === 2);
      assert.ok(!each.recovered.some(Boolean));
    }
    assert.equal(await gateway.metric('resyncs_total'), 2);
    await tab.saw(publisher.update('usr_stayed'));
    assert.ok(!tab.ids.includes(missed._id));
    // Once, and no more.
    await new Promise((resolve) => setTimeout(resolve, 2500));
    assert.deepEqual([tab.connects, without.connects], [2, 2]);
  });
}

test('sockets are closed at a pace that leaves most handshakes to others', async () => {
  const { network, gateway } = await behindNetwork({ MAX_CONNECTS_PER_SECOND: '80' });
  const tabs = await Promise.all(Array.from({ length: 40 }, (_, i) => Tab.open(gateway, `usr_pace_${i}`)));
  const times = [];
  for (const tab of tabs) tab.socket.on('disconnect', () => times.push(Date.now()));
  network.cut();
  await gateway.isConnected(false);
  network.restore();
  await until('all are told', () => times.length === tabs.length);
  const seconds = (Math.max(...times) - Math.min(...times)) / 1000;
  assert.ok(seconds > 1.2, `40 sockets in ${seconds} s, and not 20 in a second`);
  for (const tab of tabs) await tab.when('the reconnect', () => tab.connects === 2);
});

test('without RESYNC_ON_GAP, sockets stay, and their next reconnect is not recovered', async () => {
  const { network, gateway } = await behindNetwork({ RESYNC_ON_GAP: 'false' });
  const publisher = await Publisher.connect(broker);
  const tab = await Tab.open(gateway, 'usr_not_told');
  network.cut();
  await gateway.isConnected(false);
  network.restore();
  await gateway.isConnected();
  await gateway.metricIs('subscriptions', 1);
  await tab.saw(publisher.update('usr_not_told'));
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assert.equal(tab.connects, 1);
  tab.socket.io.engine.close();
  await tab.when('the reconnect', () => tab.connects === 2);
  assert.deepEqual(tab.recovered, [false, false]);
});
