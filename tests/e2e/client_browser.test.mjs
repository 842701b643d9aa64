// The client package in Chromium: as plain modules without a bundler, and its React hook in React 18 and 19.

import assert from 'node:assert/strict';
import { createReadStream, existsSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { chromium } from 'playwright-core';

import { Backend, installClient, subscribed, TENANT, tool } from './client.mjs';
import { Broker, Gateway, Network, Publisher, testsFolder, token, until } from './harness.mjs';

let broker;
let publisher;
let gateway;
let browser;
let server;
let site;

/** The application of both pages: what it was told, for the tests to read. */
const LOG = `
  window.log = { numbers: [], statuses: [], failures: 0, resyncs: 0, asked: 0, signedOut: [] };
  window.optionsFor = (url, token) => ({
    url,
    getToken: async () => ((log.asked += 1), window.nextToken ?? token),
    onResync: async () => {
      log.resyncs += 1;
      if (window.failingFetches-- > 0) throw new Error('no backend');
    },
    onUpdate: (update) => {
      log.numbers.push(Number(update.data.message.content));
      if (window.isThrowing) throw new Error('a handler failed');
    },
    onConnection: ({ status, recovered, failures }) => {
      const told = recovered ? 'recovered' : status;
      // Whoever is offline may be told another reason.
      if (told !== log.statuses.at(-1)) log.statuses.push(told);
      log.failures = Math.max(log.failures, failures);
    },
    onSignedOut: (reason) => log.signedOut.push(reason),
    socket: { reconnectionDelay: 50, reconnectionDelayMax: 200 },
  });
`;

const PLAIN = `<!doctype html>
<script type="importmap">{ "imports": { "socket.io-client": "/socket.io.esm.js", "chat3-gateway-client": "/client/src/index.js" } }</script>
<script>${LOG}</script>
<script type="module">
  import { createChat3Socket } from 'chat3-gateway-client';
  window.start = (url, token) => (window.chat = createChat3Socket(optionsFor(url, token)));
</script>`;

const HOOK = `
  import { StrictMode, useState } from 'react';
  import { createRoot } from 'react-dom/client';
  import { useChatUpdates } from 'chat3-gateway-client/react';

  function Chat({ options, user, enabled }) {
    const [seen, setSeen] = useState([]);
    const { connection, resync } = useChatUpdates({
      ...options,
      user,
      enabled,
      // Without the latest callback, this would always add to nothing.
      events: { 'message:new': (data) => setSeen([...seen, data.message.content]) },
    });
    return <p onClick={resync}>{user} {connection.status} {seen.join()}</p>;
  }

  const root = createRoot(document.body.appendChild(document.createElement('div')));
  window.render = (props) => root.render(<StrictMode>{props && <Chat {...props} />}</StrictMode>);
`;

/** Bundles the hook's page as an application would, for development: React's double effects need that. */
async function bundle(react) {
  const folder = await installClient({ react });
  const { build } = await import(pathToFileURL(tool('esbuild/lib/main.js')));
  const entry = path.join(folder, 'app.jsx');
  writeFileSync(entry, HOOK);
  const define = { 'process.env.NODE_ENV': '"development"' };
  await build({ entryPoints: [entry], outfile: path.join(folder, 'bundle.js'), bundle: true, jsx: 'automatic', define });
  return path.join(folder, 'bundle.js');
}

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator' } });
  const plain = path.join(await installClient({ react: null }), 'node_modules', 'chat3-gateway-client');
  const files = { '/socket.io.esm.js': path.join(testsFolder, 'node_modules/socket.io-client/dist/socket.io.esm.min.js') };
  for (const react of [18, 19]) files[`/react${react}.js`] = await bundle(react);
  server = http.createServer(({ url }, response) => {
    const isPage = !path.extname(url);
    const file = files[url] ?? path.join(plain, url.replace('/client', ''));
    response.setHeader('content-type', isPage ? 'text/html' : 'text/javascript');
    if (isPage) return response.end(url === '/' ? PLAIN : `<!doctype html><body><script>${LOG}</script><script src="${url}.js"></script>`);
    if (!existsSync(file)) return response.writeHead(404).end();
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  site = `http://127.0.0.1:${server.address().port}`;
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
});
after(async () => {
  await browser?.close();
  server?.close();
});

let users = 0;

/** A page of the site, with a user and their backend. */
async function open(url) {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.problems = [];
  page.handshakes = 0;
  page.on('pageerror', (error) => page.problems.push(error.message));
  page.on('request', (request) => {
    const { pathname, searchParams } = new URL(request.url());
    if (pathname === '/socket.io/' && !searchParams.has('sid')) page.handshakes += 1;
  });
  await page.goto(site + url);
  const userId = `usr_browser_${(users += 1)}`;
  const backend = new Backend(publisher, userId);
  const log = () => page.evaluate(() => window.log);
  return {
    page, backend, userId, log,
    token: token(userId, { tenantId: TENANT }),
    is: async (status, server = gateway) => {
      await until(`${status}`, async () => (await log()).statuses.at(-1) === status);
      if (status === 'live') await subscribed(server);
    },
    sees: (count) => until(`${count} updates`, async () => (await log()).numbers.length >= count),
  };
}

const numbers = (count) => Array.from({ length: count }, (_, i) => i + 1);

test('without a bundler: a cut is recovered without a refetch; a restart leads to one that fails twice, with what comes meanwhile behind it', async () => {
  const mine = await Gateway.start(broker);
  const network = await Network.to(mine);
  const { page, backend, token, is, sees, log } = await open('/');
  await page.evaluate(([url, token]) => void window.start(url, token), [network.url, token]);
  await is('live', mine);
  backend.publish(2);
  await sees(2);
  network.cut();
  await is('offline');
  backend.publish(2);
  network.restore();
  await sees(4);
  await is('recovered');
  assert.deepEqual(await log(), {
    numbers: numbers(4), statuses: ['syncing', 'live', 'offline', 'recovered'], failures: 0, resyncs: 1, asked: 2, signedOut: [],
  });
  await page.evaluate(() => (window.failingFetches = 2));
  await mine.terminate();
  await is('offline');
  const next = await Gateway.start(broker, { env: { PORT: new URL(mine.url).port } });
  await is('syncing');
  await subscribed(next);
  backend.publish(2);
  await is('live', next);
  await sees(6);
  backend.publish();
  await sees(7);
  const { numbers: seen, resyncs, statuses, failures } = await log();
  assert.deepEqual([seen, resyncs, failures], [numbers(7), 4, 2]);
  assert.deepEqual(statuses.slice(4), ['offline', 'syncing', 'live']);
  assert.deepEqual(page.problems, []);
  await page.context().close();
  await next.kill();
});

test('a handler that throws is reported, and keeps nothing from coming, nor brings anything again', async () => {
  const network = await Network.to(gateway);
  const { page, backend, token, is, sees, log } = await open('/');
  await page.evaluate(([url, token]) => void window.start(url, token), [network.url, token]);
  await is('live');
  await page.evaluate(() => (window.isThrowing = true));
  backend.publish(3);
  await sees(3);
  network.cut();
  await is('offline');
  network.restore();
  await is('recovered');
  backend.publish();
  await sees(4);
  assert.deepEqual((await log()).numbers, numbers(4));
  // Neither from what was held.
  await page.evaluate(() => {
    window.failingFetches = 1;
    window.chat.resync();
  });
  backend.publish(3);
  await sees(7);
  assert.deepEqual((await log()).numbers, numbers(7));
  await until('the reports', () => page.problems.length === 7);
  assert.deepEqual(new Set(page.problems), new Set(['a handler failed']));
  await page.context().close();
});

test('a page in two tabs: each receives everything, and closing one leaves the other', async () => {
  const [one, other] = [await open('/'), await open('/')];
  for (const tab of [one, other]) {
    await tab.page.evaluate(([url, token]) => void window.start(url, token), [gateway.url, one.token]);
    await tab.is('live');
  }
  one.backend.publish(2);
  await Promise.all([one.sees(2), other.sees(2)]);
  await one.page.evaluate(() => window.chat.close());
  one.backend.publish();
  await other.sees(3);
  assert.deepEqual((await one.log()).numbers, numbers(2));
  await one.page.context().close();
  await other.page.context().close();
});

for (const react of [18, 19]) {
  /** Renders the chat with a token for its user. */
  const render = ({ page }, token, props) => page.evaluate(([url, token, props]) => {
    window.nextToken = token;
    window.render({ options: (window.options ??= window.optionsFor(url, token)), ...props });
  }, [gateway.url, token, props]);
  const shows = ({ page }, text) => page.getByText(text, { exact: true }).waitFor();

  test(`React ${react}: in StrictMode there is one handshake and one fetch, and each callback is the latest`, async () => {
    const app = await open(`/react${react}`);
    await render(app, app.token, { user: 'one' });
    await shows(app, 'one live');
    await subscribed(gateway);
    for (const text of ['one live 1', 'one live 1,2']) {
      app.backend.publish();
      await shows(app, text);
    }
    assert.equal(await gateway.metric('sockets'), 1);
    const { resyncs, asked, numbers: seen } = await app.log();
    assert.deepEqual([app.page.handshakes, resyncs, asked, seen], [1, 1, 1, [1, 2]]);

    // The text is a button for a refetch.
    await app.page.getByText('one live 1,2').click();
    await until('the refetch', async () => (await app.log()).resyncs === 2);
    await shows(app, 'one live 1,2');

    // Another render keeps the connection, another user replaces it.
    await render(app, app.token, { user: 'one' });
    const other = await open('/');
    await render(app, other.token, { user: 'other' });
    await shows(app, 'other live 1,2');
    await subscribed(gateway);
    other.backend.publish();
    await shows(app, 'other live 1,2,1');
    assert.equal(app.page.handshakes, 2);
    await gateway.metricIs('sockets', 1);

    await render(app, other.token, { user: 'other', enabled: false });
    await shows(app, 'other closed 1,2,1');
    await gateway.metricIs('sockets', 0);
    await render(app, other.token, { user: 'other' });
    await shows(app, 'other live 1,2,1');
    await app.page.evaluate(() => window.render(null));
    await gateway.metricIs('sockets', 0);
    assert.deepEqual(app.page.problems, []);
    await app.page.context().close();
    await other.page.context().close();
  });

  test(`React ${react}: without a token the user is signed out, and connects with one`, async () => {
    const app = await open(`/react${react}`);
    await app.page.evaluate(([url]) => {
      window.isSignedIn = false;
      const options = window.optionsFor(url, null);
      window.options = { ...options, getToken: async () => (window.isSignedIn ? window.nextToken : null) };
    }, [gateway.url]);
    await render(app, app.token, { user: 'nobody' });
    await shows(app, 'nobody refused');
    assert.deepEqual((await app.log()).signedOut, ['no token']);
    await app.page.evaluate(() => (window.isSignedIn = true));
    await render(app, app.token, { user: 'somebody' });
    await shows(app, 'somebody live');
    assert.deepEqual(app.page.problems, []);
    await app.page.context().close();
  });
}
