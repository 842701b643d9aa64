// The capacity planner: users online, updates a second and RabbitMQ's version in; topology,
// instances, nodes and memory out. It computes from what was measured: the tables of
// docs/BENCHMARKS.md (`make bench`) and broker.json (`make bench-broker`).
//
//   USERS=20000 UPDATES=1000 RABBITMQ=3.13 node plan.mjs     SOCKETS=1 NODES=3 BYTES=670

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));

/** How busy a thread or a node may be, with one instance or node gone. */
const BUSY = 0.6;
/** A reader of a stream that is slower than what is published falls behind for ever. */
const READER_RESERVE = 3;
/** What one reader of a stream takes a second, by the version from which on it does: docs/SCALING.md. */
export const READERS = [['4.2', 115_000], ['4.1', 13_500], ['3.10', 5_000]];
/** RabbitMQ stops publishers at this share of a node's memory, by default and in all versions at most. */
const WATERMARK = 0.4;
/** A stream's size at the broker, and a segment more. */
export const STREAM_BYTES = 2_020_000_000;
/** 1.75 of the default RECOVERY_WINDOW: docs/SCALING.md. */
const RECOVERY_SECONDS = 210;
/** Of an update in a stream, beyond its body: docs/SCALING.md. */
const STREAM_OVERHEAD = 306;
/** Descriptors beside the sockets': docs/CONFIGURATION.md. */
const OTHER_FILES = 64;
/** What a node of RabbitMQ has at least: its own needs under load are not measured. */
const LEAST_NODE = { cores: 2, mib: 1_024 };
const MIB = 1024;

