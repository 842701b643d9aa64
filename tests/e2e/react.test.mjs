// The React example: its reducer with every generation's updates, and the app itself:
// two users, each in a browser of their own, with the development mode behind it.
// (client*.test.mjs test the package that it uses.)

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { tool } from './client.mjs';
import { freePort, Gateway, generations, Network, SECRET, temporaryFolder, testsFolder, token, until } from './harness.mjs';

const run = promisify(execFile);
const example = path.join(testsFolder, '..', 'examples', 'react-chat');
const folder = temporaryFolder();

/** Where the screenshots go; SCREENSHOTS=folder keeps them. */
const screenshots = process.env.SCREENSHOTS ?? folder;

// ---- State --------------------------------------------------------------------

test('the chat is the same for every generation', async () => {
  const outfile = path.join(folder, 'chat.mjs');
  const { build } = await import(pathToFileURL(tool('esbuild/lib/main.js')));
  await build({ entryPoints: [path.join(example, 'src', 'chat.ts')], bundle: true, format: 'esm', preserveSymlinks: true, outfile });
  const { chatReducer, EMPTY_CHAT } = await import(pathToFileURL(outfile));
  const me = 'usr_a3f9k2p1';
  for (const { since, updates } of generations()) {
    const receive = (chat, body) => chatReducer(me)(chat, { type: 'update', update: body });
    const named = (pattern) => updates.find(({ name }) => pattern.test(name))?.body;
    const created = named(/^message\.create($|\/update\.message)/);
    const message = created.data.message ?? created.data;

    const chat = receive(EMPTY_CHAT, created);
    assert.deepEqual(chat.messages.map(({ content, senderId }) => [content, senderId]), [[message.content, message.senderId]], since);
    assert.ok(chat.messages[0].at > new Date('2025-01-01') && chat.messages[0].at < new Date('2027-01-01'), since);
    assert.deepEqual(receive(chat, created).messages, chat.messages, `${since}: twice is once`);

    // The other updates refer to this message too, whichever message they were recorded with.
    const ofThis = (body) => {
      const text = JSON.stringify(body);
      const other = body.data.message ?? body.data;
      return JSON.parse(text.replaceAll(other._id ?? other.messageId, message._id ?? message.messageId));
    };
    const edited = ofThis(named(/^message\.(update|changed)($|\/update\.message)/));
    assert.equal(receive(chat, edited).messages[0].content, (edited.data.message ?? edited.data).content, since);

    const reacted = ofThis(named(/^message\.reaction\.(add|update|changed)($|\/update\.message)/));
    const reactions = receive(chat, reacted).messages[0].reactions;
    assert.deepEqual(reactions.map(({ count }) => count), [1], since);
    assert.ok(JSON.stringify(reacted).includes(reactions[0].reaction), since);

    const read = named(/^message\.status\.(update|changed)($|\/update\.message)/);
    // The first generation said that a status has changed, not which.
    if (since !== '2025-10-31') {
      assert.ok(Object.values(receive(chat, ofThis(read)).messages[0].statuses).includes('read'), since);
    }
    const typing = named(/^dialog\.typing/);
    assert.deepEqual(Object.keys(receive(chat, typing).typing), ['usr_x7m2n4k9'], since);
    const gone = named(/^message\.delete/);
    if (gone) assert.deepEqual(receive(chat, ofThis(gone)).messages, [], since);
  }
});

// ---- The app ------------------------------------------------------------------

const json = (body) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });

/** A gateway in development mode, a network to it that can be cut, and the app served by Vite. */
class App {
  /** `isBuilt`: from `vite build`, else from the development server with React's strict mode. */
  static async start({ isBuilt = false, env = {}, find } = {}) {
    const app = new App();
    app.gateway = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: '', ...env } });
    app.network = await Network.to(app.gateway);
    const urls = { GATEWAY_URL: app.gateway.url, VITE_GATEWAY_URL: app.network.url };
    const viteEnv = { ...process.env, ...(find?.(app.gateway) ?? urls) };
    const vite = [tool('vite/bin/vite.js')];
    if (isBuilt) {
      vite.push('preview', '--outDir', path.join(folder, 'dist'));
      await run(process.execPath, [tool('typescript/bin/tsc'), '--noEmit'], { cwd: example });
      await run(process.execPath, [tool('vite/bin/vite.js'), 'build', '--outDir', path.join(folder, 'dist')], { cwd: example, env: viteEnv });
    }
    const port = await freePort();
    app.url = `http://127.0.0.1:${port}`;
    const vited = spawn(process.execPath, [...vite, '--host', '127.0.0.1', '--port', String(port), '--strictPort'], { cwd: example, env: viteEnv });
    app.output = '';
    for (const stream of [vited.stdout, vited.stderr]) stream.on('data', (data) => (app.output += data));
    servers.push(vited);
    await until('Vite serves', async () => {
      if (vited.exitCode !== null) throw new Error(`Vite did not start: ${app.output}`);
      return fetch(app.url).then(({ ok }) => ok, () => false);
    }, 60_000);
    return app;
  }

  /** The app in a separate browser for `user`, once its badge says `status`. */
  async open(user, { status = 'live', ...options } = {}) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.problems = [];
    page.on('pageerror', (error) => page.problems.push(error.message));
    // A cut network is no mistake of the page. Nor is a session that has ended: a client
    // that is refused during its upgrade sends a last request to it (400).
    page.on('console', (message) => {
      const isTransport = /WebSocket|ERR_/.test(message.text()) || message.location().url.includes('/socket.io/');
      if (message.type() === 'error' && !isTransport) page.problems.push(message.text());
    });
    await page.goto(`${this.url}/?user=${user}`);
    await badge(page, status).catch((error) => {
      throw new Error(`${error.message}\n${page.problems.join('\n')}`);
    });
    return page;
  }
}

const badge = (page, status) => page.locator(`.badge[data-status=${status}]`).waitFor();
const message = (page, text) => page.locator('.message', { hasText: text });
const countOf = (page, text) => message(page, text).count();

async function send(page, text) {
  await page.getByRole('textbox', { name: 'Message' }).fill(text);
  await page.keyboard.press('Enter');
}

