// `chat3-gateway doctor` against brokers that are well and brokers that are not.
// Each fault is real: another vhost, user, exchange or certificate.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { after, before, test } from 'node:test';
import tls from 'node:tls';

import amqplib from 'amqplib';

import {
  Broker, EXCHANGE, Gateway, SECRET, Tab, anUpdate, freePort, gatewayBinary, generations, run, runGateway, temporaryFolder, token, until,
} from './harness.mjs';

let broker;
let ours;
let theirs;
let tlsPort;

before(async () => {
  [ours, theirs] = await Promise.all([certificates(), certificates()]);
  tlsPort = await freePort();
  broker = await Broker.start({
    conf: [
      `listeners.ssl.1 = 127.0.0.1:${tlsPort}`,
      `ssl_options.cacertfile = ${ours('ca.pem')}`,
      `ssl_options.certfile = ${ours('server.pem')}`,
      `ssl_options.keyfile = ${ours('server.key')}`,
      'ssl_options.verify = verify_peer',
      'ssl_options.fail_if_no_peer_cert = true',
      '',
    ].join('\n'),
  });
});

/** A CA and its certificates for `localhost` and for a client, all in one folder. */
async function certificates() {
  const folder = temporaryFolder();
  const openssl = (...args) => run('openssl', args, { cwd: folder });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const validity = ['-days', '90'];
  await openssl(
    'req', '-x509', ...key, ...validity, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=test CA', '-addext', 'keyUsage=critical,keyCertSign',
  );
  for (const [name, usage] of [['server', 'serverAuth'], ['client', 'clientAuth']]) {
    await openssl(
      'req', '-x509', ...key, ...validity, '-CA', 'ca.pem', '-CAkey', 'ca.key', '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`,
      '-addext', 'subjectAltName=DNS:localhost', '-addext', `extendedKeyUsage=${usage}`, '-addext', 'basicConstraints=critical,CA:FALSE',
    );
  }
  // `openssl req` makes no certificate that has already expired.
  await openssl('req', ...key, '-keyout', 'expired.key', '-out', 'expired.csr', '-subj', '/CN=expired', '-addext', 'subjectAltName=DNS:localhost');
  const authority = ['[ca]', 'default_ca=own', '[own]', 'database=index', 'rand_serial=yes', 'new_certs_dir=.', 'policy=any', 'copy_extensions=copy', '[any]', 'commonName=supplied'];
  writeFileSync(path.join(folder, 'ca.cnf'), authority.join('\n'));
  writeFileSync(path.join(folder, 'index'), '');
  await openssl(
    'ca', '-batch', '-notext', '-md', 'sha256', '-config', 'ca.cnf', '-cert', 'ca.pem', '-keyfile', 'ca.key', '-in', 'expired.csr', '-out', 'expired.pem',
    '-startdate', '20250101000000Z', '-enddate', '20250201000000Z',
  );
  return (file) => path.join(folder, file);
}

/** Chat3's side: a separate vhost with an exchange, and a publisher. */
class Place {
  static places = 0;

  static async make({ type = 'topic', options = { durable: true } } = {}) {
    const place = new Place();
    place.vhost = `place-${(Place.places += 1)}`;
    await broker.ctl('add_vhost', place.vhost);
    await broker.ctl('set_permissions', '-p', place.vhost, 'rmuser', '.*', '.*', '.*');
    place.url = broker.url + place.vhost;
    place.connection = await amqplib.connect(place.url);
    place.connection.on('error', () => {});
    place.channel = await place.connection.createChannel();
    if (type) await place.channel.assertExchange(EXCHANGE, type, options);
    after(() => place.connection.close().catch(() => {}));
    return place;
  }

  /** A user with these rights, and the URL that logs it in. */
  async user(name, configure, write, read) {
    await broker.ctl('add_user', name, 'its-Password-7');
    await broker.ctl('set_permissions', '-p', this.vhost, name, configure, write, read);
    return this.url.replace('rmuser:rmpassword', `${name}:its-Password-7`);
  }

  /** Publishes one update after another until `stop` is called. Takes keys, or keys with the user whom the body names. */
  publishing(updates, { timestamp = () => Date.now() } = {}) {
    const timer = setInterval(() => {
      for (const update of updates) {
        const [key, userId, tenantId = 'tnt_default'] = [update].flat();
        const body = Buffer.from(JSON.stringify(anUpdate(userId ?? key.match(/usr_\w+/)[0], { tenantId, note: 'B0dy' })));
        this.channel.publish(EXCHANGE, key, body, { timestamp: timestamp() });
      }
    }, 50);
    // A test that fails does not call `stop`.
    after(() => clearInterval(timer));
    return { stop: () => clearInterval(timer) };
  }

  async queues() {
    return (await broker.ctl('list_queues', '-p', this.vhost, '--no-table-headers', 'name')).trim();
  }
}

const environment = (url, env = {}) => ({
  // One template, so that it is clear which one a finding is about.
  RABBITMQ_BINDING_KEYS: 'user.{userId}.*',
  RABBITMQ_URL: url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0', CORS_ORIGIN: 'https://chat.example.com', MAX_SOCKETS: '500', ...env,
});

/** Runs it with `--json`; `[check]` is that check's finding with the worst status. */
async function doctor(url, { env, args = ['--listen', '1s'], cwd } = {}) {
  const { code, stdout, stderr } = await runGateway(['doctor', '--json', ...args], { env: environment(url, env), cwd });
  assert.equal(stderr, '');
  for (const secret of [SECRET, 'rmpassword', 'its-Password-7', 'wrong-Password', 'usr_s3cret', 'B0dy']) {
    assert.ok(!stdout.includes(secret), `${secret} in ${stdout}`);
  }
  const report = JSON.parse(stdout);
  const order = ['ok', 'unknown', 'warning', 'problem'];
  const worst = {};
  for (const finding of report.findings) {
    const known = worst[finding.check];
    if (!known || order.indexOf(finding.status) > order.indexOf(known.status)) worst[finding.check] = finding;
  }
  return { code, report, worst, text: stdout };
}