/** A table of the benchmark's page as `{ server: { column: number } }`; of columns of one name, the first. */
function table(text, title, mark) {
  const section = text.split(/^### /m).find((part) => part.startsWith(title)) ?? '';
  const lines = section.split('\n').filter((line) => line.startsWith('|'));
  const head = lines.findIndex((line) => line.startsWith('| server') && line.includes(mark));
  if (head < 0) return {};
  const cells = (line) => line.split('|').slice(1, -1).map((cell) => cell.trim());
  const end = lines.findIndex((line, at) => at > head + 1 && line.startsWith('| server'));
  const rows = lines.slice(head + 2, end < 0 ? undefined : end);
  return Object.fromEntries(rows.map(cells).map(([server, ...values]) => {
    const entries = cells(lines[head]).slice(1).map((name, at) => [name, parseFloat(values[at].replaceAll(',', ''))]);
    return [server, Object.fromEntries(entries.reverse().filter(([, value]) => Number.isFinite(value)))];
  }));
}

/** What was measured, from the text of docs/BENCHMARKS.md and from broker.json. */
export function figures(benchmarks, broker) {
  // The largest number that was measured in each topology.
  const most = 10_000;
  const [, bench] = benchmarks.match(/^(Measured from [\s\S]*?)\n\n/m);
  const [work, state, burst, elsewhere] = [
    table(benchmarks, '10,000 users', 'CPU per update'), table(benchmarks, '10,000 users', 'connects/s'), table(benchmarks, '5,000 users', 'after the burst'),
    table(benchmarks, '1,000 users, and 99 of 100', 'server CPU per update'),
  ];
  const needed = [[work, ['CPU per update at 1,000/s', 'at saturation', 'broker’s']], [state, ['process before', 'per idle socket', 'connects/s']],
    [burst, ['after the burst', 'process idle']]];
  const isMeasured = (name) => needed.every(([rows, columns]) => columns.every((column) => rows[name]?.[column] !== undefined));
  const missing = [];
  const unknown = [];
  const gateway = Object.fromEntries(['per-user', 'shared', 'firehose', 'stream'].map((topology) => {
    let name = `gateway ${topology}`;
    if (!isMeasured(name)) {
      missing.push(topology);
      name = 'gateway firehose';
    }
    const reads = topology === 'firehose' || topology === 'stream';
    const foreign = elsewhere[`gateway ${topology}`]?.['server CPU per update'];
    if (reads && !foreign) unknown.push(topology);
    return [topology, {
      atRate: work[name]['CPU per update at 1,000/s'],
      atSaturation: work[name]['at saturation'],
      brokerAtSaturation: work[name]['broker’s'],
      // Of 100 such updates, one is delivered.
      foreign: reads ? Math.max(0, ((foreign ?? work[name]['at saturation']) * 100 - work[name]['at saturation']) / 99) : 0,
      baseKb: state[name]['process before'] * MIB,
      perSocketKb: state[name]['per idle socket'],
      recoveryKb: (burst[name]['after the burst'] - burst[name]['process idle']) * MIB,
      connects: state[name]['connects/s'],
    }];
  }));
  const notes = [
    missing.length && `${missing.join(', ')}: not in the tables of docs/BENCHMARKS.md, so its instances count as those of firehose.`,
    unknown.length && `${unknown.join(', ')}: an update of users elsewhere counts as one that is delivered; its own cost is not in the tables.`,
  ].filter(Boolean);
  return { most, bench, notes, gateway, broker };
}

/** Processor time of `rate` updates a second, as cores: dear at the rate of the measurement, cheaper at saturation. */
function cores(rate, atRate, atSaturation, measuredRate = 1_000) {
  const slow = Math.min(rate, measuredRate) * atRate;
  return Math.max(slow, rate * Math.min(atRate, atSaturation)) / 1e6;
}

const isAtLeast = (version, least) => {
  const [[major, minor], [from, to]] = [version, least].map((text) => text.split('.').map(Number));
  return major > from || (major === from && (minor || 0) >= to);
};
const roundUp = (value, step) => Math.ceil(value / step) * step;

/** What each topology takes: `{ topology, instances, nodes, … }`, or why it does not do: `{ topology, reason }`. */
export function plans({ users, updates, rabbitmq, sockets = 1, nodes = 3, bytes = 670 }, measured) {
  return ['stream', 'shared', 'per-user', 'firehose'].map((topology) => {
    const cost = measured.gateway[topology];
    const readsAll = topology === 'firehose' || topology === 'stream';
    if (topology === 'stream') {
      const reader = READERS.find(([least]) => isAtLeast(rabbitmq, least))?.[1] ?? 0;
      if (reader === 0) return { topology, reason: 'RabbitMQ 3.10 or later is needed' };
      if (updates * READER_RESERVE > reader) {
        return { topology, reason: `a reader takes ${text(reader)}/s with RabbitMQ ${rabbitmq}, and ${text(updates * READER_RESERVE)}/s are needed as a reserve` };
      }
    }
    // With one instance gone, the others carry all.
    const load = (left) => {
      const own = updates / left;
      const foreign = readsAll ? updates - own : 0;
      return cores(own, cost.atRate, cost.atSaturation) + (foreign * cost.foreign) / 1e6;
    };
    const socketsOf = (left) => Math.ceil((users * sockets) / left);
    let left = 1;
    while (socketsOf(left) > measured.most || load(left) > BUSY) {
      left += 1;
      if (left > 1_000) return { topology, reason: `each instance receives all updates, which keep one thread busy for more than ${BUSY * 100} %` };
    }
    const instances = left + 1;
    const memory = roundUp(((cost.baseKb + socketsOf(left) * cost.perSocketKb + cost.recoveryKb) / MIB) * 1.25, 64);

    const { perUpdateMicros, perReaderMicros, perUserKb, baseKb } = measured.broker;
    const readers = readsAll ? (instances - 1) * (perReaderMicros[topology] ?? 0) : 0;
    const broker = cores(updates, perUpdateMicros[topology], cost.brokerAtSaturation) + (updates * readers) / 1e6;
    const up = Math.max(1, nodes - 1);
    // A queue is on one node, a binding on each.
    const kept = (topology === 'per-user' ? users / up : users) * perUserKb[topology];
    return {
      topology, instances, memory, nodes,
      load: load(left), sockets: socketsOf(left), files: socketsOf(left) + OTHER_FILES,
      back: users / instances / cost.connects / left,
      brokerCores: broker, nodeCores: Math.max(LEAST_NODE.cores, Math.ceil(broker / up / BUSY)),
      nodeMemory: Math.max(LEAST_NODE.mib, roundUp((baseKb + kept) / MIB / WATERMARK, 256)),
      disk: topology === 'stream' ? { bytes: STREAM_BYTES, seconds: STREAM_BYTES / (updates * (bytes + STREAM_OVERHEAD)) } : null,
    };
  });
}

const text = (value) => Math.round(value).toLocaleString('en-US');
const percent = (value) => `${Math.max(1, Math.round(value * 100))} %`;
const duration = (seconds) => (seconds >= 5_400 ? `${text(seconds / 3_600)} h` : seconds >= 90 ? `${text(seconds / 60)} min` : `${Math.max(1, Math.ceil(seconds))} s`);
const memory = (mib) => (mib >= 1024 ? `${Number((mib / 1024).toFixed(2))} GiB` : `${mib} MiB`);

/** The plan in words. */
export function render(wanted, measured) {
  const all = plans(wanted, measured);
  const best = all.find(({ reason }) => !reason);
  const lines = [`${text(wanted.users)} users online, ${text(wanted.updates)} updates/s, RabbitMQ ${wanted.rabbitmq}`, ''];
  if (best) {
    const { topology, instances, nodes } = best;
    lines.push(
      `topology    ${topology}: ${topology === 'stream' ? 'an update is kept while RabbitMQ, a node or an instance is away' : 'updates that come while RabbitMQ is away are lost'}`,
      `gateway     ${instances} instances, of which one may fail; 1 core and ${memory(best.memory)} each, ulimit -n ${text(best.files)} or more`,
      `            with one gone, each has ${text(best.sockets)} sockets, and its thread is busy for ${percent(best.load)}`,
      `            users of a lost instance are connected ${duration(best.back)} after their clients try again`,
      `RabbitMQ    ${nodes === 1 ? '1 node, whose loss stops all updates' : `${nodes} nodes, of which one may fail`}; ${best.nodeCores} cores and ${memory(best.nodeMemory)} each`,
    );
    if (best.disk) {
      const { bytes, seconds } = best.disk;
      const isShort = seconds < RECOVERY_SECONDS ? `: less than the ${duration(RECOVERY_SECONDS)} that recovery uses` : '';
      lines.push(`            disk ${text(bytes / 1e9)} GB on each, which holds ${duration(seconds)} of updates${isShort}`);
    }
  } else {
    lines.push('No topology carries this: the reasons are below.');
  }
  const rows = all.map((plan) => (plan.reason ? [plan.topology, `no: ${plan.reason}`]
    : [plan.topology, plan.instances, memory(plan.memory), percent(plan.load), plan.brokerCores.toFixed(2), memory(plan.nodeMemory)]));
  const head = ['', 'instances', 'memory', 'thread', 'RabbitMQ cores', 'memory of a node'];
  const widths = head.map((name, at) => Math.max(name.length, ...rows.filter((row) => row.length > 2).map((row) => String(row[at]).length)));
  lines.push('', ...[head, ...rows].map((row) => row.map((cell, at) => (row.length > 2 ? String(cell).padEnd(widths[at]) : String(cell).padEnd(at ? 0 : widths[0]))).join('  ').trimEnd()));
  return lines.join('\n');
}

/** The figures of this repository. */
export function measured() {
  const read = (...parts) => readFileSync(path.join(here, ...parts), 'utf8');
  return figures(read('..', '..', 'docs', 'BENCHMARKS.md'), JSON.parse(read('broker.json')));
}

const LIMITS = { USERS: [1, 1e7], UPDATES: [1, 1e6], SOCKETS: [1, 100], NODES: [1, 99], BYTES: [1, 1e7] };

/** The settings of the environment; throws with what is wrong. */
export function wantedOf(env) {
  const number = (name, otherwise) => {
    const value = env[name] || otherwise;
    if (value === undefined) throw new Error(`usage: make plan USERS=20000 UPDATES=1000 RABBITMQ=3.13`);
    const [least, most] = LIMITS[name];
    if (!(Number(value) >= least && Number(value) <= most)) throw new Error(`${name}=${value}: a number from ${least} to ${most} is needed`);
    return Number(value);
  };
  const rabbitmq = env.RABBITMQ || '3.13';
  if (!/^\d+\.\d+(\.\d+)?$/.test(rabbitmq)) throw new Error(`RABBITMQ=${rabbitmq}: a version such as 3.13 is needed`);
  return { users: number('USERS'), updates: number('UPDATES'), rabbitmq, sockets: number('SOCKETS', 1), nodes: number('NODES', 3), bytes: number('BYTES', 670) };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const figures = measured();
    console.log(render(wantedOf(process.env), figures));
    console.log(`\n${[...figures.notes, `${figures.bench.replaceAll('\n', ' ').split(' with ')[0]} (make bench); RabbitMQ ${figures.broker.rabbitmq} on ${figures.broker.at} (make bench-broker).`].join('\n')}`);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 2;
  }
}
