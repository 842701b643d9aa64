// The gateway's side of RabbitMQ: TLS with certificates, and the least-privilege
// user of docs/SECURITY.md.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import {
  Broker, EXCHANGE, Gateway, Publisher, SECRET, Tab, anUpdate, freePort, generations, run, runGateway, temporaryFolder, testOf, testsFolder, token, until,
} from './harness.mjs';

/** A CA and its certificates for `localhost` and for a client, all in one folder. */
async function certificates() {
  const folder = temporaryFolder();
  const openssl = (...args) => run('openssl', args, { cwd: folder });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  await openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=test CA', '-addext', 'keyUsage=critical,keyCertSign');
  for (const [name, usage] of [['server', 'serverAuth'], ['client', 'clientAuth']]) {
    await openssl(
      'req', '-x509', ...key, '-CA', 'ca.pem', '-CAkey', 'ca.key', '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`,
      '-addext', 'subjectAltName=DNS:localhost', '-addext', `extendedKeyUsage=${usage}`, '-addext', 'basicConstraints=critical,CA:FALSE',
    );
  }
  return (file) => path.join(folder, file);
}

let ours;
let theirs;

before(async () => {
  [ours, theirs] = await Promise.all([certificates(), certificates()]);
});

/** A broker with a TLS listener, and its `amqps` address. */
async function tlsBroker({ clientCertificates }) {
  const port = await freePort();
  const broker = await Broker.start({
    conf: [
      `listeners.ssl.1 = 127.0.0.1:${port}`,
      `ssl_options.cacertfile = ${ours('ca.pem')}`,
      `ssl_options.certfile = ${ours('server.pem')}`,
      `ssl_options.keyfile = ${ours('server.key')}`,
      'ssl_options.verify = verify_peer',
      `ssl_options.fail_if_no_peer_cert = ${clientCertificates}`,
      '',
    ].join('\n'),
  });
  broker.amqps = `amqps://rmuser:rmpassword@localhost:${port}/`;
  return broker;
}

const clientFiles = (of) => ({ RABBITMQ_CLIENT_CERT_FILE: of('client.pem'), RABBITMQ_CLIENT_KEY_FILE: of('client.key') });

async function delivers(gateway, publisher) {
  await gateway.isConnected();
  const tab = await Tab.open(gateway, 'usr_a');
  await tab.saw(publisher.update('usr_a'));
  tab.close();
}

const start = (broker, env) => Gateway.start(broker, { env: { RABBITMQ_URL: broker.amqps, ...env }, connected: false });

test('amqps connects with the right CA, and no other', async () => {
  const broker = await tlsBroker({ clientCertificates: false });
  const publisher = await Publisher.connect(broker);
  await delivers(await start(broker, { RABBITMQ_CA_FILE: ours('ca.pem') }), publisher);
  for (const [env, reason] of [
    [{ RABBITMQ_CA_FILE: theirs('ca.pem') }, /UnknownIssuer|BadSignature/],
    // With the public roots.
    [{}, /UnknownIssuer/],
    [{ RABBITMQ_CA_FILE: ours('ca.pem'), RABBITMQ_URL: broker.amqps.replace('localhost', '127.0.0.1') }, /not valid for name/],
  ]) {
    const gateway = await start(broker, env);
    const [line] = await gateway.logged(/Failed to connect to RabbitMQ.*/);
    assert.match(line, reason);
    assert.match(line, /check RABBITMQ_CA_FILE and the host in RABBITMQ_URL/);
    assert.equal((await gateway.json('/health')).isConnected, false);
  }
  const missing = await start(broker, { RABBITMQ_CA_FILE: '/nowhere.pem' });
  await missing.logged(/Failed to connect to RabbitMQ.*cannot read \/nowhere\.pem/);
  const empty = await start(broker, { RABBITMQ_CA_FILE: ours('ca.key') });
  await empty.logged(/Failed to connect to RabbitMQ.*ca\.key holds no certificate/);
  const args = ['publish', '--user', 'usr_a', '--event', 'message.create'];
  const published = await runGateway(args, { env: { RABBITMQ_URL: broker.amqps, RABBITMQ_CA_FILE: ours('ca.pem') } });
  assert.match(published.stdout, /^published 1 /, published.stderr);
});

