// `chat3-gateway doctor` in the topology `stream`: what RabbitMQ can do, what has the
// stream's name, and whether it keeps enough and is read fast enough.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import { Cluster } from './cluster.mjs';
import { Broker, EXCHANGE, Gateway, Publisher, SECRET, Tab, runGateway, until } from './harness.mjs';
import { Poisoner, UNREADABLE } from './poison.mjs';

/** As serve declares it by default. */
const LIMITS = { 'x-queue-type': 'stream', 'x-max-age': '3600s', 'x-max-length-bytes': 2_000_000_000, 'x-stream-max-segment-size-bytes': 20_000_000 };

let broker;
let channel;

before(async () => {
  broker = await Broker.start();
  channel = (await Publisher.connect(broker)).channel;
});

/** Findings by check, the worst of each: `status: finding → advice`. */
async function doctor(url, env = {}) {
  const settings = { RABBITMQ_TOPOLOGY: 'stream', RABBITMQ_URL: url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', ...env };
  const { stdout, stderr } = await runGateway(['doctor', '--json', '--listen', '1s'], { env: settings });
  assert.equal(stderr, '');
  const order = ['ok', 'unknown', 'warning', 'problem'];
  const worst = {};
  const { findings } = JSON.parse(stdout);
  for (const { check, status, finding, advice } of findings) {
    const known = worst[check];
    if (!known || order.indexOf(status) > order.indexOf(known.split(':')[0])) worst[check] = `${status}: ${finding}${advice ? ` → ${advice}` : ''}`;
    if (['warning', 'problem'].includes(status)) assert.ok(advice, finding);
  }
  return worst;
}

const of = (stream, env = {}) => doctor(broker.url, { RABBITMQ_STREAM: stream, ...env });

/** Makes a stream that is bound to the exchange. */
async function makeStream(name, limits = LIMITS) {
  await channel.assertQueue(name, { durable: true, arguments: { ...LIMITS, ...limits } });
  await channel.bindQueue(name, EXCHANGE, '#');
}

/** Publishes this many updates, and waits until RabbitMQ has them. */
async function publish(count) {
  const connection = await amqplib.connect(broker.url);
  const confirms = await connection.createConfirmChannel();
  const body = Buffer.from(JSON.stringify({ _id: 'u', userId: 'usr_doctor', tenantId: 'tnt_default', eventType: 'message.create', data: { content: 'x'.repeat(600) } }));
  for (let i = 0; i < count; i += 1) confirms.publish(EXCHANGE, 'user.usr_doctor.messageupdate', body, { timestamp: Date.now() });
  await confirms.waitForConfirms();
  await connection.close();
}

test('a stream that does not exist yet: what RabbitMQ can do, and how many updates recovery may have', async () => {
  const found = await of('chat3-gateway.none');
  assert.match(found.stream, /^ok: chat3-gateway.none does not exist yet: serve makes it/);
  // The tests' RabbitMQ is Debian's.
  assert.match(found.stream_version, /^ok: RabbitMQ \d+\.\d+\.\d+/);
  assert.match(found.stream_retention, /^ok: keeps updates for 1h, up to 2\.0 GB, and recovery needs 4m \(twice RECOVERY_WINDOW\); enough up to 9259 updates\/s$/);
  assert.equal(found.stream_reading, undefined);
  assert.equal(found.stream_replica, undefined);
  const longer = await of('chat3-gateway.none', { RECOVERY_WINDOW: '45m' });
  assert.match(longer.stream_retention, /^ok: keeps updates for 1h 30m, .* recovery needs 1h 30m/);
  const off = await of('chat3-gateway.none', { RECOVERY_WINDOW: '0' });
  assert.match(off.stream_retention, /^ok: keeps updates for 1h, up to 2\.0 GB; recovery is off$/);
});

test('a stream that is read and published to: how fast a reader is, against what is published', async () => {
  await makeStream('chat3-gateway.read');
  const quiet = await of('chat3-gateway.read');
  assert.match(quiet.stream, /^ok: chat3-gateway.read exists as serve declares it$/);
  assert.match(quiet.stream_replica, /^ok: the node has a replica; .*rabbitmq-streams stream_status --vhost \/ chat3-gateway\.read/);
  assert.match(quiet.stream_reading, /^unknown: nothing was published in the last minute; 0 in the stream are too few/);
  await publish(6000);
  const busy = await of('chat3-gateway.read');
  const [, read, published] = /^ok: reads (\d+) updates\/s; ([\d.]+)\/s were published in the last minute$/.exec(busy.stream_reading);
  assert.ok(Number(read) > 500, busy.stream_reading);
  // 6,000 within a minute.
  assert.ok(published > 90 && published < 110, busy.stream_reading);
  assert.match(busy.stream_retention, /^ok: .*; at the rate of the last minute, that is [56]h/);
  // It has left nothing behind, no reader either.
  const [queue] = (await broker.queues()).filter(({ name }) => name === 'chat3-gateway.read');
  assert.equal(queue.consumers, 0);
  assert.doesNotMatch(await broker.ctl('list_queues', 'name'), /doctor/);
  // At this rate, a small stream is full before the window is over.
  await makeStream('chat3-gateway.small', { 'x-max-length-bytes': 1_000_000 });
  await publish(6000);
  const small = await of('chat3-gateway.small');
  assert.match(small.stream_retention, /^warning: .*up to 1 MB.*at the rate of the last minute, that is \d+s → raise the stream's size by a policy/);
});

test('a stream with other arguments: each that differs, and what to do', async () => {
  await makeStream('chat3-gateway.other', { 'x-max-age': '5m', 'x-max-length-bytes': 50_000_000, 'x-initial-cluster-size': 1 });
  const other = await of('chat3-gateway.other');
  assert.match(other.stream, /^warning: chat3-gateway\.other exists with other limits, and keeps them: /);
  for (const difference of ['x-max-age is 5m, serve declares 3600s', 'x-max-length-bytes is 50000000, serve declares 2000000000']) {
    assert.ok(other.stream.includes(difference), other.stream);
  }
  // The command that it advises is one that RabbitMQ accepts.
  const [, pattern, policy] = /rabbitmqctl set_policy -p \/ --apply-to queues chat3-gateway-stream '([^']+)' '([^']+)'/.exec(other.stream);
  await broker.ctl('set_policy', '-p', '/', '--apply-to', 'queues', 'chat3-gateway-stream', pattern, policy);
  assert.match(await broker.ctl('list_queues', 'name', 'policy'), /chat3-gateway\.other\tchat3-gateway-stream/);
  await broker.ctl('clear_policy', 'chat3-gateway-stream');
  assert.match(other.stream_retention, /^ok: keeps updates for 5m, up to 50 MB/);
  const short = await of('chat3-gateway.other', { RECOVERY_WINDOW: '3m' });
  assert.match(short.stream_retention, /^warning: keeps updates for 5m, .*recovery needs 6m.* → raise RABBITMQ_STREAM_MAX_AGE/);

  await makeStream('chat3-gateway.segments', { 'x-stream-max-segment-size-bytes': 500_000_000 });
  const segments = await of('chat3-gateway.segments');
  assert.match(segments.stream, /^warning: .*x-stream-max-segment-size-bytes is 500000000, serve declares 20000000 → .*no policy changes their size/);

  await makeStream('chat3-gateway.placed', { 'x-initial-cluster-size': 1 });
  assert.match((await of('chat3-gateway.placed')).stream, /^ok: .*exists with other arguments: x-initial-cluster-size is 1, serve declares not set$/);

  await channel.assertQueue('chat3-gateway.unlimited', { durable: true, arguments: { 'x-queue-type': 'stream' } });
  const unlimited = await of('chat3-gateway.unlimited');
  assert.match(unlimited.stream, /x-max-age is not set/);
  assert.match(unlimited.stream_retention, /^ok: keeps updates for any time, up to any size/);
});

test('a message that cannot be read ends the reading, and nothing else', async () => {
  await makeStream('chat3-gateway.poison');
  const poisoner = await Poisoner.connect(broker);
  await publish(10);
  await poisoner.publish('usr_doctor', UNREADABLE['a message id that is not UTF-8']);
  await poisoner.close();
  const found = await of('chat3-gateway.poison');
  assert.match(found.stream_reading, /^warning: the connection ended while the stream was read behind offset \d+ → .*the gateway steps over it/);
  assert.match(found.keys, /^warning: nothing was published/);
});

test('a stream that is not up is told from one that does not exist', async () => {
  await makeStream('chat3-gateway.down');
  // As RabbitMQ knows it before its replica is started.
  await broker.ctl('eval', 'mnesia:dirty_delete(rabbit_queue, rabbit_misc:r(<<"/">>, queue, <<"chat3-gateway.down">>)).');
  assert.match((await of('chat3-gateway.down')).stream, /^problem: chat3-gateway\.down is not up: .*down or inaccessible → .*rabbitmq-streams stream_status/);
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_TOPOLOGY: 'stream', RABBITMQ_STREAM: 'chat3-gateway.down' } });
  await gateway.logged(/RabbitMQ stream is not up; updates will flow when it is/);
  assert.doesNotMatch(gateway.logs, /exchange not found/);
});

