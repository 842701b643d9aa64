// The capacity planner: its arithmetic, and the examples of docs/CAPACITY.md, which are its own output. Needs neither a broker nor a build.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { PAGES, examples, writeExamples } from '../bench/examples.mjs';
import { READERS, STREAM_BYTES, figures, measured, plans } from '../bench/plan.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const wanted = { users: 20_000, updates: 1_000, rabbitmq: '3.13' };
const of = (topology, changes = {}, from = measured()) => plans({ ...wanted, ...changes }, from).find((plan) => plan.topology === topology);

for (const page of PAGES) {
  test(`the examples of ${page} are what the command prints`, () => {
    if (process.env.UPDATE_DOCS) writeExamples();
    const { text, updated, count } = examples(page);
    assert.ok(count >= 2, `${count} examples`);
    assert.equal(text, updated, `${page} is not up to date: make docs`);
  });
}

test('the tables of the benchmark are read as they are written', () => {
  const page = readFileSync(join(root, 'docs/BENCHMARKS.md'), 'utf8');
  const { most, gateway } = figures(page, measured().broker);
  const row = (title, first) => page.split(/^### /m).find((part) => part.startsWith(title)).split('\n')
    .filter((line) => line.startsWith('| gateway shared |'))[first].split('|').map((cell) => parseFloat(cell.trim().replaceAll(',', '')));
  assert.equal(most, 10_000);
  assert.deepEqual([gateway.shared.atRate, gateway.shared.atSaturation, gateway.shared.brokerAtSaturation], row('10,000 users', 0).slice(2, 5));
  assert.equal(gateway.shared.perSocketKb, row('10,000 users', 1)[5]);
  for (const cost of Object.values(gateway)) for (const [name, value] of Object.entries(cost)) assert.ok(Number.isFinite(value) && value >= 0, name);
});

test('what no benchmark measures is what the pages and the code say', () => {
  const scaling = readFileSync(join(root, 'docs/SCALING.md'), 'utf8');
  for (const [version, rate] of READERS) assert.match(scaling, new RegExp(`^\\| RabbitMQ ${version.replace('.', '\\.')}\\b.*\\| ${rate.toLocaleString('en-US')}\\b`, 'm'));
  const stream = readFileSync(join(root, 'src/broker/rabbitmq/topology/stream.rs'), 'utf8');
  const [most, segment] = ['MAX_BYTES', 'SEGMENT_BYTES'].map((name) => Number(stream.match(new RegExp(`const ${name}: i64 = ([\\d_]+);`))[1].replaceAll('_', '')));
  assert.equal(STREAM_BYTES, most + segment);
});

test('one instance may fail: the others have room for its sockets and updates', () => {
  for (const users of [1, 500, 9_999, 10_000, 10_001, 50_000, 1_000_000]) {
    for (const updates of [1, 1_000, 20_000]) {
      for (const plan of plans({ ...wanted, users, updates }, measured()).filter(({ reason }) => !reason)) {
        assert.ok(plan.instances >= 2 && plan.load <= 0.6, JSON.stringify(plan));
        assert.ok(plan.sockets * (plan.instances - 1) >= users && plan.sockets <= measured().most, JSON.stringify(plan));
      }
    }
  }
});

test('more users, updates and sockets never take less', () => {
  const figures = ['instances', 'memory', 'brokerCores', 'nodeCores', 'nodeMemory'];
  for (const topology of ['shared', 'per-user']) {
    for (const [one, more] of [[{ users: 5_000 }, { users: 80_000 }], [{ updates: 100 }, { updates: 30_000 }], [{}, { sockets: 3 }]]) {
      const [before, after] = [of(topology, one), of(topology, more)];
      for (const figure of figures.filter((name) => name !== 'memory')) assert.ok(after[figure] >= before[figure], `${topology} ${figure} ${JSON.stringify(more)}`);
    }
  }
  const total = (plan) => plan.memory * plan.instances;
  assert.ok(total(of('shared', { users: 80_000 })) > total(of('shared')));
});

test('a stream is for a RabbitMQ whose readers keep up with three times as much', () => {
  assert.match(of('stream', { rabbitmq: '3.9' }).reason, /3\.10 or later/);
  assert.equal(of('stream', { rabbitmq: '3.10', updates: 1_600 }).reason, undefined);
  assert.match(of('stream', { rabbitmq: '3.13.7', updates: 1_700 }).reason, /5,000\/s/);
  assert.equal(of('stream', { rabbitmq: '4.1', updates: 1_700 }).reason, undefined);
  assert.match(of('stream', { rabbitmq: '4.1', updates: 5_000 }).reason, /13,500\/s/);
  assert.equal(of('stream', { rabbitmq: '4.2', updates: 5_000 }).reason, undefined);
});

test('an instance that receives everything has a limit that instances do not raise', () => {
  assert.match(of('firehose', { updates: 200_000 }).reason, /receives all updates/);
  assert.equal(of('shared', { updates: 200_000 }).reason, undefined);
});

test('what makes no sense is refused in one line', () => {
  for (const [env, expected] of [
    [{}, /^usage: make plan USERS=/], [{ USERS: '5' }, /^usage/], [{ USERS: 'many', UPDATES: '1' }, /^USERS=many: a number/],
    [{ USERS: '1', UPDATES: '-1' }, /^UPDATES=-1/], [{ USERS: '1', UPDATES: '1', RABBITMQ: 'new' }, /^RABBITMQ=new: a version/],
  ]) {
    const { status, stderr } = spawnSync(process.execPath, [join(root, 'tests/bench/plan.mjs')], { env: { PATH: process.env.PATH, ...env }, encoding: 'utf8' });
    assert.equal(status, 2);
    assert.match(stderr, expected);
    assert.equal(stderr.trim().split('\n').length, 1);
  }
});
