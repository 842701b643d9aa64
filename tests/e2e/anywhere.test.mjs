// Recovery at any instance, in the topology `stream`: a client goes on where it was, whatever
// instance it comes to, or is refused and gets nothing of what it missed. Publishers wait for
// RabbitMQ's confirmation.

import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, test } from 'node:test';

import { io as io46 } from 'socket.io-client-4.6';

import { ConfirmingPublisher } from './cluster.mjs';
import { Broker, Gateway, Network, Publisher, Tab, token, until } from './harness.mjs';

const STREAM = 'chat3-gateway.updates';

/** How clients connect. */
const CLIENTS = {
  'websocket, 4.8': { transports: ['websocket'] },
  'websocket, 4.6': { transports: ['websocket'], connect: io46 },
  'polling, 4.8': { transports: ['polling'] },
  'polling with upgrade, 4.6': { connect: io46 },
};

let broker;

before(async () => {
  broker = await Broker.start();
  // Declares the exchange.
  await (await Publisher.connect(broker)).close();
});

const start = (env = {}, options = {}) => Gateway.start(options.broker ?? broker, { env: { RABBITMQ_TOPOLOGY: 'stream', ...env }, ...options });

/** One address for several gateways: connections go to the one that was chosen last. */
class Front {
  static async of(gateway) {
    const front = new Front();
    front.links = new Set();
    front.gateway = gateway;
    const server = net.createServer((near) => {
      const far = net.connect(Number(new URL(front.gateway.url).port), '127.0.0.1');
      for (const [socket, other] of [[near, far], [far, near]]) {
        socket.on('error', () => {});
        socket.on('close', () => other.destroy());
        socket.pipe(other);
      }
      front.links.add(near);
      near.on('close', () => front.links.delete(near));
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    front.url = `http://127.0.0.1:${server.address().port}`;
    after(() => {
      front.reset();
      server.close();
    });
    return front;
  }

  /** Sends clients elsewhere, and breaks their connections. */
  moveTo(gateway) {
    this.gateway = gateway;
    this.reset();
  }

  reset() {
    for (const link of this.links) link.destroy();
  }
}

/** A tab of a user of its own for each kind of client. */
async function tabsAt(front, prefix, kinds = CLIENTS) {
  const entries = Object.entries(kinds).map(async ([kind, options], index) => {
    const userId = `${prefix}.${index}`;
    const tab = await Tab.open(front.gateway, userId, { url: front.url, ...options });
    return Object.assign(tab, { userId, kind });
  });
  return Promise.all(entries);
}

/** Asserts that each tab got exactly what was confirmed for it, in order. */
async function exactlyOnce(tabs, publisher) {
  const confirmed = await publisher.stop();
  for (const tab of tabs) {
    const expected = confirmed.filter(({ userId }) => userId === tab.userId).map(({ _id }) => _id);
    assert.ok(expected.length > 0);
    await tab.saw({ _id: expected.at(-1) });
    assert.deepEqual(tab.ids.filter((id) => !publisher.uncertain.has(id)), expected, tab.kind);
    assert.equal(new Set(tab.ids).size, tab.ids.length);
      // Each update has two events, whose offsets differ.
    const pairs = tab.events.filter(({ event }) => event !== 'recovery:offset').map(({ event, args: [{ _id, entityId }] }) => `${event} ${entityId ?? _id}`);
    const messages = tab.named('chat3:update').map(({ entityId }) => [`chat3:update ${entityId}`, `message:new ${entityId}`]);
    assert.deepEqual(pairs, messages.flat(), tab.kind);
  }
}

async function confirmedGrowBy(publisher, count) {
  const target = publisher.confirmed.length + count;
  await until(`${count} more confirmed`, () => publisher.confirmed.length >= target);
}

/** Waits until each tab has connected again, and asserts how. */
async function cameBack(tabs, recovered, connects = 2) {
  for (const tab of tabs) {
    await tab.when(`${tab.kind} is back`, () => tab.connects >= connects);
    assert.equal(tab.recovered.at(-1), recovered, tab.kind);
  }
}

test('a client that comes to another instance goes on where it was', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_move');
  const ids = tabs.map((tab) => tab.socket.id);
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  for (const [move, gateway] of [two, one, two].entries()) {
    await confirmedGrowBy(publisher, 60);
    front.moveTo(gateway);
    await cameBack(tabs, true, move + 2);
  }
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce(tabs, publisher);
  assert.deepEqual(tabs.map((tab) => tab.socket.id), ids);
  assert.equal(await two.metric('recoveries_total{outcome="recovered"}'), 2 * tabs.length);
});

test('an instance is killed', async () => {
  const [one, two] = await Promise.all([start(), start()]);
  const front = await Front.of(one);
  const tabs = await tabsAt(front, 'usr_killed');
  const publisher = await ConfirmingPublisher.start([broker], tabs.map(({ userId }) => userId));
  await confirmedGrowBy(publisher, 60);
  front.gateway = two;
  await one.kill();
  await cameBack(tabs, true);
  await confirmedGrowBy(publisher, 60);
  await exactlyOnce(tabs, publisher);
});
