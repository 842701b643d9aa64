// The development mode: no broker, a page, tokens and publishing over HTTP.

import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { Gateway, SECRET, Tab, token } from './harness.mjs';

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

test('what is published by HTTP reaches the recipient only, with the data that was given', async () => {
  const [alice, bob] = [await signIn('usr_a', 'tnt_default'), await signIn('usr_b')];
  const answer = await gateway.get('/dev/updates', json({ userId: 'usr_a', eventType: 'dialog.update', data: { name: 'x' } }));
  assert.equal(answer.status, 202);
  const { routingKey, queues, update } = await answer.json();
  assert.deepEqual([routingKey, queues, update.data], ['user.usr_a.dialogupdate', 1, { name: 'x' }]);
  await alice.when('both events', () => alice.events.length === 2);
  assert.deepEqual(alice.named('dialog:update'), [update]);
  const sentinel = await gateway.json('/dev/updates', json({ userId: 'usr_b', eventType: 'user.update' }));
  await bob.saw(sentinel.update);
  assert.deepEqual(bob.ids, [sentinel.update._id]);
  const nobody = await gateway.json('/dev/updates', json({ userId: 'usr_c', eventType: 'message.create' }));
  assert.equal(nobody.queues, 0);
});

test('a burst arrives complete and in order', async () => {
  const tab = await signIn('usr_burst');
  const published = [];
  for (let i = 0; i < 300; i += 1) {
    published.push((await gateway.json('/dev/updates', json({ userId: 'usr_burst', eventType: 'message.update' }))).update._id);
  }
  await tab.when('300 updates', () => tab.ids.length === 300);
  assert.deepEqual(tab.ids, published);
});

test('requests that make no sense are told why', async () => {
  for (const [path, body, error] of [
    ['/dev/tokens', { userId: '*' }, /userId contains a character/],
    ['/dev/tokens', {}, /userId/],
    ['/dev/tokens', { userId: 'a', tenantId: 'b c' }, /tenantId contains a character/],
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
  for (const path of ['/', '/dev/samples', '/dev/socket.io.js']) {
    assert.equal((await production.get(path)).status, 404);
  }
  assert.equal((await production.get('/dev/tokens', json({ userId: 'a' }))).status, 404);
});

test('SIGTERM ends it', async () => {
  const own = await Gateway.start(null, { args: ['dev'] });
  assert.equal((await own.terminate()).code, 0);
});

let browser;

/** Chromium as Debian packages it, kept from calling home. */
before(async () => {
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(() => browser?.close());

/** The page with both users live; its errors fail the test. */
async function openPage(options = {}) {
  const page = await browser.newPage(options);
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(error.message));
  page.on('console', (message) => message.type() === 'error' && page.problems.push(message.text()));
  await page.goto(gateway.url);
  for (const pane of ['a', 'b']) await page.waitForSelector(`[data-user-pane=${pane}] [data-role=status][data-state=live]`);
  return page;
}

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

test('page: one of each of the 13 documented types arrives', async () => {
  const page = await openPage();
  await page.click('#publish-all');
  await rows(page, 'a', 'chat3:update').nth(12).waitFor();
  assert.equal(await rows(page, 'a', 'message:update').count(), 7);
  assert.equal(await rows(page, 'a', 'dialog:update').count(), 5);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: a cut connection comes back by itself and receives again', async () => {
  const page = await openPage();
  await page.click('[data-user-pane=a] [data-role=cut]');
  await rows(page, 'a', 'disconnect').first().waitFor();
  await page.waitForSelector('[data-user-pane=a] [data-role=status][data-state=live]');
  await page.click('#publish-button');
  await rows(page, 'a', 'message:new').first().waitFor();
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('page: it fits a phone', async () => {
  const page = await openPage({ viewport: { width: 375, height: 700 } });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await page.close();
});