/** Asserts a finding: its status, and the texts of the finding and its advice. */
function says({ worst, text }, check, status, ...patterns) {
  const finding = worst[check];
  assert.ok(finding, `${check} in ${text}`);
  assert.equal(finding.status, status, JSON.stringify(finding));
  for (const pattern of patterns) assert.match(`${finding.finding} → ${finding.advice}`, pattern);
}

const problems = ({ worst }) => Object.keys(worst).filter((check) => worst[check].status === 'problem');

test('a healthy broker: everything is well, and nothing is left there', async () => {
  const place = await Place.make();
  const publishing = place.publishing(['user.usr_s3cret.messageupdate', 'user.usr_b.typing']);
  const url = await place.user('healthy', '.*', '.*', '.*');
  const examined = await doctor(url, { args: ['--listen', '2s', '--strict'], env: { RABBITMQ_CONTROL_EXCHANGE: 'control' } });
  publishing.stop();
  assert.equal(examined.code, 0, examined.text);
  assert.ok(examined.report.findings.every(({ status }) => status === 'ok'), examined.text);
  says(examined, 'amqp', 'ok', /RabbitMQ \d/);
  says(examined, 'exchange', 'ok', /durable topic exchange/);
  says(examined, 'listening', 'ok', /for 2 users/);
  says(examined, 'bindings', 'ok', /matches all/);
  says(examined, 'clock', 'ok');
  says(examined, 'control_exchange', 'ok', /serve makes it/);
  says(examined, 'control_stream', 'ok', /serve makes it; RabbitMQ has streams/);
  assert.equal(await place.queues(), '');
  const exchanges = await broker.ctl('list_exchanges', '-p', place.vhost, 'name');
  assert.ok(!exchanges.includes('control'), exchanges);
});

test('the JSON has the documented fields and no others', async () => {
  const { report } = await doctor((await Place.make()).url);
  assert.deepEqual(Object.keys(report), ['version', 'ok', 'problems', 'warnings', 'unknown', 'findings']);
  for (const finding of report.findings) {
    assert.deepEqual(Object.keys(finding), ['section', 'check', 'status', 'finding', 'advice']);
    assert.ok(['rabbitmq', 'updates', 'jwt', 'token', 'host'].includes(finding.section), finding.section);
    assert.ok(['ok', 'unknown', 'warning', 'problem'].includes(finding.status), finding.status);
    if (['warning', 'problem'].includes(finding.status)) assert.ok(finding.advice, finding.check);
    assert.doesNotMatch(finding.finding, /\n/);
  }
  for (const status of ['problem', 'warning']) {
    assert.equal(report[`${status}s`], report.findings.filter((finding) => finding.status === status).length);
  }
});

test('exit codes: 0 well or warned, 1 problems (or strict and warned), 2 unreadable', async () => {
  const place = await Place.make();
  const warned = await doctor(place.url);
  assert.deepEqual([warned.code, warned.report.ok, warned.report.problems], [0, true, 0]);
  says(warned, 'keys', 'warning', /nothing was published/, /--listen 1m/);
  says(warned, 'bindings', 'unknown');
  says(warned, 'default_login', 'warning');
  const strict = await doctor(place.url, { args: ['--strict', '--listen', '1s'] });
  assert.deepEqual([strict.code, strict.report.ok], [1, false]);
  for (const [args, env, reason] of [
    [[], { RABBITMQ_URL: 'http://user:s3cret@h/' }, /RABBITMQ_URL/],
    [['--listen', 'long'], {}, /--listen/],
    [['--token', 'a', '--token-file', 'b'], {}, /--token-file/],
    [['--token-file', '/nowhere'], {}, /cannot read \/nowhere/],
  ]) {
    const { code, stdout, stderr } = await runGateway(['doctor', ...args], { env: { ...environment(place.url), ...env } });
    assert.deepEqual([code, stdout], [2, '']);
    assert.match(stderr, reason);
    assert.ok(!stderr.includes('s3cret'), stderr);
  }
});

test('the text has no colours where it is not a terminal, and each problem has what to do', async () => {
  const port = await freePort();
  const { code, stdout } = await runGateway(['doctor'], { env: environment(`amqp://a:s3cret@127.0.0.1:${port}/`) });
  assert.equal(code, 1);
  assert.ok(!stdout.includes('\u001b') && !stdout.includes('s3cret'), stdout);
  assert.match(stdout, /✗ tcp .*refused.*\n +→ is RabbitMQ running there\?/);
  assert.match(stdout, /\? login +not tried/);
  assert.match(stdout, /1 problem, 0 warnings, \d unknown\n$/);
});

test('an absent broker: not known, nothing listens, or something else answers', async () => {
  // A name server that is down does not answer.
  says(await doctor('amqp://a:b@no-such-host.invalid/'), 'dns', 'problem', /not known|no answer within/, /name server/);
  const refused = await doctor(`amqp://a:b@localhost:${await freePort()}/`);
  says(refused, 'tcp', 'problem', /refused/, /is RabbitMQ running/);
  assert.deepEqual(problems(refused), ['tcp']);
  for (const [answer, pattern] of [
    ['HTTP/1.1 400 Bad Request\r\n\r\n', /web server.*15672/],
    ['AMQP\x00\x01\x00\x00', /another version/],
    ['\x15\x03\x03\x00\x02\x02\x28', /expects TLS.*amqps/],
    ['220 mail\r\n', /not AMQP/],
    ['', /without a word/],
  ]) {
    const server = await listening((socket) => socket.end(Buffer.from(answer, 'latin1')));
    says(await doctor(server.url), 'amqp', 'problem', pattern);
    server.close();
  }
});

