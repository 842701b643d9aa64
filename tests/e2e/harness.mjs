// The parts of the end-to-end tests: a private RabbitMQ, the gateway's
// binary, real socket.io-client sockets and a publisher like Chat3's.
//
// Everything listens on loopback, on free ports, and is stopped by its pid when
// the test file ends. Waiting is always for an event, with a deadline.

import { spawn, execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, afterEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import amqplib from 'amqplib';
import jwt from 'jsonwebtoken';
import { io } from 'socket.io-client';

const run = promisify(execFile);
const tests = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const rabbitmqScript = path.join(tests, 'rabbitmq.sh');

/** Where cargo puts what it builds for the tests. */
export const builtFolder = path.resolve(process.env.CARGO_TARGET_DIR ?? path.join(tests, '..', 'target'), 'debug');

// Absolute, since it is started in other folders.
export const gatewayBinary = path.resolve(process.env.GATEWAY_BIN ?? path.join(builtFolder, 'chat3-gateway'));

export const SECRET = 'a-secret-for-tests-of-thirty-two-bytes';
export const EXCHANGE = 'chat3_updates';

/** The topology that all tests run over. */
export const topology = process.env.RABBITMQ_TOPOLOGY ?? 'per-user';

/** More than the default of one, which would leave nothing to divide. */
const SHARED_QUEUES = 3;

/** The longest time that anything here may take before its test fails. */
const DEADLINE_MS = 20_000;

/** The longest time for waits that end with a limit of the gateway: the longest limit is 45 s, for a session without heartbeats. */
const END_DEADLINE_MS = 60_000;

/** After this long, RabbitMQ has written down that it has streams. */
const STREAMS_KEPT_MS = 6000;

/** A gateway that takes longer to let a client in may have given up waiting for its subscription, after 2 s. */
const SLOW_CONNECT_MS = 1500;

/** What must not outlive this process, however it ends. */
const children = new Set();
process.once('exit', () => children.forEach((child) => child.kill('SIGKILL')));

function mortal(child) {
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

/** The processes to stop when the test file ends, last started first. */
const cleanups = [];
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
});

/** The tabs of the running test: a test that fails must not disturb the next one. */
const openTabs = new Set();
afterEach(() => {
  for (const tab of openTabs) tab.close();
});

/** Resolves with `check()`'s first truthy result; polls because its subjects cannot notify. */
export async function until(what, check, deadlineMs = DEADLINE_MS) {
  const end = Date.now() + deadlineMs;
  for (;;) {
    const result = await check();
    if (result) return result;
    if (Date.now() > end) throw new Error(`not within ${deadlineMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Resolves as `promise` does, within the deadline; for a promise that might never settle. */
async function inTime(what, promise, deadlineMs) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${deadlineMs} ms: ${what}`)), deadlineMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function isFree(port) {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

/** The first of three consecutive free ports, below the range of outgoing connections. */
async function freePorts() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    if ((await isFree(port)) && (await isFree(port + 1)) && (await isFree(port + 2))) return port;
  }
}

export async function freePort() {
  return freePorts();
}

function temporaryFolder() {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'chat3-gateway-test-'));
  // Not rmSync, which never deletes what is written meanwhile.
  cleanups.push(() => rm(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 }));
  return folder;
}

function exited(child) {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once('exit', resolve));
}

/** The end of a child and of its output, which may come after its exit. Must be called before the exit. */
function closed(child) {
  return new Promise((resolve) => child.once('close', resolve));
}

/** A private RabbitMQ that can be killed and started again. */
export class Broker {
  /** `conf` is appended to its configuration. */
  static async start({ conf = '' } = {}) {
    const broker = new Broker(await freePorts(), temporaryFolder());
    if (conf) writeFileSync(path.join(broker.folder, 'extra.conf'), conf);
    cleanups.push(() => broker.stop());
    await broker.start();
    return broker;
  }

  /** A folder and a port for a broker that is not running yet; `env` is added to the script's environment. */
  static async absent({ env = {} } = {}) {
    const broker = new Broker(await freePorts(), temporaryFolder());
    broker.env = { ...process.env, ...env };
    cleanups.push(() => broker.stop());
    return broker;
  }

