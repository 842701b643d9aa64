// RABBITMQ_URL as a list: the nodes of a real cluster, some of which die.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Cluster } from './cluster.mjs';
import { Gateway, Publisher, SECRET, Tab, freePort, runGateway, until } from './harness.mjs';

/** Longer than the gateway's maximum of 30 s, which exceeds the deadlines here: a test that waits for it fails. */
const NEVER = '10m';

/** How soon the gateway is on another node: "a second or two". */
const SOON_MS = 2_000;

let cluster;

before(async () => {
  cluster = await Cluster.start();
  // Declares the exchange.
  await (await Publisher.connect(cluster.nodes[0])).close();
});

test('a node that dies costs a moment: the gateway is on another one, and updates flow', async () => {
  const gateway = await Gateway.start(cluster, { env: { RABBITMQ_RECONNECT_DELAY: NEVER } });
  const tab = await Tab.open(gateway, 'usr_nodes');
  for (let losses = 1; losses <= 2; losses += 1) {
    const node = await cluster.nodeOf(gateway);
    assert.ok(node.isAlive);
    const killed = Date.now();
    await node.kill();
    await gateway.metricIs('rabbitmq_reconnects_total', losses);
    const took = Date.now() - killed;
    assert.ok(took < SOON_MS, `${took} ms`);
    const next = await cluster.nodeOf(gateway);
    assert.notEqual(next, node);
    await until('the subscription', async () => (await gateway.metric('subscriptions')) === 1);
    const publisher = await Publisher.connect(next);
    await tab.saw(publisher.update('usr_nodes'));
    await publisher.close();
    await node.start();
  }
  assert.equal(tab.disconnects.length, 0);
  assert.doesNotMatch(gateway.logs, /rmpassword/);
});

test('nodes that do not answer are passed over, and named', async () => {
  const absent = `amqp://rmuser:rmpassword@127.0.0.1:${await freePort()}/`;
  const [node] = cluster.nodes;
  // Whichever the gateway tries first, it gets to each of them.
  const gateways = await Promise.all(Array.from({ length: 6 }, () => (
    Gateway.start(node, { env: { RABBITMQ_URL: `${absent},${node.url}`, RABBITMQ_RECONNECT_DELAY: NEVER } })
  )));
  const passing = gateways.filter(({ logs }) => logs.includes('RabbitMQ node not usable'));
  for (const gateway of gateways) {
    assert.match(gateway.logs, new RegExp(`RabbitMQ connected address=amqp://127.0.0.1:${node.port}/`));
  }
  for (const { logs } of passing) assert.match(logs, new RegExp(`node not usable address=${absent.replace('rmuser:rmpassword@', '')} error=`));
  await Tab.open(gateways[0], 'usr_nodes');
  const published = await runGateway(['publish', '--user', 'usr_nodes', '--event', 'message.create'], { env: { RABBITMQ_URL: `${absent},${node.url}` } });
  assert.equal(published.code, 0, published.stderr);
  for (const { logs } of gateways) assert.doesNotMatch(logs, /rmpassword/);
  assert.doesNotMatch(published.stderr, /rmpassword/);
});

test('doctor examines each node, and logs in where it can', async () => {
  const absent = `amqp://rmuser:rmpassword@127.0.0.1:${await freePort()}/`;
  const [node] = cluster.nodes;
  const env = { RABBITMQ_URL: `${absent},${node.url}`, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0' };
  const { code, stdout } = await runGateway(['doctor', '--json'], { env });
  const { findings } = JSON.parse(stdout);
  const of = (check) => findings.filter((finding) => finding.check === check);
  assert.equal(code, 1);
  assert.deepEqual(of('node').map(({ finding }) => finding), [
    `${absent.replace('rmuser:rmpassword@', '')} (1 of 2)`, `amqp://127.0.0.1:${node.port}/ (2 of 2)`,
  ]);
  assert.deepEqual(of('tcp').map(({ status }) => status), ['problem', 'ok']);
  assert.deepEqual(of('login').map(({ status }) => status), ['ok']);
  assert.doesNotMatch(stdout, /rmpassword@/);
});

test('a list that is no cluster prevents the start, with a line that says why', async () => {
  const lists = [
    ['amqp://a:hush@one/,amqp://b:hush@two/', /nodes that differ in their login/],
    ['amqp://a:hush@one/,amqps://a:hush@two/', /nodes that differ in their scheme/],
    ['amqp://a:hush@one/,amqp://a:hush@two/v', /nodes that differ in their vhost/],
    ['amqp://a:hush@one/,', /an empty place in its list of nodes/],
    ['amqp://a:hush@one,two/', /a comma in a host/],
  ];
  for (const [list, expected] of lists) {
    const { code, stderr } = await runGateway(['serve'], { env: { RABBITMQ_URL: list, JWT_SECRET: SECRET } });
    assert.notEqual(code, 0);
    assert.match(stderr, expected);
    assert.doesNotMatch(stderr, /hush/);
  }
});