test('a peer that accepts and stays silent is reported in time, and SIGINT ends the wait', async () => {
  const server = await listening(() => {});
  const start = Date.now();
  const silent = await doctor(server.url);
  says(silent, 'amqp', 'problem', /no answer within 5s/);
  assert.ok(Date.now() - start < 10_000);
  assert.equal(silent.code, 1);
  const child = spawn(gatewayBinary, ['doctor'], { env: environment(server.url), cwd: temporaryFolder() });
  let output = '';
  child.stdout.on('data', (data) => (output += data));
  await until('it is connected', () => output.includes('accepts connections'));
  child.kill('SIGINT');
  const [, signal] = await new Promise((resolve) => child.once('exit', (...how) => resolve(how)));
  assert.equal(signal, 'SIGINT');
  server.close();
});

async function listening(onConnection) {
  const sockets = new Set();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    onConnection(socket);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const close = () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  return { url: `amqp://a:b@127.0.0.1:${server.address().port}/`, port: server.address().port, close };
}

test('a refused login is told from a refused vhost', async () => {
  const login = await doctor(broker.url.replace('rmpassword', 'wrong-Password'));
  says(login, 'login', 'problem', /no user rmuser with this password/, /percent-encoded/);
  assert.deepEqual(problems(login), ['login']);
  const vhost = await doctor(`${broker.url}nowhere`);
  says(vhost, 'login', 'ok');
  says(vhost, 'vhost', 'problem', /vhost nowhere not found/, /list_vhosts/);
  assert.deepEqual(problems(vhost), ['vhost']);
  const place = await Place.make();
  await broker.ctl('add_user', 'stranger', 'its-Password-7');
  const url = place.url.replace('rmuser:rmpassword', 'stranger:its-Password-7');
  const stranger = await doctor(url);
  says(stranger, 'vhost', 'problem', /refused for user 'stranger'/);
  // What is behind the vhost is not tried for this reason, and not for a login's.
  for (const examined of [vhost, stranger]) {
    const untried = examined.report.findings.filter(({ status, finding }) => status === 'unknown' && finding.startsWith('not tried'));
    assert.ok(untried.length >= 5);
    assert.deepEqual([...new Set(untried.map(({ finding }) => finding))], ['not tried: the vhost is refused']);
  }
  await followAdvice(stranger, 'vhost');
  assert.deepEqual(problems(await doctor(url)), []);
});

/** Runs the command that a finding advises. */
async function followAdvice({ worst }, check) {
  const [, command] = worst[check].advice.match(/rabbitmqctl (.*)/);
  const words = [...command.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain);
  await broker.ctl(...words);
}

test('each missing right is named, with the command that grants it', async () => {
  const place = await Place.make();
  const own = '^chat3-gateway\\.';
  const all = `^(chat3-gateway\\..*|${EXCHANGE})$`;
  const cases = [
    ['nothing', '^$', '^$', '^$', 'configure', /may not declare/],
    ['unconfiguring', '^$', own, all, 'configure', /may not declare/],
    ['unwriting', own, '^$', all, 'bind', /no right to write to its own queues/],
    ['unreading', own, own, own, 'bind', /no right to read the exchange/],
    ['unconsuming', own, own, `^${EXCHANGE}$`, 'consume', /may not read its queues/],
  ];
  for (const [name, configure, write, read, check, pattern] of cases) {
    const examined = await doctor(await place.user(name, configure, write, read));
    says(examined, check, 'problem', pattern, /rabbitmqctl set_permissions -p place-\d+ /);
    assert.deepEqual(problems(examined), [check], name);
    assert.doesNotMatch(examined.worst.keys.finding, /topic permissions/);
    assert.equal(examined.code, 1);
    await followAdvice(examined, check);
    const mended = await doctor(place.url.replace('rmuser:rmpassword', `${name}:its-Password-7`));
    assert.deepEqual(problems(mended), [], mended.text);
  }
  assert.equal(await place.queues(), '');
});

