// What operators use: the command line, probes, metrics, the admin API and the logs.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { before, test } from 'node:test';

import jwt from 'jsonwebtoken';

import { Broker, Gateway, Publisher, SECRET, Tab, runGateway, temporaryFolder, until } from './harness.mjs';

let broker;
let publisher;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

/** The command failed with one line on stderr that matches. */
function failedWithOneLine({ code, stdout, stderr }, pattern) {
  assert.notEqual(code, 0);
  assert.match(stderr, pattern);
  assert.equal(stderr.trim().split('\n').length, 1, stderr);
  assert.equal(stdout, '');
}

test('without a key it does not start, and names JWT_SECRET', async () => {
  failedWithOneLine(await runGateway([]), /JWT_SECRET/);
  failedWithOneLine(await runGateway(['serve'], { env: { JWT_SECRET: '' } }), /JWT_SECRET/);
  failedWithOneLine(await runGateway(['token', '--user', 'a']), /JWT_SECRET/);
});

for (const [what, args, env, pattern] of [
  ['a malformed RABBITMQ_URL', [], { RABBITMQ_URL: 'http://user:s3cret@host/' }, /RABBITMQ_URL.*scheme/],
  ['a port that is none', ['--port', '70000'], {}, /PORT.*70000/],
  ['a number that is none', [], { RECOVERY_MAX_UPDATES: 'many' }, /RECOVERY_MAX_UPDATES \(--recovery-max-updates\): "many" must be a whole number, and not negative$/m],
  ['no threads', [], { WORKER_THREADS: '0' }, /WORKER_THREADS \(--worker-threads\): "0" must be at least 1$/m],
  ['more than any number', [], { RECOVERY_MAX_BYTES: '99999999999999999999' }, /RECOVERY_MAX_BYTES.* is too large$/m],
  ['a client certificate without key', ['serve'], { RABBITMQ_CLIENT_CERT_FILE: 'client.pem' },
    /^chat3-gateway: required but not given: RABBITMQ_CLIENT_KEY_FILE \(--rabbitmq-client-key-file\)$/m],
  ['a token for nobody', ['token'], {}, /required but not given: --user$/m],
  ['no updates at all', ['publish', '--user', 'a', '--event', 'message.create', '--count', '0'], {}, /--count: "0" /],
  ['an unknown flag', ['--colour'], {}, /--colour/],
  ['an unknown log format', [], { LOG_FORMAT: 'xml' }, /LOG_FORMAT.*xml.*text, json/],
  ['an unknown environment', [], { NODE_ENV: 'staging' }, /NODE_ENV.*staging/],
  ['a delay without unit', [], { RABBITMQ_RECONNECT_DELAY: '5' }, /RABBITMQ_RECONNECT_DELAY/],
  ['a binding key for everybody', [], { RABBITMQ_BINDING_KEYS: 'user.*.*' }, /RABBITMQ_BINDING_KEYS.*\{userId\}/],
  ['an unknown placeholder', [], { RABBITMQ_BINDING_KEYS: '{userId}.{tenant}' }, /RABBITMQ_BINDING_KEYS.*unknown placeholder.*\{tenantId\|\*\}/],
  ['orders in the stream of the updates', ['serve'], { RABBITMQ_CONTROL_EXCHANGE: 'c', RABBITMQ_CONTROL_STREAM: 'chat3-gateway.updates', RABBITMQ_TOPOLOGY: 'stream' }, /RABBITMQ_CONTROL_STREAM is RABBITMQ_STREAM/],
  ['orders over the exchange of the updates', ['serve'], { RABBITMQ_CONTROL_EXCHANGE: 'chat3_updates' }, /RABBITMQ_CONTROL_EXCHANGE is RABBITMQ_UPDATES_EXCHANGE/],
  ['an origin with a path', [], { CORS_ORIGIN: 'https://a.example/x' }, /CORS_ORIGIN \(--cors-origin\): "https:\/\/a.example\/x" is not an origin/],
  ['an unknown command', ['server'], {}, /server/],
]) {
  test(`${what} is one clear line`, async () => {
    const result = await runGateway(args, { env: { JWT_SECRET: SECRET, LOG_FILE: '', ...env } });
    failedWithOneLine(result, pattern);
    assert.doesNotMatch(result.stderr, /s3c/);
  });
}

