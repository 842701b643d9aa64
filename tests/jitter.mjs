// Clients on a bad network: a thousand of them lose their connection every few
// seconds for two seconds each, while updates flow. Every update must arrive
// once. Then: the cost of a user who is away, and of an update that is kept for them.
//
// JITTER_CLIENTS, JITTER_SECONDS and JITTER_RATE (updates per second, for all)
// change the size. Prints its figures as JSON.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, anUpdate, token, until } from './e2e/harness.mjs';

const CLIENTS = Number(process.env.JITTER_CLIENTS ?? 1000);
const SECONDS = Number(process.env.JITTER_SECONDS ?? 60);
const RATE = Number(process.env.JITTER_RATE ?? 500);
const AWAY_MS = 2000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Runs `task` for each item, `width` of them at a time. */
async function pool(items, width, task) {
  const queue = items.entries();
  await Promise.all(Array.from({ length: width }, async () => {
    for (const [index, item] of queue) await task(item, index);
  }));
}

/** Resident memory of a process, in bytes. */
function residentBytes(pid) {
  const line = readFileSync(`/proc/${pid}/status`, 'utf8').match(/VmRSS:\s+(\d+) kB/);
  return Number(line[1]) * 1024;
}

test(`${CLIENTS} clients that drop for ${AWAY_MS} ms every few seconds miss nothing and see nothing twice`, async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker);
  const clients = Array.from({ length: CLIENTS }, (_, i) => ({ userId: `usr_jitter_${i}`, published: [], drops: 0 }));
  await pool(clients, 50, async (client) => {
    client.tab = await Tab.open(gateway, client.userId, {
      transports: ['websocket'], reconnectionDelay: AWAY_MS, reconnectionDelayMax: AWAY_MS, randomizationFactor: 0,
    });
  });

  const end = Date.now() + SECONDS * 1000;
  const jitter = clients.map(async (client) => {
    for (;;) {
      await pause(2000 + Math.random() * 4000);
      if (Date.now() > end) return;
      // Like a phone in a lift: no DISCONNECT and no FIN.
      client.tab.socket.io.engine.transport.ws.terminate();
      client.drops += 1;
      await client.tab.when('gone', () => client.tab.disconnects.length === client.drops);
      await client.tab.when('back', () => client.tab.socket.connected, 30_000);
    }
  });
  let published = 0;
  const start = Date.now();
  while (Date.now() < end) {
    while (published < ((Date.now() - start) / 1000) * RATE) {
      const client = clients[Math.floor(Math.random() * CLIENTS)];
      client.published.push(publisher.update(client.userId)._id);
      published += 1;
    }
    await pause(5);
  }
  await Promise.all(jitter);
  for (const { tab, published } of clients) {
    await tab.when('connected', () => tab.socket.connected, 30_000);
    if (published.length > 0) await tab.saw({ _id: published.at(-1) }, 30_000);
  }

  const delivered = clients.reduce((sum, { tab }) => sum + tab.ids.length, 0);
  const drops = clients.reduce((sum, { drops }) => sum + drops, 0);
  const recovered = clients.reduce((sum, { tab }) => sum + tab.recovered.filter(Boolean).length, 0);
  console.log(JSON.stringify({ clients: CLIENTS, seconds: SECONDS, published, delivered, drops, recovered }));
  for (const { tab, published } of clients) {
    assert.deepEqual(tab.ids, published);
    assert.equal(tab.named('message:new').length, published.length);
  }
  assert.equal(recovered, drops);
  assert.ok(drops > CLIENTS * SECONDS / 20, `only ${drops} drops`);
  for (const { tab } of clients) tab.close();
  await gateway.terminate();
  await broker.stop();
});

test('what a user who is away costs, and an update kept for them', async () => {
  const USERS = 1000;
  const UPDATES = 32;
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '10m' } });
  const { pid } = gateway.child;
  const userIds = Array.from({ length: USERS }, (_, i) => `usr_away_${i}`);
  // Memory that the process needs once is not a user's cost.
  const come = async () => pool(userIds, 50, async (userId) => {
    const tab = new Tab(gateway, token(userId), { transports: ['websocket'], reconnection: false });
    await tab.when('connected', () => tab.connects === 1);
    tab.socket.io.engine.transport.ws.terminate();
    tab.close();
  });
  let published = 0;
  const publish = async (each) => {
    for (let i = 0; i < each; i += 1) {
      for (const userId of userIds) publisher.update(userId);
      published += USERS;
      await gateway.metricIs('updates_received_total', published);
    }
    await pause(1000);
    return { resident: residentBytes(pid), counted: await gateway.metric('recovery_bytes') };
  };
  const before = residentBytes(pid);
  await come();
  await gateway.metricIs('users_away', USERS);
  await gateway.metricIs('sockets', 0);
  // Memory that a user's consumer allocates for its first updates is the user's cost,
  // not that of the updates.
  const few = await publish(64);
  const many = await publish(UPDATES);
  const body = JSON.stringify(anUpdate('usr_away_0000')).length;
  const figures = {
    bytesPerUserAway: Math.round((few.resident - before - few.counted) / USERS),
    updateBodyBytes: body,
    bytesPerUpdateKept: Math.round((many.resident - few.resident) / USERS / UPDATES),
    countedPerUpdateKept: Math.round((many.counted - few.counted) / USERS / UPDATES),
  };
  console.log(JSON.stringify(figures));
  // The limits count bytes: these must be close to the memory that is used.
  assert.ok(figures.bytesPerUpdateKept < figures.countedPerUpdateKept * 1.5, JSON.stringify(figures));
  await gateway.terminate();
  await broker.stop();
});

test('what a socket keeps of a long replay', async () => {
  const USERS = 500;
  const UPDATES = 150;
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_TOPOLOGY: 'shared' } });
  const { pid } = gateway.child;
  const tabs = Array.from({ length: USERS }, (_, i) => new Tab(gateway, token(`usr_back_${i}`), { transports: ['websocket'], reconnection: false }));
  for (const tab of tabs) await tab.when('connected', () => tab.connects === 1);
  // The allocator returns memory within 10 s.
  await pause(15_000);
  const before = residentBytes(pid);
  for (const tab of tabs) tab.socket.io.engine.transport.ws.terminate();
  await gateway.metricIs('users_away', USERS);
  for (let round = 1; round <= UPDATES; round += 1) {
    for (let i = 0; i < USERS; i += 1) publisher.update(`usr_back_${i}`);
    await gateway.metricIs('updates_received_total', round * USERS);
  }
  for (const tab of tabs) tab.socket.connect();
  for (const tab of tabs) await tab.when('the replay', () => tab.ids.length === UPDATES, 60_000);
  // Until then the replay itself may be lost.
  await gateway.metricIs('recovery_bytes', 0, 100_000);
  await pause(15_000);
  const figures = { bytesKeptOfAReplay: Math.round((residentBytes(pid) - before) / USERS) };
  console.log(JSON.stringify(figures));
  // 51,000 if a turn of the feed is 16 KiB; 111,000 if everything was written at once.
  assert.ok(figures.bytesKeptOfAReplay < 80_000, JSON.stringify(figures));
  for (const tab of tabs) tab.close();
  await gateway.terminate();
  await broker.stop();
});
