// The development mode: no broker, a page, tokens and publishing over HTTP.

import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { Gateway, SECRET, Tab, token, until } from './harness.mjs';

let gateway;

before(async () => {
  gateway = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: '' } });
});

const json = (body) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });

async function signIn(userId, tenantId) {
  const { token } = await gateway.json('/dev/tokens', json({ userId, tenantId }));
  const tab = new Tab(gateway, token);
  await tab.when('connected', () => tab.connects === 1);
  return tab;
}

test('it prints the URL and a token that works', async () => {
  const printed = await gateway.logged(/Token\s+(\S+)/);
  assert.match(gateway.logs, new RegExp(`Page\\s+http://localhost:${new URL(gateway.url).port}/`));
  const tab = new Tab(gateway, printed[1]);
  await tab.when('connected', () => tab.connects === 1);
  const { update } = await gateway.json('/dev/updates', json({ userId: 'usr_alice', eventType: 'message.create' }));
  await tab.when('both events', () => tab.events.length === 2);
  assert.deepEqual(tab.events, [
    { event: 'chat3:update', args: [update] },
    { event: 'message:new', args: [update.data] },
  ]);
});

test('its health claims no RabbitMQ', async () => {
  assert.deepEqual(await gateway.json('/health'), { status: 'ok', rabbitmq: 'none', isConnected: true });
});

test('an update published by HTTP reaches the recipient only, with the data that was given', async () => {
  const [alice, bob] = [await signIn('usr_a', 'tnt_default'), await signIn('usr_b')];
  const answer = await gateway.get('/dev/updates', json({ userId: 'usr_a', eventType: 'dialog.changed', data: { name: 'x' } }));
  assert.equal(answer.status, 202);
  const { routingKey, queues, update } = await answer.json();
  assert.deepEqual([routingKey, queues, update.data], ['update.dialog.tnt_default.user.usr_a.dialog', 1, { name: 'x' }]);
  await alice.when('both events', () => alice.events.length === 2);
  assert.deepEqual(alice.named('dialog:update'), [update]);
  const sentinel = await gateway.json('/dev/updates', json({ userId: 'usr_b', eventType: 'user.update', generation: 'original' }));
  await bob.saw(sentinel.update);
  assert.deepEqual(bob.ids, [sentinel.update._id]);
  const nobody = await gateway.json('/dev/updates', json({ userId: 'usr_c', eventType: 'message.create' }));
  assert.equal(nobody.queues, 0);
});

test('a burst arrives complete and in order', async () => {
  const tab = await signIn('usr_burst');
  const published = [];
  for (let i = 0; i < 300; i += 1) {
    published.push((await gateway.json('/dev/updates', json({ userId: 'usr_burst', eventType: 'message.changed' }))).update.eventId);
  }
  const received = () => tab.named('chat3:update').map(({ eventId }) => eventId);
  await tab.when('300 updates', () => received().length === 300);
  assert.deepEqual(received(), published);
});

test('requests that make no sense are answered with the reason', async () => {
  for (const [path, body, error] of [
    ['/dev/tokens', { userId: '*' }, /userId contains a character/],
    ['/dev/tokens', {}, /userId/],
    ['/dev/tokens', { userId: 'a', tenantId: 'b c' }, /tenantId contains a character/],
    ['/dev/tokens', { userId: 'a', expiresIn: '13h' }, /expiresIn is not within/],
    ['/dev/updates', { userId: 'a', eventType: 'x', generation: 'third' }, /unknown variant `third`/],
    ['/dev/updates', { userId: '', eventType: 'x' }, /userId is empty/],
    ['/dev/updates', { userId: 'a', event: 'x' }, /unknown field `event`/],
  ]) {
    const answer = await gateway.get(path, json(body));
    assert.equal(answer.status, 400);
    assert.match((await answer.json()).error, error);
  }
  const form = await gateway.get('/dev/updates', { method: 'POST', body: 'userId=a' });
  assert.ok(form.status >= 400 && form.status < 500);
});

