// Messages that no well-behaved publisher sends: deeply nested headers, texts that are not
// UTF-8. Frames are made by hand, since no library makes them.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import amqplib from 'amqplib';

import { Broker, EXCHANGE, Gateway, Publisher, Tab, anUpdate, runGateway, SECRET, until } from './harness.mjs';

/** The largest frame that RabbitMQ accepts by default. */
const FRAME_MAX = 131_072;

/** Longer than the gateway's maximum of 30 s, which exceeds the deadlines here: a test that waits for it fails. */
const NEVER = '10m';

const u16 = (n) => Buffer.from([n >> 8, n & 255]);
const u32 = (n) => Buffer.from([n >>> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255]);
const bytes = (text) => (Buffer.isBuffer(text) ? text : Buffer.from(text));
const shortString = (text) => Buffer.concat([Buffer.from([bytes(text).length]), bytes(text)]);
const longString = (text) => Buffer.concat([u32(bytes(text).length), bytes(text)]);
const NOT_UTF8 = Buffer.from([0x66, 0xff, 0xfe]);

const frame = (type, channel, payload) => Buffer.concat([Buffer.from([type]), u16(channel), u32(payload.length), payload, Buffer.from([0xce])]);

/** `head` and the length of its content, nested `count` times. */
function nested(head, count) {
  const size = head.length + 4;
  return Buffer.concat(Array.from({ length: count }, (_, i) => Buffer.concat([head, u32((count - 1 - i) * size)])));
}

const headers = (entries) => ({ flags: 0x2000, properties: Buffer.concat([u32(entries.length), entries]) });
const header = (name, type, value) => headers(Buffer.concat([shortString(name), Buffer.from(type), value]));
/** A frame less the other fields in it. */
const DEPTH_BYTES = FRAME_MAX - 64;

const DEEP = {
  'tables in tables': headers(nested(Buffer.from('\0F'), Math.floor(DEPTH_BYTES / 6))),
  'arrays in arrays': header('h', '', nested(Buffer.from('A'), Math.floor(DEPTH_BYTES / 5))),
};

const UNREADABLE = {
  'a header’s value that is not UTF-8': header('h', 'S', longString(NOT_UTF8)),
  'a header’s name that is not UTF-8': header(NOT_UTF8, 't', Buffer.from([1])),
  'a header of the type L': header('h', 'L', Buffer.alloc(8)),
  'a content type that is not UTF-8': { flags: 0x8000, properties: shortString(NOT_UTF8) },
  'a message id that is not UTF-8': { flags: 0x0080, properties: shortString(NOT_UTF8) },
  'a routing key that is not UTF-8': { flags: 0, properties: Buffer.alloc(0), ending: NOT_UTF8 },
};

/** Publishes hand-made frames. */
class Poisoner {
  static async connect(broker) {
    const poisoner = new Poisoner();
    poisoner.connection = await amqplib.connect(`${broker.url}?frame_max=${FRAME_MAX}`);
    poisoner.connection.on('error', () => {});
    poisoner.channel = await poisoner.connection.createChannel();
    return poisoner;
  }

  /** Resolves when RabbitMQ has routed the message. */
  async publish(userId, { flags, properties, ending = 'x' }, body = '{}') {
    const key = Buffer.concat([bytes(`user.${userId}.`), bytes(ending)]);
    const { ch } = this.channel;
    const publish = Buffer.concat([u16(60), u16(40), u16(0), shortString(EXCHANGE), shortString(key), Buffer.from([0])]);
    const size = Buffer.concat([u32(0), u32(bytes(body).length)]);
    const header = Buffer.concat([u16(60), u16(0), size, u16(flags), properties]);
    this.connection.connection.stream.write(Buffer.concat([frame(1, ch, publish), frame(2, ch, header), frame(3, ch, bytes(body))]));
    await this.channel.checkExchange(EXCHANGE);
  }

  close() {
    return this.connection.close();
  }
}

let broker;
let publisher;
let poisoner;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  poisoner = await Poisoner.connect(broker);
});

const start = (env) => Gateway.start(broker, { env: { RABBITMQ_RECONNECT_DELAY: NEVER, ...env } });

for (const threads of ['1', '2']) {
  test(`headers that are nested as deep as a frame allows do no harm, with ${threads} thread(s)`, async () => {
    const gateway = await start({ WORKER_THREADS: threads });
    const tab = await Tab.open(gateway, 'usr_deep');
    for (const [what, message] of Object.entries(DEEP)) {
      const update = anUpdate('usr_deep', { what });
      await poisoner.publish('usr_deep', message, JSON.stringify(update));
      await tab.saw(update);
    }
    assert.equal(await gateway.metric('rabbitmq_reconnects_total'), 0);
    assert.equal((await gateway.terminate()).code, 0);
  });
}

test('a message that cannot be read costs a moment, and a log line and a metric report it', async () => {
  const gateway = await start();
  const [victim, bystander] = await Promise.all([Tab.open(gateway, 'usr_victim'), Tab.open(gateway, 'usr_bystander')]);
  let losses = 0;
  for (const [what, message] of Object.entries(UNREADABLE)) {
    losses += 1;
    const logged = gateway.logs.length;
    await poisoner.publish('usr_victim', message);
    await gateway.metricIs('rabbitmq_reconnects_total', losses);
    await gateway.metricIs('messages_unreadable_total', losses);
    assert.match(gateway.logs.slice(logged), /RabbitMQ connection closed reason=.*cannot be read/, what);
    await gateway.metricIs('subscriptions', 2);
    // The message is not delivered again, and no user is left out.
    await Promise.all([victim.saw(publisher.update('usr_victim')), bystander.saw(publisher.update('usr_bystander'))]);
  }
  assert.equal(await gateway.metric('rabbitmq_reconnects_total'), losses);
  // No text of the message is logged.
  assert.doesNotMatch(gateway.logs, /66, FF, FE|content =/i);
});

test('those who flood it with them are not kept pace with', async () => {
  const gateway = await start();
  await Tab.open(gateway, 'usr_flooded');
  const message = UNREADABLE['a header of the type L'];
  const isAway = async () => !(await gateway.json('/health')).isConnected && /reconnect scheduled delay=30s/.test(gateway.logs);
  await until('a longer pause', async () => {
    await poisoner.publish('usr_flooded', message);
    return isAway();
  }, 60_000);
  const losses = await gateway.metric('messages_unreadable_total');
  assert.ok(losses > 5 && losses < 50, `${losses} losses`);
});

test('doctor outlives both kinds while it listens', async () => {
  for (const message of [DEEP['arrays in arrays'], UNREADABLE['a header of the type L']]) {
    const examined = runGateway(['doctor', '--json', '--listen', '6s'], {
      env: { RABBITMQ_URL: broker.url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0' },
    });
    await until('that it listens', async () => /doctor.*\.listen\t1/.test(await broker.ctl('list_queues', '--no-table-headers', 'name', 'consumers')));
    await poisoner.publish('usr_nobody', message);
    const { code, stdout, stderr } = await examined;
    assert.ok(code === 0 || code === 1, `${code} ${stderr}`);
    assert.ok(JSON.parse(stdout).findings.length > 5);
  }
});
