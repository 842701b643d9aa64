// The pages, alerts and dashboards name the metrics that exist, and docs/METRICS.md names all.

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';

import { Broker, Gateway, Network, Poller, Publisher, Tab, temporaryFolder, testsFolder, until } from './harness.mjs';

const PREFIX = 'chat3_gateway_';

/** The names of a gateway's metrics as pages and rules spell them, without `_bucket` and the like. */
let names;

const file = (...parts) => readFileSync(path.join(testsFolder, '..', ...parts), 'utf8');

/** A gateway to which everything has happened that a metric with labels counts. */
before(async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const keys = path.join(temporaryFolder(), 'keys.json');
  const jwk = generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' });
  writeFileSync(keys, JSON.stringify({ keys: [{ ...jwk, kid: 'a' }] }));
  const gateway = await Gateway.start(broker, {
    env: {
      JWT_JWKS: keys, RECOVERY_WINDOW: '1s', RABBITMQ_SILENCE_CHECK: '500ms', ADMIN_TOKEN: 'an-admin-token-of-thirty-two-bytes',
      PRESENCE_EXCHANGE: 'chat3_presence',
    },
  });
  const network = await Network.to(gateway);

  const tab = await Tab.open(gateway, 'usr_m', { url: network.url, transports: ['websocket'], reconnection: false });
  await tab.saw(publisher.update('usr_m'));
  publisher.publish('user.usr_m.x', Buffer.from('{'));
  tab.socket.emit('auth:refresh', { token: 'none' });
  await new Tab(gateway, 'no token').refused();
  await gateway.get('/socket.io/?EIO=4&transport=websocket');
  await gateway.get('/api/stats');
  await gateway.metricIs('updates_rejected_total{reason="not_json"}', 1);
  const stranger = await Poller.connect(gateway, {});
  await stranger.post(`40/${'x'.repeat(200)},`);
  // A lost connection that asks for updates that are no longer here.
  network.reset();
  await gateway.metricIs('recoveries_lost_total{reason="expired"}', 1);
  network.restore();
  tab.socket.connect();
  await tab.when('connected again', () => tab.connects === 2);
  await until('the user to be told', async () => (await gateway.metric('presence_events_total{event="online"}')) > 0);
  await until('a look at why nothing comes', async () => (await gateway.metric('rabbitmq_silence_looks_total{outcome="quiet"}')) > 0);

  const text = await (await gateway.get('/metrics')).text();
  names = [...text.matchAll(/^# TYPE (\w+) (\w+)$/gm)].map(([, name, kind]) => (kind === 'counter' ? `${name}_total` : name));
});

/** The names with which the page's entries begin. */
function documented(page) {
  return [...file('docs', page).matchAll(/^- `(\w+)/gm)].map(([, name]) => PREFIX + name);
}

test('docs/METRICS.md has every metric, and no other', () => {
  assert.deepEqual(documented('METRICS.md').sort(), [...names].sort());
});

for (const name of ['prometheus/alerts.yml', 'prometheus/alerts.test.yml', 'grafana/dashboards/chat3-gateway.json']) {
  test(`docker/${name} uses no metric that does not exist`, () => {
    const used = new Set(file('docker', name).match(/chat3_gateway_\w+/g));
    const known = new Set(names.flatMap((name) => [name, `${name}_bucket`, `${name}_sum`, `${name}_count`]));
    assert.ok(used.size > 10);
    assert.deepEqual([...used].filter((name) => !known.has(name)), []);
  });
}
