// The faults: what each kind does to the site and to the clients. What one fault does to a
// gateway or to the nodes ends before the next one does something to the same.

import { pause } from './clients.mjs';
import { STREAM } from './site.mjs';

export class Faults {
  constructor(site, clients) {
    Object.assign(this, { site, clients, isOver: false, failure: null, latest: null, done: [] });
    this.queues = new Map();
  }

  /** Begins it once its subject is free. */
  begin(fault) {
    const subject = fault.gateway !== undefined ? fault.gateway : /node|leader/.test(fault.kind) ? 'nodes' : null;
    const task = async () => {
      if (this.isOver || this.failure) return;
      // Clients that lose their connections from now on do so because of this.
      if (!fault.clients) this.latest = fault.kind;
      this.done.push({ ...fault, began: Date.now() });
      await KINDS[fault.kind](this, fault);
    };
    const all = [...this.queues.values()];
    const after = fault.kind === 'rolling-restart' ? Promise.all(all) : this.queues.get(subject) ?? Promise.resolve();
    const running = after.then(task).catch((error) => {
      this.failure ??= new Error(`${fault.kind}: ${error.message}`);
    });
    if (fault.kind === 'rolling-restart') this.site.gateways.forEach((_, i) => this.queues.set(i, running));
    else if (subject !== null) this.queues.set(subject, running);
    else this.queues.set(fault, running.finally(() => this.queues.delete(fault)));
  }

  /** Resolves when all that have begun are over. */
  async over() {
    await Promise.all(this.queues.values());
    if (this.failure) throw this.failure;
  }

  gateway({ gateway }) {
    return this.site.gateways[gateway];
  }

  async each({ clients }, what) {
    await Promise.all(clients.map((n) => what(this.clients[n])));
  }
}

const KINDS = {
  async 'gateway-kill'(faults, fault) {
    const gateway = faults.gateway(fault);
    await gateway.kill();
    await pause(fault.downMs);
    await gateway.begin();
  },
  async 'gateway-stop'(faults, fault) {
    const gateway = faults.gateway(fault);
    await gateway.terminate();
    await pause(fault.downMs);
    await gateway.begin();
  },
  async 'gateway-freeze'(faults, fault) {
    const gateway = faults.gateway(fault);
    gateway.signal('SIGSTOP');
    await pause(fault.ms);
    gateway.signal('SIGCONT');
  },
  async 'rolling-restart'(faults, { pauseMs }) {
    for (const gateway of faults.site.gateways) {
      await gateway.terminate();
      await gateway.begin();
      await pause(pauseMs);
    }
  },
  async 'links-reset'(faults, fault) {
    for (const link of faults.gateway(fault).links) link.reset();
  },
  async 'links-cut'(faults, fault) {
    const { links } = faults.gateway(fault);
    for (const link of links) link.cut();
    await pause(fault.ms);
    for (const link of links) link.restore();
  },
  async 'links-silent'(faults, fault) {
    for (const link of faults.gateway(fault).links) link.blackhole();
  },
  async 'door-reset'(faults, fault) {
    faults.gateway(fault).door.reset();
  },
  async 'door-cut'(faults, fault) {
    const { door } = faults.gateway(fault);
    door.cut();
    await pause(fault.ms);
    door.restore();
  },
  async 'door-silent'(faults, fault) {
    faults.gateway(fault).door.blackhole();
  },
  async 'leader-kill'({ site }, { downMs }) {
    // Without a stream there is no leader.
    const leader = await site.cluster.leaderOf(STREAM).catch(() => null);
    await site.restartNode(leader ?? site.cluster.nodes[0], downMs);
  },
  async 'node-kill'({ site }, { node, downMs }) {
    await site.restartNode(site.cluster.nodes[node], downMs);
  },
  async 'node-stop'({ site }, { node, downMs }) {
    await site.restartNode(site.cluster.nodes[node], downMs, 'SIGTERM');
  },
  async 'node-freeze'({ site }, { node, ms }) {
    const { child } = site.cluster.nodes[node];
    child.kill('SIGSTOP');
    await pause(ms);
    child.kill('SIGCONT');
  },
  'clients-reset': (faults, fault) => faults.each(fault, (client) => client.reset(fault.kind)),
  'clients-offline': (faults, fault) => faults.each(fault, (client) => client.offline(fault.kind, fault.ms)),
  'clients-leave': (faults, fault) => faults.each(fault, (client) => client.leave(fault.kind, fault.ms)),
  'clients-move': (faults, fault) => faults.each(fault, (client) => client.move(fault.kind)),
  'clients-torn': (faults, fault) => faults.each(fault, (client) => client.tear(fault.kind)),
};
