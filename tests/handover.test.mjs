// How long clients are away when their gateway goes: with each proxy, by a stop and by
// SIGKILL, after which nothing answers at the gateway's address, as with a container or a
// machine. Run by `make proxies` in a network namespace of its own, in which this file
// takes such addresses away.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import http from 'node:http';
import https from 'node:https';
import { networkInterfaces } from 'node:os';
import { after, before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, freePort, run, temporaryFolder, token, until } from './e2e/harness.mjs';
import { makeCertificate, startProxy } from './proxies.mjs';

const isPrivate = Object.keys(networkInterfaces()).every((name) => name === 'lo');
const skip = !isPrivate && 'needs a network namespace of its own: unshare --map-root-user --net (make proxies)';

/** The instances that the configurations name. */
const INSTANCES = 3;
/** A third of them uses each transport. */
const CLIENTS = 90;
/** After it, the proxy's checks have failed twice. */
const SHUTDOWN_DELAY = '3s';
/** A client waits 0.5 to 1.5 s before its first try, so it is back within two unless that fails. */
const BACK_AT_ONCE_MS = 2000;
/** Long enough for a try that waits for the proxy's `timeout connect` of 1 s. */
const BACK_MS = 4000;
/** What a busy machine may add. */
const MARGIN_MS = 500;
/** From the end of the old connection to the last client's return, and a margin. */
const SETTLED_MS = 20_000;

let broker;
let publisher;
let folder;
const ip = (...args) => run('ip', args);
const children = [];

before(async () => {
  if (skip) return;
  // Addresses without an owner are looked for on this link, where nobody answers.
  execFileSync('ip', ['link', 'add', 'near', 'type', 'veth', 'peer', 'name', 'far']);
  for (const end of ['near', 'far']) await ip('link', 'set', end, 'up');
  await ip('addr', 'add', '10.89.0.254/24', 'dev', 'near');
  folder = temporaryFolder();
  await makeCertificate(folder);
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

after(() => {
  for (const child of children) child.kill('SIGKILL');
});

/** Starts a gateway at an address that goes with it. */
async function startAt(address) {
  await ip('addr', 'replace', `${address}/32`, 'dev', 'lo');
  const gateway = await Gateway.start(broker, { connected: false, env: { HOST: address, PORT: '3001', SHUTDOWN_DELAY } });
  gateway.url = `http://${address}:3001`;
  await gateway.isConnected();
  return gateway;
}

/** A client of its own address, with the cookie that a browser has by now, and the times of what happens to it. */
function connect(url, i) {
  const transports = [['websocket'], ['polling', 'websocket'], ['polling']][i % 3];
  const { Agent } = url.startsWith('https') ? https : http;
  const agent = new Agent({ localAddress: `127.0.1.${i + 1}`, rejectUnauthorized: false, keepAlive: true });
  const cookie = `chat3_instance=${1 + (Math.floor(i / 3) % INSTANCES)}`;
  // The client's own defaults, which the tests' tabs shorten.
  const patience = { reconnectionDelay: 1000, reconnectionDelayMax: 5000 };
  const tab = new Tab(null, token(`usr_${i}`), { url, transports, agent, rejectUnauthorized: false, extraHeaders: { cookie }, ...patience });
  tab.lost = [];
  tab.back = [];
  tab.socket.on('disconnect', () => tab.lost.push(Date.now()));
  tab.tries = 0;
  tab.socket.io.on('reconnect_attempt', () => (tab.tries += 1));
  tab.socket.on('connect', () => tab.back.push(Date.now()));
  return tab;
}

for (const name of ['HAProxy of compose.scale.yml', 'HAProxy', 'nginx', 'Caddy']) {
  for (const signal of ['SIGTERM', 'SIGKILL']) {
    // nginx does not ask gateways whether they are ready: it learns of a gateway's end by the first connection that fails.
    const isKnown = signal === 'SIGTERM' && name !== 'nginx';
    const limit = isKnown ? BACK_AT_ONCE_MS : BACK_MS;
    test(`${name}: all clients of a gateway that ends by ${signal} are back within ${limit} ms`, { skip }, async (t) => {
      const addresses = Array.from({ length: name.includes('compose') ? INSTANCES : 2 }, (_, i) => `10.89.0.${i + 1}`);
      const gateways = [];
      t.after(() => Promise.all(gateways.map((gateway) => gateway.kill())));
      for (const address of addresses) gateways.push(await startAt(address));
      const port = await freePort();
      const proxy = await startProxy(name, port, addresses.map((address) => `${address}:3001`), folder);
      children.push(proxy);
      t.after(() => proxy.kill('SIGKILL'));
      const url = name.includes('compose') ? `http://127.0.0.1:${port}` : `https://localhost:${port}`;
      const answers = () => run('curl', ['-skf', '-m', '2', `${url}/socket.io/?EIO=4&transport=polling`]).then(() => true, () => false);
      await until('the proxy serves', answers);
      const tabs = Array.from({ length: CLIENTS }, (_, i) => connect(url, i));
      for (const tab of tabs) await tab.when('connected', () => tab.connects > 0);
      const [going] = gateways;
      const moving = await going.metric('sockets');
      assert.ok(moving > CLIENTS / INSTANCES / 2 && moving < CLIENTS, `${moving} of ${CLIENTS}`);

      await going.terminate(signal);
      await ip('addr', 'del', `${addresses[0]}/32`, 'dev', 'lo');
      const gone = () => tabs.filter((tab) => tab.disconnects.length > 0);
      await until('all have lost their connection', () => gone().length >= moving);
      const away = gone();
      for (const tab of away) await tab.when('connected again', () => tab.connects > tab.disconnects.length, SETTLED_MS);
      const absences = away.map((tab) => tab.back[1] - tab.lost[0]).sort((a, b) => a - b);
      t.diagnostic(`${moving} clients away for ${absences[0]} to ${absences.at(-1)} ms, half of them for at most ${absences[absences.length >> 1]} ms`);
      // The clients of the others noticed nothing, and nobody was lost twice.
      assert.deepEqual([gone().length, away.filter((tab) => tab.lost.length > 1).length], [moving, 0]);
      assert.ok(absences.at(-1) <= limit + MARGIN_MS, `${absences.at(-1)} ms`);
      if (isKnown) assert.deepEqual(away.filter((tab) => tab.tries > 1), []);
      for (const [i, tab] of tabs.entries()) await tab.saw(publisher.update(`usr_${i}`));
    });
  }
}
