// The benchmark works: its driver, load generator, servers and report, with small
// numbers. A server that loses updates is not reported as one that delivers them.

import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';

import { Figures } from '../bench/figures.mjs';
import { Load } from '../bench/load.mjs';
import { startServer } from '../bench/servers.mjs';
import { declareExchange, turn } from '../bench/turn.mjs';
import { Broker, Network, Publisher, Tab, run, temporaryFolder, testsFolder, until } from './harness.mjs';

const scenario = {
  users: 20,
  socketsPerUser: 2,
  phases: ['connect', 'idle:1', 'rate:200:1', 'saturate:1', 'burst:500', 'settle:1', 'churn:20:1'],
};

describe('turns', () => {
  let broker;
  const turns = [];
  before(async () => {
    broker = await Broker.start();
    await declareExchange(broker);
  });
  const take = async (name, { phases } = scenario) => {
    const record = { scenario: 'A', repeat: 1, ...await turn(name, { ...scenario, phases }, broker) };
    turns.push(record);
    return record;
  };

  for (const name of ['gateway per-user', 'node', 'ceiling per-user']) {
    test(`${name} delivers all, once, in order`, async () => {
      const record = await take(name);
      const figures = new Figures([record]);
      assert.equal(figures.verdict('A', name), 'all', JSON.stringify(record));
      assert.deepEqual(record.phases.map(({ spec }) => spec), scenario.phases);
      assert.equal(figures.median('A', name, 'rate:200', 'updates'), 200);
      assert.equal(figures.median('A', name, 'burst', 'events'), 500 * 2 * scenario.socketsPerUser);
      for (const [phase, field] of [
        ['connect', 'subscribed_ms'], ['idle', 'kb_per_socket'], ['rate:200', 'latency_us.p99'],
        ['saturate', 'per_second'], ['saturate', 'server_cpu_us_per_update'], ['saturate', 'broker_cpu_us_per_update'],
        ['settle', 'server_rss_kb'], ['churn', 'churn_connects'],
      ]) {
        // The ceiling needs so little for 40 sockets that it may not be a single page.
        const least = name.startsWith('ceiling') && field === 'kb_per_socket' ? -Infinity : 0;
        const value = figures.median('A', name, phase, field);
        assert.ok(value !== null && value > least, `${phase} ${field}: ${JSON.stringify(record)}`);
      }
    });
  }

  test('a server that swallows every tenth event is reported as losing', async () => {
    const name = 'ceiling that drops';
    const record = await take(name, { phases: ['connect', 'rate:200:1'] });
    const lost = record.phases.at(-1).lost;
    // A tenth of 200 updates, two sockets, two events.
    assert.ok(lost >= 70 && lost <= 90, JSON.stringify(record));
    assert.match(new Figures([record]).verdict('A', name), /\*\*lost \d+\*\*/);
  });

  test('updates of users elsewhere are counted, and those of users here all arrive', async () => {
    const name = 'gateway stream';
    const record = await take(name, { phases: ['connect', 'foreign:1'] });
    assert.equal(new Figures([record]).verdict('A', name), 'all', JSON.stringify(record));
    const { elsewhere, updates, server_cpu_us_per_update: cpu } = record.phases.at(-1);
    assert.ok(elsewhere === 99 * updates && updates > 10, JSON.stringify(record));
    assert.ok(cpu > 0, JSON.stringify(record));
    const leftOver = await broker.ctl('list_queues', '--no-table-headers', 'name');
    assert.equal(leftOver.trim(), '');
  });

  test('a turn that fails says where', async () => {
    const record = await turn('ceiling shared', { users: 2, phases: ['connect', 'nonsense:1'] }, broker);
    assert.match(record.failure, /the load generator exited with 2: nonsense:1/);
    assert.deepEqual(record.phases, []);
  });

  // When all of them have ended.
  after(async () => {
    const file = path.join(temporaryFolder(), 'results.json');
    writeFileSync(file, JSON.stringify({ host: { cores: 2, load: '0.00' }, turns }));
    const { stdout } = await run(process.execPath, [path.join(testsFolder, 'bench', 'report.mjs'), file]);
    assert.match(stdout, /\| node \|.*\| all \|/);
    assert.match(stdout, /\| ceiling that drops \|.*\*\*lost \d+\*\*/);
    assert.match(stdout, /CPU per update at saturation ÷ ceiling \| ≤ 1\.3 \| (\*\*)?[\d.]+\1 \|/);
  });
});

