// What is disturbed: a cluster of RabbitMQ nodes, gateways with a network to each node and
// one to HAProxy, and HAProxy. Starts it, heals it, and collects what the gateways count.

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Cluster } from '../e2e/cluster.mjs';
import { Gateway, Network, Publisher, freePort, until } from '../e2e/harness.mjs';
import { haproxy } from './haproxy.mjs';

export const STREAM = 'chat3-gateway.updates';

/** A frozen gateway answers nothing. */
const SCRAPE_MS = 500;

/** How often the counts are read, since a killed gateway takes what came later with it. */
const SCRAPE_EVERY_MS = 2_000;

/** A node that comes back reads its streams first. */
const NODE_BACK_MS = 120_000;

/** The counters that the verdict adds up over all processes. */
const COUNTED = /^chat3_gateway_(recoveries_total|recoveries_lost_total|stream_\w+_total|updates_rejected_total|updates_received_total|rabbitmq_reconnects_total|connects_total|connects_refused_total|slow_sockets_total|messages_unreadable_total)(\{[^}]*\})? (\d+)/gm;

export class Site {
  gateways = [];
  isStopped = false;

  /** Must be stopped even if this fails. */
  async start({ gateways = 3, nodes = 3, topology = 'stream', env = {} }) {
    this.cluster = await Cluster.start({ size: nodes });
    // Declares the exchange.
    await (await Publisher.connect(this.cluster.nodes[0])).close();
    for (let i = 0; i < gateways; i += 1) this.gateways.push(await Instance.start(this.cluster, { name: `gateway-${i + 1}`, topology, env }));
    this.proxy = await haproxy(this.gateways.map(({ door }) => door.url));
    this.scraping = setInterval(() => this.gateways.forEach((gateway) => gateway.scrape()), SCRAPE_EVERY_MS);
  }

  get url() {
    return this.proxy.url;
  }

  /** Kills a node and starts it again; resolves when it has its part of the stream. */
  async restartNode(node, downMs, signal = 'SIGKILL') {
    node.child.kill(signal);
    await ended(node.child, signal === 'SIGKILL' ? 0 : 30_000);
    await new Promise((resolve) => setTimeout(resolve, downMs));
    if (this.isStopped) return;
    await node.start();
    await this.wholeCluster();
  }

  /** Waits until all nodes run, and the stream, if there is one, has all of its replicas. */
  async wholeCluster() {
    const size = this.cluster.nodes.length;
    await until('a whole cluster', async () => (await this.cluster.running().catch(() => [])).length === size, NODE_BACK_MS);
    let queues = [];
    const hasAll = ({ type, members, online }) => type !== 'stream' || (members.length === size && online.length === size);
    await until('all replicas of the stream', async () => {
      const listing = await this.cluster.nodes[0].ctl('list_queues', '--no-table-headers', '--formatter', 'json', 'name', 'type', 'leader', 'members', 'online').catch(() => '[]');
      queues = JSON.parse(listing);
      return queues.every(hasAll);
    }, NODE_BACK_MS).catch((error) => {
      throw new Error(`${error.message}: ${JSON.stringify(queues)}`);
    });
  }

  /** The gateways' counters, over all of their processes. */
  async counts() {
    const sums = {};
    for (const gateway of this.gateways) {
      await gateway.scrape();
      for (const [name, count] of Object.entries(gateway.counts)) sums[name] = (sums[name] ?? 0) + count;
    }
    return sums;
  }

  /** What must never happen to a gateway, in words. */
  get complaints() {
    return this.gateways.flatMap(({ complaints }) => complaints);
  }

  /** The gateways' warnings, counted. */
  get warnings() {
    const sums = {};
    for (const { warnings } of this.gateways) for (const [kind, count] of Object.entries(warnings)) sums[kind] = (sums[kind] ?? 0) + count;
    return sums;
  }

  /** Writes what the processes said into `folder`. */
  write(folder) {
    mkdirSync(folder, { recursive: true });
    for (const { name, logs } of this.gateways) writeFileSync(path.join(folder, `${name}.log`), logs);
  }

