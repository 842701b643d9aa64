// One turn: one server put through one scenario by the load generator.
//
// It never throws for what the server does: a turn that fails says so in
// `failure` and keeps the phases that it got to.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';

import { EXCHANGE, Publisher, SECRET, until } from '../e2e/harness.mjs';
import { examples, spawnHere, startServer } from './servers.mjs';

/** The stream that the gateway declares. */
const STREAM = 'chat3-gateway.updates';

/** Time that a phase may take beyond its own seconds. */
const SLACK_MS = 60_000;
const SLACK_PER_SOCKET_MS = 40;

/** Puts `name` through `scenario`: `{ users, socketsPerUser, phases }`. */
export async function turn(name, scenario, broker) {
  const record = { server: name, at: new Date().toISOString(), phases: [], failure: null };
  let server;
  try {
    server = await startServer(name, broker);
    await load(server, scenario, broker, record.phases);
  } catch (error) {
    record.failure = error.message;
  } finally {
    await server?.stop();
    await removeStream(broker).catch((error) => (record.failure ??= error.message));
  }
  return record;
}

/** The stream of the topology `stream` would go on taking all updates in the next turns. */
async function removeStream(broker) {
  const publisher = await Publisher.connect(broker);
  await publisher.channel.deleteQueue(STREAM);
  await publisher.close();
}

/** The exchange, which Chat3 would have declared. */
export async function declareExchange(broker) {
  await (await Publisher.connect(broker)).close();
}

/** Waits until the broker has finished the work that the previous turn left, for at most half a minute. */
export async function isQuiet(pid) {
  let before = ticksOf(pid);
  const check = async () => {
    await new Promise((resolve) => setTimeout(resolve, 500));
    const spent = ticksOf(pid) - before;
    before += spent;
    return spent <= 5;
  };
  await until('the broker is quiet', check, 30_000).catch(() => {});
}

/** The CPU time of a process, in hundredths of a second. */
function ticksOf(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

async function load(server, { users, socketsPerUser = 1, phases }, broker, records) {
  const generator = spawnHere(path.join(examples, 'loadgen'), [
    '--port', server.port, '--amqp', broker.url, '--exchange', EXCHANGE, '--secret', SECRET,
    '--server-pid', server.pid, '--broker-pid', broker.child.pid,
    '--users', users, '--sockets-per-user', socketsPerUser, ...phases,
  ].map(String), { stdio: ['pipe', 'pipe', 'pipe'] });
  let complaints = '';
  generator.stderr.on('data', (data) => (complaints = (complaints + data).slice(-2000)));
  generator.stdin.on('error', () => {});
  const exited = new Promise((resolve, reject) => {
    generator.once('error', reject);
    generator.once('close', resolve);
  });
  let timer;
  let failure = null;
  const fail = (reason) => {
    failure ??= reason;
    generator.kill('SIGKILL');
  };
  const watch = () => {
    clearTimeout(timer);
    const phase = phases[records.length];
    if (!phase) return;
    const allowed = SLACK_MS + secondsOf(phase) * 1000 + users * socketsPerUser * SLACK_PER_SOCKET_MS;
    timer = setTimeout(() => fail(`${phase}: not within ${Math.round(allowed / 1000)} s`), allowed);
  };
  server.child.once('exit', (code, signal) => fail(`${phases[records.length] ?? 'after all'}: the server exited (${code ?? signal})`));
  watch();
  const lines = readline.createInterface({ input: generator.stdout });
  lines.on('line', async (line) => {
    try {
      const record = JSON.parse(line);
      if (record.waiting) {
        await restart(broker);
        generator.stdin.write(`${broker.child.pid}\n`);
        return;
      }
      records.push({ ...record, spec: phases[records.length] });
      watch();
    } catch (error) {
      fail(`${phases[records.length]}: ${error.message}`);
    }
  });
  const code = await exited.finally(() => clearTimeout(timer));
  if (failure) throw new Error(failure);
  if (code !== 0 || records.length < phases.length) {
    throw new Error(`${phases[records.length] ?? 'after all'}: the load generator exited with ${code}: ${complaints.trim()}`);
  }
}

async function restart(broker) {
  await broker.kill();
  await broker.start();
}

function secondsOf(phase) {
  const [kind, ...numbers] = phase.split(':');
  if (kind === 'burst') return Number(numbers[0]) / 1000;
  return ['idle', 'settle', 'rate', 'saturate', 'churn', 'foreign'].includes(kind) ? Number(numbers.at(-1)) : 0;
}
