// The dashboard, looked at: two gateways and a RabbitMQ under load and trouble, the real
// Prometheus, and each panel of the dashboard drawn from what it measured. Run by
// `make dashboard`; fails if a panel has nothing to show.
//
//   node dashboard.mjs [FOLDER]     where the images go; docs/images by default

import { spawn } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { chromium } from 'playwright-core';

import { ask, page } from './dashboard/render.mjs';
import { Broker, Gateway, Network, Publisher, Tab, freePort, temporaryFolder, testsFolder, token, until } from './e2e/harness.mjs';
import { Poisoner, UNREADABLE } from './e2e/poison.mjs';

const root = path.join(testsFolder, '..');
const images = path.resolve(process.argv[2] ?? path.join(root, 'docs', 'images'));
const SCRAPE_SECONDS = 1;
/** As Grafana's $__rate_interval: four scrapes, and some more for a calm line. */
const RATE_SECONDS = 10;
const USERS = 80;
const STREAM = 'chat3-gateway.updates';

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const say = (text) => console.log(`${new Date().toISOString().slice(11, 19)} ${text}`);

const broker = await Broker.start();
let publisher = await Publisher.connect(broker);

const keys = path.join(temporaryFolder(), 'keys.json');
const jwk = { ...generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }), kid: 'a' };
writeFileSync(keys, JSON.stringify({ keys: [jwk] }));
const env = {
  RABBITMQ_TOPOLOGY: 'stream', RABBITMQ_CONTROL_EXCHANGE: 'chat3_gateway_control', ADMIN_TOKEN: 'an-admin-token-of-thirty-two-bytes', RESYNC_ON_GAP: 'true', PRESENCE_EXCHANGE: 'chat3_presence',
  JWT_JWKS: keys, JWT_JWKS_REFRESH: '10s', MAX_EVENTS_PER_SECOND: '5', RUST_LOG: 'warn,chat3_gateway=info',
};
const gateways = [await Gateway.start(broker, { env }), await Gateway.start(broker, { env })];
const networks = await Promise.all(gateways.map((gateway) => Network.to(gateway)));

const folder = temporaryFolder();
const port = await freePort();
const targets = gateways.map(({ url }) => new URL(url).host).join(', ');
const config = readFileSync(path.join(root, 'docker/prometheus/prometheus.yml'), 'utf8').replace('gateway:3001', targets)
  .replaceAll('_interval: 5s', `_interval: ${SCRAPE_SECONDS}s`);
writeFileSync(path.join(folder, 'prometheus.yml'), config);
writeFileSync(path.join(folder, 'alerts.yml'), readFileSync(path.join(root, 'docker/prometheus/alerts.yml'), 'utf8'));
const prometheus = `http://127.0.0.1:${port}`;
const server = spawn('prometheus', [
  `--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=127.0.0.1:${port}`,
], { stdio: 'ignore' });
process.once('exit', () => server.kill('SIGKILL'));
await until('Prometheus', () => fetch(`${prometheus}/-/ready`).then(({ ok }) => ok, () => false));

// Where each socket of a user comes from, and what is published all the while.
const tabs = [];
async function join(count, options = {}) {
  const from = tabs.length;
  await Promise.all(Array.from({ length: count }, (_, i) => {
    const url = networks[(from + i) % 2].url;
    const tab = new Tab(null, token(`usr_${from + i}`, {}, options.token), { url, transports: ['websocket'], reconnectionDelay: 500, reconnectionDelayMax: 2000 });
    tabs.push(tab);
    return tab.when('connected', () => tab.connects > 0);
  }));
}
const TYPES = ['message.create', 'message.create', 'message.update', 'dialog.update', 'dialog.typing', 'weather.changed'];
let published = 0;
let rate = 100;
let clock;
function publish() {
  clock = setInterval(() => {
    for (let i = 0; i < rate / 20; i += 1) {
      publisher.update(`usr_${published % USERS}`, { eventType: TYPES[published % TYPES.length] });
      published += 1;
    }
  }, 50);
}
const order = (gateway, what, body = {}) => gateway.get(`/api/${what}`, {
  method: 'POST', headers: { authorization: `Bearer ${env.ADMIN_TOKEN}` }, body: JSON.stringify(body),
});

const from = Date.now();
say('clients come, updates flow');
await join(USERS / 2);
publish();
await pause(20);
await join(USERS / 2, { token: { expiresIn: 75 } });
await pause(20);

say('more updates');
rate = 400;
await pause(20);
rate = 100;

say('clients and publishers that misbehave');
for (let i = 0; i < 20; i += 1) {
  new Tab(gateways[i % 2], i % 3 ? 'no token' : token('usr_late', {}, { expiresIn: -3600 }), { transports: ['websocket'] }).refused().catch(() => {});
  tabs[i].socket.emit('auth:refresh', { token: 'none' });
  for (const body of ['{', '', '[]']) publisher.publish(`user.usr_${i}.x`, Buffer.from(body));
  publisher.publish(`user.usr_${i}.x`, { userId: 'usr_other', tenantId: 'tnt_default', eventType: 'message.create', data: {} });
  await pause(0.5);
}
for (let i = 0; i < 200; i += 1) tabs[0].socket.emit('anything', i);
await order(gateways[0], 'users/usr_1/disconnect');
await order(gateways[1], 'users/usr_2/disconnect');
rmSync(keys);

say('connections break');
networks[0].cut();
await pause(6);
networks[0].restore();
await pause(15);

say('RabbitMQ restarts');
clearInterval(clock);
await broker.kill();
await pause(5);
await broker.start();
publisher = await Publisher.connect(broker);
publish();
await pause(20);
writeFileSync(keys, JSON.stringify({ keys: [jwk] }));

say('a message that cannot be read');
const poisoner = await Poisoner.connect(broker);
await poisoner.publish('usr_3', UNREADABLE['a message id that is not UTF-8']);
await poisoner.close();
await pause(15);

say('the stream is deleted');
await publisher.channel.deleteQueue(STREAM);
await pause(25);
clearInterval(clock);
const range = { from, to: Date.now(), stepSeconds: 1, rateSeconds: RATE_SECONDS };

const { panels } = JSON.parse(readFileSync(path.join(root, 'docker/grafana/dashboards/chat3-gateway.json'), 'utf8'));
const shown = [];
for (const panel of panels) shown.push(await ask(prometheus, panel, range));
const empty = shown.filter(({ panel, series }) => panel.type !== 'row' && series.length === 0).map(({ panel }) => panel.title);

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
const { html, width, height } = page(shown, range);
const view = await browser.newPage({ viewport: { width, height } });
await view.setContent(html);
const file = path.join(images, 'dashboard.png');
await view.screenshot({ path: file });
await browser.close();
for (const { panel, series } of shown) if (series.length) say(`${panel.title}: ${series.map(({ name, points }) => `${name || '-'} ${points.at(-1)[1].toPrecision(3)}`).join('; ')}`);
say(empty.length ? `empty: ${empty.join(', ')}` : `every panel has data: ${file}`);
process.exit(empty.length ? 1 : 0);