describe('sockets that come back', () => {
  let broker;
  before(async () => {
    broker = await Broker.start();
    await declareExchange(broker);
  });

  /** What 20 users see of `happens`, while 200 updates a second are published. */
  const seen = async (server, happens) => {
    const load = new Load({ ...server, broker, users: 20, backoff: '100:500', phases: ['join', 'restarts:200'] });
    try {
      await load.next();
      assert.ok((await load.next()).waiting);
      await happens(load);
      load.tell('end');
      return await load.next();
    } finally {
      await load.stop();
    }
  };
  const pause = () => new Promise((resolve) => setTimeout(resolve, 500));

  test('cut connections are resumed, and nothing is missing or doubled', async () => {
    const server = await startServer('gateway firehose', broker);
    const network = await Network.to(server);
    const figures = await seen({ url: network.url, pid: server.pid }, async () => {
      for (let cut = 0; cut < 3; cut += 1) {
        await pause();
        network.cut();
        await pause();
        network.restore();
        await pause();
      }
    });
    await server.stop();
    const { losses, recovered, refetched, skipped, away, lost, doubled, misordered } = figures;
    assert.deepEqual({ refetched, skipped, away, lost, doubled, misordered }, { refetched: 0, skipped: 0, away: 0, lost: 0, doubled: 0, misordered: 0 });
    assert.ok(losses >= 60 && recovered === losses, JSON.stringify(figures));
    assert.ok(figures.updates > 500 && figures.back_ms.p50 >= 400, JSON.stringify(figures));
  });

  test('a server without recovery makes them refetch', async () => {
    const forgetful = await startServer('node', broker);
    const network = await Network.to(forgetful);
    const { losses, refetched, skipped } = await seen({ url: network.url, pid: forgetful.pid }, async () => {
      network.cut();
      await pause();
      network.restore();
      await pause();
    });
    await forgetful.stop();
    assert.ok(losses === 20 && refetched === losses && skipped > 0, JSON.stringify({ losses, refetched, skipped }));
  });
});

test('the Node reference serves tabs that come and go, and comes back after the broker', async () => {
  const broker = await Broker.start();
  let publisher = await Publisher.connect(broker);
  const server = await startServer('node', broker);
  after(() => server.stop());
  const seen = async (tab) => {
    const count = tab.events.length;
    // The subscription comes some time after the connect, as in the original.
    await until('an update', () => {
      publisher.update('usr_alice');
      return tab.events.length >= count + 2;
    });
    assert.deepEqual(tab.events.slice(0, 2).map(({ event }) => event), ['chat3:update', 'message:new']);
    assert.deepEqual(tab.events[0].args[0].data, tab.events[1].args[0]);
  };
  for (let i = 0; i < 50; i += 1) {
    const tab = await Tab.open(server, 'usr_alice');
    tab.close();
  }
  const tab = await Tab.open(server, 'usr_alice');
  const stranger = await Tab.open(server, 'usr_bob');
  await seen(tab);
  const refused = new Tab(server, 'no token');
  assert.match(await refused.refused(), /jwt malformed/);
  await broker.kill();
  await broker.start();
  publisher = await Publisher.connect(broker);
  tab.events.length = 0;
  await seen(tab);
  assert.deepEqual(stranger.events, []);
  assert.equal(tab.connects, 1);
});