test('a broker that demands a client certificate gets the configured one', async () => {
  const broker = await tlsBroker({ clientCertificates: true });
  const publisher = await Publisher.connect(broker);
  const ca = { RABBITMQ_CA_FILE: ours('ca.pem') };
  await delivers(await start(broker, { ...ca, ...clientFiles(ours) }), publisher);
  for (const env of [ca, { ...ca, ...clientFiles(theirs) }]) {
    const gateway = await start(broker, env);
    const [line] = await gateway.logged(/Failed to connect to RabbitMQ.*/);
    assert.match(line, /check.* RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE/);
  }
  const mixed = { RABBITMQ_CLIENT_CERT_FILE: ours('client.pem'), RABBITMQ_CLIENT_KEY_FILE: theirs('client.key') };
  const gateway = await start(broker, { ...ca, ...mixed });
  await gateway.logged(/Failed to connect to RabbitMQ.*client certificate and its key do not fit/);
  const half = await start(broker, { ...ca, RABBITMQ_CLIENT_CERT_FILE: ours('client.pem'), RABBITMQ_CLIENT_KEY_FILE: '' });
  await half.logged(/Failed to connect to RabbitMQ.*cannot read/);
  const alone = await runGateway(['serve'], { env: { ...ca, RABBITMQ_CLIENT_CERT_FILE: ours('client.pem') } });
  assert.notEqual(alone.code, 0);
  assert.match(alone.stderr, /rabbitmq-client-key-file/);
});

const USER = 'chat3_gateway';
const security = readFileSync(path.join(testsFolder, '..', 'docs', 'SECURITY.md'), 'utf8');

