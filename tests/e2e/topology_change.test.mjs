// The change from one topology to another while users are online: instances of both run
// side by side over one exchange, and are replaced one after another.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { ConfirmingPublisher } from './cluster.mjs';
import { Broker, Gateway, Network, Publisher, Tab, token, until } from './harness.mjs';

const USERS = Array.from({ length: 6 }, (_, i) => `usr_change_${i}`);

let broker;

before(async () => {
  broker = await Broker.start();
  // Declares the exchange.
  await (await Publisher.connect(broker)).close();
});

const start = (topology, port) => Gateway.start(broker, { env: { RABBITMQ_TOPOLOGY: topology, ...(port ? { PORT: String(port) } : {}) } });

test('per-user and stream side by side: each instance hands its users everything', async () => {
  const [own, stream] = await Promise.all([start('per-user'), start('stream')]);
  // Each user is at both, as with two tabs.
  const tabs = [];
  for (const user of USERS) tabs.push([user, await Tab.open(own, user), await Tab.open(stream, user)]);
  await Promise.all([own.metricIs('subscriptions', USERS.length), stream.metricIs('subscriptions', USERS.length)]);
  const publisher = await ConfirmingPublisher.start([broker], USERS, { pauseMs: 1 });
  await until('300 confirmed', () => publisher.confirmed.length >= 300);
  const confirmed = await publisher.stop();
  for (const [user, one, two] of tabs) {
    const expected = confirmed.filter(({ userId }) => userId === user).map(({ _id }) => _id);
    for (const tab of [one, two]) {
      await tab.saw({ _id: expected.at(-1) });
      assert.deepEqual(tab.ids, expected);
      tab.close();
    }
  }
  await own.terminate();
  await stream.terminate();
});

for (const [from, to] of [['per-user', 'stream'], ['stream', 'per-user']]) {
  test(`from ${from} to ${to}, one instance after another: nobody misses what is published after their connect`, async () => {
    const gateways = [await start(from), await start(from)];
    // As a proxy, it lets nobody through to an instance that is not ready.
    const proxies = await Promise.all(gateways.map((gateway) => Network.to(gateway)));
    const publisher = await ConfirmingPublisher.start([broker], USERS);
    const pages = USERS.map((user, i) => {
      const tab = new Tab(null, token(user), { url: proxies[i % 2].url });
      const page = { user, tab, connects: [] };
      // What was published by now, a fetch would find; what is published later must come.
      const published = () => publisher.confirmed.length + publisher.uncertain.size;
      tab.socket.on('connect', () => page.connects.push({ recovered: tab.socket.recovered, published: published() }));
      return page;
    });
    for (const { tab } of pages) await tab.when('the connect', () => tab.connects === 1);
    for (const gateway of gateways) await gateway.metricIs('subscriptions', USERS.length / 2);
    const grow = async (count) => {
      const target = publisher.confirmed.length + count;
      await until(`${count} more`, () => publisher.confirmed.length >= target);
    };
    await grow(100);
    for (const [i, proxy] of proxies.entries()) {
      proxy.isUp = false;
      assert.equal((await gateways[i].terminate()).code, 0);
      gateways[i] = await start(to, new URL(gateways[i].url).port);
      if (to === 'stream') await until('a marker', async () => (await gateways[i].metric('stream_round_trip_seconds_count')) > 0);
      await grow(50);
      proxy.restore();
      for (const { tab } of pages.filter((_, j) => j % 2 === i)) await tab.when('the reconnect', () => tab.connects === 2);
      await gateways[i].metricIs('subscriptions', USERS.length / 2);
      await grow(100);
    }
    const confirmed = await publisher.stop();
    for (const { user, tab, connects } of pages) {
      // An old pid is one that the new instance does not know: the client is let in as new.
      assert.deepEqual(connects.map(({ recovered }) => recovered), [false, false], user);
      const expected = (begin) => confirmed.slice(begin).filter(({ userId }) => userId === user).map(({ _id }) => _id);
      await tab.saw({ _id: expected(0).at(-1) });
      const after = expected(connects[1].published);
      assert.ok(after.length > 10, user);
      assert.deepEqual(tab.ids.slice(-after.length), after, user);
      assert.equal(new Set(tab.ids).size, tab.ids.length, user);
      tab.close();
    }
    // What an instance of its own had is gone with it; the stream stays until it is deleted.
    for (const gateway of gateways) assert.equal((await gateway.terminate()).code, 0);
    const queues = async () => (await broker.queues()).map(({ name }) => name);
    await until('the stream alone', async () => String(await queues()) === 'chat3-gateway.updates');
  });
}