test('with the documented least rights it finds nothing wrong, and says what it cannot see', async () => {
  const place = await Place.make();
  const url = await place.user('least', '^chat3-gateway\\.', '^chat3-gateway\\.', `^(chat3-gateway\\..*|${EXCHANGE})$`);
  const topic = (read) => broker.ctl('set_topic_permissions', '-p', place.vhost, 'least', EXCHANGE, '^$', read);
  await topic('^user\\.[^*#]+\\.\\*$');
  const least = await doctor(url);
  assert.equal(least.code, 0, least.text);
  says(least, 'bind', 'ok');
  says(least, 'keys', 'unknown', /topic permissions/, /Chat3's own user/);
  says(least, 'exchange', 'unknown', /who may declare it/, /list_exchanges/);
  const other = await doctor(url, { env: { RABBITMQ_BINDING_KEYS: 'update.*.*.{userId}.*' } });
  says(other, 'bind', 'problem', /topic permissions do not allow/, /set_topic_permissions/);
  // Of several templates, some may be permitted.
  const unset = { RABBITMQ_BINDING_KEYS: undefined };
  const some = await doctor(url, { env: unset });
  says(some, 'bind', 'warning', /with user\.\{userId\}\.\*, as.* but not with user\.\*\.\{userId\}\.\*,update/, /set_topic_permissions/);
  await followAdvice(some, 'bind');
  says(await doctor(url, { env: unset }), 'bind', 'ok');
  // Topic permissions confine the gateway, and it does not need them. Without them the
  // doctor may listen: the exchange's behaviour tells its type.
  await broker.ctl('clear_topic_permissions', '-p', place.vhost, 'least', EXCHANGE);
  const publishing = place.publishing(['user.usr_b.typing']);
  const listening = await doctor(url);
  publishing.stop();
  says(listening, 'exchange', 'ok', /behaves as a topic exchange/);
  for (const check of ['keys', 'bindings', 'clock']) says(listening, check, 'ok');
  const fanout = await Place.make({ type: 'fanout' });
  await broker.ctl('set_permissions', '-p', fanout.vhost, 'least', '^chat3-gateway\\.', '^chat3-gateway\\.', '.*');
  const flooding = fanout.publishing(['user.usr_b.typing']);
  says(await doctor(fanout.url.replace('rmuser:rmpassword', 'least:its-Password-7')), 'exchange', 'problem', /user who does not exist/);
  flooding.stop();
});

test('the keys that it tries to bind are those of the configured topology', async () => {
  const place = await Place.make();
  const url = await place.user('topologist', '^chat3-gateway\\.', '^chat3-gateway\\.', `^(chat3-gateway\\..*|${EXCHANGE})$`);
  const within = (topology, env) => doctor(url, { env: { RABBITMQ_TOPOLOGY: topology, ...env } });
  const topic = (read) => broker.ctl('set_topic_permissions', '-p', place.vhost, 'topologist', EXCHANGE, '^$', read);
  // As in docs/SECURITY.md, for separate users and for a firehose.
  await topic('^user\\.[^*#]+\\.\\*$');
  for (const topology of ['per-user', 'shared']) {
    says(await within(topology), 'bind', 'ok', new RegExp(`with user\\.{userId}\\.\\*, as in the topology ${topology}`));
  }
  says(await within('firehose'), 'bind', 'problem', /topic permissions do not allow to bind with user\.\*\.\*/, /set_topic_permissions/);
  await topic('^user\\.([^*#]+|\\*)\\.\\*$');
  says(await within('firehose'), 'bind', 'ok', /with user\.\*\.\*, as in the topology firehose/);
  await topic('^user\\.\\*\\.\\*$');
  says(await within('firehose'), 'bind', 'warning', /dots in their ids/, /set_topic_permissions/);
  says(await within('shared'), 'bind', 'problem', /topic permissions/);
  await topic('.*');
  const publishing = place.publishing(['user.usr_b.typing']);
  const hearing = await within('firehose');
  publishing.stop();
  says(hearing, 'exchange', 'ok', /behaves as a topic exchange/);
  says(hearing, 'bindings', 'ok', /matches all/);
  assert.equal(await place.queues(), '');
});

test('where topic permissions confine it, it listens with the keys that they allow', async () => {
  const place = await Place.make();
  const url = await place.user('confined', '^chat3-gateway\\.', '^chat3-gateway\\.', `^(chat3-gateway\\..*|${EXCHANGE})$`);
  const topic = (read) => broker.ctl('set_topic_permissions', '-p', place.vhost, 'confined', EXCHANGE, '^$', read);
  const within = (topology, value, args = []) => doctor(url, {
    env: { RABBITMQ_TOPOLOGY: topology, ...setting(value) }, args: ['--listen', '1s', ...args],
  });
  const key = 'update.dialog.tnt_x.user.usr_known.message';
  const publishing = place.publishing([[key, 'usr_known', 'tnt_x'], ['user.usr_known.typing', 'usr_known', 'tnt_x']]);
  // The key that a firehose needs is one that the doctor can listen with.
  await topic('^$');
  await followAdvice(await within('firehose', undefined), 'bind');
  const firehose = await within('firehose', undefined);
  says(firehose, 'bind', 'ok');
  says(firehose, 'listening', 'ok', /the topic permissions let only .*update\.\*\.\*\.\*\.\*\.\* be heard/);
  says(firehose, 'bindings', 'ok', /matches all/);
  says(firehose, 'exchange', 'ok', /behaves as a topic exchange/);
  const wrong = await within('firehose', 'user.{userId}.*');
  says(wrong, 'bindings', 'problem', /misses \d+ of \d+/, /update\.\*\.\{tenantId\|\*\}\.\*\.\{userId\}\.\*/);
  assert.deepEqual(problems(wrong), ['bindings']);
  // With the keys of one template, updates with other keys are not received: their state is not known.
  await topic('^user\\.([^*#]+|\\*)\\.\\*$');
  const narrow = await within('firehose', 'user.{userId}.*');
  says(narrow, 'listening', 'ok', /let only user\.\*\.\* be heard/);
  says(narrow, 'bindings', 'ok', /matches all/);
  // With keys for single users, the doctor can only listen for the user of a token.
  await topic('^(user|update\\.\\*\\.tnt_x\\.\\*)\\.[^*#]+\\.\\*$');
  says(await within('per-user', 'user.{userId}.*'), 'keys', 'unknown', /topic permissions/, /token of a user/);
  const known = await within('per-user', 'user.{userId}.*', ['--token', token('usr_known', { tenantId: 'tnt_x' })]);
  says(known, 'listening', 'ok', /for 1 user/);
  says(known, 'bindings', 'problem', /misses \d+ of \d+/, /update\.\*\.\{tenantId\|\*\}\.\*\.\{userId\}\.\*/);
  publishing.stop();
  assert.equal(await place.queues(), '');
});

test('the rights on the control exchange are tried without making it or sending anything', async () => {
  const place = await Place.make();
  const own = '^(chat3-gateway\\..*|control)$';
  const all = `^(chat3-gateway\\..*|${EXCHANGE}|control)$`;
  const env = { RABBITMQ_CONTROL_EXCHANGE: 'control' };
  const url = await place.user('controlling', '^chat3-gateway\\.', own, all);
  const rights = (...patterns) => broker.ctl('set_permissions', '-p', place.vhost, 'controlling', ...patterns);
  for (const exists of [false, true]) {
    if (exists) await place.channel.assertExchange('control', 'fanout', { durable: true });
    const queue = exists && (await place.channel.assertQueue('', { exclusive: true })).queue;
    if (queue) await place.channel.bindQueue(queue, 'control', '');
    for (const [patterns, pattern] of [
      [['^chat3-gateway\\.', own, all], /no right to declare control/],
      [[own, '^chat3-gateway\\.', all], /no right to write to control/],
      [[own, own, `^(chat3-gateway\\..*|${EXCHANGE})$`], /no right to read control/],
    ]) {
      await rights(...patterns);
      says(await doctor(url, { env }), 'control_exchange', 'problem', pattern, /set_permissions/);
    }
    await rights(own, own, all);
    says(await doctor(url, { env }), 'control_exchange', 'ok', exists ? /exists/ : /does not exist yet/);
    if (queue) assert.equal((await place.channel.checkQueue(queue)).messageCount, 0);
  }
  const wrong = async (name) => (await doctor(place.url, { env: { RABBITMQ_CONTROL_EXCHANGE: name } })).worst.control_exchange;
  assert.match((await wrong(EXCHANGE)).finding, /Chat3's exchange/);
  assert.doesNotMatch((await wrong(EXCHANGE)).advice, /delete/);
  await place.channel.assertExchange('topical', 'topic');
  assert.match((await wrong('topical')).finding, /is a topic exchange/);
});

test('the stream of the orders: what there is, and the rights on it', async () => {
  const place = await Place.make();
  const own = '^(chat3-gateway\\..*|control)$';
  const all = `^(chat3-gateway\\..*|${EXCHANGE}|control)$`;
  const url = await place.user('keeping', own, own, all);
  const examine = async (stream = 'chat3-gateway.orders', more = {}) => doctor(url, { env: { RABBITMQ_CONTROL_EXCHANGE: 'control', RABBITMQ_CONTROL_STREAM: stream, ...more } });
  says(await examine(), 'control_stream', 'ok', /does not exist yet/);
  assert.equal(await place.queues(), '');
  // Without it, orders still reach the instances that are there.
  says(await examine('another.orders'), 'control_stream', 'warning', /cannot be used.*ACCESS_REFUSED/, /set_permissions.*another/);
  const limits = { 'x-queue-type': 'stream', 'x-max-age': '86400s', 'x-max-length-bytes': 100_000_000, 'x-stream-max-segment-size-bytes': 1_000_000 };
  await place.channel.assertQueue('chat3-gateway.orders', { durable: true, arguments: limits });
  says(await examine(), 'control_stream', 'ok', /exists and can be read/);
  says(await examine('chat3-gateway.orders', { REVOCATIONS_KEPT: '48h' }), 'control_stream', 'warning', /other limits/, /REVOCATIONS_KEPT/);
  await place.channel.assertQueue('chat3-gateway.classic', { durable: true });
  says(await examine('chat3-gateway.classic'), 'control_stream', 'warning', /cannot be used/, /name another/);
  assert.equal((await examine('')).worst.control_stream, undefined);
  const same = await examine('chat3-gateway.updates', { RABBITMQ_TOPOLOGY: 'stream' });
  says(same, 'control_stream', 'problem', /the stream of the updates/);
});

test('an exchange that is missing, of another type or otherwise declared', async () => {
  const none = await Place.make({ type: null });
  const missing = await doctor(none.url);
  says(missing, 'exchange', 'problem', /does not exist/, /start Chat3/);
  says(missing, 'bind', 'ok', new RegExp(`may write to its queues and read ${EXCHANGE}; .* only once ${EXCHANGE} exists`));
  const unreading = await none.user('unreading-none', '.*', '.*', '^chat3-gateway\\.');
  says(await doctor(unreading), 'bind', 'problem', /no right to read the exchange/);
  assert.deepEqual(problems(missing), ['exchange']);
  assert.ok(!(await broker.ctl('list_exchanges', '-p', none.vhost, 'name')).includes(EXCHANGE));
  for (const type of ['fanout', 'direct', 'headers']) {
    const place = await Place.make({ type });
    const publishing = place.publishing(['user.usr_b.typing']);
    says(await doctor(place.url), 'exchange', 'problem', new RegExp(`is a ${type} exchange, not topic`));
    publishing.stop();
  }
  const transient = await Place.make({ options: { durable: false } });
  says(await doctor(transient.url), 'exchange', 'warning', /durable is false/);
});

/** The values that its finding on bindings advises; `undefined` stands for none. */
function advised({ worst }) {
  const advice = worst.bindings.advice ?? '';
  const values = [...advice.matchAll(/RABBITMQ_BINDING_KEYS='([^']*)'/g)].map(([, value]) => value);
  return advice.includes('leave it unset') ? [...values, undefined] : values;
}

/** `undefined` means that the setting is absent. */
const setting = (value) => ({ RABBITMQ_BINDING_KEYS: value });

/** Asserts that with this setting updates arrive, for tokens with a tenant and without. */
async function arrive(place, value, userId, tenantId, { withoutTenant = true } = {}) {
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: place.url, ...setting(value) } });
  const tokens = withoutTenant ? [{ tenantId }, {}] : [{ tenantId }];
  const tabs = await Promise.all(tokens.map((claims) => Tab.open(gateway, userId, { claims })));
  await Promise.all(tabs.map((tab) => tab.when(`an update with ${value}`, () => tab.events.length > 0)));
  for (const tab of tabs) tab.close();
  await gateway.kill();
}

