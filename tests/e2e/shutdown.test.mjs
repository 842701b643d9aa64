// SIGTERM and SIGINT end the gateway in order; its clients come back by themselves.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, freePort, until } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

for (const signal of ['SIGTERM', 'SIGINT']) {
  test(`${signal} closes transports, not sockets: clients reconnect to the next gateway by themselves`, async () => {
    const port = await freePort();
    const first = await Gateway.start(broker, { env: { PORT: String(port) } });
    const tabs = [
      await Tab.open(first, 'usr_a'),
      await Tab.open(first, 'usr_b', { transports: ['websocket'] }),
      await Tab.open(first, 'usr_c', { transports: ['polling'] }),
    ];
    const exit = await first.terminate(signal);
    assert.deepEqual([exit.code, exit.signal], [0, null]);
    assert.ok(exit.ms < 10_000, `${exit.ms} ms`);
    for (const tab of tabs) {
      await tab.when('disconnected', () => tab.disconnects.length > 0);
      assert.ok(['transport close', 'transport error'].includes(tab.disconnects[0]), tab.disconnects[0]);
    }
    await broker.queuesAre(0);
    const second = await Gateway.start(broker, { env: { PORT: String(port) } });
    for (const [i, user] of ['usr_a', 'usr_b', 'usr_c'].entries()) {
      await tabs[i].when('reconnected', () => tabs[i].connects === 2);
      await tabs[i].saw(publisher.update(user));
    }
    await second.terminate();
  });
}

test('what was consumed before SIGTERM reaches the sockets', async () => {
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_flush', { reconnection: false });
  const published = Array.from({ length: 1000 }, () => publisher.update('usr_flush')._id);
  await tab.when('the first update', () => tab.ids.length > 0);
  const { code } = await gateway.terminate();
  assert.equal(code, 0);
  await tab.when('disconnected', () => tab.disconnects.length > 0);
  // Without holes; what the broker had not handed out yet is left to it.
  assert.deepEqual(tab.ids, published.slice(0, tab.ids.length));
});

test('without a broker it exits as well', async () => {
  const gateway = await Gateway.start(await Broker.absent());
  await Tab.open(gateway, 'usr_a');
  const exit = await gateway.terminate();
  assert.equal(exit.code, 0);
  assert.ok(exit.ms < 10_000);
});

test('while draining it is not ready, and handshakes are turned away', async () => {
  const gateway = await Gateway.start(broker);
  assert.equal((await gateway.get('/ready')).status, 200);
  // A frozen broker keeps the drain waiting long enough to look at it.
  await Tab.open(gateway, 'usr_draining');
  broker.child.kill('SIGSTOP');
  try {
    const exit = gateway.terminate();
    await until('draining', async () => (await gateway.get('/ready')).status === 503);
    const handshake = await gateway.get('/socket.io/?EIO=4&transport=polling');
    assert.equal(handshake.status, 503);
    assert.equal((await gateway.get('/health')).status, 200);
    const { code, ms } = await exit;
    assert.equal(code, 0);
    assert.ok(ms < 10_500, `${ms} ms`);
  } finally {
    broker.child.kill('SIGCONT');
  }
});

test('a second signal ends it at once', async () => {
  const gateway = await Gateway.start(broker);
  await Tab.open(gateway, 'usr_twice');
  broker.child.kill('SIGSTOP');
  try {
    const exit = gateway.terminate();
    await gateway.logged(/Shutting down/);
    // Twice within 300 ms counts once: here time itself is under test.
    await new Promise((resolve) => setTimeout(resolve, 400));
    gateway.child.kill('SIGTERM');
    const { code, ms } = await exit;
    assert.equal(code, 130);
    assert.ok(ms < 2000, `${ms} ms`);
  } finally {
    broker.child.kill('SIGCONT');
  }
});