test('other sites can neither ask for tokens nor publish', async () => {
  const headers = { origin: 'https://evil.example', 'access-control-request-method': 'POST' };
  const preflight = await gateway.get('/dev/tokens', { method: 'OPTIONS', headers });
  assert.equal(preflight.headers.get('access-control-allow-origin'), null);
});

test('a site whose name is made to point here gets nothing', async () => {
  const { port } = new URL(gateway.url);
  const statusFor = (host) => new Promise((resolve, reject) => {
    const headers = { host, 'content-type': 'application/json' };
    const request = http.request({ host: '127.0.0.1', port, path: '/dev/tokens', method: 'POST', headers });
    request.on('response', (response) => resolve(response.resume().statusCode)).on('error', reject);
    request.end(JSON.stringify({ userId: 'usr_a' }));
  });
  assert.equal(await statusFor(`evil.example:${port}`), 403);
  for (const host of [`localhost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`]) {
    assert.equal(await statusFor(host), 200, host);
  }
});

test('a configured key is used, so that a team\'s own tokens work', async () => {
  const own = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: SECRET } });
  const tab = new Tab(own, token('usr_own'));
  await tab.when('connected', () => tab.connects === 1);
});

test('none of this exists in production', async () => {
  const production = await Gateway.start(null, { env: { RABBITMQ_URL: 'amqp://127.0.0.1:1/' } });
  for (const path of ['/', '/dev/page.js', '/dev/page.css', '/dev/samples', '/dev/templates', '/dev/socket.io.js']) {
    assert.equal((await production.get(path)).status, 404);
  }
  assert.equal((await production.get('/dev/tokens', json({ userId: 'a' }))).status, 404);
});

test('SIGTERM ends it', async () => {
  const own = await Gateway.start(null, { args: ['dev'] });
  assert.equal((await own.terminate()).code, 0);
});

let browser;

