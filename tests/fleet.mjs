// Restarts under load, with the load generator's sockets, which come back as those of
// socket.io-client do. Prints figures as JSON and whether they are as they must be.
//
//   rolling  three instances behind HAProxy are restarted one after the other, with 3,000
//            sockets: everything once and in order, 99.9 % recovered.
//   crash    the one instance of 10,000 users is killed and started again: all are back and
//            recovered within 15 s of its port being there.
//
//   node fleet.mjs     FLEET_SCENARIOS=rolling,crash FLEET_TOPOLOGIES=stream,firehose
//                      FLEET_SOCKETS= FLEET_RATE=500

import { Load } from './bench/load.mjs';
import { accepts, gatewayEnvironment, spawnHere } from './bench/servers.mjs';
import { declareExchange } from './bench/turn.mjs';
import { haproxy } from './chaos/haproxy.mjs';
import { Broker, freePort, gatewayBinary, until } from './e2e/harness.mjs';

const { FLEET_SCENARIOS = 'rolling,crash', FLEET_TOPOLOGIES = 'stream', FLEET_SOCKETS, FLEET_RATE = '500' } = process.env;

/** The defaults of `socket.io-client`: the waits before it tries again. */
const BACKOFF = '1000:5000';

/** Between two restarts of a rolling one, after the instance is ready. */
const PAUSE_MS = 5_000;

/** How long the updates flow before the first restart. */
const BEFORE_MS = 5_000;

const SCENARIOS = {
  rolling: {
    sockets: 3_000,
    instances: 3,
    restart: async (instances, up) => {
      for (const instance of instances) {
        await instance.end('SIGTERM');
        await instance.begin();
        await up();
        await until('ready', () => instance.isReady(), 60_000);
        await pause(PAUSE_MS);
      }
    },
    goals: ({ lost, doubled, misordered, foreign, skipped, away, losses, recovered }) => ({
      'everything once and in order': lost + doubled + misordered + foreign === 0,
      'nobody refetches': skipped === 0,
      'all are back': away === 0,
      'recovered ≥ 99.9 %': losses > 0 && recovered / losses >= 0.999,
    }),
  },
  crash: {
    sockets: 10_000,
    instances: 1,
    restart: async ([instance], up) => {
      await instance.end('SIGKILL');
      await instance.begin();
      await up();
    },
    goals: ({ lost, doubled, misordered, foreign, away, losses, recovered, all_back_after_up_ms: back }) => ({
      'everything once and in order': lost + doubled + misordered + foreign === 0,
      'all are back within 15 s of the port': away === 0 && back !== null && back <= 15_000,
      'all are recovered': losses > 0 && recovered === losses,
    }),
  },
};

async function take(name, topology) {
  const { instances: count, restart, goals, sockets: usual } = SCENARIOS[name];
  const sockets = Number(FLEET_SOCKETS || usual);
  const instances = await Promise.all(Array.from({ length: count }, () => Instance.start(topology)));
  const proxy = count > 1 ? await haproxy(instances.map(({ url }) => url)) : null;
  const load = new Load({ url: proxy?.url ?? instances[0].url, pid: instances[0].child.pid, broker, users: sockets, backoff: BACKOFF, phases: ['join', `restarts:${FLEET_RATE}`] });
  try {
    const connected = await load.next();
    await load.next();
    await pause(BEFORE_MS);
    await restart(instances, () => load.tell('up'));
    load.tell('end');
    const figures = await load.next();
    return { scenario: name, topology, sockets, connected_ms: connected.connected_ms, ...figures, goals: goals(figures) };
  } finally {
    await load.stop();
    await proxy?.stop();
    for (const instance of instances) await instance.end('SIGKILL');
  }
}

/** A gateway that keeps its port. */
class Instance {
  static async start(topology) {
    const instance = new Instance();
    instance.port = await freePort();
    instance.url = `http://127.0.0.1:${instance.port}`;
    instance.env = { PATH: process.env.PATH, ...gatewayEnvironment({ broker, port: instance.port, topology }), TRUSTED_PROXIES: '127.0.0.1' };
    await instance.begin();
    await until('a connection to RabbitMQ', async () => (await fetch(`${instance.url}/health`).then((reply) => reply.json(), () => ({}))).isConnected, 30_000);
    return instance;
  }

  /** Resolves when its port is there. */
  async begin() {
    this.child = spawnHere(gatewayBinary, ['serve'], { env: this.env, stdio: ['ignore', 'inherit', 'inherit'] });
    this.exited = new Promise((resolve) => this.child.once('close', resolve));
    const { child } = this;
    await until('the port', () => {
      if (child.exitCode !== null) throw new Error(`the gateway exited with ${child.exitCode}`);
      return accepts(this.port);
    }, 30_000);
  }

  isReady() {
    return fetch(`${this.url}/ready`).then(({ ok }) => ok, () => false);
  }

  async end(signal) {
    this.child.kill(signal);
    await this.exited;
  }
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

process.exitCode = 1;
const broker = await Broker.start();
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    await broker.stop();
    process.exit(130);
  });
}
let isGood = true;
try {
  await declareExchange(broker);
  for (const name of FLEET_SCENARIOS.split(',')) {
    for (const topology of FLEET_TOPOLOGIES.split(',')) {
      const record = await take(name, topology);
      console.log(JSON.stringify(record));
      isGood &&= Object.values(record.goals).every(Boolean);
    }
  }
} finally {
  await broker.stop();
}
console.log(isGood ? 'All goals are reached.' : 'Not all goals are reached.');
process.exitCode = isGood ? 0 : 1;
