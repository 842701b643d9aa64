// Measures presence: many users come, lose their instance, return at once, leave, and come back.
//
//   make presence PRESENCE_USERS=10000
//
// Prints, for each, how long until every event was out, how many there were, and the processor time of the keeper and of RabbitMQ.

import { readFileSync } from 'node:fs';

import amqplib from 'amqplib';
import WebSocket from 'ws';

import { Broker, Gateway, Publisher, token, until } from './e2e/harness.mjs';

const USERS = Number(process.argv[2] ?? 10_000);
const GRACE_MS = 10_000;
const CONNECTING_AT_ONCE = 500;
const PATIENCE_MS = 180_000;

const TICKS_PER_SECOND = 100;

/** The processor time that a process has taken, in seconds. */
function cpu(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

const memory = (pid) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;

const tokens = Array.from({ length: USERS }, (_, index) => token(`usr_${index}`, { tenantId: 'tnt_default' }));

/** One user's socket: resolves once it is let in. */
function connect(gateway, index) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${gateway.url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket`);
    socket.on('error', reject);
    socket.on('message', (data) => {
      const text = String(data);
      if (text.startsWith('0')) socket.send(`40${JSON.stringify({ token: tokens[index] })}`);
      else if (text === '2') socket.send('3');
      else if (text.startsWith('40')) resolve(socket);
    });
  });
}

async function connectAll(gateway) {
  const sockets = [];
  let next = 0;
  await Promise.all(Array.from({ length: CONNECTING_AT_ONCE }, async () => {
    while (next < USERS) {
      const index = next;
      next += 1;
      sockets[index] = await connect(gateway, index);
    }
  }));
  return sockets;
}

const broker = await Broker.start();
await Publisher.connect(broker);
const env = {
  PRESENCE_EXCHANGE: 'chat3_presence', PRESENCE_GRACE: `${GRACE_MS}ms`, RABBITMQ_TOPOLOGY: 'firehose', MAX_CONNECTS_PER_SECOND: '0',
  MAX_CONNECTIONS_PER_ADDRESS: '0', ADMIN_TOKEN: 'operator-operator',
};
const start = () => Gateway.start(broker, { env, descriptors: 30_000 });
const [first, keeper] = [await start(), await start()];
for (const gateway of [first, keeper]) await gateway.metricIs('presence_connected', 1);

const connection = await amqplib.connect(broker.url);
const channel = await connection.createChannel();
await channel.assertQueue('presence', { durable: true });
await channel.bindQueue('presence', env.PRESENCE_EXCHANGE, 'presence.#');
const last = new Map();
let events = 0;
await channel.consume('presence', (message) => {
  const { userId, online } = JSON.parse(message.content);
  last.set(userId, online);
  events += 1;
}, { noAck: true });

const online = () => [...last.values()].filter(Boolean).length;

/** Runs `what`, waits until so many users were told to be online, and prints what it took. */
async function measure(name, gateway, what, expected) {
  const before = { events, cpu: cpu(gateway.child.pid), broker: cpu(broker.child.pid), at: Date.now() };
  const result = await what();
  const done = Date.now();
  await until(`${expected} online`, () => online() === expected, PATIENCE_MS);
  const out = Date.now();
  console.log(JSON.stringify({
    name, users: USERS, connectingMs: done - before.at, eventsOutAfterMs: out - done, events: events - before.events,
    gatewayCpuSeconds: +(cpu(gateway.child.pid) - before.cpu).toFixed(2), brokerCpuSeconds: +(cpu(broker.child.pid) - before.broker).toFixed(2),
    gatewayMemoryMiB: Math.round(memory(gateway.child.pid)),
  }));
  return result;
}

const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let sockets = await measure('all come', first, () => connectAll(first), USERS);
await measure('their instance is killed, and all return to the other one', keeper, async () => {
  await first.kill();
  sockets = await connectAll(keeper);
  await rest(GRACE_MS + 5_000);
}, USERS);
await measure('all leave; the grace counts', keeper, async () => sockets.forEach((socket) => socket.terminate()), 0);
sockets = await measure('all come back', keeper, () => connectAll(keeper), USERS);
console.log(JSON.stringify({ keeper: await keeper.metric('presence_keeper'), unconfirmed: await keeper.metric('presence_unconfirmed_total') }));
sockets.forEach((socket) => socket.terminate());
await connection.close();
await keeper.kill();
await broker.stop();
process.exit(0);