/** Chromium as Debian packages it, without requests to its vendor. */
before(async () => {
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(() => browser?.close());

/** Holds everyone who awaits `opens` until `open()` is called. */
function aGate() {
  const gate = {};
  gate.opens = new Promise((resolve) => (gate.open = resolve));
  return gate;
}

async function newPage(options) {
  const page = await browser.newPage(options);
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(error.message));
  page.on('console', (message) => message.type() === 'error' && page.problems.push(message.text()));
  return page;
}

/**
 * The page with both users live, their upgrades over, and the samples loaded; its errors fail the test.
 * A connection that is cut during its upgrade would cause one.
 */
async function openPage(options = {}, server = gateway) {
  const page = await newPage(options);
  await page.goto(server.url);
  for (const pane of ['a', 'b']) {
    await state(page, pane, 'live');
    await inPane(page, pane, 'transport').filter({ hasText: 'websocket' }).waitFor();
  }
  await page.waitForSelector('#publish-type option[value="message.create"]', { state: 'attached' });
  return page;
}

const state = (page, pane, name) => page.waitForSelector(`[data-user-pane=${pane}] [data-role=status][data-state=${name}]`);
const inPane = (page, pane, role) => page.locator(`[data-user-pane=${pane}] [data-role="${role}"]`);
const rows = (page, pane, event) => page.locator(`[data-user-pane=${pane}] [data-role=log] [data-event="${event}"]`);

test('page: an update published to one user is seen by that user and not by the other', async () => {
  const page = await openPage();
  await page.selectOption('#publish-to', 'a');
  await page.selectOption('#publish-type', 'message.create');
  await page.click('#publish-button');
  await rows(page, 'a', 'message:new').first().waitFor();
  await page.selectOption('#publish-to', 'b');
  await page.selectOption('#publish-type', 'dialog.member.add');
  await page.click('#publish-button');
  await rows(page, 'b', 'dialog:update').first().waitFor();
  const counts = {};
  for (const pane of ['a', 'b']) {
    for (const event of ['chat3:update', 'message:new', 'message:update', 'dialog:update']) {
      counts[`${pane} ${event}`] = await rows(page, pane, event).count();
    }
  }
  assert.deepEqual(counts, {
    'a chat3:update': 1, 'a message:new': 1, 'a message:update': 0, 'a dialog:update': 0,
    'b chat3:update': 1, 'b message:new': 0, 'b message:update': 0, 'b dialog:update': 1,
  });
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: one of each of today\'s types arrives, and of the 13 documented first', async () => {
  const page = await openPage();
  await page.click('#publish-all');
  await rows(page, 'a', 'chat3:update').nth(13).waitFor();
  assert.equal(await rows(page, 'a', 'message:update').count(), 4);
  assert.equal(await rows(page, 'a', 'dialog:update').count(), 7);
  for (const pane of ['a', 'b']) await inPane(page, pane, 'clear').click();
  await page.selectOption('#publish-generation', 'original');
  await page.click('#publish-all');
  await rows(page, 'a', 'chat3:update').nth(12).waitFor();
  assert.equal(await rows(page, 'a', 'message:update').count(), 7);
  assert.equal(await rows(page, 'a', 'dialog:update').count(), 5);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: each type of each generation shows the documented events, to both users', async () => {
  const page = await openPage();
  const templates = await gateway.json('/dev/templates');
  assert.equal(templates.documented.length, 13);
  await page.selectOption('#publish-to', 'both');
  for (const generation of ['original', '0.0.77', 'current']) {
    await page.selectOption('#publish-generation', generation);
    for (const { eventType } of templates[generation]) {
      for (const pane of ['a', 'b']) await inPane(page, pane, 'clear').click();
      await page.selectOption('#publish-type', eventType);
      await page.click('#publish-button');
      const family = eventType.split('.')[0];
      const specialised = eventType === 'message.create' ? 'message:new' : `${family}:update`;
      const expected = family === 'user' ? ['chat3:update'] : [specialised, 'chat3:update']; // newest first
      for (const pane of ['a', 'b']) {
        const shown = page.locator(`[data-user-pane=${pane}] [data-role=log] li`);
        await shown.nth(expected.length - 1).waitFor();
        assert.deepEqual(await shown.evaluateAll((rows) => rows.map((row) => row.dataset.event)), expected, `${generation} ${eventType}`);
        assert.equal(await shown.first().getAttribute('data-type'), eventType);
      }
    }
  }
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: invalid JSON is explained and not published', async () => {
  const page = await openPage();
  await page.fill('#publish-data', '{"content": ');
  await page.click('#publish-button');
  assert.match(await page.textContent('#publish-data-error'), /^Not valid JSON\. /);
  assert.equal(await page.getAttribute('#publish-data', 'aria-invalid'), 'true');
  await page.fill('#publish-data', '[1]');
  assert.match(await page.textContent('#publish-data-error'), /must be a JSON object/);
  await page.fill('#publish-data', '{"content": "<img src=x onerror=alert(1)>"}');
  await page.click('#publish-button');
  await rows(page, 'a', 'message:new').first().locator('summary').click();
  assert.match(await rows(page, 'a', 'message:new').first().locator('pre').textContent(), /"<img src=x/);
  assert.equal(await rows(page, 'a', 'chat3:update').count(), 1); // the valid one only
  assert.equal(await page.locator('[data-role=log] img').count(), 0);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: an update sent while another is on its way is published after it', async () => {
  const page = await openPage();
  const answered = aGate();
  await page.route('**/dev/updates', async (route) => {
    await answered.opens;
    await route.continue();
  });
  const contents = ['first', 'second', 'third'];
  for (const content of contents) {
    await page.fill('#publish-data', JSON.stringify({ content }));
    await page.keyboard.press('Control+Enter');
  }
  assert.equal(await rows(page, 'a', 'message:new').count(), 0);
  answered.open();
  await rows(page, 'a', 'message:new').nth(2).waitFor();
  await page.evaluate(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; });
  await inPane(page, 'a', 'copy-log').click();
  const log = JSON.parse(await page.evaluate(() => window.copied));
  assert.deepEqual(log.filter(({ event }) => event === 'message:new').map(({ payload }) => payload.content), contents);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: an update published while a connection is cut arrives once, marked as replayed', async () => {
  const page = await openPage();
  await page.selectOption('#publish-to', 'both');
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'cut');
  await rows(page, 'a', 'disconnect').first().waitFor();
  for (const type of ['message.create', 'dialog.changed']) {
    await page.selectOption('#publish-type', type);
    await page.click('#publish-button');
    await rows(page, 'b', 'chat3:update').and(page.locator(`[data-type="${type}"]`)).waitFor();
  }
  assert.equal(await rows(page, 'a', 'chat3:update').count(), 0);
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'recovered');
  await rows(page, 'a', 'dialog:update').waitFor();
  await page.locator('[data-user-pane=a] [data-role=recovered]', { hasText: /^2 replayed$/ }).waitFor();
  assert.equal(await page.locator('[data-user-pane=a] [data-replayed]').count(), 4);
  await page.selectOption('#publish-type', 'message.changed'); // the sentinel
  await page.click('#publish-button');
  await rows(page, 'a', 'message:update').waitFor();
  const types = await rows(page, 'a', 'chat3:update').evaluateAll((all) => all.map((row) => [row.dataset.type, 'replayed' in row.dataset]));
  assert.deepEqual(types, [['message.changed', false], ['dialog.changed', true], ['message.create', true]]);
  assert.equal(await page.locator('[data-user-pane=b] [data-replayed]').count(), 0);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: a connection that is cut during its upgrade, and restored before the upgrade is over, comes back', async () => {
  const page = await newPage();
  // The upgrade begins with a websocket, here as soon as the connection is live, and is over when the last poll is answered, with nothing.
  const [PROBED, NOOP] = ['3probe', '6'];
  const [live, restored] = [aGate(), aGate()];
  let probed = 0;
  await page.routeWebSocket(/transport=websocket/, async (near) => {
    await live.opens;
    const far = near.connectToServer();
    far.onMessage((message) => {
      near.send(message);
      if (message === PROBED) probed += 1;
    });
  });
  await page.route(/transport=polling.*&sid=/, async (route) => {
    const response = await route.fetch();
    if ((await response.text()) === NOOP) await restored.opens;
    await route.fulfill({ response });
  });
  await page.goto(gateway.url);
  for (const pane of ['a', 'b']) await state(page, pane, 'live');
  live.open();
  await until('both in the midst of the upgrade', () => probed === 2);
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'cut');
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'reconnecting');
  assert.equal(await rows(page, 'a', 'disconnect').count(), 0);
  restored.open();
  await state(page, 'a', 'recovered');
  await inPane(page, 'a', 'transport').filter({ hasText: 'websocket' }).waitFor();
  // The connection comes back the next time as well.
  await inPane(page, 'a', 'cut').click();
  await rows(page, 'a', 'disconnect').nth(1).waitFor();
  await inPane(page, 'a', 'cut').click();
  await rows(page, 'a', 'connect').nth(2).waitFor();
  await state(page, 'a', 'recovered');
  assert.deepEqual(page.problems, []);
  // A poll waits in the route at any time.
  await page.unrouteAll({ behavior: 'ignoreErrors' });
  await page.close();
});