const WITH_TENANT = ['update.*.{tenantId|*}.*.{userId}.*', 'update.*.{tenantId}.*.{userId}.*', 'update.*.*.*.{userId}.*'];
const TEMPLATES = ['user.{userId}.*', 'user.*.{userId}.*', 'update.*.*.{userId}.*', ...WITH_TENANT];

for (const { since, updates } of generations()) {
  test(`Chat3 since ${since}: every template is told right from wrong, and the advice makes updates arrive`, async () => {
    const place = await Place.make();
    const { userId, tenantId } = updates[0].body;
    const keys = [...new Set(updates.map(({ routingKey }) => routingKey))];
    const publishing = place.publishing(keys.map((key) => [key, userId, tenantId]));
    const { right, wrong } = ofGeneration(since);
    const values = new Set();
    const examine = (value) => doctor(place.url, { env: setting(value), args: ['--listen', '2s'] });
    const [unset, ...each] = await Promise.all([undefined, ...right, ...wrong].map(examine));
    for (const examined of [unset, ...each]) {
      const named = examined.report.findings.filter(({ check }) => check === 'keys').map(({ finding }) => finding);
      assert.ok(named.some((finding) => finding.includes(`since ${since}`)), `${since}: ${named}`);
      says(examined, 'keys', 'ok');
      says(examined, 'templates', 'ok');
    }
    for (const examined of each.splice(0, right.length)) {
      says(examined, 'bindings', 'ok', /matches all of them/);
      assert.match(examined.text, /RabbitMQ routed [1-9]/);
      assert.equal(examined.code, 0, examined.text);
    }
    for (const examined of each) {
      says(examined, 'bindings', 'problem', /matches none of them: nobody gets an update/, /set RABBITMQ_BINDING_KEYS='.*or leave it unset/);
      says(examined, 'templates', 'ok', /gets none: no key is of its form/);
      assert.deepEqual(problems(examined), ['bindings']);
      for (const value of advised(examined)) values.add(value);
    }
    says(unset, 'bindings', 'ok', /the default, .* matches all of them/, /SCALING/);
    for (const value of advised(unset)) values.add(value);
    assert.deepEqual([...values].sort(), [right[0], undefined]);
    for (const value of values) await arrive(place, value, userId, tenantId);
    publishing.stop();
  });
}

/** The templates that get the updates of Chat3 since that day, the advised one first, and those that do not. */
function ofGeneration(since) {
  const count = { '2025-10-31': 0, '2025-11-19': 1 }[since] ?? (since < '2026-06' ? 2 : 3);
  const right = count === 3 ? WITH_TENANT : [TEMPLATES[count]];
  return { right, wrong: TEMPLATES.filter((template) => !right.includes(template)) };
}

test('ids with dots are read as the body spells them', async () => {
  const place = await Place.make();
  for (const [key, userId, tenantId, ...right] of [
    // The same key twice: of two users, and of two generations.
    ['update.dialog.tnt_x.user.usr_a.message', 'usr_a', 'tnt_x', ...WITH_TENANT],
    ['update.dialog.tnt_x.user.usr_a.message', 'user.usr_a', 'tnt_x', 'update.*.*.{userId}.*'],
    ['update.dialog.tnt.x.user.a.b.message', 'a.b', 'tnt.x', ...WITH_TENANT.slice(0, 2)],
    ['user.bot.a.b.typing', 'a.b', 'tnt.x', 'user.*.{userId}.*'],
  ]) {
    const publishing = place.publishing([[key, userId, tenantId]]);
    const examined = await Promise.all(TEMPLATES.map((template) => doctor(place.url, { env: setting(template) })));
    for (const [index, template] of TEMPLATES.entries()) {
      if (right.includes(template)) {
        says(examined[index], 'bindings', 'ok', /matches all/);
      } else {
        says(examined[index], 'bindings', 'problem', /none/);
        assert.deepEqual(advised(examined[index]), [right[0], undefined], `${key} for ${userId}`);
      }
    }
    await arrive(place, right[0], userId, tenantId, { withoutTenant: !tenantId.includes('.') || key.startsWith('user') });
    publishing.stop();
  }
});

test('updates of a tenant with dots are not found for tokens without a tenant, and the finding says so', async () => {
  const place = await Place.make();
  const publishing = place.publishing([['update.dialog.tnt.x.user.usr_a.message', 'usr_a', 'tnt.x']]);
  const examined = await doctor(place.url, { env: setting(undefined) });
  says(examined, 'bindings', 'ok', /matches all/);
  says(examined, 'tenants', 'unknown', /tokens have no tenant/, /JWT_DEFAULT_TENANT_ID/);
  const gateway = await Gateway.start(broker, { env: { RABBITMQ_URL: place.url, JWT_DEFAULT_TENANT_ID: 'tnt.x' } });
  const tab = await Tab.open(gateway, 'usr_a');
  await tab.when('an update', () => tab.events.length > 0);
  publishing.stop();
});

test('for several templates the finding says what each gets, and the advice adds the missing one', async () => {
  const place = await Place.make();
  const both = place.publishing(['update.dialog.user.usr_s3cret.message', 'user.usr_s3cret.typing']);
  const half = await doctor(place.url, { env: setting('user.{userId}.*') });
  says(half, 'bindings', 'problem', /misses \d+ of \d+/, /='user\.\{userId\}\.\*,update\.\*\.\*\.\{userId\}\.\*'/);
  const three = await doctor(place.url, { env: setting('user.{userId}.*,update.*.*.{userId}.*,user.*.{userId}.*') });
  says(three, 'bindings', 'ok', /matches all of them/, /RABBITMQ_BINDING_KEYS='user\.\{userId\}\.\*,update\.\*\.\*\.\{userId\}\.\*' costs/);
  assert.match(three.text, /user\.\{userId\}\.\* gets \d+ of \d+ updates/);
  assert.match(three.text, /user\.\*\.\{userId\}\.\* gets none: no key is of its form/);
  both.stop();
});

test('messages that are no user\'s update, or of no known generation, are reported as such', async () => {
  const place = await Place.make();
  const examine = async (updates, env) => {
    const publishing = place.publishing(updates);
    const examined = await doctor(place.url, { env });
    publishing.stop();
    return examined;
  };
  const strange = await examine(['orders.usr_s3cret.update']);
  says(strange, 'keys', 'warning', /no known generation/, /something else/);
  says(strange, 'bindings', 'warning', /matches none of them/, /add a template/);
  // There may be a template for those keys all the same.
  says(await examine(['orders.usr_s3cret.update'], setting('orders.{userId}.*')), 'bindings', 'ok', /matches all/);
  const foreign = await examine([['user.usr_b.typing', 'usr_s3cret']]);
  says(foreign, 'keys', 'warning', /not for the user in the body/);
  says(foreign, 'bindings', 'unknown');
  const timer = setInterval(() => place.channel.publish(EXCHANGE, 'user.usr_b.typing', Buffer.from('B0dy')), 50);
  const unreadable = await doctor(place.url);
  clearInterval(timer);
  says(unreadable, 'keys', 'warning', /messages? that the gateway rejects/);
  says(unreadable, 'bindings', 'unknown');
});

test('a clock that differs from the publisher is noticed', async () => {
  const place = await Place.make();
  for (const [timestamp, status, pattern] of [
    [() => Date.now() + 20_000, 'warning', /behind/],
    [() => Date.now() - 20_000, 'warning', /ahead/],
    [() => Date.now() + 600_000, 'problem', /behind.*clocks/],
    [() => Math.floor(Date.now() / 1000), 'ok', /within/],
    [() => undefined, 'unknown', /no timestamp/],
  ]) {
    const publishing = place.publishing(['user.usr_b.typing'], { timestamp });
    says(await doctor(place.url), 'clock', status, pattern);
    publishing.stop();
  }
});

test('a token is explained claim by claim, and the verdict is the gateway\'s', async () => {
  const url = `amqp://a:b@127.0.0.1:${await freePort()}/`;
  const env = { JWT_ISSUER: 'backend', JWT_AUDIENCE: 'chat' };
  const claims = { tenantId: 'tnt_1', iss: 'backend', aud: 'chat' };
  const now = Math.floor(Date.now() / 1000);
  const examine = async (examined) => {
    const result = await doctor(url, { env, args: ['--token', examined] });
    const [, , signature] = examined.split('.');
    for (const secret of [examined, signature].filter(Boolean)) assert.ok(!result.text.includes(secret), result.text);
    return result;
  };
  const good = token('usr_a', claims);
  const accepted = await examine(good);
  says(accepted, 'verdict', 'ok', /accepted: user usr_a, tenant tnt_1/);
  says(accepted, 'exp', 'ok', /\d{4}-\d\d-\d\dT.*in (59m|1h)/);
  const none = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${good.split('.')[1]}.`;
  for (const [bad, part, pattern, refusal] of [
    [token('usr_a', claims, { secret: 'another' }), 'signature', /another secret or key/, 'invalid token'],
    [none, 'alg', /not an algorithm/, 'invalid token'],
    [token('usr_a', { ...claims, exp: now - 3600 }, { expiresIn: null }), 'exp', /\(1h .*ago\): expired/, 'token expired'],
    [token('usr_a', claims, { expiresIn: null }), 'exp', /missing, and required/, 'token without expiry'],
    [token('usr_a', { ...claims, nbf: now + 3600 }), 'nbf', /not valid yet/, 'token not valid yet'],
    [token('usr_a', { ...claims, iss: 'other' }), 'iss', /"other"; "backend" is required/, 'token issuer not accepted'],
    [token('usr_a', { ...claims, aud: ['x'] }), 'aud', /"chat" is required/, 'token audience not accepted'],
    [token('*', claims), 'user_id', /not allowed/, 'user id not acceptable'],
    [token(undefined, claims), 'user_id', /missing/, 'token without user id'],
    [token('usr_a', { ...claims, tenantId: '#' }), 'tenant_id', /not allowed/, 'tenant id not acceptable'],
    ['rubbish', 'format', /not a JWT/, 'invalid token'],
    ['', 'format', /empty/, 'token missing'],
  ]) {
    const result = await examine(bad);
    says(result, part, 'problem', pattern);
    says(result, 'verdict', 'problem', new RegExp(refusal));
    assert.deepEqual(problems(result), ['tcp', part, 'verdict']);
  }
  says(await examine(token('usr_a', { ...claims, iat: now + 3600 })), 'iat', 'warning', /in the future/);
  // Not on the command line, which other users can see.
  const file = path.join(temporaryFolder(), 'token');
  writeFileSync(file, `${good}\n`);
  says(await doctor(url, { env, args: ['--token-file', file] }), 'verdict', 'ok');
  const child = spawn(gatewayBinary, ['doctor', '--json', '--token', '-'], { env: environment(url, env), cwd: temporaryFolder() });
  let stdout = '';
  child.stdout.on('data', (data) => (stdout += data));
  child.stdin.end(`Bearer ${good}\n`);
  await new Promise((resolve) => child.once('close', resolve));
  assert.equal(JSON.parse(stdout).findings.find(({ check }) => check === 'verdict').status, 'ok');
});

test('keys for tokens that are weak, public, missing or unreadable', async () => {
  const url = `amqp://a:b@127.0.0.1:${await freePort()}/`;
  says(await doctor(url, { env: { JWT_SECRET: 'the-secret-of-your-backend' } }), 'secret', 'problem', /anybody can sign/, /openssl rand/);
  says(await doctor(url, { env: { JWT_SECRET: 'zR8mQ2vLx5' } }), 'secret', 'warning', /10 bytes/);
  says(await doctor(url, { env: { JWT_SECRET: '' } }), 'keys', 'problem', /no key to verify/);
  says(await doctor(url, { env: { JWT_PUBLIC_KEY: 'rubbish' } }), 'keys', 'problem', /no PEM block/);
  const set = await doctor(url, { env: { JWT_JWKS: `http://127.0.0.1:${await freePort()}/keys` } });
  says(set, 'key_set', 'problem', /cannot be fetched/);
  says(set, 'audience', 'warning', /other services/);
  says(await doctor(url, { env: { JWT_REQUIRE_EXP: 'false' } }), 'expiry', 'warning');
});

test('file limits, port, admin token, origins and log file', async () => {
  const url = `amqp://a:b@127.0.0.1:${await freePort()}/`;
  const limited = await run('sh', ['-c', `ulimit -n 256; exec ${gatewayBinary} doctor --json`], { env: environment(url) })
    .catch(({ stdout }) => ({ stdout }));
  const files = JSON.parse(limited.stdout).findings.find(({ check }) => check === 'files');
  assert.equal(files.status, 'problem');
  assert.match(`${files.finding} ${files.advice}`, /256 open files.*LimitNOFILE=564/);
  says(await doctor(url, { env: { MAX_SOCKETS: '10000000' } }), 'files', 'warning', /MAX_SOCKETS is 10000000/);

  const HOST = '127.0.0.1';
  for (const [command, rabbitmq] of [['serve', 'disconnected'], ['dev', 'none']]) {
    const gateway = await Gateway.start(null, { args: [command], env: { RABBITMQ_URL: url }, connected: false });
    const { port } = new URL(gateway.url);
    const taken = await doctor(url, { env: { HOST, PORT: port } });
    says(taken, 'port', 'unknown', new RegExp(`a gateway listens.*RabbitMQ: ${rabbitmq}.*no other can start`), /the one that you run.*another PORT/);
  }
  const other = await listening((socket) => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}'));
  says(await doctor(url, { env: { HOST, PORT: String(other.port) } }), 'port', 'problem', /no gateway/, /another PORT/);
  other.close();

  says(await doctor(url, { env: { ADMIN_TOKEN: 'short' } }), 'admin_token', 'warning', /can be guessed/);
  says(await doctor(url, { env: { CORS_ORIGIN: '*' } }), 'cors_origin', 'warning', /every site/);
  says(await doctor(url, { env: { LOG_FILE: `${gatewayBinary}/server.log` } }), 'log_file', 'warning', /in its place/);
  const cwd = temporaryFolder();
  says(await doctor(url, { env: { LOG_FILE: 'logs/server.log' }, cwd }), 'log_file', 'ok', /can be written/);
  assert.equal((await run('ls', [cwd])).stdout, '');
});

test('amqps: each kind of wrong certificate is reported as such', async () => {
  const url = (host = 'localhost', port = tlsPort) => `amqps://rmuser:rmpassword@${host}:${port}/`;
  const ca = (of) => ({ RABBITMQ_CA_FILE: of('ca.pem') });
  const client = (of) => ({ RABBITMQ_CLIENT_CERT_FILE: of('client.pem'), RABBITMQ_CLIENT_KEY_FILE: of('client.key') });
  const well = await doctor(url(), { env: { ...ca(ours), ...client(ours) } });
  says(well, 'tls', 'ok', /TLS 1\.[23], certificate for localhost, valid until \d{4}-\d\d-\d\d/);
  says(well, 'client_certificate', 'ok', /valid until/);
  says(well, 'login', 'ok');
  says(await doctor(url(), { env: { ...ca(theirs), ...client(ours) } }), 'tls', 'problem', /is not by .*ca\.pem/, /RABBITMQ_CA_FILE/);
  says(await doctor(url(), { env: client(ours) }), 'tls', 'problem', /not by the public CAs/);
  says(await doctor(url('127.0.0.1'), { env: { ...ca(ours), ...client(ours) } }), 'tls', 'problem', /for .*localhost.*, not for 127\.0\.0\.1/);
  for (const env of [ca(ours), { ...ca(ours), ...client(theirs) }]) {
    const examined = await doctor(url(), { env });
    assert.equal(problems(examined).length, 1, examined.text);
    says(examined, problems(examined)[0], 'problem', /RABBITMQ_CLIENT_CERT_FILE/);
  }
  says(await doctor(url(), { env: { RABBITMQ_CA_FILE: '/nowhere.pem' } }), 'tls', 'problem', /cannot read \/nowhere\.pem/);
  says(await doctor(url('localhost', broker.port), { env: ca(ours) }), 'tls', 'problem', /amqp:\/\//);

  const [{ stdout: key }, { stdout: cert }] = await Promise.all(['expired.key', 'expired.pem'].map((file) => run('cat', [ours(file)])));
  const server = tls.createServer({ key, cert });
  server.on('tlsClientError', () => {});
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  says(await doctor(url('localhost', server.address().port), { env: ca(ours) }), 'tls', 'problem', /expired on 2025-02-01/, /renew/);
  server.close();
});