  constructor(port, folder) {
    this.port = port;
    this.folder = folder;
    this.env = process.env;
    this.url = `amqp://rmuser:rmpassword@127.0.0.1:${port}/`;
  }

  async start() {
    let output = '';
    this.child = mortal(spawn(rabbitmqScript, ['run', this.folder, String(this.port)], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: this.env,
    }));
    this.child.stdout.on('data', (data) => (output += data));
    this.child.stderr.on('data', (data) => (output += data));
    const connected = async () => {
      if (this.child.exitCode !== null) throw new Error(`RabbitMQ did not start: ${output}`);
      const connection = await amqplib.connect(this.url).catch(() => null);
      await connection?.close();
      return connection;
    };
    await until('RabbitMQ accepts connections', connected, 60_000);
    if (topology === 'stream') await this.declareStream();
  }

  /**
   * RabbitMQ 3.10 never starts its streams again if it dies within 5 s of having declared the
   * first of them. So it gets one when it starts, and is not killed before.
   */
  async declareStream() {
    if (this.mayDieAt) return;
    const connection = await amqplib.connect(this.url);
    const channel = await connection.createChannel();
    await channel.assertQueue('first', { durable: true, arguments: { 'x-queue-type': 'stream' } });
    await connection.close();
    this.mayDieAt = Date.now() + STREAMS_KEPT_MS;
  }

  /** Ends the broker as a power cut would. */
  async kill() {
    await new Promise((resolve) => setTimeout(resolve, this.mayDieAt - Date.now() || 0));
    this.child.kill('SIGKILL');
    await exited(this.child);
  }

  async stop() {
    if (!this.child) return;
    this.child.kill('SIGKILL');
    await exited(this.child);
    await run(rabbitmqScript, ['epmd-kill', this.folder, String(this.port)], { env: this.env }).catch(() => {});
  }

  get isAlive() {
    return Boolean(this.child) && this.child.exitCode === null && this.child.signalCode === null;
  }

  async ctl(...args) {
    const { stdout } = await run(rabbitmqScript, ['ctl', this.folder, String(this.port), ...args], { env: this.env });
    return stdout;
  }

  /** What an Erlang expression gives on the node, a text; nothing if the node does not answer. */
  async eval(expression) {
    const text = `unicode:characters_to_list(${expression.trim().replace(/\.$/, '')}).`;
    const asking = run(rabbitmqScript, ['eval', this.folder, String(this.port)], { env: this.env });
    asking.child.stdin.end(text);
    const { stdout } = await asking.catch(() => ({ stdout: '' }));
    const [, answer] = /^\{ok, ("[^]*"|\[\])\}/.exec(stdout) ?? [];
    return answer && (answer === '[]' ? '' : JSON.parse(answer));
  }

  /** The gateway's queues with their counts of consumers and unacknowledged messages. */
  async queues() {
    const items = ['name', 'consumers', 'messages_unacknowledged', 'exclusive', 'auto_delete', 'durable'];
    // Tests ask again and again, and rabbitmqctl takes a second of a core each time.
    const listing = (await this.eval(`
      [io_lib:format("~ts\\t~p\\t~p\\t~p\\t~p\\t~p~n", [Name | Values]) || [{name, {resource, _, queue, Name}} | Items]
        <- rabbit_amqqueue:info_all(<<"/">>, [${items}]), Values <- [[Value || {_, Value} <- Items]]].
    `)) ?? await this.ctl('list_queues', '--no-table-headers', ...items);
    return listing
      .split('\n')
      .filter((line) => line.startsWith('chat3-gateway.'))
      .map((line) => {
        const [name, consumers, unacknowledged, exclusive, autoDelete, durable] = line.split('\t');
        return { name, consumers: Number(consumers), unacknowledged: Number(unacknowledged), exclusive, autoDelete, durable };
      });
  }

  /**
   * Waits until the queues of connected `gateways` with this many `users` exist. A stream is there
   * once a gateway has been; who reads it, RabbitMQ 3.10 does not tell reliably.
   */
  async queuesAre(users, gateways = 1) {
    const count = { 'per-user': users, shared: SHARED_QUEUES * gateways, firehose: gateways, stream: 1 }[topology];
    return until(`${count} queues`, async () => {
      const queues = await this.queues();
      return queues.length === count ? { queues } : null;
    }).then(({ queues }) => queues);
  }
}