test('page: a connection that missed more than is kept says so', async () => {
  const own = await Gateway.start(null, { args: ['dev'], env: { RECOVERY_MAX_UPDATES: '1' } });
  const page = await openPage({}, own);
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'cut');
  await rows(page, 'a', 'disconnect').first().waitFor();
  await page.fill('#publish-burst-count', '3');
  await page.click('#publish-burst');
  await page.waitForSelector('#publish-result[data-state=ok]');
  await inPane(page, 'a', 'cut').click();
  await state(page, 'a', 'refetch');
  assert.equal(await inPane(page, 'a', 'status').textContent(), 'must refetch');
  assert.equal(await page.locator('[data-replayed]').count(), 0);
  await page.close();
});

test('page: a token about to expire is announced and can be renewed', async () => {
  const own = await Gateway.start(null, { args: ['dev'], env: { JWT_EXPIRY_NOTICE: '30s' } });
  const page = await openPage({}, own);
  await inPane(page, 'a', 'sign').click();
  await state(page, 'a', 'offline');
  await inPane(page, 'a', 'lifetime').selectOption('32s');
  await inPane(page, 'a', 'sign').click();
  await rows(page, 'a', 'auth:expiring').waitFor();
  await inPane(page, 'a', 'renew').click();
  await rows(page, 'a', 'auth:refresh').waitFor();
  await page.close();
});

