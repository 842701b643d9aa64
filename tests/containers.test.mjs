// The image and compose.scale.yml with the real Podman and Compose. Their bases are stand-ins
// from Debian's packages, since no registry need be reachable: what is tested is docker/, and
// not the images of others. Run by `make deploy`, in namespaces of its own.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';

import amqplib from 'amqplib';

import { buildImage, composeOf, makeBases, podman, podmanInForeground, reasonToSkip, runHealthChecks, start } from './containers/podman.mjs';
import { Tab, gatewayBinary, testsFolder, token, until } from './e2e/harness.mjs';

const skip = reasonToSkip();
const SCALE = 'compose.scale.yml';
const URL = 'http://127.0.0.1:3001';
const RABBITMQ_URL = 'amqp://rmuser:rmpassword@127.0.0.1:5672/';
/** The key in the Compose files. */
const secret = 'development-only-secret-of-32-bytes-or-more';
/** A third of them uses each transport, and a third each gateway. */
const CLIENTS = 45;
/** Containers on a busy machine start slowly. */
const SLOW_MS = 180_000;
/** See handover.test.mjs: the goals are 2 s after a stop and 4 s after SIGKILL. */
const LIMITS_MS = { stop: 2000, SIGKILL: 4000 };
const MARGIN_MS = 500;

let service;
let checks;

before(async () => {
  if (skip) return;
  service = await start();
  checks = runHealthChecks();
  await makeBases(['gcr.io/distroless/cc-debian12:nonroot', 'docker.io/library/rabbitmq:4.2.9-management', 'docker.io/library/haproxy:3.0.28']);
});

after(async () => {
  if (skip) return;
  checks.stop();
  for (const file of ['compose.yml', SCALE]) await composeOf(file, 'down', '--volumes', '--timeout', '1').catch(() => {});
  await podman('rm', '--all', '--force', '--time', '0').catch(() => {});
  service.kill('SIGKILL');
});

test('the image is built from the Dockerfile, with its labels, user and health check', { skip }, async () => {
  const args = ['--build-arg', 'VERSION=1.2.3', '--build-arg', 'REVISION=abc', '-t', 'docker.io/library/chat3-gateway', '-t', 'chat3-gateway'];
  await buildImage(gatewayBinary, ...args);
  const [{ Config: config, Healthcheck: check }] = JSON.parse(await podman('image', 'inspect', 'chat3-gateway'));
  assert.equal(config.User, '65532');
  assert.equal(config.Labels['org.opencontainers.image.version'], '1.2.3');
  assert.equal(config.Labels['org.opencontainers.image.revision'], 'abc');
  assert.deepEqual(config.Entrypoint, ['/usr/local/bin/chat3-gateway']);
  assert.deepEqual(check.Test, ['CMD', '/usr/local/bin/chat3-gateway', 'health']);
  assert.match(await podman('run', '--rm', 'chat3-gateway', '--version'), /^chat3-gateway \d/);
});