test('a RabbitMQ whose streams are not enabled is told from one without any', async () => {
  const old = await Broker.absent({ env: { RABBITMQ_FEATURE_FLAGS: '' } });
  await old.start();
  await (await Publisher.connect(old)).close();
  const without = await doctor(old.url);
  assert.match(without.keys, /^warning: nothing was published/);
  assert.match(without.stream, /^problem: RabbitMQ ended the connection at the declaration of a stream: .* → .*rabbitmqctl enable_feature_flag stream_queue$/);
  await old.ctl('enable_feature_flag', 'stream_queue');
  assert.match((await doctor(old.url)).stream, /^ok: /);
});

test('a value of RABBITMQ_STREAM_MAX_AGE below twice the window is reported, at the start too', async () => {
  const env = { RABBITMQ_STREAM: 'chat3-gateway.brief', RABBITMQ_STREAM_MAX_AGE: '3m' };
  assert.match((await of('chat3-gateway.brief', env)).stream_retention, /^warning: keeps updates for 3m, .*recovery needs 4m/);
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_TOPOLOGY: 'stream', ...env } });
  await gateway.logged(/RABBITMQ_STREAM_MAX_AGE is less than twice RECOVERY_WINDOW.*max_age=180s recovery_window=120s|max_age=180s recovery_window=120s.*less than twice/);
  const calm = await Gateway.start(broker, { env: { RABBITMQ_TOPOLOGY: 'stream', RECOVERY_WINDOW: '45m', RABBITMQ_STREAM: 'chat3-gateway.calm' } });
  assert.doesNotMatch(calm.logs, /RABBITMQ_STREAM_MAX_AGE/);
  await until('the stream', async () => (await broker.ctl('list_queues', 'name', 'arguments')).match(/chat3-gateway\.calm\t.*"5400s"/));
});

test('a node without a replica is named; where another has one, it is no more than a warning', async () => {
  const cluster = await Cluster.start({ size: 2 });
  const [one, two] = cluster.nodes;
  const publisher = await Publisher.connect(one);
  const stream = 'chat3-gateway.updates';
  await publisher.channel.assertQueue(stream, { durable: true, arguments: { ...LIMITS, 'x-initial-cluster-size': 1, 'x-queue-leader-locator': 'client-local' } });
  const both = await doctor(cluster.url);
  assert.match(both.stream_replica, new RegExp(`^warning: amqp://127\\.0\\.0\\.1:${two.port}/ has no replica of chat3-gateway\\.updates: .* → rabbitmq-streams add_replica`));
  assert.match((await doctor(two.url)).stream_replica, /^problem: .* has no replica/);
  await one.ctl('eval', `rabbit_stream_queue:add_replica(<<"/">>, <<"${stream}">>, '${two.name}').`);
  const replicated = await until('a replica', async () => {
    const found = await doctor(cluster.url);
    return found.stream_replica.startsWith('ok') ? found : null;
  });
  assert.match(replicated.stream_replica, /^ok: 2 of the 2 nodes have a replica/);
});