/** What tests are about that some topologies do not have, and why not. */
const LACKING = {
  'keys of single users': {
    firehose: 'its keys are for all users',
    stream: 'it is bound with #',
  },
  'a queue for each user': {
    shared: 'on a channel that has bound before, RabbitMQ remembers that it was permitted',
    firehose: 'users share it',
    stream: 'users share it',
  },
  'queues of the gateway alone': {
    stream: 'it is for all instances and outlives them; stream.test.mjs has it deleted',
  },
  'sessions that are kept for who is away': {
    stream: 'a session is signed, and its user not subscribed; orders.test.mjs has it end',
  },
  'updates that pass the gateway by': {
    stream: 'it keeps what is published while the connection is away; stream.test.mjs cuts it',
  },
};

/** `test`, for tests of what the topology may lack; they are skipped, with the reason, where it does. */
export const testOf = (what) => (name, body) => test(name, { skip: LACKING[what][topology] ?? false }, body);

/** Publishes as Chat3's Update Worker does: persistent JSON with a timestamp in ms, no confirms. */
export class Publisher {
  static async connect(broker) {
    const publisher = new Publisher();
    publisher.connection = await amqplib.connect(broker.url);
    publisher.connection.on('error', () => {});
    publisher.channel = await publisher.connection.createChannel();
    await publisher.channel.assertExchange(EXCHANGE, 'topic', { durable: true });
    cleanups.push(() => publisher.close());
    return publisher;
  }

  async close() {
    await this.connection.close().catch(() => {});
  }

  /** `body` is an object, or a Buffer for bytes that no publisher should send. */
  publish(routingKey, body, options = {}) {
    const content = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
    this.channel.publish(EXCHANGE, routingKey, content, {
      persistent: true,
      contentType: 'application/json',
      timestamp: Date.now(),
      ...options,
    });
  }

  /** Publishes an update of the original shape to `userId` and returns it. */
  update(userId, fields = {}) {
    const update = anUpdate(userId, fields);
    this.publish(`user.${userId}.messageupdate`, update);
    return update;
  }
}

let updates = 0;

/** An update of the original shape with a unique `_id`. */
export function anUpdate(userId, fields = {}) {
  const _id = `update-${(updates += 1)}`;
  return {
    _id,
    tenantId: 'tnt_default',
    userId,
    dialogId: 'dlg_1',
    entityId: `msg_${updates}`,
    eventId: `evt_${updates}`,
    eventType: 'message.create',
    data: { _id: `msg_${updates}`, content: `Привет ${updates}`, senderId: 'usr_sender' },
    published: true,
    publishedAt: new Date().toISOString(),
    ...fields,
  };
}

/** A running gateway process. */
export class Gateway {
  /** Starts `serve` (or what `options.args` says), with `options.descriptors` at most, and waits until it listens. */
  static async start(broker, options = {}) {
    const gateway = new Gateway();
    const env = {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: '0',
      JWT_SECRET: SECRET,
      LOG_FILE: '',
      RABBITMQ_RECONNECT_DELAY: '200ms',
      RABBITMQ_TOPOLOGY: topology,
      DIRECT_WRITES: process.env.DIRECT_WRITES ?? 'true',
      RABBITMQ_SHARED_QUEUES: String(SHARED_QUEUES),
      // Most tests are about the sockets that stay; resync.test.mjs has the default.
      RESYNC_ON_GAP: 'false',
      ...(broker ? { RABBITMQ_URL: broker.url } : {}),
      ...options.env,
    };
    gateway.logs = '';
    gateway.folder = options.cwd ?? temporaryFolder();
    const limit = options.descriptors ? `ulimit -n ${options.descriptors}; ` : '';
    gateway.child = mortal(spawn('sh', ['-c', `${limit}exec "$0" "$@"`, gatewayBinary, ...(options.args ?? ['serve'])], { env, cwd: gateway.folder }));
    gateway.child.stdout.on('data', (data) => (gateway.logs += data));
    gateway.child.stderr.on('data', (data) => (gateway.logs += data));
    gateway.closed = closed(gateway.child).then(() => (gateway.isClosed = true));
    cleanups.push(() => gateway.kill());
    const listening = await gateway.logged(/Listening\W+address\W+[\d.]+:(\d+)/).catch(async (error) => {
      await gateway.kill();
      throw error;
    });
    gateway.url = `http://127.0.0.1:${listening[1]}`;
    if (broker?.child && options.connected !== false) await gateway.isConnected();
    return gateway;
  }

