// The development mode: no broker, a page, tokens and publishing over HTTP.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { Gateway, SECRET, Tab, temporaryFolder, testsFolder, token, until } from './harness.mjs';

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

test('other sites can neither ask for tokens nor publish nor switch; pages of this machine can ask and publish', async () => {
  const allowed = async (origin, path, method) => {
    const headers = { origin, 'access-control-request-method': method, 'access-control-request-headers': 'content-type' };
    const preflight = await gateway.get(path, { method: 'OPTIONS', headers });
    const methods = preflight.headers.get('access-control-allow-methods') ?? '';
    return preflight.headers.get('access-control-allow-origin') === origin && methods.split(',').includes(method);
  };
  const foreign = [
    'https://evil.example', 'null', 'http://localhost.evil.example', 'http://127.0.0.1.evil.example', 'http://evil.example:3001', 'http://192.168.1.2:5173',
    'http://localhost@evil.example', 'file://', 'http://[::2]',
  ];
  for (const origin of foreign) {
    for (const path of ['/dev/tokens', '/dev/updates']) assert.equal(await allowed(origin, path, 'POST'), false, `${origin} ${path}`);
    const answer = await gateway.get('/dev/tokens', { ...json({ userId: 'usr_a' }), headers: { origin, 'content-type': 'application/json' } });
    assert.equal(answer.headers.get('access-control-allow-origin'), null, origin);
  }
  for (const origin of ['http://localhost:5173', 'http://127.0.0.1:8000', 'http://app.localhost', 'http://[::1]:8000']) {
    for (const path of ['/dev/tokens', '/dev/updates']) assert.equal(await allowed(origin, path, 'POST'), true, `${origin} ${path}`);
    // The envelope is the page's own affair.
    assert.equal(await allowed(origin, '/dev/envelope', 'PUT'), false, origin);
  }
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
  for (const path of ['/', '/dev/page.js', '/dev/page.css', '/dev/samples', '/dev/templates', '/dev/socket.io.js', '/dev/envelope']) {
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

/** Takes a screenshot for the docs; SCREENSHOTS=folder keeps it. */
const photo = (what, name) => process.env.SCREENSHOTS && what.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png` });

const state = (page, pane, name) => page.waitForSelector(`[data-user-pane=${pane}] [data-role=status][data-state=${name}]`);
const inPane = (page, pane, role) => page.locator(`[data-user-pane=${pane}] [data-role="${role}"]`);
const rows = (page, pane, event) => page.locator(`[data-user-pane=${pane}] [data-role=log] [data-events~="${event}"]`);

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
  // Today's first.
  const generations = await page.locator('#publish-generation option').evaluateAll((all) => all.map(({ value }) => value));
  assert.deepEqual(generations, ['current', '0.0.77', 'original']);
  assert.deepEqual(Object.keys(templates), ['documented', ...generations]);
  assert.equal(await page.inputValue('#publish-generation'), 'current');
  await page.selectOption('#publish-to', 'both');
  for (const generation of ['original', '0.0.77', 'current']) {
    await page.selectOption('#publish-generation', generation);
    for (const { eventType } of templates[generation]) {
      for (const pane of ['a', 'b']) await inPane(page, pane, 'clear').click();
      await page.selectOption('#publish-type', eventType);
      await page.click('#publish-button');
      const family = eventType.split('.')[0];
      const specialised = eventType === 'message.create' ? 'message:new' : `${family}:update`;
      const expected = family === 'user' ? 'chat3:update' : `chat3:update ${specialised}`;
      for (const pane of ['a', 'b']) {
        const shown = page.locator(`[data-user-pane=${pane}] [data-role=log] li`);
        await page.locator(`[data-user-pane=${pane}] [data-role=log] li[data-events="${expected}"]`).waitFor();
        // Both events in one row, which says what it is about.
        assert.equal(await shown.count(), 1, `${generation} ${eventType}`);
        assert.equal(await shown.getAttribute('data-type'), eventType);
        assert.notEqual((await shown.locator('.text').textContent()).trim(), '', `${generation} ${eventType}`);
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
  assert.match(await rows(page, 'a', 'message:new').first().locator('pre').last().textContent(), /"<img src=x/);
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
  assert.equal(await page.locator('[data-user-pane=a] [data-replayed]').count(), 2);
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
  await page.selectOption('#publish-type', 'user.changed');
  await page.click('#publish-button');
  await page.locator('[data-user-pane=a] [data-role=log] li[data-events="chat3:update"]').waitFor();
  const visible = page.locator('[data-user-pane=a] [data-role=log] li:visible');
  const types = () => visible.evaluateAll((all) => all.map((row) => row.dataset.type).filter((type) => type.includes('.')));
  // A counter shows or hides the updates that have its event, and chat3:update those that have no other.
  await page.click('[data-user-pane=a] [data-filter="chat3:update"]');
  assert.deepEqual(await types(), ['dialog.changed', 'message.create']);
  await page.click('[data-user-pane=a] [data-filter="dialog:update"]');
  assert.deepEqual(await types(), ['message.create']);
  await page.click('[data-user-pane=a] [data-filter="dialog:update"]');
  await inPane(page, 'a', 'filter').fill('needle');
  assert.deepEqual(await visible.evaluateAll((all) => all.map((row) => row.dataset.events)), ['chat3:update message:new']);
  await page.evaluate(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; });
  await inPane(page, 'a', 'copy-log').click();
  const copied = JSON.parse(await page.evaluate(() => window.copied));
  assert.deepEqual(copied.map(({ event, payload }) => [event, payload.data ?? payload]), [
    ['chat3:update', { content: 'needle' }], ['message:new', { content: 'needle' }],
  ]);
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
  await tabTo('#publish-to');
  for (let i = 0; i < 2; i += 1) await page.keyboard.press('ArrowDown'); // both, user A, user B
  await tabTo('[data-user-pane=a] [data-role=cut]');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid');
  await page.keyboard.press('Space');
  await state(page, 'a', 'cut');
  await page.keyboard.press('Space');
  await state(page, 'a', 'recovered');
  await tabTo('#publish-button');
  await page.keyboard.press('Enter');
  await rows(page, 'b', 'message:new').waitFor();
  await tabTo('#publish-data');
  await page.keyboard.press('Control+Enter');
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
  for (const name of ['.settings > summary', '[data-role=connect] summary']) await page.locator(`[data-user-pane=a] ${name}`).click();
  await rows(page, 'a', 'message:new').locator('summary').click();
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await page.close();
});

/** Where what one sees ends, in pixels from the top. */
const bottomOf = async (locator) => {
  const box = await locator.boundingBox();
  return box.y + box.height;
};

test('page: on a phone, publishing, and reading what arrived, takes no scrolling', async () => {
  const page = await openPage({ viewport: { width: 390, height: 844 } });
  for (const id of ['#publish-to', '#publish-type', '#publish-generation', '#envelope', '#publish-button', '#publish-all', '#publish-burst']) {
    assert.ok(await bottomOf(page.locator(id)) <= 844, id);
  }
  await page.click('#publish-button');
  const row = rows(page, 'a', 'message:new').first();
  await row.waitFor();
  assert.equal(await page.evaluate(() => scrollY), 0);
  assert.ok(await bottomOf(row) <= 844, `the row ends at ${await bottomOf(row)}`);
  assert.equal(await row.locator('.text').textContent(), 'Hello!');
  await photo(page, 'dev-page-phone');
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: no control wraps onto a line of its own', async () => {
  for (const [width, height] of [[1280, 800], [1180, 800], [800, 1000], [720, 1000], [430, 900], [390, 844], [360, 700], [320, 640]]) {
    const page = await openPage({ viewport: { width, height } });
    await page.evaluate(() => document.querySelectorAll('[data-fold], .connect').forEach((details) => (details.open = true)));
    const groups = '.controls, .tools, .pair, .identity, .counts, .burst, .top, .row';
    const alone = await page.locator(groups).evaluateAll((all) => all.flatMap((group) => {
      const box = (child) => child.getBoundingClientRect();
      const shown = [...group.children].filter((child) => child.getClientRects().length > 0);
      // Beside each other is what shares some height.
      const neighbours = (child) => shown.filter((other) => box(other).top < box(child).bottom && box(child).top < box(other).bottom);
      const isControl = (child) => child.matches('button, input, select') || child.querySelector('button, input, select');
      // A line that one control fills is no leftover.
      const leftovers = shown.filter((child) => shown.length > 1 && isControl(child) && neighbours(child).length === 1 && box(child).width < box(group).width * 0.8);
      return leftovers.map((child) => `${group.className}: ${child.textContent.trim().slice(0, 30)}`);
    }));
    assert.deepEqual(alone, [], `${width}x${height}`);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, `${width}x${height}`);
    await page.close();
  }
});

test('page: an update is one row with its text, and both of its events when opened', async () => {
  const page = await openPage();
  const text = 'The boat leaves at eight';
  await page.fill('#publish-data', JSON.stringify({ message: { content: text }, context: {} }));
  await page.click('#publish-button');
  const shown = page.locator('[data-user-pane=a] [data-role=log] li:has(.text)');
  await rows(page, 'a', 'message:new').waitFor();
  assert.equal(await shown.count(), 1);
  assert.equal(await shown.locator('.text').textContent(), text);
  assert.deepEqual(await shown.locator('summary .tag').allTextContents(), ['chat3:update', 'message:new']);
  await shown.locator('summary').click();
  const payloads = (await shown.locator('pre').allTextContents()).map((json) => JSON.parse(json));
  assert.deepEqual([payloads[0].data.message.content, payloads[1].message.content], [text, text]);
  // message:update carries what chat3:update does: once is enough.
  await page.selectOption('#publish-type', 'message.reaction.changed');
  await page.click('#publish-button');
  const reaction = rows(page, 'a', 'message:update');
  await reaction.locator('summary').click();
  assert.equal(await reaction.locator('.text').textContent(), '👍 by usr_x7m2n4k9');
  assert.equal(await reaction.locator('pre').count(), 1);
  await reaction.getByText('the same payload as chat3:update').waitFor();
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: the envelopes are compared side by side, as the gateway sends them', async () => {
  const page = await openPage({ viewport: { width: 1280, height: 800 } });
  const column = (envelope) => page.locator(`#compare-columns [data-envelope=${envelope}]`);
  const events = async (envelope) => column(envelope).locator('.tag[data-name]').allTextContents();
  const first = async (envelope) => JSON.parse(await column(envelope).locator('pre').first().textContent());
  await page.selectOption('#publish-type', 'dialog.typing');
  await column('sections').getByText('typing:update').waitFor();
  assert.deepEqual(await events('auto'), ['chat3:update', 'dialog:update']);
  assert.deepEqual(await events('sections'), ['chat3:update', 'typing:update']);
  assert.deepEqual(await events('original'), ['chat3:update', 'dialog:update']);
  await page.selectOption('#publish-type', 'message.create');
  await column('original').getByText('message:new').waitFor();
  const { data: { message } } = await first('auto');
  const [sections, original] = [await first('sections'), await first('original')];
  assert.deepEqual([sections.data.message.messageId, sections.data.typing, sections.eventType], [message.messageId, null, 'message.create']);
  assert.deepEqual([original.data._id, original.data.type, original.data.content], [message.messageId, 'text', 'Hello!']);
  assert.equal(await column('auto').locator('mark').count(), 0);
  assert.ok(await column('sections').locator('mark', { hasText: '"typing": null' }).isVisible());
  const boxes = await Promise.all(['auto', 'sections', 'original'].map((envelope) => column(envelope).boundingBox()));
  assert.ok(boxes.every(({ y }) => y === boxes[0].y) && boxes[0].x < boxes[1].x && boxes[1].x < boxes[2].x, 'side by side');
  await page.locator('#compare').scrollIntoViewIfNeeded();
  await photo(page.locator('#compare'), 'dev-page-envelopes');
  // On a phone, one at a time.
  await page.setViewportSize({ width: 390, height: 844 });
  assert.deepEqual(await page.locator('#compare-columns > :visible').evaluateAll((all) => all.map((one) => one.dataset.envelope)), ['auto']);
  await page.locator('#compare-tabs').getByText('original').click();
  assert.deepEqual(await page.locator('#compare-columns > :visible').evaluateAll((all) => all.map((one) => one.dataset.envelope)), ['original']);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: another envelope is what everybody gets from then on, after a refetch', async () => {
  const own = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: '' } });
  const { token: first } = await own.json('/dev/tokens', json({ userId: 'usr_other', tenantId: 'tnt_default' }));
  const other = new Tab(own, first);
  await other.when('connected', () => other.connects === 1);
  const page = await openPage({}, own);
  for (const envelope of ['sections', 'original', 'auto']) {
    await page.selectOption('#envelope', envelope);
    await page.locator(`#compare-columns [data-envelope=${envelope}]`).getByText('in use').waitFor();
    for (const pane of ['a', 'b']) {
      await state(page, pane, 'refetch');
      await inPane(page, pane, 'clear').click();
    }
    assert.equal(await page.locator('#envelope').isEnabled(), true);
    await page.selectOption('#publish-type', 'message.create');
    await page.click('#publish-button');
    await rows(page, 'a', 'message:new').locator('summary').click();
    const received = JSON.parse(await rows(page, 'a', 'message:new').locator('pre').first().textContent());
    const shape = { sections: 'member' in received.data, original: '_id' in received.data, auto: 'updateType' in received && 'message' in received.data };
    assert.ok(shape[envelope], `${envelope}: ${JSON.stringify(received)}`);
    assert.equal(await rows(page, 'a', 'message:new').locator('.text').textContent(), 'Hello!');
  }
  // The key is the same, so that a frontend with its token comes back by itself.
  await other.when('connected again', () => other.connects === 4);
  const { update } = await own.json('/dev/updates', json({ userId: 'usr_other', eventType: 'message.create', generation: 'original' }));
  await other.saw(update);
  assert.equal((await own.get('/dev/envelope', { ...json({ envelope: 'xml' }), method: 'PUT' })).status, 400);
  assert.equal((await own.terminate()).code, 0);
  await page.close();
});

test('page: the program that it shows runs as pasted', async () => {
  const page = await openPage();
  const program = await page.textContent('#connect-snippet');
  await page.close();
  const folder = temporaryFolder();
  writeFileSync(path.join(folder, 'pasted.mjs'), program);
  symlinkSync(path.join(testsFolder, 'node_modules'), path.join(folder, 'node_modules'));
  const pasted = spawn(process.execPath, ['pasted.mjs'], { cwd: folder });
  let output = '';
  for (const stream of [pasted.stdout, pasted.stderr]) stream.on('data', (data) => (output += data));
  await until('connected', () => output.includes('connected: fetch your state now'));
  await gateway.json('/dev/updates', json({ userId: 'usr_alice', eventType: 'message.create' }));
  await until('both events', () => /^update \{[\s\S]*^message \{[\s\S]*Hello!/m.test(output));
  pasted.kill();
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