test('the exit code tells settings that are wrong from what another start may find in order', async () => {
  const env = { JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', HOST: '127.0.0.1' };
  for (const [args, settings, expected] of [
    [['serve'], { PORT: 'none' }, 78],
    [['serve'], { JWT_SECRET: '' }, 78],
    [['dev'], { JWT_PUBLIC_KEY_FILE: '/nowhere.pem' }, 78],
    [['serve'], { RECOVERY_SECRET: 'short' }, 78],
    [['serve'], { PRESENCE_EXCHANGE: 'chat3_updates' }, 78],
    [['serve'], { RABBITMQ_CONTROL_EXCHANGE: 'chat3_updates' }, 78],
    [['serve'], { RABBITMQ_TOPOLOGY: 'stream', RABBITMQ_CONTROL_EXCHANGE: 'control', RABBITMQ_CONTROL_STREAM: 'chat3-gateway.updates' }, 78],
    [['serve', '--colour'], {}, 78],
    [['serve'], { HOST: 'nowhere.invalid' }, 1],
    // Docker knows no others.
    [['health'], { PORT: 'none' }, 1],
    [['doctor'], { PORT: 'none' }, 2],
  ]) {
    const { code, stderr } = await runGateway(args, { env: { ...env, ...settings } });
    assert.equal(code, expected, `${args} ${JSON.stringify(settings)}: ${stderr}`);
  }
});

test('a port in use is one clear line, which ends with what to set', async () => {
  const taken = net.createServer();
  await new Promise((resolve) => taken.listen(0, '127.0.0.1', resolve));
  const { port } = taken.address();
  const env = { JWT_SECRET: SECRET, LOG_FILE: '', HOST: '127.0.0.1', PORT: String(port), RABBITMQ_URL: broker.url };
  for (const [command, settings, setting] of [
    ['serve', {}, 'PORT'],
    ['dev', {}, 'PORT'],
    ['serve', { PORT: '0', ADMIN_ADDR: `127.0.0.1:${port}` }, 'ADMIN_ADDR'],
  ]) {
    const { code, stderr } = await runGateway([command], { env: { ...env, ...settings } });
    assert.equal(code, 1);
    assert.match(stderr, new RegExp(`^chat3-gateway: cannot listen on 127.0.0.1:${port}: Address already in use .*; set ${setting} to another port than ${port}\n$`));
  }
  taken.close();
});

test('--help lists every variable with its default and no secret', async () => {
  const { code, stdout } = await runGateway(['serve', '--help'], {
    env: { JWT_SECRET: 'hush-jwt', ADMIN_TOKEN: 'hush-admin', RABBITMQ_URL: 'amqp://u:hush-url@h/' },
  });
  assert.equal(code, 0);
  for (const [variable, value] of [
    ['RABBITMQ_URL', 'amqp://rmuser:rmpassword@localhost:5672/'], ['RABBITMQ_UPDATES_EXCHANGE', 'chat3_updates'],
    ['RABBITMQ_BINDING_KEYS', 'user.{userId}.*,user.*.{userId}.*,update.*.*.{userId}.*,update.*.{tenantId|*}.*.{userId}.*'], ['RABBITMQ_RECONNECT_DELAY', '5s'], ['HOST', '0.0.0.0'],
    ['PORT', '3001'], ['JWT_TENANT_ID_CLAIM', 'tenantId'], ['CORS_ORIGIN', '*'], ['NODE_ENV', 'production'],
    ['LOG_FILE', 'logs/server.log'], ['LOG_FORMAT', 'text'],
  ]) {
    assert.ok(stdout.includes(`[env: ${variable}`), variable);
    assert.ok(stdout.includes(`[default: ${value}]`), `${variable} ${value}`);
  }
  assert.doesNotMatch(stdout, /hush/);
});

test('a .env file is honoured, and the environment wins over it', async () => {
  const cwd = temporaryFolder();
  writeFileSync(path.join(cwd, '.env'), `JWT_SECRET=${SECRET}\nJWT_ISSUER=from-file\nJWT_AUDIENCE=from-file\n`);
  const { stdout } = await runGateway(['token', '--user', 'usr_a'], { cwd, env: { JWT_AUDIENCE: 'from-environment' } });
  const claims = jwt.verify(stdout.trim(), SECRET);
  assert.deepEqual([claims.iss, claims.aud], ['from-file', 'from-environment']);
});

test('a malformed .env is one line that does not repeat it', async () => {
  const cwd = temporaryFolder();
  const file = path.join(cwd, '.env');
  const below = path.join(cwd, 'below');
  mkdirSync(below);
  for (const [text, line, problem = 'is malformed'] of [
    ['JWT_SECRET="unclosed-s3cret\n', 1],
    ['PORT=3001\nJWT_SECRET=s3c\0ret-s3cret\n', 2, 'holds a NUL character'],
    ['# JWT SECRET=s3cret, once\nPORT=3001\nJWT SECRET=s3cret\nHOST=::\n', 3],
    ['PORT=3001\n\nJWT_SECRET="s3cret\nHOST=::\n', 3],
  ]) {
    writeFileSync(file, text);
    const result = await runGateway([], { cwd: below });
    failedWithOneLine(result, new RegExp(`${file}:${line} ${problem}`));
    assert.doesNotMatch(result.stderr, /s3cret/);
  }
});

test('`token` signs tokens that the gateway accepts', async () => {
  const env = { JWT_SECRET: SECRET };
  const { stdout, code } = await runGateway(['token', '--user', 'usr_t', '--tenant', 'tnt_t', '--expires', '90m'], { env });
  assert.equal(code, 0);
  const claims = jwt.verify(stdout.trim(), SECRET);
  assert.deepEqual([claims.userId, claims.tenantId, claims.exp - claims.iat], ['usr_t', 'tnt_t', 5400]);
  const gateway = await Gateway.start(broker);
  const tab = new Tab(gateway, stdout.trim());
  await tab.when('connected', () => tab.connects === 1);
  failedWithOneLine(await runGateway(['token', '--user', '*'], { env }), /--user/);
});

test('`publish` publishes as today\'s Chat3 does, at the rate that is asked for', async () => {
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_p', { claims: { tenantId: 'tnt_default' } });
  const env = { RABBITMQ_URL: broker.url };
  const start = Date.now();
  const args = ['publish', '--user', 'usr_p', '--event', 'message.create', '--count', '10', '--rate', '20'];
  const { code, stdout } = await runGateway(args, { env });
  assert.equal(code, 0, stdout);
  assert.match(stdout, /published 10 message\.create for usr_p with key update\.dialog\.tnt_default\.user\.usr_p\.message: 10 reached a queue/);
  // Ten updates at twenty a second: nine pauses of 50 ms.
  assert.ok(Date.now() - start >= 450);
  await tab.when('ten updates', () => tab.named('message:new').length === 10);
  const [update] = tab.named('chat3:update');
  assert.deepEqual([update.userId, update.tenantId, update.sourceEventType], ['usr_p', 'tnt_default', 'message.create']);
  await runGateway(['publish', '--user', 'usr_p', '--event', 'dialog.changed', '--data', '{"name":"x"}'], { env });
  await tab.when('dialog:update', () => tab.named('dialog:update').length === 1);
  assert.deepEqual(tab.named('dialog:update')[0].data, { name: 'x' });
  const absent = await runGateway(args, { env: { RABBITMQ_URL: 'amqp://u:s3cret@127.0.0.1:1/' } });
  failedWithOneLine(absent, /cannot connect to RabbitMQ at amqp:\/\/127\.0\.0\.1:1\//);
  failedWithOneLine(await runGateway([...args, '--data', '{'], { env }), /--data/);
});

test('`publish` publishes as older ones did, if asked to', async () => {
  const gateway = await Gateway.start(broker);
  const tab = await Tab.open(gateway, 'usr_older', { claims: { tenantId: 'tnt_default' } });
  const args = ['publish', '--user', 'usr_older', '--generation'];
  for (const [generation, event, key, field] of [
    ['0.0.77', 'message.changed', 'update.dialog.user.usr_older.message', 'sourceEventType'],
    ['original', 'message.update', 'user.usr_older.messageupdate', 'eventType'],
  ]) {
    const { code, stdout, stderr } = await runGateway([...args, generation, '--event', event], { env: { RABBITMQ_URL: broker.url } });
    assert.deepEqual([code, stdout, stderr], [0, `published 1 ${event} for usr_older with key ${key}: 1 reached a queue\n`, '']);
    await tab.when(generation, () => tab.named('message:update').at(-1)?.[field] === event);
  }
  failedWithOneLine(await runGateway([...args, '2024', '--event', 'x']), /--generation: "2024" is none of current, 0\.0\.77, original/);
});

test('`publish` fails loudly where its updates reach no queue', async () => {
  const args = ['publish', '--user', 'usr_nobody', '--event', 'message.create', '--count', '3'];
  const { code, stdout, stderr } = await runGateway(args, { env: { RABBITMQ_URL: broker.url } });
  assert.equal(code, 1);
  assert.match(stdout, /^published 3 .*: 0 reached a queue\n$/);
  assert.match(stderr, /^chat3-gateway: no queue is bound for 3 of 3, key update\.dialog\.tnt_default\.user\.usr_nobody\.message: .*connected.*RABBITMQ_BINDING_KEYS.*`chat3-gateway doctor`.*\n$/);
});

test('`publish` declares the exchange as Chat3 would', async () => {
  const exchange = 'chat3_updates_new';
  const { stdout } = await runGateway(['publish', '--user', 'u', '--event', 'message.create', '--rabbitmq-updates-exchange', exchange], {
    env: { RABBITMQ_URL: broker.url },
  });
  assert.match(stdout, /^published 1 .*: 0 reached a queue$/m);
  const listing = await broker.ctl('list_exchanges', '--no-table-headers', 'name', 'type', 'durable');
  assert.match(listing, new RegExp(`${exchange}\ttopic\ttrue`));
});

test('`publish` says why RabbitMQ refused', async () => {
  const args = ['publish', '--user', 'u', '--event', 'message.create', '--rabbitmq-updates-exchange', 'amq.direct'];
  const result = await runGateway(args, { env: { RABBITMQ_URL: broker.url } });
  failedWithOneLine(result, /cannot declare the exchange amq\.direct: closed by RabbitMQ: 406 PRECONDITION_FAILED.*type/);
});

test('health, readiness and metrics answer', async () => {
  const gateway = await Gateway.start(broker);
  for (const path of ['/health', '/livez']) {
    const health = await gateway.get(path);
    assert.equal(health.status, 200, path);
    assert.deepEqual(await health.json(), { status: 'ok', rabbitmq: 'connected', isConnected: true });
  }
  for (const path of ['/ready', '/readyz']) {
    const ready = await gateway.get(path);
    assert.equal(ready.status, 200, path);
    assert.deepEqual(await ready.json(), { status: 'ready' });
  }
  const tab = await Tab.open(gateway, 'usr_m');
  // The socket may not be live yet: then this one is kept, and handed to it behind the connect.
  await tab.saw(publisher.update('usr_m'));
  await until('the first update is counted', async () => (await gateway.metric('updates_delivered_total')) + (await gateway.metric('updates_kept_total')) === 1);
  const [delivered, latencies] = [await gateway.metric('updates_delivered_total'), await gateway.metric('update_latency_seconds_count')];
  await tab.saw(publisher.update('usr_m'));
  // The counters are updated after the events, this one last.
  await gateway.metricIs('update_latency_seconds_count', latencies + 1);
  const metrics = await gateway.get('/metrics');
  assert.match(metrics.headers.get('content-type'), /openmetrics-text/);
  const text = await metrics.text();
  for (const line of [
    'chat3_gateway_sockets 1', 'chat3_gateway_users 1', 'chat3_gateway_subscriptions 1',
    'chat3_gateway_rabbitmq_connected 1', 'chat3_gateway_rabbitmq_reconnects_total 0',
    'chat3_gateway_updates_received_total 2', `chat3_gateway_updates_delivered_total ${delivered + 1}`,
    'chat3_gateway_connects_total 1', `chat3_gateway_update_latency_seconds_count ${latencies + 1}`,
    'chat3_gateway_events_emitted_total{event="message:new"} 2',
  ]) {
    assert.ok(text.split('\n').includes(line), `${line}\n${text}`);
  }
  assert.doesNotMatch(text, /usr_m/);
  assert.equal((await gateway.get('/nowhere')).status, 404);
});

test('`health` asks the gateway that its settings describe, and fails if that is unhealthy', async () => {
  const gateway = await Gateway.start(broker, { env: { SHUTDOWN_TIMEOUT: '12s' } });
  const { port } = new URL(gateway.url);
  const env = { PORT: port, HOST: '0.0.0.0' };
  assert.deepEqual(await runGateway(['health'], { env }), {
    code: 0, stdout: '{"status":"ok","rabbitmq":"connected","isConnected":true}\n', stderr: '',
  });
  assert.equal((await runGateway(['health', '--ready'], { env })).stdout, '{"status":"ready"}\n');
  // The listener for operators has both, so a firewall in front of the other one does not matter.
  const admin = { env: { PORT: '1', ADMIN_ADDR: `127.0.0.1:${port}` } };
  assert.equal((await runGateway(['health'], admin)).code, 0);
  // While it drains it is alive, and not ready. A frozen broker keeps it in that state for long enough.
  await Tab.open(gateway, 'usr_a');
  broker.child.kill('SIGSTOP');
  try {
    gateway.child.kill('SIGTERM');
    await gateway.logged(/Shutting down/);
    failedWithOneLine(await runGateway(['health', '--ready'], { env }), /\/ready is not well: it answers 503.*draining/);
    assert.equal((await runGateway(['health'], { env })).code, 0);
    await gateway.kill();
  } finally {
    broker.child.kill('SIGCONT');
  }
  failedWithOneLine(await runGateway(['health'], { env }), /is not well: .*Connection refused/);
  failedWithOneLine(await runGateway(['health', '--port', '0'], {}), /PORT is 0/);
});

test('`health` does not wait for a process that hangs', async () => {
  const gateway = await Gateway.start(broker);
  gateway.child.kill('SIGSTOP');
  const { port } = new URL(gateway.url);
  const start = Date.now();
  failedWithOneLine(await runGateway(['health'], { env: { PORT: port } }), /no answer within 3s/);
  assert.ok(Date.now() - start < 10_000);
  gateway.child.kill('SIGCONT');
});

test('the admin API exists only if a token is set, and only for its bearer', async () => {
  const closed = await Gateway.start(broker);
  assert.equal((await closed.get('/api/stats', { headers: { authorization: 'Bearer ' } })).status, 404);
  assert.equal((await closed.get('/api/users/usr_a')).status, 404);

  const gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'adm1n' } });
  for (const authorization of [undefined, 'Bearer wrong', 'Bearer ', 'Basic adm1n', 'adm1n']) {
    const headers = authorization ? { authorization } : {};
    assert.equal((await gateway.get('/api/stats', { headers })).status, 401, authorization);
  }
  const headers = { authorization: 'Bearer adm1n' };
  await Tab.open(gateway, 'usr_a');
  await Tab.open(gateway, 'usr_a');
  await Tab.open(gateway, 'a.b@example.com');
  const stats = await gateway.json('/api/stats', { headers });
  assert.deepEqual([stats.isConnected, stats.subscribersCount, stats.usersCount, stats.socketsCount], [true, 2, 2, 3]);
  assert.deepEqual(await gateway.json('/api/users/usr_a', { headers }), { isSubscribed: true, sockets: 2 });
  assert.deepEqual(await gateway.json('/api/users/a.b%40example.com', { headers }), { isSubscribed: true, sockets: 1 });
  assert.deepEqual(await gateway.json('/api/users/nobody', { headers }), { isSubscribed: false, sockets: 0 });
  assert.equal((await gateway.get('/api/users/%2A', { headers })).status, 400);
});