/** The documented commands for a gateway without a control exchange, as their arguments. */
const [, block] = /```sh\n(rabbitmqctl add_user [^`]*)```/.exec(security);
const commands = block
  .trim()
  .split('\n')
  .map((line) => [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain).slice(1));

/** The documented patterns of topic permissions, by template. */
const patterns = new Map(
  [...security.matchAll(/^\| `(\S*\{userId\}\S*)` \| `(\S+)` \|$/gm)].map(([, template, pattern]) => [template, pattern]),
);

/** Makes requests that a bug in the gateway could send to RabbitMQ, each with a queue of its own; returns RabbitMQ's answer. */
async function attempts(url) {
  const connection = await amqplib.connect(url);
  connection.on('error', () => {});
  const attempt = async (what) => {
    const channel = await connection.createChannel();
    channel.on('error', () => {});
    const { queue } = await channel.assertQueue(`chat3-gateway.${Math.random()}`, { exclusive: true, durable: false });
    const outcome = await what(channel, queue).then(() => 'done', (error) => `${error.message}`);
    await channel.close().catch(() => {});
    return outcome;
  };
  return { attempt, connection };
}

/** What the documented permissions keep the gateway from, in every topology. */
const FORBIDDEN = [
  (channel) => channel.assertQueue('other', { exclusive: true }),
  (channel) => channel.consume('chat3.own', () => {}),
  (channel) => channel.deleteQueue('chat3.own'),
  (channel) => channel.purgeQueue('chat3.own'),
  (channel) => channel.deleteExchange(EXCHANGE),
  (channel) => channel.assertExchange('other', 'topic'),
  (channel, queue) => channel.bindQueue(queue, 'amq.topic', 'user.usr_b.*'),
  async (channel) => {
    channel.publish(EXCHANGE, 'user.usr_a.messageupdate', Buffer.from('{}'));
    await new Promise((_, reject) => channel.once('error', reject));
  },
];

// What binds for all users does what the documented topic permissions must prevent.
const testOfTopicPermissions = testOf('keys of single users');

testOfTopicPermissions('the gateway works under the documented permissions, which keep it from everything else', async () => {
  assert.equal(commands.length, 3);
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  await publisher.channel.assertQueue('chat3.own', { durable: true });
  for (const command of commands) await broker.ctl(...command);
  const password = commands[0].at(-1);
  const url = broker.url.replace('rmuser:rmpassword', `${USER}:${password}`);

  const { attempt, connection } = await attempts(url);
  const bind = (key) => attempt((channel, queue) => channel.bindQueue(queue, EXCHANGE, key));
  assert.equal(await bind('user.usr_b.*'), 'done');
  for (const key of ['#', '*', 'user.#', 'user.*.*', 'user.*.messageupdate', 'user.usr_b.#', 'user.usr_*.*', '*.usr_b.*', 'user.#.*']) {
    assert.match(await bind(key), /ACCESS_REFUSED/, key);
  }
  for (const what of FORBIDDEN) assert.match(await attempt(what), /ACCESS_REFUSED/, String(what));
  await connection.close();

  const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: url } });
  await delivers(gateway, publisher);
  // Also while bindings change, and without any refusal.
  await broker.queuesAre(0);
  await delivers(gateway, publisher);
  assert.doesNotMatch(gateway.logs, /WARN|ERROR/);
});

testOfTopicPermissions('orders are kept under the documented permissions with a control exchange', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  for (const command of commands) await broker.ctl(...command);
  const [, control] = /```sh\nrabbitmqctl (set_permissions [^`]*chat3_gateway_control[^`]*)```/.exec(security);
  await broker.ctl(...[...control.replaceAll('\\\n', ' ').matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain));
  const url = broker.url.replace('rmuser:rmpassword', `${USER}:${commands[0].at(-1)}`);
  const env = { RABBITMQ_URL: url, RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control', ADMIN_TOKEN: 'a-token-of-more-than-sixteen-bytes' };
  const one = await Gateway.start(broker, { env });
  await one.metricIs('rabbitmq_control_stream', 1);
  const headers = { authorization: `Bearer ${env.ADMIN_TOKEN}` };
  const body = JSON.stringify({ until: Math.floor(Date.now() / 1000) + 3600 });
  assert.equal((await one.json('/api/tokens/token-1/revoke', { method: 'POST', headers, body })).broadcast, true);
  const other = await Gateway.start(broker, { env });
  const tab = new Tab(other, token('usr_a', { jti: 'token-1' }));
  assert.equal(await tab.refused(), 'token revoked');
  await delivers(other, publisher);
  for (const gateway of [one, other]) assert.doesNotMatch(gateway.logs, /WARN|ERROR/);
  tab.close();
});

test('in the topology stream, the documented permissions are enough, and keep the gateway from everything else', async () => {
  const [, pattern] = /A `stream` is bound with `#`, so its topic permission is `'([^']+)'`/.exec(security);
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  await publisher.channel.assertQueue('chat3.own', { durable: true, arguments: { 'x-queue-type': 'stream' } });
  const [add, set, topics] = commands;
  for (const command of [add, set, [...topics.slice(0, -1), pattern]]) await broker.ctl(...command);
  const url = broker.url.replace('rmuser:rmpassword', `${USER}:${commands[0].at(-1)}`);
  const { attempt, connection } = await attempts(url);
  const bind = (key) => attempt((channel, queue) => channel.bindQueue(queue, EXCHANGE, key));
  assert.equal(await bind('#'), 'done');
  for (const key of ['*', 'user.usr_b.*', 'user.#', '#.#']) assert.match(await bind(key), /ACCESS_REFUSED/, key);
  for (const what of FORBIDDEN) assert.match(await attempt(what), /ACCESS_REFUSED/, String(what));
  await connection.close();
  const env = { RABBITMQ_URL: url, RABBITMQ_TOPOLOGY: 'stream' };
  const gateway = await Gateway.start(broker, { env });
  await delivers(gateway, publisher);
  await until('a marker', async () => (await gateway.metric('stream_round_trip_seconds_count')) > 0);
  assert.doesNotMatch(gateway.logs, /WARN|ERROR/);
  const { stdout } = await runGateway(['doctor', '--json', '--listen', '1s'], { env: { ...env, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0' } });
  const findings = JSON.parse(stdout).findings.filter(({ section, status }) => section === 'rabbitmq' && !['ok', 'unknown'].includes(status));
  assert.deepEqual(findings, []);
});

testOfTopicPermissions('the documented patterns fit the binding keys of every generation of Chat3', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  for (const command of commands) await broker.ctl(...command);
  const url = broker.url.replace('rmuser:rmpassword', `${USER}:${commands[0].at(-1)}`);
  for (const generation of generations()) {
    const templates = generation.bindingKeys;
    const known = templates.map((template) => patterns.get(template)?.slice(1, -1));
    assert.ok(known.every(Boolean), `docs/SECURITY.md has no pattern for ${templates}`);
    await broker.ctl('set_topic_permissions', USER, EXCHANGE, '^$', `^(${known.join('|')})$`);
    const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: url, RABBITMQ_BINDING_KEYS: templates.join(',') } });
    const claims = { tenantId: 'tnt_a' };
    const tab = await Tab.open(gateway, 'usr_a', { claims });
    const update = anUpdate('usr_a', claims);
    publisher.publish(templates[0].replace('{userId}', 'usr_a').replace('{tenantId}', 'tnt_a').replaceAll('*', 'x'), update);
    await tab.saw(update);
    tab.close();
    await gateway.terminate();
  }
});
