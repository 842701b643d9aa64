// Brokers that misbehave: another program, a peer that answers nonsense or nothing, a broker
// with hardly any channels. Frames are made by hand, since no broker sends them.

import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, test } from 'node:test';

import { Broker, EXCHANGE, Gateway, Publisher, SECRET, Tab, runGateway, token, until } from './harness.mjs';

const u16 = (n) => Buffer.from([n >> 8, n & 255]);
const u32 = (n) => Buffer.from([n >>> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255]);
const short = (text) => Buffer.concat([Buffer.from([text.length]), Buffer.from(text)]);
const long = (bytes) => Buffer.concat([u32(bytes.length), Buffer.from(bytes)]);
const frame = (type, payload) => Buffer.concat([Buffer.from([type]), u16(0), u32(payload.length), payload, Buffer.from([0xce])]);
const method = (number, id, ...fields) => frame(1, Buffer.concat([u16(number), u16(id), ...fields]));

const start = (properties = Buffer.alloc(0)) => method(10, 10, Buffer.from([0, 9]), long(properties), long('PLAIN'), long('en_US'));
const tune = method(10, 30, u16(2047), u32(131_072), u16(60));
const openOk = method(10, 41, short(''));
const heartbeat = frame(8, Buffer.alloc(0));

/** What each of them sends when it is greeted. */
const FOREIGN = {
  'a method that there is not': method(10, 99),
  'a class that there is not': method(99, 1),
  'a method without a number': frame(1, Buffer.alloc(0)),
  'contents of nothing': frame(2, Buffer.alloc(0)),
  'a version that is a number': start(Buffer.concat([short('version'), Buffer.from('I'), u32(5)])),
  'a capability that is a text': start(Buffer.concat([short('capabilities'), Buffer.from('F'), long(Buffer.concat([short('basic.nack'), Buffer.from('S'), long('yes')]))])),
};

const servers = [];
after(() => servers.forEach((server) => server.stop()));

/** A TCP server on a port; `serve` gets each connection. */
async function listen(serve, port = 0) {
  const sockets = new Set();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    serve(socket);
  });
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
  const stop = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  servers.push({ stop });
  return { url: `amqp://rmuser:rmpassword@127.0.0.1:${server.address().port}/`, stop };
}

const publish = ['publish', '--user', 'usr_a', '--event', 'message.create'];
const run = (args, { url }) => runGateway(args, { env: { RABBITMQ_URL: url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', RABBITMQ_CONNECT_TIMEOUT: '5s' } });

let broker;
let publisher;

before(async () => {
  broker = await Broker.start({ conf: 'channel_max = 20\n' });
  publisher = await Publisher.connect(broker);
});

for (const [what, bytes] of Object.entries(FOREIGN)) {
  test(`a peer that sends ${what} is reported as no broker, and is tried until RabbitMQ is there`, async () => {
    let greeted = 0;
    let isForeign = true;
    const peer = await listen((socket) => {
      greeted += 1;
      if (isForeign) return socket.once('data', () => socket.write(bytes));
      const real = net.connect(broker.port, '127.0.0.1');
      real.on('error', () => {});
      socket.pipe(real).pipe(socket);
    });
    const gateway = await Gateway.start(null, { env: { RABBITMQ_URL: peer.url } });
    await gateway.logged(/Failed to connect to RabbitMQ.*check host and port in RABBITMQ_URL/);
    await until('another attempt', () => greeted > 1);
    const [doctor, published] = await Promise.all([run(['doctor', '--json', '--listen', '1s'], peer), run(publish, peer)]);
    assert.equal(doctor.code, 1, doctor.stderr);
    assert.ok(JSON.parse(doctor.stdout).findings.some(({ status, check }) => status === 'problem' && ['amqp', 'login'].includes(check)));
    assert.equal(published.code, 1);
    assert.match(published.stderr, /chat3-gateway: cannot connect to RabbitMQ.*check host and port/);
    isForeign = false;
    await gateway.isConnected();
    await gateway.kill();
  });
}

test('who publishes to a broker that says nothing but that it lives is told so', async () => {
  const peer = await listen((socket) => {
    const alive = setInterval(() => socket.write(heartbeat), 1000);
    socket.on('close', () => clearInterval(alive));
    // Answers the handshake, and then nothing more.
    const answers = [start(), tune, openOk];
    socket.on('data', () => socket.write(answers.shift() ?? heartbeat));
  });
  const { code, stderr } = await run(publish, peer);
  assert.equal(code, 1);
  assert.match(stderr, /RabbitMQ does not answer/);
});

test('refusals do not use up the few channels of a connection', async () => {
  await broker.ctl('add_user', 'picky', 'picky');
  await broker.ctl('set_permissions', 'picky', '.*', '.*', '.*');
  await broker.ctl('set_topic_permissions', 'picky', EXCHANGE, '.*', '^((?!usr_bad).)*$');
  const url = broker.url.replace('rmuser:rmpassword', 'picky:picky');
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: url, RABBITMQ_BINDING_KEYS: 'user.{userId}.*', RABBITMQ_TOPOLOGY: 'per-user' } });
  const good = await Tab.open(gateway, 'usr_good');
  for (let i = 0; i < 8; i += 1) new Tab(gateway, token(`usr_bad${i}`));
  await until('all refused', async () => (await gateway.metric('subscriptions_refused_total')) >= 8);
  await until('the others', async () => (await gateway.metric('subscriptions')) === 1);
  await good.saw(publisher.update('usr_good'));
  assert.doesNotMatch(gateway.logs, /panicked/);
  await gateway.kill();
});

test('a broker that allows too few channels is named, by serve and by doctor', async () => {
  const scarce = await Broker.start({ conf: 'channel_max = 10\n' });
  const gateway = await Gateway.start(scarce, { connected: false });
  await gateway.logged(/Failed to connect to RabbitMQ.*allows 10 channels on a connection, and \d+ are needed/);
  const { code, stdout } = await run(['doctor', '--json', '--listen', '1s'], scarce);
  assert.equal(code, 1);
  const finding = JSON.parse(stdout).findings.find(({ check }) => check === 'channels');
  assert.match(finding?.text ?? stdout, /allows 10 channels/);
  await gateway.kill();
  await scarce.stop();
});
