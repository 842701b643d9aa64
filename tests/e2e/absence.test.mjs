// Long absences: with a window of an hour, the updates kept for users who are away stay
// within their limits, cost next to no CPU, and are all there when the users return.
//
// ABSENT_USERS changes the size. Prints its figures as JSON.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, anUpdate, token, until } from './harness.mjs';

const USERS = Number(process.env.ABSENT_USERS ?? 200);
const UPDATES = 20;
/** How long the process is watched while nothing happens: two checks for expired sessions. */
const IDLE_MS = 10_000;
const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK']));

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const userIds = Array.from({ length: USERS }, (_, i) => `usr_absent_${i}`);

/** CPU time of a process so far, in seconds. */
function cpuSeconds(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

function residentBytes(pid) {
  const line = readFileSync(`/proc/${pid}/status`, 'utf8').match(/VmRSS:\s+(\d+) kB/);
  return Number(line[1]) * 1024;
}

/** Every user connects, then loses the connection without a DISCONNECT. */
async function everybodyLeaves(gateway) {
  const tabs = [];
  // A few at a time: a crowd would be let in before its subscriptions exist, and might then be unable to recover.
  for (let i = 0; i < USERS; i += 20) {
    const few = userIds.slice(i, i + 20).map((userId) => new Tab(gateway, token(userId), { transports: ['websocket'], reconnection: false }));
    for (const tab of few) await tab.when('connected', () => tab.connects === 1, 60_000);
    tabs.push(...few);
  }
  await gateway.metricIs('subscriptions', USERS, 60_000);
  for (const tab of tabs) tab.socket.io.engine.transport.ws.terminate();
  await gateway.metricIs('users_away', USERS, 60_000);
  return tabs;
}

/** Publishes `rounds` updates to each user; returns their ids, once nothing more is received. */
async function publish(publisher, gateway, rounds, fields = {}) {
  const published = userIds.map(() => []);
  for (let round = 1; round <= rounds; round += 1) {
    userIds.forEach((userId, i) => published[i].push(publisher.update(userId, fields)._id));
    await pause(50);
  }
  let received = -1;
  await until('the end of what is received', async () => {
    const before = received;
    await pause(1000);
    received = await gateway.metric('updates_received_total');
    return received > 0 && received === before;
  }, 60_000);
  return published;
}

test('with a window of an hour, users who are away keep their queues, cost no CPU and get everything they missed', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '1h' } });
  const { pid } = gateway.child;
  const before = residentBytes(pid);
  const tabs = await everybodyLeaves(gateway);
  const published = await publish(publisher, gateway, UPDATES);
  const cpu = cpuSeconds(pid);
  await pause(IDLE_MS);
  const idle = (cpuSeconds(pid) - cpu) / (IDLE_MS / 1000);
  await broker.queuesAre(USERS);
  const figures = {
    users: USERS,
    updatesEach: UPDATES,
    bodyBytes: JSON.stringify(anUpdate('usr_absent_000')).length,
    idleCpuPerThousandUsers: Number((idle / USERS * 1000).toFixed(5)),
    residentBytesPerUser: Math.round((residentBytes(pid) - before) / USERS),
    countedBytesPerUser: Math.round((await gateway.metric('recovery_bytes')) / USERS),
  };
  console.log(JSON.stringify(figures));
  // A hundredth of a core for a thousand users; at least one clock tick.
  assert.ok(idle < Math.max(0.01, USERS / 1000 * 0.01), JSON.stringify(figures));
  for (const tab of tabs) tab.socket.connect();
  for (const [i, tab] of tabs.entries()) {
    await tab.saw({ _id: published[i].at(-1) }, 60_000);
    assert.deepEqual(tab.ids, published[i]);
    assert.deepEqual(tab.recovered, [false, true]);
  }
  for (const tab of tabs) tab.close();
  await gateway.terminate();
  await broker.stop();
});

test('however long users are away, what is kept for them stays within RECOVERY_TOTAL_BYTES, and users who lost recovery are told', async () => {
  const LIMIT = 1024 * 1024;
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '1h', RECOVERY_TOTAL_BYTES: String(LIMIT) } });
  const tabs = await everybodyLeaves(gateway);
  const rounds = Math.ceil((3 * LIMIT) / USERS / 2000);
  const published = await publish(publisher, gateway, rounds, { padding: 'x'.repeat(1700) });
  await until('memory within its limit', async () => (await gateway.metric('recovery_bytes')) <= LIMIT, 30_000);
  const away = await gateway.metric('users_away');
  assert.ok(away > 0 && away < USERS, `${away} of ${USERS} users are still kept`);
  for (const tab of tabs) tab.socket.connect();
  for (const tab of tabs) await tab.when('back', () => tab.connects === 2, 60_000);
  const recovered = tabs.map((tab) => tab.recovered.at(-1));
  for (const [i, tab] of tabs.entries()) {
    // Either everything, or nothing and the client knows.
    if (recovered[i]) await tab.saw({ _id: published[i].at(-1) }, 60_000);
    assert.deepEqual(tab.ids, recovered[i] ? published[i] : []);
  }
  assert.equal(recovered.filter(Boolean).length, away);
  for (const tab of tabs) tab.close();
  await gateway.terminate();
  await broker.stop();
});
