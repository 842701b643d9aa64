// The broker may be absent, go away and come back; sockets stay connected and updates resume.

import assert from 'node:assert/strict';
import net from 'node:net';
import { afterEach, before, test } from 'node:test';

import { Broker, EXCHANGE, Gateway, Publisher, Tab, testOf } from './harness.mjs';

const testOfKeys = testOf('keys of single users');
const testOfOwnQueues = testOf('a queue for each user');
const testOfQueues = testOf('queues of the gateway alone');

let broker;
const gateways = [];

before(async () => {
  broker = await Broker.start();
});

/** A gateway for the length of the test. */
async function start(...args) {
  const gateway = await Gateway.start(...args);
  gateways.push(gateway);
  return gateway;
}

afterEach(async () => {
  for (const gateway of gateways.splice(0)) await gateway.kill();
});

/** As on a broker where Chat3 has never run. */
async function withoutExchange() {
  const publisher = await Publisher.connect(broker);
  await publisher.channel.deleteExchange(EXCHANGE);
  await publisher.close();
}

test('killing the broker and starting it again brings updates back to 30 users without one reconnecting', async () => {
  let publisher = await Publisher.connect(broker);
  const gateway = await start(broker);
  const users = Array.from({ length: 30 }, (_, i) => `usr_${i}`);
  const tabs = await Promise.all(users.map((user) => Tab.open(gateway, user)));
  // A CONNECT waits for its subscription for a limited time.
  await gateway.metricIs('subscriptions', 30);
  for (const [i, user] of users.entries()) await tabs[i].saw(publisher.update(user));

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
  assert.doesNotMatch(gateway.logs, /exchange not found/);
  await broker.queuesAre(30);
});