  async stop() {
    this.isStopped = true;
    clearInterval(this.scraping);
    for (const gateway of this.gateways) await gateway.end();
    await this.proxy?.stop();
    for (const node of this.cluster?.nodes ?? []) await node.stop();
  }
}

/** One gateway with a port that it keeps, over all of its processes. */
class Instance {
  static async start(cluster, { name, topology, env }) {
    const instance = new Instance();
    Object.assign(instance, { name, cluster, earlierLogs: '', counts: {}, complaints: [], warnings: {}, process: null });
    instance.links = [];
    for (const node of cluster.nodes) instance.links.push(await Network.to({ url: `http://127.0.0.1:${node.port}` }));
    const urls = instance.links.map(({ url }, i) => cluster.nodes[i].url.replace(/:\d+\/$/, `:${new URL(url).port}/`));
    instance.port = await freePort();
    instance.door = await Network.to({ url: `http://127.0.0.1:${instance.port}` });
    instance.env = {
      RABBITMQ_URL: urls.join(','), RABBITMQ_TOPOLOGY: topology, RABBITMQ_RECONNECT_DELAY: '500ms', RABBITMQ_HEARTBEAT: '5s',
      PORT: String(instance.port), INSTANCE_NAME: name, TRUSTED_PROXIES: '127.0.0.1', ...env,
    };
    await instance.begin();
    return instance;
  }

  async begin() {
    if (this.isEnded) return;
    this.process = await Gateway.start(null, { env: this.env, cwd: this.process?.folder });
    this.last = {};
  }

  get logs() {
    return this.earlierLogs + (this.process?.logs ?? '');
  }

  signal(name) {
    this.process.child.kill(name);
  }

  /** Reads the counters, and adds what grew since the last look. */
  async scrape() {
    const { process } = this;
    if (!process || process.isClosed) return;
    const text = await process.get('/metrics', { signal: AbortSignal.timeout(SCRAPE_MS) }).then((answer) => answer.text(), () => '');
    if (process !== this.process) return;
    for (const [, name, labels = '', value] of text.matchAll(COUNTED)) {
      const key = name + labels;
      this.counts[key] = (this.counts[key] ?? 0) + Number(value) - (this.last[key] ?? 0);
      this.last[key] = Number(value);
    }
  }

  async kill() {
    await this.scrape();
    await this.process.kill();
    this.note();
  }

  /** Stops it as an operator does. */
  async terminate() {
    await this.scrape();
    const { code, ms } = await this.process.terminate();
    if (code !== 0) this.complaints.push(`${this.name} ended with ${code} after SIGTERM and ${ms} ms`);
    this.note();
  }

  note() {
    const { logs } = this.process;
    for (const [, message] of logs.matchAll(/ (?:WARN|ERROR) (?:[\w:]+: )?(.{0,60})/g)) {
      const kind = message.replace(/ ?[\w.]+=.*/, '').trim();
      this.warnings[kind] = (this.warnings[kind] ?? 0) + 1;
    }
    for (const [line] of logs.matchAll(/^.*panicked.*$/gm)) this.complaints.push(`${this.name}: ${line}`);
    this.earlierLogs += `${logs}\n---- the process ends here ----\n`;
    this.process.logs = '';
  }

  /** Undoes what may still hold it up. */
  heal() {
    for (const network of [...this.links, this.door]) network.restore();
    this.signal('SIGCONT');
  }

  async end() {
    this.isEnded = true;
    if (this.process && !this.process.isClosed) {
      this.signal('SIGCONT');
      await this.process.kill();
    }
    if (this.process?.logs) this.note();
    for (const network of [...this.links, this.door]) {
      network.cut();
      network.server.close();
    }
  }
}

/** The end of a child; after `patienceMs` it is killed. */
async function ended(child, patienceMs) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const timer = patienceMs ? setTimeout(() => child.kill('SIGKILL'), patienceMs) : null;
  await new Promise((resolve) => child.once('exit', resolve));
  clearTimeout(timer);
}