test('development logs every update with user, event type and routing key, and no body', async () => {
  const gateway = await Gateway.start(broker, { env: { NODE_ENV: 'development' } });
  const tab = await Tab.open(gateway, 'usr_log');
  await tab.saw(publisher.update('usr_log', { data: { content: 's3cret-content' } }));
  await gateway.logged(/DEBUG.*Update received user_id=usr_log event_type="message\.create" routing_key="user\.usr_log\.messageupdate"/);
  assert.doesNotMatch(gateway.logs, /s3cret-content|eyJ/);
});

test('production does not log updates, and RUST_LOG overrides', async () => {
  const quiet = await Gateway.start(broker);
  const loud = await Gateway.start(broker, { env: { RUST_LOG: 'chat3_gateway=debug,info' } });
  const update = { data: {} };
  const tabs = [await Tab.open(quiet, 'usr_log'), await Tab.open(loud, 'usr_log')];
  const published = publisher.update('usr_log', update);
  for (const tab of tabs) await tab.saw(published);
  await loud.logged(/Update received/);
  await quiet.terminate();
  assert.doesNotMatch(quiet.logs, /Update received/);
});

test('logs go to the file as well, in the configured format', async () => {
  const cwd = temporaryFolder();
  const gateway = await Gateway.start(broker, { cwd, env: { LOG_FILE: 'logs/server.log', LOG_FORMAT: 'json' } });
  await gateway.terminate();
  const file = readFileSync(path.join(cwd, 'logs/server.log'), 'utf8');
  assert.equal(file, gateway.logs);
  const messages = file.trim().split('\n').map((line) => JSON.parse(line).fields.message);
  assert.ok(messages.includes('RabbitMQ connected'), messages.join());
  assert.equal(messages.at(-1), 'Stopped');
});

test('an unwritable log file is a warning, not a crash', async () => {
  const cwd = temporaryFolder();
  mkdirSync(path.join(cwd, 'logs/server.log'), { recursive: true });
  const gateway = await Gateway.start(broker, { cwd, env: { LOG_FILE: 'logs/server.log' } });
  await gateway.logged(/WARN.*cannot write the log file/);
  assert.equal((await gateway.get('/health')).status, 200);
});
