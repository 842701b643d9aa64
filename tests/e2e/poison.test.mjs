// What messages that the gateway can hardly read, or not at all, do to it.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, anUpdate, runGateway, SECRET, until } from './harness.mjs';
import { DEEP, Poisoner, UNREADABLE } from './poison.mjs';

/** Longer than the gateway's maximum of 30 s, which exceeds the deadlines here: a test that waits for it fails. */
const NEVER = '10m';

let broker;
let publisher;
let poisoner;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  poisoner = await Poisoner.connect(broker);
});

const start = (env) => Gateway.start(broker, { env: { RABBITMQ_RECONNECT_DELAY: NEVER, ...env } });

for (const threads of ['1', '2']) {
  test(`headers that are nested as deep as a frame allows do no harm, with ${threads} thread(s)`, async () => {
    const gateway = await start({ WORKER_THREADS: threads });
    const tab = await Tab.open(gateway, 'usr_deep');
    for (const [what, message] of Object.entries(DEEP)) {
      const update = anUpdate('usr_deep', { what });
      await poisoner.publish('usr_deep', message, JSON.stringify(update));
      await tab.saw(update);
    }
    assert.equal(await gateway.metric('rabbitmq_reconnects_total'), 0);
    assert.equal((await gateway.terminate()).code, 0);
  });
}

test('a message that cannot be read costs a moment, and a log line and a metric report it', async () => {
  const gateway = await start();
  const [victim, bystander] = await Promise.all([Tab.open(gateway, 'usr_victim'), Tab.open(gateway, 'usr_bystander')]);
  let losses = 0;
  for (const [what, message] of Object.entries(UNREADABLE)) {
    losses += 1;
    const logged = gateway.logs.length;
    await poisoner.publish('usr_victim', message);
    await gateway.metricIs('rabbitmq_reconnects_total', losses);
    await gateway.metricIs('messages_unreadable_total', losses);
    assert.match(gateway.logs.slice(logged), /RabbitMQ connection closed reason=.*cannot be read/, what);
    await gateway.metricIs('subscriptions', 2);
    // The message is not delivered again, and no user is left out.
    await Promise.all([victim.saw(publisher.update('usr_victim')), bystander.saw(publisher.update('usr_bystander'))]);
  }
  assert.equal(await gateway.metric('rabbitmq_reconnects_total'), losses);
  // No text of the message is logged.
  assert.doesNotMatch(gateway.logs, /66, FF, FE|content =/i);
});

test('those who flood it with them are not kept pace with', async () => {
  const gateway = await start();
  await Tab.open(gateway, 'usr_flooded');
  const message = UNREADABLE['a header of the type L'];
  const isAway = async () => !(await gateway.json('/health')).isConnected && /reconnect scheduled delay=30s/.test(gateway.logs);
  await until('a longer pause', async () => {
    await poisoner.publish('usr_flooded', message);
    return isAway();
  }, 60_000);
  const losses = await gateway.metric('messages_unreadable_total');
  assert.ok(losses > 5 && losses < 50, `${losses} losses`);
});

test('doctor outlives both kinds while it listens', async () => {
  for (const message of [DEEP['arrays in arrays'], UNREADABLE['a header of the type L']]) {
    const examined = runGateway(['doctor', '--json', '--listen', '6s'], {
      env: { RABBITMQ_URL: broker.url, JWT_SECRET: SECRET, LOG_FILE: '', PORT: '0' },
    });
    await until('that it listens', async () => /doctor.*\.listen\t1/.test(await broker.ctl('list_queues', '--no-table-headers', 'name', 'consumers')));
    await poisoner.publish('usr_nobody', message);
    const { code, stdout, stderr } = await examined;
    assert.ok(code === 0 || code === 1, `${code} ${stderr}`);
    assert.ok(JSON.parse(stdout).findings.length > 5);
  }
});