  /** Waits for a line in the process's output. */
  async logged(pattern, deadlineMs) {
    return until(`a log line like ${pattern}`, () => {
      const match = this.logs.match(pattern);
      if (!match && this.isClosed) {
        throw new Error(`the gateway exited with ${this.child.exitCode ?? this.child.signalCode}:\n${this.logs}`);
      }
      return match;
    }, deadlineMs).catch((error) => {
      throw new Error(`${error.message}\n${this.logs.slice(-4000)}`);
    });
  }

  async isConnected(expected = true) {
    await until(`isConnected is ${expected}`, async () => (await this.json('/health')).isConnected === expected);
  }

  get(path, options) {
    return fetch(this.url + path, options);
  }

  async json(path, options) {
    return (await this.get(path, options)).json();
  }

  /** One metric's value, e.g. `updates_rejected_total{reason="empty"}`. */
  async metric(name) {
    const text = await (await this.get('/metrics')).text();
    const line = text.split('\n').find((line) => line.startsWith(`chat3_gateway_${name} `));
    if (!line) throw new Error(`no metric ${name} in /metrics`);
    return Number(line.split(' ')[1]);
  }

  async metricIs(name, expected, deadlineMs) {
    let value;
    await until(`${name} is ${expected}`, async () => {
      value = await this.metric(name);
      return value === expected;
    }, deadlineMs).catch((error) => {
      throw new Error(`${error.message} (it is ${value})\n${this.logs.slice(-4000)}`);
    });
  }

  /** Sends a signal and resolves with the exit code and how long it took. */
  async terminate(signal = 'SIGTERM') {
    const start = Date.now();
    this.child.kill(signal);
    await inTime(`the exit after ${signal}`, this.closed, END_DEADLINE_MS);
    return { code: this.child.exitCode, signal: this.child.signalCode, ms: Date.now() - start };
  }

  async kill() {
    this.child.kill('SIGKILL');
    await this.closed;
  }
}

/** Runs the binary to its end. */
export async function runGateway(args, { env = {}, cwd = temporaryFolder() } = {}) {
  const child = spawn(gatewayBinary, args, { env: { PATH: process.env.PATH, ...env }, cwd });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (data) => (stdout += data));
  child.stderr.on('data', (data) => (stderr += data));
  const stuck = setTimeout(() => child.kill('SIGKILL'), DEADLINE_MS);
  await closed(child);
  clearTimeout(stuck);
  return { code: child.exitCode, stdout, stderr };
}

/** A token as the team's backend would sign it. */
export function token(userId, claims = {}, { secret = SECRET, algorithm = 'HS256', expiresIn = '1h' } = {}) {
  const options = expiresIn === null ? { algorithm } : { algorithm, expiresIn };
  return jwt.sign({ userId, ...claims }, secret, options);
}

/**
 * Waits until all users are subscribed, or RabbitMQ has refused some. A few seconds at most:
 * a test may be about users who are not subscribed, or about the address of the metrics.
 */
async function subscribed(gateway) {
  const isRefused = /RabbitMQ (exchange not found|refused a subscription)/;
  await until('all subscriptions', async () => {
    const [subscriptions, ...users] = await Promise.all(['subscriptions', 'users', 'users_away'].map((name) => gateway.metric(name)));
    return subscriptions === users[0] + users[1] || isRefused.test(gateway.logs);
  }, 5000).catch(() => {});
}

