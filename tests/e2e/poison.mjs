// Messages that no well-behaved publisher sends: deeply nested headers, texts that are not
// UTF-8. Frames are made by hand, since no library makes them.

import amqplib from 'amqplib';

import { EXCHANGE } from './harness.mjs';

/** The largest frame that RabbitMQ accepts by default. */
const FRAME_MAX = 131_072;

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

export const DEEP = {
  'tables in tables': headers(nested(Buffer.from('\0F'), Math.floor(DEPTH_BYTES / 6))),
  'arrays in arrays': header('h', '', nested(Buffer.from('A'), Math.floor(DEPTH_BYTES / 5))),
};

export const UNREADABLE = {
  'a header’s value that is not UTF-8': header('h', 'S', longString(NOT_UTF8)),
  'a header’s name that is not UTF-8': header(NOT_UTF8, 't', Buffer.from([1])),
  'a header of the type L': header('h', 'L', Buffer.alloc(8)),
  'a content type that is not UTF-8': { flags: 0x8000, properties: shortString(NOT_UTF8) },
  'a message id that is not UTF-8': { flags: 0x0080, properties: shortString(NOT_UTF8) },
  'a routing key that is not UTF-8': { flags: 0, properties: Buffer.alloc(0), ending: NOT_UTF8 },
};

/**
 * Headers that name another place in a stream than RabbitMQ's: 3.10 replaces the first of a name by its own, and passes on the second.
 * `offset` is a number or a text.
 */
export function forgedOffset(offset) {
  const value = typeof offset === 'string' ? Buffer.concat([Buffer.from('S'), longString(offset)]) : Buffer.alloc(9, 'l');
  if (typeof offset !== 'string') value.writeBigInt64BE(BigInt(offset), 1);
  const entry = Buffer.concat([shortString('x-stream-offset'), value]);
  return headers(Buffer.concat([entry, entry]));
}

/** Publishes hand-made frames. */
export class Poisoner {
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
    await this.publishTo(EXCHANGE, key, { flags, properties }, body);
  }

  /** Resolves when RabbitMQ has routed the message. */
  async publishTo(exchange, key, { flags, properties }, body = '{}') {
    const { ch } = this.channel;
    const publish = Buffer.concat([u16(60), u16(40), u16(0), shortString(exchange), shortString(key), Buffer.from([0])]);
    const size = Buffer.concat([u32(0), u32(bytes(body).length)]);
    const header = Buffer.concat([u16(60), u16(0), size, u16(flags), properties]);
    this.connection.connection.stream.write(Buffer.concat([frame(1, ch, publish), frame(2, ch, header), frame(3, ch, bytes(body))]));
    await this.channel.checkExchange(exchange);
  }

  close() {
    return this.connection.close();
  }
}
