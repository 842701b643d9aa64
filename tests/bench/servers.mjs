// What is measured: each server by its name, and how it is started.
//
// A server is a process that serves the protocol on a port of loopback and reads
// one exchange of one broker. Nothing here measures.

import { spawn } from 'node:child_process';
import net from 'node:net';
import path from 'node:path';

import { EXCHANGE, SECRET, freePort, gatewayBinary, testsFolder, until } from '../e2e/harness.mjs';

const root = path.join(testsFolder, '..');

/** From the gateway's build, so that all binaries come from the same one. */
export const examples = path.join(path.dirname(gatewayBinary), 'examples');

const START_MS = 30_000;

/** Child processes that must not outlive this one, however it ends. */
const running = new Set();
process.once('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** `child_process.spawn` for a process that ends with this one. */
export function spawnHere(...args) {
  const child = spawn(...args);
  running.add(child);
  child.once('close', () => running.delete(child));
  return child;
}

/** The settings of a gateway that all of the load comes to from one address. */
export function gatewayEnvironment({ broker, port, topology }) {
  return {
    RABBITMQ_URL: broker.url,
    RABBITMQ_UPDATES_EXCHANGE: EXCHANGE,
    RABBITMQ_TOPOLOGY: topology,
    RABBITMQ_RECONNECT_DELAY: '200ms',
    HOST: '127.0.0.1',
    PORT: String(port),
    NODE_ENV: 'production',
    RUST_LOG: 'warn',
    LOG_FILE: '',
    JWT_SECRET: SECRET,
    // The key that the load generator publishes with, and that the Node reference and the ceiling bind.
    RABBITMQ_BINDING_KEYS: 'user.{userId}.*',
    // In one scenario it comes from one user.
    MAX_CONNECTS_PER_SECOND: '0',
    MAX_CONNECTIONS_PER_ADDRESS: '0',
    MAX_SOCKETS_PER_USER: '0',
    // The other servers leave their sockets as they are, too.
    ...(topology === 'stream' ? {} : { RESYNC_ON_GAP: 'false' }),
  };
}

function gateway(topology, env = {}, command = gatewayBinary) {
  return ({ broker, port }) => ({
    command,
    args: ['serve'],
    env: { ...gatewayEnvironment({ broker, port, topology }), ...env },
    isReady: async () => (await fetch(`http://127.0.0.1:${port}/health`).then((reply) => reply.json(), () => ({}))).isConnected,
  });
}

function ceiling(topology, ...more) {
  return ({ broker, port }) => ({
    command: path.join(examples, 'ceiling'),
    args: ['--port', String(port), '--amqp', broker.url, '--exchange', EXCHANGE, '--topology', topology, ...more],
    env: {},
    isReady: () => accepts(port),
  });
}

function node({ broker, port }) {
  return {
    command: process.execPath,
    args: [path.join(root, 'examples', 'node-reference', 'server.mjs')],
    env: {
      PORT: String(port),
      JWT_SECRET: SECRET,
      NODE_ENV: 'production',
      RABBITMQ_URL: broker.url,
      RABBITMQ_UPDATES_EXCHANGE: EXCHANGE,
    },
    isReady: () => accepts(port),
  };
}

export const SERVERS = {
  'gateway per-user': gateway('per-user'),
  'gateway shared': gateway('shared'),
  'gateway firehose': gateway('firehose'),
  'gateway stream': gateway('stream'),
  'gateway shared, no recovery': gateway('shared', { RECOVERY_WINDOW: '0s' }),
  node,
  'ceiling per-user': ceiling('per-user'),
  'ceiling shared': ceiling('shared'),
  // Not measured: shows that a loss is noticed.
  'ceiling that drops': ceiling('shared', '--drop-every', '10'),
};

// An earlier build, in turns with this one: GATEWAY_BASELINE=path/to/chat3-gateway.
if (process.env.GATEWAY_BASELINE) {
  const baseline = path.resolve(process.env.GATEWAY_BASELINE);
  for (const topology of ['per-user', 'shared', 'firehose', 'stream']) {
    SERVERS[`baseline ${topology}`] = gateway(topology, {}, baseline);
  }
}

/** Starts the server `name` and resolves when it serves. */
export async function startServer(name, broker) {
  const port = await freePort();
  const { command, args, env, isReady } = SERVERS[name]({ broker, port });
  const child = spawnHere(command, args, { env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  const server = { name, port, url: `http://127.0.0.1:${port}`, child, pid: child.pid, output: '' };
  let failure = null;
  child.once('error', (error) => (failure = error));
  for (const stream of [child.stdout, child.stderr]) {
    // The end of its output: a server may complain for minutes.
    stream.on('data', (data) => (server.output = (server.output + data).slice(-4000)));
  }
  const exited = new Promise((resolve) => child.once('close', resolve));
  server.stop = async () => {
    child.kill('SIGKILL');
    if (child.pid) await exited;
  };
  const check = async () => {
    if (failure) throw failure;
    if (child.exitCode !== null) throw new Error(`${name} exited with ${child.exitCode}: ${server.output}`);
    return isReady();
  };
  try {
    await until(`${name} serves`, check, START_MS);
  } catch (error) {
    await server.stop();
    throw error;
  }
  return server;
}

/** Whether somebody listens on a port of loopback. */
export function accepts(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true));
    socket.once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}
