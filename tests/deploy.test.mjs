// The files of docker/, as far as they can be tried without a cluster or a Docker
// engine. Run by `make deploy`.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';

import { parse, parseAllDocuments, stringify } from 'yaml';

import { Broker, Gateway, Publisher, Tab, freePort, gatewayBinary, run, temporaryFolder, testsFolder, token, until } from './e2e/harness.mjs';

const docker = path.join(testsFolder, '..', 'docker');
const read = (...parts) => readFileSync(path.join(docker, ...parts), 'utf8');
const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };

const children = [];
after(() => {
  for (const child of children) child.kill('SIGKILL');
});

const seconds = (text) => Number(/^(\d+)s$/.exec(text)[1]);
/** How long a gateway with these settings may take to stop; supervisors must wait longer. */
const secondsToStop = ({ SHUTDOWN_DELAY = '0s', SHUTDOWN_TIMEOUT = '10s' } = {}) => seconds(SHUTDOWN_DELAY) + seconds(SHUTDOWN_TIMEOUT);

test('Prometheus accepts its configuration and the alerts, and the alerts fire as they should', async () => {
  const cwd = path.join(docker, 'prometheus');
  await run('promtool', ['check', 'config', 'prometheus.yml'], { cwd });
  await run('promtool', ['check', 'rules', '--lint-fatal', 'alerts.yml'], { cwd });
  await run('promtool', ['test', 'rules', 'alerts.test.yml'], { cwd });
  const rules = parse(read('prometheus', 'alerts.yml')).groups.flatMap((group) => group.rules);
  const tested = read('prometheus', 'alerts.test.yml');
  for (const { alert, annotations, labels } of rules) {
    assert.ok(annotations.summary && annotations.runbook && ['page', 'ticket'].includes(labels.severity), alert);
    assert.match(tested, new RegExp(`alertname="${alert}"`));
  }
});

test('Prometheus scrapes a gateway by the shipped configuration', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'] });
  const folder = temporaryFolder();
  const port = await freePort();
  const config = read('prometheus', 'prometheus.yml').replace('gateway:3001', new URL(gateway.url).host);
  writeFileSync(path.join(folder, 'prometheus.yml'), config.replace('scrape_interval: 5s', 'scrape_interval: 1s').replace('evaluation_interval: 5s', 'evaluation_interval: 1s'));
  writeFileSync(path.join(folder, 'alerts.yml'), read('prometheus', 'alerts.yml'));
  const args = [`--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=127.0.0.1:${port}`];
  children.push(spawn('prometheus', args, { stdio: 'ignore', env }));
  const query = async (expression) => {
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(expression)}`).catch(() => null);
    return answer?.ok ? (await answer.json()).data.result : [];
  };
  await until('a scrape', async () => (await query('up{job="chat3-gateway"} == 1')).length === 1);
  // Development has no RabbitMQ, so the alert on that is already pending.
  await until('an alert', async () => (await query('ALERTS{alertname="Chat3GatewayRabbitMqDisconnected"}')).length === 1);
  // Each query of the dashboard is one that Prometheus understands.
  const { panels } = JSON.parse(read('grafana', 'dashboards', 'chat3-gateway.json'));
  for (const { title, targets = [] } of panels) {
    for (const { expr } of targets) {
      const expression = expr.replaceAll('$instance', '.*').replaceAll('$__rate_interval', '5m').replaceAll('$__range', '15m');
      const answer = await fetch(`http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(expression)}`);
      assert.equal(answer.status, 200, `${title}: ${await answer.text()}`);
    }
  }
  children.pop().kill('SIGTERM');
});

test('HAProxy keeps polling clients at one of several gateways, and moves them when it goes', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const gateways = [await Gateway.start(broker), await Gateway.start(broker), await Gateway.start(broker)];
  const port = await freePort();
  let config = read('haproxy', 'haproxy.cfg').replace('bind :3001', `bind 127.0.0.1:${port}`);
  gateways.forEach(({ url }, i) => {
    config = config.replace(`gateway-${i + 1}:3001`, new URL(url).host);
  });
  assert.doesNotMatch(config, /:3001/);
  const file = path.join(temporaryFolder(), 'haproxy.cfg');
  writeFileSync(file, config);
  await run('haproxy', ['-c', '-f', file], { env });
  const proxy = spawn('haproxy', ['-db', '-f', file], { env, stdio: 'ignore' });
  children.push(proxy);
  const url = `http://127.0.0.1:${port}`;
  const handshake = () => fetch(`${url}/socket.io/?EIO=4&transport=polling`).catch(() => ({}));
  await until('HAProxy serves', async () => (await handshake()).status === 200);
  for (const path of ['/metrics', '/health', '/livez', '/ready', '/readyz', '/api/stats']) {
    assert.equal((await fetch(url + path)).status, 404, path);
  }
  // A browser that keeps its cookie stays with that instance, whichever of the three it is.
  const instances = new Set();
  for (const instance of ['1', '2', '3']) {
    const answer = await fetch(`${url}/socket.io/?EIO=4&transport=polling`, { headers: { cookie: `chat3_instance=${instance}` } });
    const { sid } = JSON.parse((await answer.text()).slice(1));
    for (const [i, gateway] of gateways.entries()) {
      const body = `40${JSON.stringify({ token: token('usr_c') })}`;
      const polled = await gateway.get(`/socket.io/?EIO=4&transport=polling&sid=${sid}`, { method: 'POST', body });
      if (polled.status === 200) instances.add(i);
    }
  }
  assert.equal(instances.size, 3);
  const tabs = [];
  for (const transports of [['polling'], ['websocket'], ['polling', 'websocket']]) {
    const tab = new Tab(null, token('usr_h'), { url, transports });
    await tab.when('connected', () => tab.connects > 0);
    tabs.push(tab);
  }
  const update = publisher.update('usr_h');
  for (const tab of tabs) await tab.saw(update);
  // Their instance goes away; they reconnect to another one without help.
  const counts = await Promise.all(gateways.map((gateway) => gateway.metric('sockets')));
  const busy = counts.indexOf(Math.max(...counts));
  const { code } = await gateways[busy].terminate();
  assert.equal(code, 0);
  for (const tab of tabs) await tab.when('connected again', () => tab.socket.connected && tab.connects >= 2);
  const later = publisher.update('usr_h');
  for (const tab of tabs) await tab.saw(later);
  for (const tab of tabs) tab.close();
  proxy.kill('SIGTERM');
});