async function close(...pages) {
  for (const page of pages) {
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
}

let browser;
let app;
const servers = [];
before(async () => {
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  app = await App.start();
});
after(async () => {
  await browser?.close();
  for (const server of servers) server.kill('SIGKILL');
});

test('two users talk: messages, reactions, statuses, typing, edits and deletions are seen by the other', async () => {
  const [alice, bob] = [await app.open('usr_alice'), await app.open('usr_bob')];
  await send(alice, 'Hello Bob');
  await message(alice, 'Hello Bob').waitFor();
  await message(bob, 'Hello Bob').waitFor();
  await message(alice, 'Hello Bob').locator('.status[data-status=read]').waitFor();

  await message(bob, 'Hello Bob').getByRole('button', { name: 'React with 👍' }).click();
  await message(alice, 'Hello Bob').locator('.reactions button[aria-pressed=false]', { hasText: '👍 1' }).waitFor();
  await message(alice, 'Hello Bob').locator('.reactions button').click();
  await message(bob, 'Hello Bob').locator('.reactions button[aria-pressed=true]', { hasText: '👍 2' }).waitFor();
  await message(bob, 'Hello Bob').locator('.reactions button').click();
  await message(alice, 'Hello Bob').locator('.reactions button[aria-pressed=true]', { hasText: '👍 1' }).waitFor();

  // Bob looks elsewhere, then returns.
  await bob.evaluate(() => {
    document.hasFocus = () => false;
    window.dispatchEvent(new Event('blur'));
  });
  await send(alice, 'Are you there?');
  await message(alice, 'Are you there?').locator('.status[data-status=delivered]').waitFor();
  await bob.evaluate(() => {
    delete document.hasFocus;
    window.dispatchEvent(new Event('focus'));
  });
  await message(alice, 'Are you there?').locator('.status[data-status=read]').waitFor();

  await bob.getByRole('textbox', { name: 'Message' }).pressSequentially('Yes');
  await alice.getByText('Bob is typing…').waitFor();
  await bob.keyboard.press('Enter');
  await message(alice, 'Yes').waitFor();
  await alice.getByText('Bob is typing…').waitFor({ state: 'detached' });

  await message(alice, 'Are you there?').getByRole('button', { name: 'Edit' }).click();
  await alice.getByRole('textbox', { name: 'Edit message' }).fill('Still there?');
  await alice.keyboard.press('Enter');
  await message(bob, 'Still there?').getByText('edited').waitFor();
  await message(alice, 'Still there?').getByRole('button', { name: 'Delete' }).click();
  await message(bob, 'Still there?').waitFor({ state: 'detached' });
  assert.deepEqual([await countOf(alice, 'Hello Bob'), await countOf(bob, 'Hello Bob')], [1, 1]);

  // A third user, who comes late, fetches the same state.
  await alice.getByRole('button', { name: 'Add Carol' }).click();
  await bob.locator('.members').getByText('Carol').waitFor();
  const carol = await app.open('usr_carol');
  await message(carol, 'Hello Bob').locator('.reactions button', { hasText: '👍 1' }).waitFor();
  await message(carol, 'Yes').waitFor();
  await bob.getByRole('button', { name: 'Remove Carol' }).click();
  await alice.getByRole('button', { name: 'Add Carol' }).waitFor();
  await carol.getByText('You are not a member of this dialog.').waitFor();
  // Her request is refused now, and the page says so.
  carol.problems = carol.problems.filter((problem) => !problem.includes('403'));
  await close(alice, bob, carol);
});

test('a cut connection: updates published during the cut are seen once, and the badge says recovered', async () => {
  const [alice, bob] = [await app.open('usr_alice'), await app.open('usr_bob')];
  await send(alice, 'Before the cut');
  await message(bob, 'Before the cut').waitFor();
  app.network.cut();
  await Promise.all([badge(alice, 'offline'), badge(bob, 'offline')]);
  // The page's API is still reachable; the gateway is not.
  const sent = alice.waitForResponse(/\/api\/send/);
  await send(alice, 'While it was cut');
  assert.ok((await sent).ok());
  assert.equal(await countOf(bob, 'While it was cut'), 0);
  const fetches = [];
  bob.on('request', (request) => /\/api\/dialog/.test(request.url()) && fetches.push(request));
  app.network.restore();
  await Promise.all([badge(alice, 'recovered'), badge(bob, 'recovered')]);
  await message(bob, 'While it was cut').waitFor();
  await message(alice, 'While it was cut').waitFor();
  await bob.screenshot({ path: path.join(screenshots, 'react-recovered.png') });
  await send(bob, 'After the cut');
  for (const page of [alice, bob]) await message(page, 'After the cut').waitFor();
  for (const page of [alice, bob]) {
    const texts = (await page.locator('.content').allTextContents()).slice(-3);
    assert.deepEqual(texts, ['Before the cut', 'While it was cut', 'After the cut']);
  }
  // The same for one user alone, with the page's button.
  await bob.getByRole('button', { name: 'Cut' }).click();
  await badge(bob, 'offline');
  await send(alice, 'While Bob was away');
  await message(alice, 'While Bob was away').waitFor();
  assert.equal(await countOf(bob, 'While Bob was away'), 0);
  await bob.getByRole('button', { name: 'Reconnect' }).click();
  await message(alice, 'While Bob was away').locator('.status[data-status=read]').waitFor();
  await badge(bob, 'recovered');
  await bob.getByRole('button', { name: 'Cut' }).waitFor();
  assert.equal(await countOf(bob, 'While Bob was away'), 1);
  assert.deepEqual(fetches, [], 'recovered by the gateway, not by a fetch');
  await close(alice, bob);
});

test('built: after a cut beyond the recovery window the page fetches, again if that fails, and shows what was missed once', async () => {
  const short = await App.start({ isBuilt: true, env: { RECOVERY_WINDOW: '500ms' } });
  const [alice, bob] = [await short.open('usr_alice'), await short.open('usr_bob')];
  await send(alice, 'Before');
  await message(bob, 'Before').waitFor();
  short.network.cut();
  await badge(bob, 'offline');
  for (const user of ['usr_alice', 'usr_bob']) await short.gateway.logged(new RegExp(`unsubscribed from updates user_id=${user}`));
  const sent = alice.waitForResponse(/\/api\/send/);
  await send(alice, 'While it was cut');
  await sent;
  // Bob's first fetch fails; the answer to the second is held back, so that the test sees the page before it.
  let asked = 0;
  let answer;
  await bob.route(/\/api\/dialog/, async (route) => {
    asked += 1;
    if (asked === 1) return route.fulfill({ status: 503, json: { error: 'The backend is away.' } });
    const response = await route.fetch();
    answer = () => route.fulfill({ response });
  });
  short.network.restore();
  await badge(bob, 'syncing');
  assert.equal(await bob.locator('.badge').textContent(), 'Fetching…');
  await bob.getByRole('alert').getByText('The backend is away.').waitFor();
  await until('the answer, which knows nothing of what comes now', () => answer);
  await badge(alice, 'live');
  await send(alice, 'During the fetch');
  await message(alice, 'During the fetch').waitFor();
  assert.deepEqual(await bob.locator('.content').allTextContents(), ['Before']);
  await answer();
  await badge(bob, 'live');
  await message(bob, 'During the fetch').waitFor();
  assert.deepEqual(await bob.locator('.content').allTextContents(), ['Before', 'While it was cut', 'During the fetch']);
  assert.equal(await bob.getByRole('alert').count(), 0);
  bob.problems = bob.problems.filter((problem) => !problem.includes('503'));
  await close(alice, bob);
});

test('the token is replaced before it expires, on the same connection', async () => {
  // Tokens of the development mode live for 12 hours.
  const impatient = await App.start({ env: { JWT_EXPIRY_NOTICE: '11h 59m 58s' } });
  const context = await browser.newContext();
  const page = await context.newPage();
  const accepted = [];
  let handshakes = 0;
  page.on('websocket', (socket) => {
    if (!socket.url().includes('/socket.io/')) return;
    socket.on('framereceived', ({ payload }) => /^43\d+\[\{"ok":true/.test(payload) && accepted.push(payload));
  });
  // A connection begins with a request that has no session yet.
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (url.pathname === '/socket.io/' && !url.searchParams.has('sid')) handshakes += 1;
  });
  await page.goto(`${impatient.url}/?user=usr_alice`);
  await badge(page, 'live');
  await until('a refresh', () => accepted.length >= 1);
  await until('another', () => accepted.length >= 2);
  assert.equal(await page.locator('.badge').getAttribute('data-status'), 'live');
  assert.equal(handshakes, 1, "also in React's strict mode");
  await context.close();
});

test('a user who is kept out sees why, and gets in with another token later', async () => {
  const guarded = await App.start({ env: { ADMIN_TOKEN: 'operator' } });
  const alice = await guarded.open('usr_alice');
  await guarded.gateway.metricIs('sockets', 1);
  const order = { method: 'POST', headers: { authorization: 'Bearer operator' } };
  const soon = Math.floor(Date.now() / 1000) + 10;
  await guarded.gateway.json('/api/users/usr_alice/disconnect', { ...order, body: JSON.stringify({ until: soon, issuedBefore: soon }) });
  await badge(alice, 'refused');
  assert.equal(await alice.locator('.badge').textContent(), 'Refused: token revoked');
  await until('live again', async () => {
    await alice.getByRole('button', { name: 'Sign in again' }).click({ timeout: 500 }).catch(() => {});
    return alice.locator('.badge[data-status=live]').isVisible();
  });
  await send(alice, 'Here again');
  await message(alice, 'Here again').waitFor();
  await guarded.gateway.metricIs('sockets', 1);
  await close(alice);
});

test('a backend that gives expired tokens is asked a few times, with growing pauses, and then only by the button', async () => {
  const stale = await App.start({ env: { JWT_SECRET: SECRET } });
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.clock.install();
  let asked = 0;
  await page.route(/\/api\/session/, (route) => {
    asked += 1;
    const expired = token('usr_alice', { tenantId: 'tnt_default', jti: String(asked) }, { expiresIn: -3600 });
    return route.fulfill({ json: { token: expired, expiresAt: new Date(Date.now() - 3_600_000).toISOString() } });
  });
  await page.goto(`${stale.url}/?user=usr_alice`);
  await until('the first', () => asked === 1);
  for (const [renewal, pause] of [1, 2, 4, 8, 16].entries()) {
    const begun = Date.now();
    let forwarded = 0;
    await until(`a renewal after ${pause} s`, async () => {
      await page.clock.runFor(500);
      forwarded += 500;
      return asked > 1 + renewal;
    });
    assert.equal(asked, 2 + renewal);
    const waited = Date.now() - begun + forwarded;
    assert.ok(waited >= pause * 1000, `${waited} ms instead of ${pause} s`);
  }
  await badge(page, 'refused');
  assert.equal(await page.locator('.badge').textContent(), 'Refused: token expired');
  await page.clock.runFor(600_000);
  assert.equal(asked, 6);
  await page.getByRole('button', { name: 'Sign in again' }).click();
  await until('the renewal by hand', () => asked === 7);
  await context.close();
});

test('without a gateway, the page says how to start one', async () => {
  const lonely = await App.start();
  await lonely.gateway.kill();
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(lonely.url);
  await page.getByRole('alert').getByText('make run').waitFor();
  await context.close();
});

test('it can be used with the keyboard, fits a phone, and is dark where the system is', async () => {
  const phone = { viewport: { width: 375, height: 700 }, hasTouch: true, isMobile: true };
  const [alice, bob] = [await app.open('usr_alice', { viewport: { width: 800, height: 560 } }), await app.open('usr_bob', { ...phone, colorScheme: 'dark' })];
  await send(alice, 'Shall we go to the lake on Saturday?');
  await message(bob, 'the lake').waitFor();
  await send(bob, 'The train at nine, or the one at ten? 🚆');
  await message(alice, 'The train at nine').waitFor();
  // From the message box backwards to the first reaction of the last message.
  await alice.getByRole('textbox', { name: 'Message' }).focus();
  for (let i = 0; i < 3; i += 1) await alice.keyboard.press('Shift+Tab');
  await alice.keyboard.press('Enter');
  await message(bob, 'The train at nine').locator('.reactions').waitFor();
  await send(alice, 'Nine. I bring the map, you bring the coffee.');
  await message(bob, 'Nine.').waitFor();
  await bob.getByRole('textbox', { name: 'Message' }).pressSequentially('Deal');
  await alice.getByText('Bob is typing…').waitFor();
  // On a phone, a tap shows what can be done with a message.
  await message(bob, 'Shall we').locator('.bubble').tap();
  await message(bob, 'Shall we').getByRole('button', { name: 'React with ❤️' }).tap();
  await message(alice, 'Shall we').locator('.reactions').waitFor();
  const overflow = await bob.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.notEqual(await background(alice), await background(bob));
  await alice.screenshot({ path: path.join(screenshots, 'react-light.png') });
  await bob.screenshot({ path: path.join(screenshots, 'react-dark-phone.png') });
  await close(alice, bob);
});

test('the port of the gateway is all it needs to find it; where none is, it names the variable', async () => {
  const found = await App.start({ find: ({ url }) => ({ PORT: new URL(url).port }) });
  const alice = await found.open('usr_alice');
  await send(alice, 'Found');
  await message(alice, 'Found').waitFor();
  await close(alice);
  assert.doesNotMatch(found.output, /No gateway/);

  const port = await freePort();
  const lost = await App.start({ find: () => ({ PORT: String(port) }) });
  assert.match(lost.output, new RegExp(`No gateway at http://127\\.0\\.0\\.1:${port}\\. Start it with \`make run\`; if it has another port.*PORT=3301 make react`));
  const page = await browser.newPage();
  await page.goto(`${lost.url}/?user=usr_alice`);
  await page.getByText(new RegExp(`No connection to http://127\\.0\\.0\\.1:${port} .*; if it has another port: \`PORT=3301 make react\``)).waitFor();
  await page.close();
});
