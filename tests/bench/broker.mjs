// What RabbitMQ itself costs, which the benchmark's tables do not show: memory for each user's
// queue or binding, and processor time for an update at an ordinary rate. Needs no gateway.
//
//   node broker.mjs FIGURES.json     writes them, for `plan.mjs`; five minutes on a machine that does nothing else

import { readFileSync, writeFileSync } from 'node:fs';

import amqplib from 'amqplib';

import { Broker, EXCHANGE, Publisher, anUpdate, until } from '../e2e/harness.mjs';
import { host } from './host.mjs';

const USERS = 4_000;
const RATE = 1_000;
const SECONDS = 8;
/** Queues of one channel: RabbitMQ works on a channel's declarations in sequence. */
const CHANNELS = 8;
const STREAM = { durable: true, arguments: { 'x-queue-type': 'stream', 'x-max-length-bytes': 2_000_000_000, 'x-stream-max-segment-size-bytes': 20_000_000 } };

const [file] = process.argv.slice(2);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const key = (user) => `user.usr_${user}.*`;
const body = Buffer.from(JSON.stringify(anUpdate('usr_0', { padding: 'x'.repeat(350) })));

const memoryKb = (broker) => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${broker.child.pid}/status`, 'utf8'))[1]);
function cpuMicros(broker) {
  const fields = readFileSync(`/proc/${broker.child.pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

/** What consumes: `begin(connection)`, and what is left of it at the end. */
const TOPOLOGIES = {
  'per-user': async (connection) => {
    const channels = await Promise.all(Array.from({ length: CHANNELS }, () => connection.createChannel()));
    await Promise.all(channels.map(async (channel, at) => {
      await channel.prefetch(100);
      for (let user = at; user < USERS; user += CHANNELS) {
        const { queue } = await channel.assertQueue('', { exclusive: true, autoDelete: true, durable: false });
        await channel.bindQueue(queue, EXCHANGE, key(user));
        await channel.consume(queue, take(channel));
      }
    }));
  },
  shared: async (connection) => {
    const channel = await connection.createChannel();
    await channel.prefetch(1_000);
    const { queue } = await channel.assertQueue('', { exclusive: true, autoDelete: true, durable: false });
    for (let user = 0; user < USERS; user += 200) {
      await Promise.all(Array.from({ length: 200 }, (_, i) => channel.bindQueue(queue, EXCHANGE, key(user + i))));
    }
    await channel.consume(queue, take(channel));
  },
  firehose: reader(async (channel) => {
    const { queue } = await channel.assertQueue('', { exclusive: true, autoDelete: true, durable: false });
    await channel.bindQueue(queue, EXCHANGE, '#');
    await channel.consume(queue, take(channel));
  }),
  stream: reader(async (channel) => {
    await channel.assertQueue('updates', STREAM);
    await channel.bindQueue('updates', EXCHANGE, '#');
    await channel.consume('updates', take(channel), { arguments: { 'x-stream-offset': 'next' } });
  }),
};
let received = 0;

/** Acknowledges several at once, as the gateway does. */
function take(channel) {
  channel.taken = 0;
  return (message) => {
    received += 1;
    channel.taken += 1;
    if (channel.taken % 25 === 0) channel.ack(message, true);
  };
}

function reader(consume) {
  return async (connection) => {
    const channel = await connection.createChannel();
    await channel.prefetch(1_000);
    await consume(channel);
  };
}

async function measure(name, instances) {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  await pause(3_000);
  const before = memoryKb(broker);
  const connections = [];
  for (let i = 0; i < instances; i += 1) {
    connections.push(await amqplib.connect(broker.url));
    await TOPOLOGIES[name](connections[i]);
  }
  await pause(5_000);
  const memory = memoryKb(broker);
  received = 0;
  const [cpu, begun] = [cpuMicros(broker), Date.now()];
  let published = 0;
  while (published < RATE * SECONDS) {
    const due = Math.min(RATE * SECONDS, ((Date.now() - begun) * RATE) / 1_000);
    for (; published < due; published += 1) publisher.publish(`user.usr_${published % USERS}.messageupdate`, body);
    await pause(1);
  }
  await until('all updates', () => received === published * instances);
  const micros = (cpuMicros(broker) - cpu) / published;
  for (const connection of connections) await connection.close();
  await broker.stop();
  return { base: before, growth: memory - before, micros: Math.round(micros) };
}

const broker = await Broker.start();
const { rabbitmq, date, cores, cpu } = await host(broker);
await broker.stop();
const figures = { rabbitmq, at: date, cores, cpu, rate: RATE, bodyBytes: body.length, baseKb: 0, perUserKb: {}, perUpdateMicros: {}, perReaderMicros: {} };
for (const name of Object.keys(TOPOLOGIES)) {
  const one = await measure(name, 1);
  figures.baseKb = Math.max(figures.baseKb, one.base);
  figures.perUpdateMicros[name] = one.micros;
  // The other two have nothing of a user.
  const isOfUsers = name === 'per-user' || name === 'shared';
  figures.perUserKb[name] = isOfUsers ? Math.round((one.growth / USERS) * 10) / 10 : 0;
  if (!isOfUsers) figures.perReaderMicros[name] = Math.max(0, Math.round(((await measure(name, 3)).micros - one.micros) / 2));
  console.log(name, JSON.stringify({ ...one, perReader: figures.perReaderMicros[name] }));
}
writeFileSync(file, `${JSON.stringify(figures, null, 2)}\n`);
process.exit(0);