test('RabbitMQ takes the definitions of the Compose files, and the first update arrives', async () => {
  const definitions = path.join(docker, 'rabbitmq', 'definitions.json');
  const conf = read('rabbitmq', 'chat3.conf').replace('/etc/rabbitmq/definitions.json', definitions);
  const broker = await Broker.start({ conf });
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_first');
  const args = ['publish', '--user', 'usr_first', '--event', 'message.create'];
  const { stdout } = await run(gatewayBinary, args, { env: { PATH: process.env.PATH, RABBITMQ_URL: broker.url }, cwd: temporaryFolder() });
  assert.match(stdout, /published 1 .*: 1 reached a queue/);
  await tab.when('the update', () => tab.named('message:new').length === 1);
});

test('the health check finds a gateway whose port is a flag', async (t) => {
  const alone = ['--map-root-user', '--pid', '--fork', '--kill-child', '--mount-proc'];
  if (await run('unshare', [...alone, 'true']).then(() => false, () => true)) return t.skip('no PID namespaces here');
  const [port, other] = [await freePort(), await freePort()];
  // The gateway is the first process of its namespace, as in a container.
  const script = `"$1" health --port ${other} 2>/dev/null && exit 9; sleep 600 & exec "$1" serve --port ${port}`;
  const env = { PATH: process.env.PATH, HOST: '127.0.0.1', JWT_SECRET: 'a-secret-for-tests-of-thirty-two-bytes', LOG_FILE: '', RABBITMQ_URL: 'amqp://127.0.0.1:1/' };
  const child = spawn('unshare', [...alone, 'sh', '-c', script, 'sh', gatewayBinary], { env, stdio: 'ignore', cwd: temporaryFolder() });
  children.push(child);
  const [first] = await until('the gateway', async () => {
    const { stdout } = await run('pgrep', ['-P', String(child.pid)]).catch(() => ({ stdout: '' }));
    return stdout && [stdout.trim()];
  });
  const inside = (...args) => run('nsenter', ['--target', first, '--user', '--preserve-credentials', '--pid', '--mount', gatewayBinary, 'health', ...args], { env, cwd: '/' });
  const { stdout } = await until('health', () => inside().catch(() => null));
  assert.match(stdout, /"status":"ok"/);
  // Its own flags come first, and the environment last: here nobody listens.
  await assert.rejects(inside('--port', String(other)), new RegExp(`:${other}/health is not well`));
  await assert.rejects(run(gatewayBinary, ['health'], { env: { ...env, PORT: String(other) }, cwd: '/' }), new RegExp(`:${other}/health is not well`));
});