/** A browser tab: a socket.io-client socket that remembers what it received. */
export class Tab {
  /** Starts connecting; `token` may be anything, for clients that misbehave. */
  constructor(gateway, token, options = {}) {
    this.events = [];
    this.connects = 0;
    this.disconnects = [];
    this.waiters = new Set();
    const { auth = { token }, url = gateway.url, connect = io, ...rest } = options;
    this.offsets = [];
    this.recovered = [];
    this.socket = connect(url, { auth, forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 200, ...rest });
    this.socket.onAny((event, ...args) => this.note(() => {
      // The offset, which is the last argument of a session that can be recovered.
      if (typeof args.at(-1) === 'string') this.offsets.push(args.pop());
      this.events.push({ event, args });
    }));
    this.socket.on('connect', () => this.note(() => {
      this.connects += 1;
      this.recovered.push(this.socket.recovered);
    }));
    this.socket.on('disconnect', (reason) => this.note(() => this.disconnects.push(reason)));
    this.socket.on('connect_error', (error) => this.note(() => (this.error = error)));
    openTabs.add(this);
  }

  /** Connects a tab of `userId` and waits until it is in and receives everything published from then on. */
  static async open(gateway, userId, { claims, ...options } = {}) {
    const start = Date.now();
    const tab = new Tab(gateway, token(userId, claims), options);
    await tab.when('connected', () => tab.connects > 0);
    if (Date.now() - start > SLOW_CONNECT_MS) await subscribed(gateway);
    return tab;
  }

  note(change) {
    change();
    for (const waiter of this.waiters) waiter();
  }

  /** Resolves when `condition()` holds, checked after each thing that happens here. */
  async when(what, condition, deadlineMs = DEADLINE_MS) {
    if (condition()) return;
    await new Promise((resolve, reject) => {
      const done = (settle, value) => {
        clearTimeout(timer);
        this.waiters.delete(check);
        settle(value);
      };
      const check = () => condition() && done(resolve);
      const timer = setTimeout(() => {
        const state = `events ${this.events.length}, connects ${this.connects}, disconnects ${this.disconnects}, error ${this.error?.message}`;
        done(reject, new Error(`not within ${deadlineMs} ms: ${what} (${state})`));
      }, deadlineMs);
      this.waiters.add(check);
    });
  }

  /** Waits for the refusal and returns its message. */
  async refused() {
    await this.when('connect_error', () => this.error);
    return this.error.message;
  }

  named(event) {
    return this.events.filter((seen) => seen.event === event).map((seen) => seen.args[0]);
  }

  /** The `_id`s of the updates seen, in order. */
  get ids() {
    return this.named('chat3:update').map((update) => update._id);
  }

  /** Waits until the update with this `_id` has been seen. */
  async saw({ _id }, deadlineMs) {
    await this.when(`update ${_id}`, () => this.ids.includes(_id), deadlineMs);
  }

  close() {
    openTabs.delete(this);
    this.socket.disconnect();
  }
}

/** The network between clients and a gateway: a TCP proxy that can be cut. */
export class Network {
  /** `from`: the address of loopback that its connections come from. */
  static async to(gateway, { from } = {}) {
    const network = new Network();
    network.from = from;
    const port = Number(new URL(gateway.url).port);
    network.links = new Set();
    network.isUp = true;
    network.server = net.createServer((near) => {
      if (!network.isUp) return near.destroy();
      const far = net.connect({ port, host: '127.0.0.1', localAddress: network.from });
      const link = [near, far];
      network.links.add(link);
      for (const [socket, other] of [[near, far], [far, near]]) {
        socket.on('error', () => {});
        socket.on('close', () => {
          network.links.delete(link);
          other.destroy();
        });
        socket.pipe(other);
      }
    });
    await new Promise((resolve) => network.server.listen(0, '127.0.0.1', resolve));
    network.url = `http://127.0.0.1:${network.server.address().port}`;
    cleanups.push(() => {
      network.cut();
      network.server.close();
    });
    return network;
  }

  /** Breaks every connection, and refuses new ones until `restore`. */
  cut() {
    this.isUp = false;
    this.reset();
  }

  /** Breaks every connection once. */
  reset() {
    for (const link of this.links) for (const socket of link) socket.destroy();
  }

  restore() {
    this.isUp = true;
  }

  /** Holds back what the gateway sends on the connections that are open now. */
  hold() {
    this.held = [...this.links];
    for (const [near, far] of this.held) far.unpipe(near);
  }

