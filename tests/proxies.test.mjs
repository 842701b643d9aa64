// The proxies of examples/proxies, unchanged except for names, ports and
// certificates, in front of two gateways. Run by `make proxies`.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, freePort, run, temporaryFolder, testsFolder, token } from './e2e/harness.mjs';

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
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'key.pem', '-out', 'cert.pem', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  await run('openssl', args, { cwd: folder });
  writeFileSync(path.join(folder, 'both.pem'), readFileSync(path.join(folder, 'cert.pem')) + readFileSync(path.join(folder, 'key.pem')));
});

after(() => {
  for (const proxy of proxies) proxy.kill('SIGKILL');
});

/** The example, with the names, ports and certificates of the test. */
function configuration(name, port) {
  const [a, b] = gateways.map(({ url }) => new URL(url).host);
  let text = readFileSync(path.join(testsFolder, '..', 'examples', 'proxies', name), 'utf8');
  const replaced = [
    ['127.0.0.1:3001', a], ['127.0.0.1:3002', b],
    ['/etc/ssl/chat.example.com.pem', path.join(folder, 'cert.pem')],
    ['/etc/ssl/chat.example.com.key', path.join(folder, 'key.pem')],
    ['/etc/ssl/chat.example.com.both.pem', path.join(folder, 'both.pem')],
    ['listen 443 ssl', `listen 127.0.0.1:${port} ssl`],
    ['bind :443', `bind 127.0.0.1:${port}`],
    ['chat.example.com {', `https://localhost:${port} {\n\tbind 127.0.0.1\n\ttls ${folder}/cert.pem ${folder}/key.pem`],
    ['server_name chat.example.com', 'server_name localhost'],
    // All its files are in this folder, and it has no other listener.
    ['events {}', `daemon off; pid ${folder}/nginx.pid; error_log stderr; events {}`],
    ['http {', `http { access_log off; ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${folder}/${kind};`).join(' ')}`],
  ];
  for (const [from, to] of replaced) text = text.replace(from, to);
  if (name === 'Caddyfile') text = `{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n${text}`;
  const file = path.join(folder, name);
  writeFileSync(file, text);
  return file;
}

for (const [name, file, check, start] of [
  ['nginx', 'nginx.conf', ['nginx', '-t', '-c'], ['nginx', '-c']],
  ['HAProxy', 'haproxy.cfg', ['haproxy', '-c', '-f'], ['haproxy', '-db', '-f']],
  ['Caddy', 'Caddyfile', ['caddy', 'validate', '--adapter', 'caddyfile', '--config'], ['caddy', 'run', '--adapter', 'caddyfile', '--config']],
]) {
  test(`${name} passes websockets and polling on, and leaves quiet ones alone`, { concurrency: true }, async () => {
    const port = await freePort();
    const conf = configuration(file, port);
    const env = { PATH: `${process.env.PATH}:/usr/sbin`, HOME: folder };
    await run(check[0], [...check.slice(1), conf], { env });
    const proxy = spawn(start[0], [...start.slice(1), conf], { env, stdio: 'ignore' });
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