test('systemd accepts the unit, and rates it as well confined', async () => {
  const folder = temporaryFolder();
  const unit = path.join(folder, 'chat3-gateway.service');
  writeFileSync(unit, read('systemd', 'chat3-gateway.service').replace('/usr/local/bin/chat3-gateway', gatewayBinary));
  const { stdout, stderr } = await run('systemd-analyze', ['verify', unit]);
  assert.equal(stdout + stderr, '');
  // From 0 (confined) to 100.
  await run('systemd-analyze', ['security', '--offline=true', '--threshold=20', unit]);
  const text = readFileSync(unit, 'utf8');
  assert.match(text, /^Type=notify$/m);
  assert.ok(seconds(/^TimeoutStopSec=(.*)$/m.exec(text)[1]) > secondsToStop());
  // With settings that are wrong, it would restart for ever.
  const exit = await run(gatewayBinary, ['serve'], { env: { PATH: process.env.PATH }, cwd: folder }).catch(({ code }) => code);
  assert.equal(/^RestartPreventExitStatus=(.*)$/m.exec(text)[1], String(exit));
});

test('the Kubernetes manifests fit together, and leave the gateway its time to stop', () => {
  const manifest = (name) => parse(read('kubernetes', name));
  const kustomization = manifest('kustomization.yaml');
  const files = readdirSync(path.join(docker, 'kubernetes')).filter((name) => name !== 'kustomization.yaml');
  // The second is an alternative to the Ingress.
  assert.deepEqual([...kustomization.resources, 'gateway-api.yaml'].sort(), files.sort());
  const settings = Object.fromEntries(kustomization.configMapGenerator[0].literals.map((literal) => literal.split(/=(.*)/s)));

  const { spec } = manifest('deployment.yaml');
  const pod = spec.template.spec;
  const [container] = pod.containers;
  assert.ok(pod.terminationGracePeriodSeconds > secondsToStop(settings));
  assert.ok(seconds(settings.SHUTDOWN_DELAY) > 0);
  // The autoscaler's number, which an apply must not set back.
  assert.equal(spec.replicas, undefined);
  assert.equal(pod.securityContext.runAsNonRoot, true);
  assert.equal(container.securityContext.readOnlyRootFilesystem, true);
  const ports = Object.fromEntries(container.ports.map(({ name, containerPort }) => [name, containerPort]));
  assert.deepEqual(ports, { http: 3001, admin: Number(settings.ADMIN_ADDR.split(':')[1]) });
  assert.equal(spec.template.metadata.annotations['prometheus.io/port'], String(ports.admin));
  for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe']) assert.ok(ports[container[probe].httpGet.port]);
  const paths = ['startupProbe', 'livenessProbe', 'readinessProbe'].map((probe) => container[probe].httpGet.path);
  assert.deepEqual(paths, ['/livez', '/livez', '/readyz']);

  const labels = spec.template.metadata.labels;
  assert.deepEqual(spec.selector.matchLabels, labels);
  assert.deepEqual(manifest('service.yaml').spec.selector, labels);
  assert.deepEqual(manifest('disruption.yaml').spec.selector.matchLabels, labels);
  assert.equal(manifest('autoscaling.yaml').spec.scaleTargetRef.name, manifest('deployment.yaml').metadata.name);
  const [{ path: only, backend }] = manifest('ingress.yaml').spec.rules[0].http.paths;
  assert.equal(only, '/socket.io/');
  assert.equal(backend.service.name, manifest('service.yaml').metadata.name);
  const [gateway, route] = parseAllDocuments(read('kubernetes', 'gateway-api.yaml')).map((document) => document.toJS());
  const [rule] = route.spec.rules;
  assert.equal(route.spec.rules.length, 1);
  assert.deepEqual(rule.matches, [{ path: { type: 'PathPrefix', value: '/socket.io' } }]);
  assert.deepEqual(rule.backendRefs, [{ name: manifest('service.yaml').metadata.name, port: manifest('service.yaml').spec.ports[0].port }]);
  assert.deepEqual(route.spec.parentRefs, [{ name: gateway.metadata.name, sectionName: gateway.spec.listeners[0].name }]);
  // Names and keys of secrets, never their values.
  assert.doesNotMatch(files.map((name) => read('kubernetes', name).replace(/^#.*$/gm, '')).join(), /JWT_SECRET|amqps?:/);
});

test('the overlays of DEPLOYMENT.md set what they say, and the scale stays the autoscaler\'s', async (t) => {
  const builders = [['kubectl', 'kustomize'], ['kustomize', 'build']];
  const installed = await Promise.all(builders.map(([command]) => run('which', [command]).then(() => true, () => false)));
  const [command, build] = builders[installed.indexOf(true)] ?? [];
  if (!command) return t.skip('neither kubectl nor kustomize is installed');
  const page = readFileSync(path.join(docker, '..', 'docs', 'DEPLOYMENT.md'), 'utf8');
  const [, yaml] = /^```yaml\n(# overlay\/kustomization\.yaml[\s\S]*?)^```$/m.exec(page);
  const top = temporaryFolder();
  cpSync(docker, path.join(top, 'docker'), { recursive: true });
  mkdirSync(path.join(top, 'overlay'));
  const built = async (kustomization) => {
    writeFileSync(path.join(top, 'overlay', 'kustomization.yaml'), stringify(kustomization));
    const { stdout } = await run(command, [build, path.join(top, 'overlay')]);
    const documents = parseAllDocuments(stdout).map((document) => document.toJS());
    return Object.fromEntries(documents.map((document) => [document.kind, document]));
  };

  const overlay = parse(yaml);
  const { Deployment, ConfigMap, Ingress } = await built(overlay);
  const [{ newName, newTag }] = overlay.images;
  assert.equal(Deployment.spec.template.spec.containers[0].image, `${newName}:${newTag}`);
  assert.equal(Deployment.spec.replicas, undefined);
  const base = parse(read('kubernetes', 'kustomization.yaml')).configMapGenerator[0].literals;
  const settings = [...base, ...overlay.configMapGenerator[0].literals].map((literal) => literal.split(/=(.*)/s).slice(0, 2));
  assert.deepEqual(ConfigMap.data, Object.fromEntries(settings));
  assert.equal(Deployment.spec.template.spec.containers[0].envFrom[0].configMapRef.name, ConfigMap.metadata.name);
  const values = parse(overlay.patches[0].patch).map(({ value }) => value);
  assert.deepEqual([Ingress.spec.rules[0].host, Ingress.spec.tls[0].hosts[0], Ingress.spec.tls[0].secretName], values);
  assert.equal(new Set([...values.slice(0, 2)]).size, 1);

  // The Gateway API in place of the Ingress, by the sentence below the snippet.
  const [, patch] = /`- (patch: '.*')`/.exec(page);
  cpSync(path.join(docker, 'kubernetes', 'gateway-api.yaml'), path.join(top, 'overlay', 'gateway-api.yaml'));
  const kinds = await built({ ...overlay, resources: [...overlay.resources, 'gateway-api.yaml'], patches: [parse(patch)] });
  assert.ok(kinds.Gateway && kinds.HTTPRoute && !kinds.Ingress);
});

test('the settings in docker/ are settings of the gateway', async () => {
  const environments = ['compose.yml', 'compose.scale.yml'].flatMap((file) => {
    const services = Object.values(parse(read(file), { merge: true }).services);
    for (const service of services.filter(({ image }) => image === 'chat3-gateway')) {
      assert.equal(service.read_only, true);
      const grace = seconds(service.stop_grace_period);
      assert.ok(service.command || grace > secondsToStop(service.environment));
    }
    for (const [name, { image, restart, deploy }] of Object.entries(parse(read(file), { merge: true }).services)) {
      assert.equal(restart, 'unless-stopped', name);
      assert.match(deploy.resources.limits.memory, /^\d+[mg]$/, name);
      // Whole names, since Podman asks for no others, with versions that stay what they are.
      if (image !== 'chat3-gateway') assert.match(image, /^docker\.io\/[\w/]+:(\$\{RABBITMQ_TAG:-)?v?\d+\.\d+\.\d+/, name);
    }
    return services.filter(({ image }) => image === 'chat3-gateway').map(({ environment }) => environment);
  });
  const { literals } = parse(read('kubernetes', 'kustomization.yaml')).configMapGenerator[0];
  environments.push(Object.fromEntries(literals.map((literal) => literal.split(/=(.*)/s))));
  const { stdout } = await run(gatewayBinary, ['serve', '--help']);
  for (const environment of environments) {
    for (const name of Object.keys(environment)) assert.match(stdout, new RegExp(`\\[env: ${name}[\\]=]`));
    // The gateway accepts their values too.
    const secret = { JWT_SECRET: 'a-secret-for-tests-of-thirty-two-bytes', ...environment };
    const options = { PATH: process.env.PATH, LOG_FILE: '', HOST: 'nowhere.invalid', ...secret, ADMIN_ADDR: '' };
    await assert.rejects(run(gatewayBinary, ['serve'], { env: options, cwd: temporaryFolder() }), /cannot listen on nowhere\.invalid/);
  }
});
