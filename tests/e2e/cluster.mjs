// A cluster of RabbitMQ nodes on loopback, each of which a test can kill and start
// again, and a publisher that knows what RabbitMQ has confirmed.

import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { after } from 'node:test';

import amqplib from 'amqplib';

import { Broker, EXCHANGE, anUpdate, freePort, until } from './harness.mjs';

/** Shared by the nodes; otherwise each node makes a different one. */
const COOKIE = 'CHAT3GATEWAYTESTS';

/** A message for a stream that has no leader is never confirmed. */
const CONFIRMED_WITHIN_MS = 3000;

/** How long to wait between two attempts to publish while no node takes any. */
const PAUSE_MS = 50;

/** Three nodes that know each other through one port mapper. */
export class Cluster {
  static async start({ size = 3 } = {}) {
    const cluster = new Cluster();
    const env = { EPMD_PORT: String(await freePort()) };
    cluster.nodes = [];
    for (let i = 0; i < size; i += 1) {
      const node = await Broker.absent({ env });
      node.name = `chat3-gateway-${node.port}@localhost`;
      writeFileSync(path.join(node.folder, '.erlang.cookie'), COOKIE, { mode: 0o400 });
      cluster.nodes.push(node);
    }
    const members = cluster.nodes.map(({ name }, i) => `cluster_formation.classic_config.nodes.${i + 1} = ${name}\n`);
    const conf = `cluster_formation.peer_discovery_backend = classic_config\n${members.join('')}`;
    for (const node of cluster.nodes) writeFileSync(path.join(node.folder, 'extra.conf'), conf);
    try {
      // The first founds the cluster, and the others join it.
      await cluster.nodes[0].start();
      await Promise.all(cluster.nodes.slice(1).map((node) => node.start()));
      await until('a whole cluster', async () => (await cluster.running()).length === size, 60_000);
    } catch (error) {
      await Promise.all(cluster.nodes.map((node) => node.stop()));
      throw error;
    }
    return cluster;
  }

  /** All nodes, for the gateway. */
  get url() {
    return this.nodes.map(({ url }) => url).join(',');
  }

  /** Whether the cluster runs, as `Gateway.start` asks. */
  get child() {
    return this.nodes[0].child;
  }

  /** The names of the nodes that run, as the first of them that is alive sees it. */
  async running() {
    const node = this.nodes.find((node) => node.isAlive);
    const status = JSON.parse(await node.ctl('cluster_status', '--formatter', 'json'));
    return status.running_nodes;
  }

  /** The node that the gateway's link is connected to. */
  async nodeOf(gateway) {
    const lines = [...gateway.logs.matchAll(/RabbitMQ connected address=\S*:(\d+)\//g)];
    const port = Number(lines.at(-1)?.[1]);
    return this.nodes.find((node) => node.port === port);
  }

  /** The node that leads `queue`. */
  async leaderOf(queue) {
    const node = this.nodes.find((node) => node.isAlive);
    const listing = await node.ctl('list_queues', '--no-table-headers', 'name', 'leader');
    const line = listing.split('\n').find((line) => line.startsWith(`${queue}\t`));
    return this.nodes.find(({ name }) => name === line?.split('\t')[1]);
  }
}

/**
 * Publishes one update after the other over whichever node is alive, and knows which of
 * them RabbitMQ has confirmed. An update whose confirmation got lost may have arrived or
 * not; the next attempt is a different update.
 */
export class ConfirmingPublisher {
  /**
   * `users` are published to in turn; `nodes` are tried in turn. At most `inFlight` updates
   * wait for their confirmations. `make` makes the updates. `onConfirmed` and `onUncertain`
   * hear of each update, once, what became of it; without them, `confirmed` has it.
   */
  static async start(nodes, users, { pauseMs = 5, inFlight = 1, make, onConfirmed, onUncertain = () => {} } = {}) {
    const publisher = new ConfirmingPublisher();
    Object.assign(publisher, { nodes, pauseMs, inFlight, onUncertain, confirmed: [], uncertain: new Set(), isStopped: false });
    publisher.make = make ?? (() => anUpdate(users[(publisher.confirmed.length + publisher.uncertain.size) % users.length]));
    publisher.onConfirmed = onConfirmed ?? ((update) => publisher.confirmed.push(update));
    const [node] = nodes;
    const connection = await amqplib.connect(node.url);
    const channel = await connection.createChannel();
    await channel.assertExchange(EXCHANGE, 'topic', { durable: true });
    await connection.close();
    publisher.running = publisher.run();
    after(() => publisher.stop());
    return publisher;
  }

  async run() {
    for (let turn = 0; !this.isStopped; turn += 1) {
      const connection = await amqplib.connect(this.nodes[turn % this.nodes.length].url, { timeout: 2000 }).catch(() => null);
      if (!connection) {
        await pause(PAUSE_MS);
        continue;
      }
      connection.on('error', () => {});
      /** What waits for its confirmation on this connection. */
      const waiting = new Map();
      let isLost = false;
      const lost = new Promise((_, reject) => connection.once('close', () => {
        isLost = true;
        reject(new Error('lost'));
        for (const { fail } of waiting.values()) fail(new Error('lost'));
      }));
      lost.catch(() => {});
      try {
        const channel = await Promise.race([connection.createConfirmChannel(), lost, late()]);
        channel.on('error', () => {});
        while (!this.isStopped && !isLost) {
          this.publish(channel, waiting);
          // One that fails ends the connection for all.
          while (waiting.size >= this.inFlight) await Promise.race([...waiting.values()].map(({ settled }) => settled));
          await pause(this.pauseMs);
        }
        await Promise.all([...waiting.values()].map(({ settled }) => settled));
      } catch {
        // The next node.
        await pause(PAUSE_MS);
      }
      const given = [...waiting.keys()];
      waiting.clear();
      given.forEach(this.onUncertain);
      // `close` throws if the connection is already closed.
      await Promise.resolve().then(() => connection.close()).catch(() => {});
    }
  }

  /** Publishes the next update, which is uncertain to arrive until it is confirmed. */
  publish(channel, waiting) {
    const update = this.make();
    this.uncertain.add(update._id);
    let fail;
    const lost = new Promise((_, reject) => (fail = reject));
    const settled = Promise.race([confirmed(channel, update), lost, late()]).then(() => {
      if (!waiting.delete(update)) return;
      this.uncertain.delete(update._id);
      this.onConfirmed(update);
    });
    settled.catch(() => {});
    waiting.set(update, { settled, fail });
  }

  /** Ends it, and returns what was confirmed, in order. */
  async stop() {
    this.isStopped = true;
    await this.running;
    return this.confirmed;
  }
}

/** Publishes an update; resolves when RabbitMQ has confirmed it. */
function confirmed(channel, update) {
  const content = Buffer.from(JSON.stringify(update));
  const options = { persistent: true, contentType: 'application/json', timestamp: Date.now() };
  return new Promise((resolve, reject) => {
    channel.publish(EXCHANGE, `user.${update.userId}.messageupdate`, content, options, (error) => (error ? reject(error) : resolve()));
  });
}

function late() {
  return new Promise((_, reject) => {
    setTimeout(() => reject(new Error('not confirmed in time')), CONFIRMED_WITHIN_MS).unref();
  });
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
