// Runs the benchmark and writes the results as JSON; `report.mjs` renders it.
//
//   node run.mjs [--quick] RESULTS.json
//   SERVERS='gateway shared,node' SCENARIOS=A,C REPEATS=1 limit it; turns in
//   RESULTS.json of other servers and scenarios are kept.
//
// The servers take turns within a repeat, so that other load on the machine affects all
// of them.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Broker } from '../e2e/harness.mjs';
import { host } from './host.mjs';
import { QUICK, SCENARIOS } from './scenarios.mjs';
import { declareExchange, isQuiet, turn } from './turn.mjs';

const isQuick = process.argv.includes('--quick');
const file = process.argv.slice(2).find((arg) => !arg.startsWith('--'));
if (!file) {
  console.error('usage: node run.mjs [--quick] RESULTS.json');
  process.exit(2);
}

const only = (list, all) => (list ? all.filter((name) => list.split(',').map((part) => part.trim()).includes(name)) : all);
const { SERVERS, REPEATS } = process.env;
const all = isQuick ? QUICK : SCENARIOS;
const chosen = only(process.env.SCENARIOS, Object.keys(all))
  .map((id) => ({ id, ...all[id], servers: only(SERVERS, all[id].servers), repeats: Number(REPEATS || all[id].repeats) }))
  .filter(({ servers }) => servers.length > 0);
if (chosen.length === 0) {
  console.error('SERVERS and SCENARIOS leave nothing to run');
  process.exit(2);
}

const broker = await Broker.start();
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    await broker.stop();
    process.exit(130);
  });
}
try {
  await declareExchange(broker);
  const results = { host: await host(broker), turns: isQuick ? [] : earlier() };
  for (const scenario of chosen) {
    const fresh = ({ server, scenario: id }) => !(id === scenario.id && scenario.servers.includes(server));
    results.turns = results.turns.filter(fresh);
    for (let repeat = 1; repeat <= scenario.repeats; repeat += 1) {
      for (const name of scenario.servers) {
        await isQuiet(broker.child.pid);
        const started = Date.now();
        const record = await turn(name, scenario, broker);
        results.turns.push({ scenario: scenario.id, repeat, ...record });
        save(results);
        const verdict = record.failure ?? 'done';
        console.log(`${scenario.id} ${repeat}/${scenario.repeats} ${name}: ${verdict} (${Math.round((Date.now() - started) / 1000)} s)`);
      }
    }
  }
} finally {
  await broker.stop();
}

function earlier() {
  try {
    return JSON.parse(readFileSync(file, 'utf8')).turns;
  } catch {
    return [];
  }
}

function save(results) {
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(results, null, 1)}\n`);
}
