// The pages, alerts and dashboards name the metrics that exist, and docs/METRICS.md names all.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';

import { Broker, Gateway, testsFolder } from './harness.mjs';

const PREFIX = 'chat3_gateway_';

/** The names of a gateway's metrics as pages and rules spell them, without `_bucket` and the like. */
let names;

const file = (...parts) => readFileSync(path.join(testsFolder, '..', ...parts), 'utf8');

/** The labels in the exposition: `{metric, label, value}` of each series. */
let series;

/** A gateway to which nothing has happened. */
before(async () => {
  const gateway = await Gateway.start(await Broker.start());
  const text = await (await gateway.get('/metrics')).text();
  names = [...text.matchAll(/^# TYPE (\w+) (\w+)$/gm)].map(([, name, kind]) => (kind === 'counter' ? `${name}_total` : name));
  const lines = [...text.matchAll(/^(\w+_total)\{(\w+)="([^"]+)"\} (\d+)$/gm)];
  assert.deepEqual(lines.filter(([, , , , count]) => count !== '0').map(([line]) => line), []);
  series = lines.map(([, metric, label, value]) => ({ metric, label, value }));
});

/** The names with which the page's entries begin. */
function documented(page) {
  return [...file('docs', page).matchAll(/^- `(\w+)/gm)].map(([, name]) => PREFIX + name);
}

test('docs/METRICS.md has every metric, and no other', () => {
  assert.deepEqual(documented('METRICS.md').sort(), [...names].sort());
});

// Prometheus sees no increase where a series begins: the first of a kind would raise no alert.
test('every value of a label is there before anything was counted, and docs/METRICS.md explains it', () => {
  const page = file('docs', 'METRICS.md');
  const families = [...page.matchAll(/^- `(\w+)\{(\w+)\}`/gm)].map(([, name, label]) => `${PREFIX}${name} ${label}`);
  assert.deepEqual([...new Set(series.map(({ metric, label }) => `${metric} ${label}`))].sort(), families.sort());
  assert.deepEqual(series.filter(({ value }) => !page.includes(`\`${value}\``)), []);
  const tables = [...page.matchAll(/^\| `(?:reason|outcome)` \|.*\n\|-.*\n((?:\|.*\n)+)/gm)].flatMap(([, rows]) => rows.split('\n'));
  const explained = tables.flatMap((row) => [...row.split(' | ')[0].matchAll(/`(\w+)`/g)].map(([, value]) => value));
  assert.ok(explained.length > 20);
  assert.deepEqual(explained.filter((each) => !series.some(({ value }) => value === each)), []);
});

for (const name of ['prometheus/alerts.yml', 'prometheus/alerts.test.yml', 'grafana/dashboards/chat3-gateway.json']) {
  test(`docker/${name} uses no metric that does not exist`, () => {
    const used = new Set(file('docker', name).match(/chat3_gateway_\w+/g));
    const known = new Set(names.flatMap((name) => [name, `${name}_bucket`, `${name}_sum`, `${name}_count`]));
    assert.ok(used.size > 10);
    assert.deepEqual([...used].filter((name) => !known.has(name)), []);
    // Each alternative of a selector, such as `reason=~"token_.*|issuer"`, means a value that there is.
    const selectors = file('docker', name).matchAll(/(chat3_gateway_\w+)\{(?:[^}]*, *)?(reason|outcome|event)[=!]~?\\?"([^"\\]+)/g);
    const meant = [...selectors].flatMap(([, metric, label, values]) => values.split('|').map((value) => ({ metric, label, value })));
    const exists = ({ metric, label, value }) => series.some((each) => each.metric === metric && each.label === label && new RegExp(`^${value}$`).test(each.value));
    assert.deepEqual(meant.filter((each) => !exists(each)), []);
    assert.ok(name.startsWith('grafana') || meant.length > 5);
  });
}
