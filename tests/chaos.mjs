// Chaos: three RabbitMQ nodes, three gateways, HAProxy, real clients and a publisher that
// waits for confirmations; every few seconds something is killed, stopped, frozen or cut.
// At the end, each client has received every confirmed update of its user once and in
// order, or was told to refetch.
//
//   node chaos.mjs       CHAOS_MINUTES=10 CHAOS_SEED=… CHAOS_CLIENTS=300 CHAOS_RATE=150
//                        CHAOS_TOPOLOGY=stream CHAOS_FAULTS=gateway-kill,clients-move
//
// Exits with 0 only if nothing was lost, doubled or out of order. The same seed gives the
// same faults at the same times; what they meet differs.

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Client, pause } from './chaos/clients.mjs';
import { Faults } from './chaos/faults.mjs';
import { Ledger } from './chaos/ledger.mjs';
import { inWords, plan } from './chaos/plan.mjs';
import { Random } from './chaos/random.mjs';
import { print } from './chaos/report.mjs';
import { Site } from './chaos/site.mjs';
import { lookInto } from './chaos/stream.mjs';
import { population } from './chaos/users.mjs';
import { ConfirmingPublisher } from './e2e/cluster.mjs';
import { anUpdate, testsFolder, until } from './e2e/harness.mjs';

const { CHAOS_MINUTES, CHAOS_SEED, CHAOS_CLIENTS, CHAOS_RATE, CHAOS_TOPOLOGY, CHAOS_FAULTS } = process.env;
const minutes = Number(CHAOS_MINUTES || 10);
const seed = Number(CHAOS_SEED || Math.floor(Math.random() * 1e9));
const size = { gateways: 3, nodes: 3, clients: Number(CHAOS_CLIENTS || 300) };
const rate = Number(CHAOS_RATE || 150);
const topology = CHAOS_TOPOLOGY || 'stream';
const folder = path.join(testsFolder, '..', 'target', 'chaos');
const repeat = `make chaos CHAOS_SEED=${seed} CHAOS_MINUTES=${minutes} CHAOS_CLIENTS=${size.clients} CHAOS_RATE=${rate} CHAOS_TOPOLOGY=${topology}`
  + (CHAOS_FAULTS ? ` CHAOS_FAULTS=${CHAOS_FAULTS}` : '');

/** How many updates may wait for RabbitMQ's confirmations. */
const IN_FLIGHT = 50;

/** Clients that connect at the same time. */
const CONNECTING = 25;

/** A client whose connection has gone silent notices it by its pings, after up to 45 s. */
const BACK_MS = 120_000;

