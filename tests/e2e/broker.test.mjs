// The broker may be absent, go and come back; sockets stay and updates return.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Broker, EXCHANGE, Gateway, Publisher, Tab } from './harness.mjs';

test('killing the broker and starting it again brings updates back to 30 users without one reconnecting', async () => {
  const broker = await Broker.start();
  let publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker);
  const users = Array.from({ length: 30 }, (_, i) => `usr_${i}`);
  const tabs = await Promise.all(users.map((user) => Tab.open(gateway, user)));
  for (const [i, user] of users.entries()) await tabs[i].saw(publisher.update(user));
  await gateway.metricIs('subscriptions', 30);

  await broker.kill();
  await gateway.logged(/⚠️ {2}RabbitMQ connection closed/);
  await gateway.isConnected(false);
  await gateway.metricIs('rabbitmq_connected', 0);
  await gateway.metricIs('subscriptions', 0);
  assert.equal((await gateway.get('/health')).status, 200);
  assert.equal((await gateway.json('/health')).rabbitmq, 'disconnected');

  // One leaves, one arrives while the broker is away: both end up right.
  tabs[0].close();
  const newcomer = await Tab.open(gateway, 'usr_newcomer');
  assert.equal(newcomer.connects, 1);

  await broker.start();
  publisher = await Publisher.connect(broker);
  await gateway.metricIs('subscriptions', 30);
  await gateway.metricIs('rabbitmq_reconnects_total', 1);
  for (const [i, user] of users.entries()) {
    if (i > 0) await tabs[i].saw(publisher.update(user));
  }
  await newcomer.saw(publisher.update('usr_newcomer'));
  for (const tab of tabs.slice(1)) {
    assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
  }
  await broker.queuesAre(30);
});

test('with no broker at start, sockets connect, and updates flow once it is there', async () => {
  const broker = await Broker.absent();
  const gateway = await Gateway.start(broker);
  await gateway.logged(/⚠️ {2}Failed to connect to RabbitMQ\. Updates will not be available\./);
  const tab = await Tab.open(gateway, 'usr_early');
  await broker.start();
  const publisher = await Publisher.connect(broker);
  await gateway.metricIs('subscriptions', 1);
  await tab.saw(publisher.update('usr_early'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
  assert.doesNotMatch(gateway.logs, /rmpassword/);
});

test('until Chat3 has created the exchange there is one warning, then updates flow within 5 s', async () => {
  const broker = await Broker.start();
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_waiting');
  await gateway.logged(/RabbitMQ exchange not found/);
  const publisher = await Publisher.connect(broker);
  await gateway.metricIs('subscriptions', 1);
  await tab.saw(publisher.update('usr_waiting'), 5000);
  assert.equal(gateway.logs.match(/RabbitMQ exchange not found/g).length, 1);
  await broker.queuesAre(1);
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
});

test('a queue that an operator deletes is made anew; other users notice nothing', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_deleted');
  const [{ name }] = await broker.queuesAre(1);
  const other = await Tab.open(gateway, 'usr_kept');
  await broker.ctl('eval', `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"${name}">>)), rabbit_amqqueue:delete(Q, false, false, <<"test">>).`);
  await gateway.logged(/RabbitMQ deleted a user's queue/);
  await gateway.metricIs('subscriptions', 2);
  await tab.saw(publisher.update('usr_deleted'));
  await other.saw(publisher.update('usr_kept'));
  const names = (await broker.queuesAre(2)).map((queue) => queue.name);
  assert.ok(!names.includes(name));
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
});

test('a connection that an operator closes is opened again', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_closed');
  const update = publisher.update('usr_closed');
  await tab.saw(update);
  await publisher.close();
  await broker.ctl('close_all_connections', 'maintenance');
  await gateway.logged(/⚠️ {2}RabbitMQ connection closed reason=320 .*maintenance/);
  await gateway.metricIs('rabbitmq_reconnects_total', 1);
  await gateway.metricIs('subscriptions', 1);
  await tab.saw((await Publisher.connect(broker)).update('usr_closed'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
});

test('a wrong password is reported with the reason and without the password', async () => {
  const broker = await Broker.start();
  const url = broker.url.replace('rmpassword', 'wr0ng-s3cret');
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: url }, connected: false });
  await gateway.logged(/⚠️ {2}Failed to connect to RabbitMQ.*127\.0\.0\.1/);
  assert.doesNotMatch(gateway.logs, /wr0ng-s3cret/);
});

test('the gateway declares no exchange', async () => {
  const broker = await Broker.start();
  const gateway = await Gateway.start(broker);
  await Tab.open(gateway, 'usr_a');
  await gateway.logged(/RabbitMQ exchange not found/);
  assert.doesNotMatch(await broker.ctl('list_exchanges', '--no-table-headers', 'name'), new RegExp(EXCHANGE));
});