test('with no broker at start, sockets connect, and updates flow once it is there', async () => {
  await broker.kill();
  const gateway = await start(broker, { connected: false });
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
  await withoutExchange();
  const gateway = await start(broker);
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

testOfQueues('a queue that an operator deletes is made anew; other users notice nothing', async () => {
  const publisher = await Publisher.connect(broker);
  const gateway = await start(broker);
  const tab = await Tab.open(gateway, 'usr_deleted');
  const deleted = (await broker.queuesAre(1)).map((queue) => queue.name);
  const other = await Tab.open(gateway, 'usr_kept');
  for (const name of deleted) {
    await broker.ctl('eval', `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"${name}">>)), rabbit_amqqueue:delete(Q, false, false, <<"test">>).`);
  }
  await gateway.logged(/RabbitMQ deleted a queue/);
  await gateway.metricIs('subscriptions', 2);
  await broker.queuesAre(2);
  await tab.saw(publisher.update('usr_deleted'));
  await other.saw(publisher.update('usr_kept'));
  const names = (await broker.queuesAre(2)).map((queue) => queue.name);
  for (const name of deleted) assert.ok(!names.includes(name));
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
});

test('a connection that an operator closes is opened again', async () => {
  const publisher = await Publisher.connect(broker);
  const gateway = await start(broker);
  const tab = await Tab.open(gateway, 'usr_closed');
  const update = publisher.update('usr_closed');
  await tab.saw(update);
  await publisher.close();
  await broker.ctl('close_all_connections', 'maintenance');
  await gateway.logged(/⚠️ {2}RabbitMQ connection closed.*320 .*maintenance/);
  await gateway.metricIs('rabbitmq_reconnects_total', 1);
  await gateway.metricIs('subscriptions', 1);
  await tab.saw((await Publisher.connect(broker)).update('usr_closed'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
});

test('a wrong password is reported with the reason and without the password', async () => {
  const url = broker.url.replace('rmpassword', 'wr0ng-s3cret');
  const gateway = await start(broker, { env: { RABBITMQ_URL: url }, connected: false });
  await gateway.logged(/⚠️ {2}Failed to connect to RabbitMQ.*127\.0\.0\.1.*check user and password/);
  assert.doesNotMatch(gateway.logs, /wr0ng-s3cret/);
});

test('the gateway declares no exchange', async () => {
  await withoutExchange();
  const gateway = await start(broker);
  await Tab.open(gateway, 'usr_a');
  await gateway.logged(/RabbitMQ exchange not found/);
  assert.doesNotMatch(await broker.ctl('list_exchanges', '--no-table-headers', 'name'), new RegExp(EXCHANGE));
});

test('what only an operator can mend is logged with what to do, and never with the password', async () => {
  await Publisher.connect(broker);
  const gateway = (url) => start(broker, { env: { RABBITMQ_URL: url }, connected: false });
  const vhost = await gateway(broker.url + 'nowhere');
  await vhost.logged(/Failed to connect to RabbitMQ.*530 NOT_ALLOWED - vhost nowhere not found.*check the vhost/);

  await broker.ctl('add_user', 'limited', 's3cret');
  await broker.ctl('set_permissions', 'limited', '^nothing$', '^nothing$', '^nothing$');
  const refused = await gateway(broker.url.replace('rmuser:rmpassword', 'limited:s3cret'));
  const tab = await Tab.open(refused, 'usr_limited');
  await refused.logged(/RabbitMQ (refused a subscription|connection closed).*403 ACCESS_REFUSED.*grant the user configure/);
  assert.equal(tab.connects, 1);
  assert.doesNotMatch(vhost.logs + refused.logs, /s3cret|rmpassword/);
});

test('an exchange that is deleted and made again: everybody is subscribed again', async () => {
  const publisher = await Publisher.connect(broker);
  const gateway = await start(broker);
  const early = await Tab.open(gateway, 'usr_early');
  await publisher.channel.deleteExchange(EXCHANGE);
  // The next subscription notices; RabbitMQ does not announce that queues lost their bindings.
  const late = await Tab.open(gateway, 'usr_late');
  await gateway.logged(/RabbitMQ connection closed.*404/);
  const again = await Publisher.connect(broker);
  await gateway.metricIs('subscriptions', 2);
  await early.saw(again.update('usr_early'));
  await late.saw(again.update('usr_late'));
  await broker.queuesAre(2);
});

test('a broker that accepts and stays silent is given up after the limit', async () => {
  const silent = net.createServer(() => {});
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
  const env = { RABBITMQ_URL: `amqp://u:p@127.0.0.1:${silent.address().port}/`, RABBITMQ_CONNECT_TIMEOUT: '500ms' };
  const gateway = await start(null, { env });
  await gateway.logged(/Failed to connect to RabbitMQ.*no answer within 500ms(.*\n)+.*no answer within 500ms/);
  assert.equal((await gateway.get('/health')).status, 200);
  assert.equal((await gateway.terminate()).code, 0);
  silent.close();
});

test('the service is back within one reconnect delay of the broker being back', async () => {
  const gateway = await start(broker, { env: { RABBITMQ_RECONNECT_DELAY: '1s' } });
  await broker.kill();
  await gateway.isConnected(false);
  await broker.start();
  const scheduled = () => gateway.logs.match(/RabbitMQ reconnect scheduled/g).length;
  const back = scheduled();
  await gateway.isConnected();
  // An attempt may have been under way. Not measured by the clock, since a login may take any time.
  assert.ok(scheduled() - back <= 1, gateway.logs);
});

test('a broker that freezes is noticed within two heartbeats, and updates return when it wakes', async () => {
  const publisher = await Publisher.connect(broker);
  const gateway = await start(broker, { env: { RABBITMQ_HEARTBEAT: '2s', RABBITMQ_CONNECT_TIMEOUT: '5s' } });
  const tab = await Tab.open(gateway, 'usr_frozen');
  const frozen = Date.now();
  broker.child.kill('SIGSTOP');
  await gateway.isConnected(false);
  const noticed = Date.now() - frozen;
  // Two heartbeats are 4 s.
  assert.ok(noticed < 10_000, `${noticed} ms`);
  broker.child.kill('SIGCONT');
  await gateway.isConnected();
  await gateway.metricIs('subscriptions', 1);
  // The broker may have dropped its publisher as well.
  const again = await Publisher.connect(broker);
  await tab.saw(again.update('usr_frozen'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
  await broker.queuesAre(1);
});

test('a link to the broker that swallows everything is noticed, and left for one that works', async () => {
  // A proxy that forwards until it is told to swallow: no reset, no FIN, nothing.
  let swallow = false;
  const proxy = net.createServer((near) => {
    const far = net.connect(broker.port, '127.0.0.1');
    const swallowed = swallow;
    near.on('data', (data) => swallow && !swallowed ? null : far.write(data));
    far.on('data', (data) => swallow && !swallowed ? null : near.write(data));
    for (const socket of [near, far]) socket.on('error', () => {});
  });
  await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const publisher = await Publisher.connect(broker);
  const env = {
    RABBITMQ_URL: broker.url.replace(`:${broker.port}`, `:${proxy.address().port}`),
    RABBITMQ_HEARTBEAT: '2s',
  };
  const gateway = await start(broker, { env });
  const tab = await Tab.open(gateway, 'usr_hole');
  await tab.saw(publisher.update('usr_hole'));
  const cut = Date.now();
  swallow = true;
  await gateway.isConnected(false);
  assert.ok(Date.now() - cut < 12_000, `${Date.now() - cut} ms`);
  await gateway.isConnected();
  await gateway.metricIs('subscriptions', 1);
  await tab.saw(publisher.update('usr_hole'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
  proxy.close();
});

testOfKeys('a user whose key the broker refuses waits alone; everybody else is served', async () => {
  const publisher = await Publisher.connect(broker);
  await broker.ctl('add_user', 'topics', 'pw');
  await broker.ctl('set_permissions', 'topics', '.*', '.*', '.*');
  await broker.ctl('set_topic_permissions', 'topics', EXCHANGE, '.*', '^user\\.usr_');
  const gateway = await start(broker, { env: { RABBITMQ_URL: broker.url.replace('rmuser:rmpassword', 'topics:pw') } });
  const early = await Tab.open(gateway, 'usr_early');
  const refused = Tab.open(gateway, 'weird');
  const others = await Promise.all(['usr_1', 'usr_2', 'usr_3'].map((user) => Tab.open(gateway, user)));
  await gateway.logged(/RabbitMQ refused a subscription user_id=weird.*403/);
  await refused;
  await gateway.metricIs('subscriptions', 4);
  for (const [i, tab] of [early, ...others].entries()) {
    await tab.saw(publisher.update(['usr_early', 'usr_1', 'usr_2', 'usr_3'][i]));
  }
  await broker.queuesAre(4);
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
});

testOfOwnQueues('permissions that are withdrawn later cost newcomers their updates, and nobody else theirs', async () => {
  const publisher = await Publisher.connect(broker);
  await broker.ctl('add_user', 'later', 'pw');
  await broker.ctl('set_permissions', 'later', '.*', '.*', '.*');
  const gateway = await start(broker, { env: { RABBITMQ_URL: broker.url.replace('rmuser:rmpassword', 'later:pw') } });
  const old = await Tab.open(gateway, 'usr_old');
  const leaving = await Tab.open(gateway, 'usr_leaving');
  // Now it is not permitted to declare, delete or bind a queue.
  await broker.ctl('set_permissions', 'later', '^$', '.*', '^chat3-gateway');
  await Promise.all([Tab.open(gateway, 'usr_new1'), Tab.open(gateway, 'usr_new2')]);
  await gateway.logged(/RabbitMQ refused a subscription user_id=usr_new[12].*\n(.*\n)*.*RabbitMQ refused a subscription user_id=usr_new[12]/);
  leaving.close();
  await broker.queuesAre(1);
  // The exchange is checked every 5 s, which is no longer permitted either.
  await new Promise((resolve) => setTimeout(resolve, 6000));
  await old.saw(publisher.update('usr_old'));
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
  await gateway.metricIs('subscriptions', 1);
});

test('an exchange that is deleted while nobody comes or goes is noticed, and everybody subscribed again', async () => {
  const publisher = await Publisher.connect(broker);
  const gateway = await start(broker);
  const tab = await Tab.open(gateway, 'usr_deaf');
  await publisher.channel.deleteExchange(EXCHANGE);
  await gateway.logged(/RabbitMQ connection closed.*404/);
  const again = await Publisher.connect(broker);
  await gateway.metricIs('subscriptions', 1);
  await tab.saw(again.update('usr_deaf'));
  assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
});
