// The long runs. One gateway that many clients come to and leave (SOAK_CONNECTS),
// with a verdict on what they leave behind; then a publisher, churning clients,
// broker kills and gateway restarts for a number of minutes (SOAK_MINUTES), with
// a verdict on the updates.
//
// What must be true: when all clients have left, the gateway's memory is what it was
// after the first fifth of them, and it has no socket, user, queue, consumer or
// connection. While a tab is connected and the broker link is up, its updates
// have no hole, none arrives twice, and all are in order. Updates published while
// the client or the link was away may be missing: they are not replayed.

import { after, test } from 'node:test';
import assert from 'node:assert/strict';

import { comeAndGo, nothingIsLeft, rssOf } from './e2e/crowd.mjs';
import { Broker, Gateway, Publisher, Tab, freePort } from './e2e/harness.mjs';

const minutes = Number(process.env.SOAK_MINUTES ?? 2);
const connects = Number(process.env.SOAK_CONNECTS ?? 100_000);
const USERS = 40;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

test(`${connects} clients that come and go`, async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateway = await Gateway.start(broker, { env: { RECOVERY_WINDOW: '1s', MAX_CONNECTS_PER_SECOND: '0' } });
  const started = Date.now();
  const rssMiB = [rssOf(gateway.child.pid)];
  for (let fifth = 0; fifth < 5; fifth += 1) {
    await comeAndGo(gateway, Math.ceil(connects / 5), { abandoning: true });
    rssMiB.push(await nothingIsLeft(gateway, broker));
  }
  const tally = { connects: await gateway.metric('connects_total'), seconds: Math.round((Date.now() - started) / 1000), rssMiB: rssMiB.map(Math.round) };
  console.log(JSON.stringify(tally));
  // As much as the allocator may keep between two moments without clients.
  assert.ok(rssMiB[5] < rssMiB[1] + 16, `memory grew: ${tally.rssMiB} MiB`);
  await gateway.metricIs('rabbitmq_reconnects_total', 0);
  const tab = await Tab.open(gateway, 'usr_last');
  await tab.saw(publisher.update('usr_last'));
  assert.doesNotMatch(gateway.logs, /panicked/);
  assert.equal((await gateway.terminate()).code, 0);
});

test(`${minutes} minutes of churn, broker kills and gateway restarts`, { timeout: (minutes + 6) * 60_000 }, async () => {
  const broker = await Broker.start();
  const port = String(await freePort());
  const serve = () => Gateway.start(broker, { env: { PORT: port } });
  let gateway = await serve();
  let publisher = await Publisher.connect(broker);
  const end = Date.now() + minutes * 60_000;
  const tally = { published: 0, received: 0, doubled: 0, reordered: 0, lost: 0, connects: 0, kills: 0, restarts: 0 };
  /** Grows with every disturbance: a hole that spans a disturbance is not a loss. */
  let disturbances = 0;
  let running = true;
  after(() => (running = false));

  const next = new Map();
  const publishing = (async () => {
    while (running) {
      const user = `usr_${Math.floor(Math.random() * USERS)}`;
      const n = (next.get(user) ?? 0) + 1;
      next.set(user, n);
      publisher?.update(user, { n, disturbances, data: { n } });
      tally.published += 1;
      await pause(2);
    }
  })();

  /** Compares each update of one connection with the one before it. */
  const check = (tab) => {
    let last = null;
    tab.socket.on('connect', () => (last = null));
    tab.socket.on('chat3:update', (update) => {
      tally.received += 1;
      if (last && update.n === last.n) tally.doubled += 1;
      else if (last && update.n < last.n) tally.reordered += 1;
      else if (last && update.n > last.n + 1 && update.disturbances === last.disturbances) tally.lost += update.n - last.n - 1;
      last = update;
      tab.events.length = 0;
    });
  };
  const churning = Array.from({ length: USERS }, async (_, i) => {
    while (running) {
      const transports = [['websocket'], ['polling', 'websocket'], ['polling']][i % 3];
      const tab = await Tab.open(gateway, `usr_${i}`, { transports }).catch(() => null);
      if (!tab) continue;
      tally.connects += 1;
      check(tab);
      await pause(500 + Math.random() * 4000);
      if (Math.random() < 0.5) tab.socket.io.engine?.close();
      await pause(500);
      tab.close();
    }
  });

  let baseline = null;
  while (Date.now() < end) {
    await pause(15_000);
    baseline ??= rssOf(gateway.child.pid);
    disturbances += 1;
    publisher = null;
    if (tally.kills <= tally.restarts) {
      tally.kills += 1;
      await broker.kill();
      await broker.start();
    } else {
      tally.restarts += 1;
      const exit = await gateway.terminate();
      assert.equal(exit.code, 0);
      gateway = await serve();
      baseline = null;
    }
    publisher = await Publisher.connect(broker);
    await gateway.isConnected();
    await pause(2000);
    disturbances += 1;
  }
  running = false;
  await Promise.all([publishing, ...churning]);
  const rss = rssOf(gateway.child.pid);
  tally.rssMiB = `${baseline?.toFixed(0) ?? '?'} -> ${rss.toFixed(0)}`;
  console.log(JSON.stringify(tally));
  assert.deepEqual([tally.doubled, tally.reordered, tally.lost], [0, 0, 0]);
  await gateway.metricIs('sockets', 0);
  await gateway.metricIs('users', 0);
  // Some have just lost their connection, and may come back to recover it.
  await gateway.metricIs('users_away', 0, 180_000);
  await broker.queuesAre(0);
  assert.ok(rss < 2 * (baseline ?? rss) + 20, `memory grew: ${tally.rssMiB} MiB`);
  assert.doesNotMatch(gateway.logs, /panicked/);
});