const started = Date.now();
const say = (text) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(7)} s  ${text}`);

let interrupted = null;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => (interrupted = signal));
// An end without a verdict is a failure.
process.exitCode = 1;

const ledger = new Ledger();
const site = new Site();
let publisher;
let clients = [];
let faults;
let failure = null;
try {
  console.log(repeat);
  await run();
} catch (error) {
  failure = error;
}
await conclude();
// Whatever still holds the process: the harness' cleanups end in seconds.
setTimeout(() => process.exit(), 20_000).unref();

async function run() {
  await site.start({ ...size, topology });
  say(`${size.nodes} nodes, ${size.gateways} gateways and HAProxy run`);
  const random = new Random(seed ^ 0x5eed);
  const users = population(size.clients, random);
  faults = new Faults(site, clients);
  for (let n = 0; n < size.clients; n += CONNECTING) {
    if (interrupted) throw new Error(`interrupted by ${interrupted}`);
    const some = Array.from({ length: Math.min(CONNECTING, size.clients - n) }, (_, i) => n + i);
    clients.push(...await Promise.all(some.map((n) => Client.start(n, { userId: users.of[n], url: site.url, ledger, causeOf: () => faults.latest ?? 'nothing' }))));
    await until('the first connects', () => clients.every(({ account }) => account.isConnected), 60_000);
  }
  say(`${size.clients} clients of ${users.all.length} users are connected`);
  let queued = [];
  publisher = await ConfirmingPublisher.start(site.cluster.nodes, null, {
    pauseMs: 1000 / rate,
    inFlight: IN_FLIGHT,
    make: () => {
      const userId = queued.pop() ?? users.next();
      const n = ledger.publish(userId);
      return anUpdate(userId, { n, data: { _id: `${userId}-${n}`, n, userId, content: `update ${n}`, senderId: 'usr_sender' } });
    },
    onConfirmed: ({ userId, n }) => ledger.confirm(userId, n),
    onUncertain: ({ userId, n }) => ledger.fail(userId, n),
  });
  await disturb(plan(seed, minutes * 60_000, size).filter(({ kind }) => !CHAOS_FAULTS || CHAOS_FAULTS.split(',').includes(kind)));
  say('no more faults; the last ones end');
  await faults.over();
  for (const gateway of site.gateways) gateway.heal();
  say('all is healed; waiting for the nodes');
  await site.wholeCluster();
  say('waiting for the gateways and the clients');
  for (const gateway of site.gateways) await gateway.process.isConnected();
  // Back or not: what is missing is in the verdict.
  await until('all clients', () => interrupted || clients.every(({ account }) => account.isConnected), BACK_MS).catch(() => {});
  say('one more update for everybody');
  // Also for those who got none for long.
  queued = [...users.all];
  await until('the last round', () => queued.length === 0, BACK_MS);
  await publisher.stop();
  await until('all updates', () => interrupted || ledger.waiting.length === 0, BACK_MS).catch(() => {});
  // What comes twice comes by then.
  await pause(1_000);
}

async function disturb(planned) {
  const begun = Date.now();
  let spoken = begun;
  const until = begun + minutes * 60_000;
  while (Date.now() < until && !interrupted && !faults.failure) {
    while (planned.length > 0 && planned[0].at <= Date.now() - begun) {
      const fault = planned.shift();
      say(inWords(fault));
      faults.begin(fault);
    }
    if (Date.now() > spoken + 15_000) {
      spoken = Date.now();
      const { confirmed, uncertain, delivered, recovered, refused, lost, doubled, outOfOrder } = ledger.verdict();
      const away = clients.filter(({ account }) => !account.isConnected).length;
      say(`   confirmed ${confirmed}, uncertain ${uncertain}, delivered ${delivered}, recovered ${recovered}, refused ${refused}, away ${away}, `
        + `doubled ${doubled}, out of order ${outOfOrder}, not there yet ${lost}`);
    }
    await pause(50);
  }
  if (interrupted) throw new Error(`interrupted by ${interrupted}`);
}

async function conclude() {
  const verdict = ledger.verdict();
  const counts = await site.counts().catch(() => ({}));
  const waiting = ledger.waiting.map(({ name }) => name);
  const errors = {};
  for (const client of clients) for (const [message, count] of Object.entries(client.errors)) errors[message] = (errors[message] ?? 0) + count;
  if (faults) faults.isOver = true;
  if (publisher) publisher.isStopped = true;
  for (const client of clients) client.close();
  await Promise.race([faults?.over().catch(() => {}), pause(15_000)]);
  await publisher?.stop();
  let stream = null;
  if (topology === 'stream' && verdict.lost + verdict.doubled + verdict.outOfOrder > 0) {
    stream = await lookInto(site.cluster.nodes.find((node) => node.isAlive), ledger).catch((error) => ({ examples: [error.message] }));
  }
  await site.stop();
  const complaints = site.complaints;
  const warnings = site.warnings;
  const isGood = print({ topology, verdict, stream, counts, complaints, warnings, waiting, errors, failure, faults: faults?.done ?? [], repeat });
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, 'verdict.json'), `${JSON.stringify({ seed, minutes, ...size, rate, topology, verdict, stream, counts, complaints, warnings, waiting, errors, faults: faults?.done, refusals: ledger.refusals }, null, 1)}\n`);
  site.write(folder);
  console.log(`The verdict and the gateways' logs are in ${path.relative(process.cwd(), folder)}.`);
  process.exitCode = isGood ? 0 : 1;
}
