// The proxies of examples/proxies, unchanged except for names, ports and
// certificates, in front of two gateways. Run by `make proxies`.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, freePort, run, temporaryFolder, token } from './e2e/harness.mjs';
import { makeCertificate, startProxy } from './proxies.mjs';

/** Longer than a ping interval (25 s) and the usual default timeouts (30 s). */
const IDLE_MS = 70_000;

let broker;
let publisher;
let gateways;
let folder;
const proxies = [];

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateways = [await Gateway.start(broker), await Gateway.start(broker)];
  folder = temporaryFolder();
  await makeCertificate(folder);
});

after(() => {
  for (const proxy of proxies) proxy.kill('SIGKILL');
});

for (const name of ['nginx', 'HAProxy', 'Caddy']) {
  test(`${name} passes websockets and polling on, and leaves quiet ones alone`, { concurrency: true }, async () => {
    const port = await freePort();
    const proxy = await startProxy(name, port, gateways.map(({ url }) => new URL(url).host), folder);
    proxies.push(proxy);
    const url = `https://localhost:${port}`;
    const tabs = [];
    for (const transports of [['websocket'], ['polling'], ['polling', 'websocket']]) {
      const tab = new Tab(null, token('usr_a'), { url, transports, rejectUnauthorized: false });
      await tab.when('connected', () => tab.connects > 0);
      tabs.push(tab);
    }
    await tabs[2].when('upgraded', () => tabs[2].socket.io.engine.transport.name === 'websocket').catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
    const update = publisher.update('usr_a');
    for (const tab of tabs) {
      await tab.saw(update);
      assert.deepEqual([tab.connects, tab.disconnects], [1, []]);
    }
    assert.deepEqual(tabs.map((tab) => tab.socket.io.engine.transport.name), ['websocket', 'polling', 'websocket']);
    for (const secret of ['/metrics', '/health', '/livez', '/readyz', '/api/stats']) {
      await assert.rejects(run('curl', ['-skf', '-m', '5', url + secret]), secret);
    }
    for (const tab of tabs) tab.close();
    proxy.kill('SIGTERM');
  });
}