  /** Sends on what was held back. */
  release() {
    for (const [near, far] of this.held) far.pipe(near);
  }

  /** Swallows everything on the connections that are open now, without a sign to either end. */
  blackhole() {
    for (const link of this.links) {
      for (const socket of link) {
        socket.unpipe();
        socket.removeAllListeners('data');
        socket.resume();
      }
    }
  }
}

/** A polling client by hand: it does only what a test tells it to. */
export class Poller {
  static async connect(gateway, auth) {
    const poller = new Poller();
    const url = `${gateway.url}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
    poller.url = `${url}&sid=${sid}`;
    await poller.post(`40${JSON.stringify(auth)}`);
    return poller;
  }

  async post(body) {
    return fetch(this.url, { method: 'POST', body, headers: { 'content-type': 'text/plain' } });
  }

  async poll() {
    return (await fetch(this.url, { signal: AbortSignal.timeout(DEADLINE_MS) })).text();
  }

  /** Polls until the CONNECT reply, and returns its pid. */
  async pid() {
    return until('the CONNECT reply', async () => (await this.poll()).match(/40\{.*"pid":"(\w+)"/)?.[1]);
  }
}

/** A TCP connection to the gateway on which a test writes what it likes. */
export async function rawConnection(gateway) {
  const { port } = new URL(gateway.url);
  const socket = net.connect(Number(port), '127.0.0.1');
  socket.received = '';
  socket.on('data', (data) => (socket.received += data.toString('latin1')));
  socket.on('error', () => {});
  const ended = new Promise((resolve) => socket.on('close', resolve));
  // A getter, so that the deadline counts from when a test begins to wait.
  Object.defineProperty(socket, 'ended', { get: () => inTime('the end of the connection', ended, END_DEADLINE_MS) });
  await inTime('a connection', new Promise((resolve) => socket.once('connect', resolve)), DEADLINE_MS);
  return socket;
}

/** A websocket that is signed in as `userId`, on a raw connection. */
export async function rawWebsocket(gateway, userId) {
  const socket = await rawConnection(gateway);
  socket.write(HANDSHAKE);
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  socket.write(frame(`40${JSON.stringify({ token: token(userId) })}`));
  await until('the CONNECT reply', () => socket.received.includes('40{"sid"'));
  return socket;
}

/** A session that is signed in as `userId` and polls when a test tells it to: `poll()` fetches, `poll(body)` sends. */
export async function pollingSession(gateway, userId) {
  const endpoint = '/socket.io/?EIO=4&transport=polling';
  const open = await (await gateway.get(endpoint)).text();
  const { sid } = JSON.parse(open.slice(1));
  const poll = (body) => gateway.get(`${endpoint}&sid=${sid}`, body ? { method: 'POST', body } : {});
  await (await poll(`40${JSON.stringify({ token: token(userId) })}`)).text();
  // The first answer may be the heartbeat's.
  await until('the CONNECT reply', async () => /40\{"sid"/.test(await (await poll()).text()));
  return { sid, poll, upgradeRequest: HANDSHAKE.replace('transport=websocket', `transport=websocket&sid=${sid}`) };
}

/** One masked websocket text frame, as clients must send it. */
export function frame(text, { opcode = 1, length = Buffer.byteLength(text) } = {}) {
  const payload = Buffer.from(text);
  const head = length < 126 ? [0x80 | opcode, 0x80 | length]
    : length < 65_536 ? [0x80 | opcode, 0xfe, length >> 8, length & 255]
      : [0x80 | opcode, 0xff, 0, 0, 0, 0, (length >> 24) & 255, (length >> 16) & 255, (length >> 8) & 255, length & 255];
  return Buffer.concat([Buffer.from(head), Buffer.alloc(4), payload]);
}

/** The request that opens a websocket with a new session. */
export const HANDSHAKE = 'GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';

/** The generations of Chat3, with the updates that each publishes. */
export function generations() {
  const folder = path.join(tests, 'fixtures');
  return readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => JSON.parse(readFileSync(path.join(folder, name), 'utf8')));
}

export { mortal, run, tests as testsFolder, temporaryFolder };