test('page: latency is shown for each update and each user', async () => {
  const page = await openPage();
  await page.click('#publish-button');
  await page.locator('[data-user-pane=a] [data-role=latency]', { hasText: /^[\d.]+ m?s · median [\d.]+ m?s · worst [\d.]+ m?s$/ }).waitFor();
  assert.match(await rows(page, 'a', 'message:new').first().locator('.latency').textContent(), /^[\d.]+ m?s$/);
  await page.close();
});

test('page: the log is filtered by event and by text, and copied', async () => {
  const page = await openPage();
  await page.fill('#publish-data', '{"content": "needle"}');
  await page.click('#publish-button');
  await rows(page, 'a', 'message:new').waitFor();
  await page.selectOption('#publish-type', 'dialog.changed');
  await page.click('#publish-button');
  await rows(page, 'a', 'dialog:update').waitFor();
  await page.click('[data-user-pane=a] [data-filter="chat3:update"]');
  assert.equal(await rows(page, 'a', 'chat3:update').and(page.locator(':visible')).count(), 0);
  await inPane(page, 'a', 'filter').fill('needle');
  const visible = page.locator('[data-user-pane=a] [data-role=log] li:visible');
  assert.deepEqual(await visible.evaluateAll((all) => all.map((row) => row.dataset.event)), ['message:new']);
  await page.evaluate(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; });
  await inPane(page, 'a', 'copy-log').click();
  const copied = JSON.parse(await page.evaluate(() => window.copied));
  assert.deepEqual(copied.map(({ event, payload }) => [event, payload]), [['message:new', { content: 'needle' }]]);
  await inPane(page, 'a', 'clear').click();
  assert.equal(await page.locator('[data-user-pane=a] [data-role=log] li').count(), 0);
  await page.close();
});

test('page: the keyboard is enough', async () => {
  const page = await openPage();
  const tabTo = async (selector) => {
    for (let i = 0; i < 60; i += 1) {
      await page.keyboard.press('Tab');
      if (await page.evaluate((wanted) => document.activeElement.matches(wanted), selector)) return;
    }
    throw new Error(`Tab never reaches ${selector}`);
  };
  await tabTo('[data-user-pane=a] [data-role=cut]');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid');
  await page.keyboard.press('Space');
  await state(page, 'a', 'cut');
  await page.keyboard.press('Space');
  await state(page, 'a', 'recovered');
  await tabTo('#publish-to');
  for (let i = 0; i < 2; i += 1) await page.keyboard.press('ArrowDown'); // both, user A, user B
  await tabTo('#publish-data');
  await page.keyboard.press('Control+Enter');
  await rows(page, 'b', 'message:new').waitFor();
  await tabTo('#publish-button');
  await page.keyboard.press('Enter');
  await rows(page, 'b', 'message:new').nth(1).waitFor();
  assert.equal(await rows(page, 'a', 'message:new').count(), 0);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: dark and light follow the system and the button', async () => {
  const page = await openPage({ colorScheme: 'dark' });
  const brightness = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)[0]);
  assert.ok(await brightness() < 40);
  await page.click('#theme'); // auto → light
  assert.ok(await brightness() > 200);
  await page.reload();
  assert.ok(await brightness() > 200);
  await page.click('#theme');
  await page.emulateMedia({ colorScheme: 'light' });
  assert.ok(await brightness() < 40);
  await page.close();
});