test('a container without rights is healthy at whichever port it was given', { skip }, async () => {
  const confined = ['--read-only', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges'];
  for (const settings of [['--port', '8080'], []]) {
    for (const init of [[], ['--init']]) {
      const isPossible = init.length === 0 || (await podman('info', '--format', '{{.Host.InitPath}}').catch(() => ''));
      if (!isPossible) continue;
      await podman('run', '-d', '--name', 'one', ...init, ...confined, 'chat3-gateway', 'dev', ...settings);
      await until('health', () => podman('healthcheck', 'run', 'one').then(() => true, () => false));
      await podman('stop', '--time', '15', 'one');
      assert.equal(await podman('inspect', '--format', '{{.State.ExitCode}}', 'one'), '0');
      await podman('rm', 'one');
    }
  }
});

test('the first command of README.md leads to the page with its client, and Ctrl-C ends it', { skip }, async () => {
  const [, command] = readFileSync(path.join(testsFolder, '..', 'README.md'), 'utf8').match(/^```sh\ndocker (run .*) dev\n```/m);
  await podman('tag', 'chat3-gateway', command.split(' ').at(-1));
  const container = podmanInForeground(...command.split(' '), 'dev');
  let output = '';
  for (const stream of [container.stdout, container.stderr]) stream.on('data', (data) => (output += data));
  const ended = new Promise((resolve) => container.once('exit', resolve));
  const statusOf = (file) => fetch(`${URL}${file}`).then(({ status }) => status, () => 0);
  await until('the page', async () => (await statusOf('/')) === 200);
  assert.equal(await statusOf('/dev/socket.io.js'), 200);
  container.kill('SIGINT');
  await ended;
  assert.match(output, /Page +http:\/\/localhost:3001\/[\s\S]* Stopped/);
});

/** A client with the cookie that a browser of that instance has. */
function connect(i) {
  const transports = [['websocket'], ['polling', 'websocket'], ['polling']][i % 3];
  const cookie = `chat3_instance=${1 + (Math.floor(i / 3) % 3)}`;
  const tab = new Tab(null, token(`usr_${i}`, {}, { secret }), {
    url: URL, transports, extraHeaders: { cookie }, reconnectionDelay: 1000, reconnectionDelayMax: 5000,
  });
  tab.lost = [];
  tab.back = [];
  tab.socket.on('disconnect', () => tab.lost.push(Date.now()));
  tab.socket.on('connect', () => tab.back.push(Date.now()));
  return tab;
}

const nameOf = async (name) => composeOf(SCALE, 'ps', '--all', '--quiet', name);
const isHealthy = async (name) => (await podman('inspect', '--format', '{{.State.Health.Status}}', await nameOf(name))) === 'healthy';

test('Compose accepts its files with all profiles', { skip }, async () => {
  await composeOf('compose.yml', '--profile', 'publish', '--profile', 'metrics', 'config', '--quiet');
  await composeOf(SCALE, 'config', '--quiet');
});

test('compose.yml: a token is printed, and updates of the profile `publish` arrive', { skip, timeout: 600_000 }, async () => {
  await composeOf('compose.yml', '--profile', 'publish', 'up', '--detach', '--no-build', 'rabbitmq', 'gateway', 'publisher');
  const alice = await composeOf('compose.yml', 'exec', '-T', 'gateway', 'chat3-gateway', 'token', '--user', 'usr_alice', '--tenant', 'tnt_default');
  const tab = new Tab(null, alice, { url: URL });
  await tab.when('an update', () => tab.named('message:new').length > 0, 60_000);
  tab.close();
  await composeOf('compose.yml', '--profile', 'publish', 'down', '--volumes');
});

test('compose.scale.yml: the first update arrives; clients of a gateway that goes are soon back, and so is the gateway', { skip, timeout: 900_000 }, async (t) => {
  await composeOf(SCALE, 'up', '--detach', '--no-build');
  const answers = async () => (await fetch(`${URL}/socket.io/?EIO=4&transport=polling`).catch(() => ({}))).status === 200;
  await until('HAProxy serves', answers, SLOW_MS);

  // Chat3 has never run here.
  const first = new Tab(null, token('usr_first', {}, { secret }), { url: URL });
  await first.when('connected', () => first.connects > 0);
  const publish = (user) => composeOf(SCALE, 'exec', '-T', 'gateway-1', '/usr/local/bin/chat3-gateway', 'publish', '--user', user, '--event', 'message.create');
  assert.match(await publish('usr_first'), /published 1 .*: 1 reached a queue/);
  await first.when('the update', () => first.named('message:new').length === 1);
  first.close();

  const tabs = Array.from({ length: CLIENTS }, (_, i) => connect(i));
  for (const tab of tabs) await tab.when('connected', () => tab.connects > 0);
  const leave = {
    stop: () => composeOf(SCALE, 'stop', 'gateway-1'),
    // The process and not the container: that would be an operator's stop.
    SIGKILL: async () => process.kill(Number(await podman('inspect', '--format', '{{.State.Pid}}', await nameOf('gateway-2'))), 'SIGKILL'),
  };
  for (const [how, go] of Object.entries(leave)) {
    for (const tab of tabs) tab.lost = [];
    await Promise.all([go(), until(`clients notice the ${how}`, () => tabs.filter((tab) => tab.lost.length > 0).length >= CLIENTS / 3 - 1, 30_000)]);
    const away = tabs.filter((tab) => tab.lost.length > 0);
    for (const tab of away) await tab.when('connected again', () => tab.socket.connected);
    const absences = away.map((tab) => tab.back.at(-1) - tab.lost[0]).sort((a, b) => a - b);
    t.diagnostic(`${how}: ${away.length} clients away for ${absences[0]} to ${absences.at(-1)} ms`);
    assert.ok(absences.at(-1) <= LIMITS_MS[how] + MARGIN_MS, `${how}: ${absences.at(-1)} ms`);
  }
  // Nobody asked for its end.
  await until('the killed gateway is back', () => isHealthy('gateway-2').catch(() => false), SLOW_MS);
  for (const tab of tabs) tab.close();

  // What is durable outlives the container.
  const probe = 'durable';
  const declare = async (method, ...args) => {
    const connection = await amqplib.connect(RABBITMQ_URL);
    connection.on('error', () => {});
    const channel = await connection.createChannel();
    channel.on('error', () => {});
    await channel[method](probe, ...args);
    await connection.close();
  };
  await declare('assertExchange', 'topic', { durable: true });
  await composeOf(SCALE, 'up', '--detach', '--no-build', '--no-deps', '--force-recreate', 'rabbitmq');
  await until('the exchange', () => declare('checkExchange').then(() => true, () => false), SLOW_MS);
});