test('page: the first update goes to both users, and its figures take a line each in a usual window', async () => {
  const page = await openPage({ viewport: { width: 1280, height: 800 } });
  await page.click('#publish-button');
  for (const pane of ['a', 'b']) {
    await rows(page, pane, 'message:new').waitFor();
    await inPane(page, pane, 'latency').filter({ hasText: 'worst' }).waitFor();
  }
  assert.equal(await page.locator('#publish-result strong').textContent(), 'Published to usr_alice and usr_bob');
  const lines = (locator) => locator.evaluateAll((all) => all.map((one) => {
    const text = document.createRange();
    text.selectNodeContents(one);
    return Math.round(text.getBoundingClientRect().height / parseFloat(getComputedStyle(one).lineHeight));
  }));
  assert.deepEqual(await lines(page.locator('p:has([data-role=latency])')), [1, 1]);
  // The headline, the key, and how many queues: today's keys are long.
  assert.deepEqual(await lines(page.locator('#publish-result')), [3]);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: it fits a phone', async () => {
  const page = await openPage({ viewport: { width: 360, height: 700 } });
  await page.click('#publish-all');
  await rows(page, 'a', 'chat3:update').nth(13).waitFor();
  await page.locator('[data-user-pane=a] [data-role=connect] summary').click();
  await rows(page, 'a', 'message:new').locator('summary').click();
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await page.close();
});

test('page: nothing is inline, and nothing comes from other hosts', async () => {
  const policy = (await gateway.get('/')).headers.get('content-security-policy');
  assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self';/);
  assert.doesNotMatch(policy, /unsafe/);
});

test('a body may be given whole, in today\'s shape or in an older one', async () => {
  const tab = await signIn('usr_whole', 'tnt_default');
  const update = { userId: 'usr_whole', tenantId: 'tnt_default', eventType: 'message.create', data: { content: 'as it is' } };
  const answer = await gateway.json('/dev/updates', json({ userId: 'usr_whole', eventType: 'message.create', update }));
  assert.deepEqual(answer.update, update);
  await tab.when('both events', () => tab.events.length === 2);
  assert.deepEqual(tab.events[0].args, [update]);
  const current = await gateway.json('/dev/updates', json({ userId: 'usr_whole', eventType: 'message.changed' }));
  assert.equal(current.routingKey, 'update.dialog.tnt_default.user.usr_whole.message');
  assert.equal(current.update.sourceEventType, 'message.changed');
  await tab.when('two more', () => tab.events.length === 4);
  assert.deepEqual(tab.named('message:update'), [current.update]);
  for (const [generation, eventType, key] of [
    ['0.0.77', 'message.changed', 'update.dialog.user.usr_whole.message'], ['original', 'message.update', 'user.usr_whole.messageupdate'],
  ]) {
    const older = await gateway.json('/dev/updates', json({ userId: 'usr_whole', eventType, generation }));
    assert.deepEqual([older.routingKey, older.queues], [key, 1]);
    assert.equal(older.update.eventType ?? older.update.sourceEventType, eventType);
    await tab.when(`an update of ${generation}`, () => tab.named('message:update').at(-1).eventId === older.update.eventId);
  }
  const both = await gateway.get('/dev/updates', json({ userId: 'a', eventType: 'x', update, data: {} }));
  assert.equal(both.status, 400);
});
