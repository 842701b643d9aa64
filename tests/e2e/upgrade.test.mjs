// Requests for websockets, and what happens to a polling session whose upgrade fails
// on the way: proxies that answer 101 and then swallow, close or delay what follows.

import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';

import { Broker, Gateway, HANDSHAKE, Publisher, Tab, frame, pollingSession, rawConnection, token, until } from './harness.mjs';

const UPDATES = 34;
/** Together longer than an upgrade may take. */
const UPDATE_EVERY_MS = 350;

let broker;
let publisher;
let gateway;
const paths = [];

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'operator' } });
});
after(() => paths.forEach((path) => path.close()));

/**
 * A proxy that behaves until it has passed on a 101. Of what follows, `up(n, data)` and `down(n, data)`
 * decide for the n-th piece of each direction, from 0 on: pass it on (`true`), swallow it (`false`),
 * end the connection (`'close'`), or pass it on after a number of milliseconds.
 */
class Path {
  static async to(gateway, { up = () => true, down = () => true, request = (data) => data, opened } = {}) {
    const path = new Path();
    path.requests = 0;
    const port = Number(new URL(gateway.url).port);
    path.server = net.createServer((near) => {
      const far = net.connect(port, '127.0.0.1');
      let isWebsocket = false;
      const end = () => [near, far].forEach((socket) => socket.destroy());
      for (const socket of [near, far]) socket.on('error', end).on('close', end);
      const pieces = [0, 0];
      const pass = async (which, decide, to, data) => {
        const verdict = decide(pieces[which]++, data);
        if (verdict === 'close') return end();
        if (typeof verdict === 'number') await pause(verdict, null, { ref: false });
        if (verdict !== false && !to.destroyed) to.write(data);
      };
      near.on('data', (data) => {
        if (isWebsocket) return pass(0, up, far, data);
        path.requests += 1;
        far.write(request(data));
      });
      far.on('data', (data) => {
        if (isWebsocket) return pass(1, down, near, data);
        isWebsocket = data.includes('101 Switching Protocols');
        near.write(data);
        if (isWebsocket) opened?.(end);
      });
    });
    await new Promise((resolve) => path.server.listen(0, '127.0.0.1', resolve));
    path.url = `http://127.0.0.1:${path.server.address().port}`;
    paths.push(path);
    return path;
  }

  close() {
    this.server.close();
  }
}

/** The updates that a user behind `path` sees, published one after the other from the connect on. */
async function throughPath(userId, { client, ...options }) {
  const path = await Path.to(gateway, options);
  const start = Date.now();
  const tab = new Tab(gateway, token(userId), { url: path.url, ...client });
  await tab.when('connected', () => tab.connects > 0);
  const connectMs = Date.now() - start;
  const published = [];
  for (let i = 0; i < UPDATES; i += 1) {
    published.push(publisher.update(userId)._id);
    await pause(UPDATE_EVERY_MS);
  }
  await tab.when('all updates', () => published.every((id) => tab.ids.includes(id)), 60_000);
  assert.deepEqual(tab.ids, published, 'each once and in order');
  return { path, tab, connectMs, transport: tab.socket.io.engine.transport.name };
}

/** Tries all `paths` at the same time, and reports those for which an assertion of `check` fails. */
async function allPaths(paths, check) {
  await Promise.all(Object.entries(paths).map(async ([name, options]) => {
    try {
      check(await throughPath(`usr_${name.replaceAll(' ', '_')}`, options));
    } catch (error) {
      throw new Error(`${name}: ${error.message}`, { cause: error });
    }
  }));
}

test('an upgrade that fails on the way costs its websocket, and the session continues to poll', async () => {
  const failing = {
    'a path that swallows what the client sends': { up: () => false },
    'a path that swallows what the gateway sends': { down: () => false },
    'a path that swallows everything': { up: () => false, down: () => false },
    'a path that closes after the 101': { opened: (end) => end() },
    'a path that closes a little later': { opened: (end) => setTimeout(end, 700), up: () => false },
    'a path that closes when the client sends something': { up: () => 'close' },
    'a path that closes when the gateway sends something': { down: () => 'close' },
    'a path that takes longer than a probe may': { up: () => 12_000 },
    'a path that sends something else': { up: (n, data) => n > 0 || (data.fill(0xff), true) },
  };
  await allPaths(failing, ({ path, tab, connectMs, transport }) => {
    assert.ok(connectMs < 5_000, `it connected after ${connectMs} ms`);
    assert.deepEqual([tab.connects, tab.disconnects, transport], [1, [], 'polling']);
    // One poll for each update, a ping and its answer, and the polls of the probe.
    assert.ok(path.requests < 3 * UPDATES, `${path.requests} requests`);
  });
});

test('an upgrade on a slow path succeeds, and no update is lost during it', async () => {
  const slow = {
    'what the client sends is late': { up: () => 1_500 },
    'what the gateway sends is late': { down: () => 1_500 },
    'both are late': { up: () => 1_500, down: () => 1_500 },
  };
  await allPaths(slow, ({ tab, connectMs, transport }) => {
    assert.ok(connectMs < 5_000, `it connected after ${connectMs} ms`);
    assert.deepEqual([tab.connects, tab.disconnects, transport], [1, [], 'websocket']);
  });
});

test('a path that fails when the client has upgraded already costs a reconnect, and no update', async () => {
  // A client tries to upgrade after each reconnect; the pauses between reconnects are the client's defaults.
  const client = { reconnectionDelay: 1000, reconnectionDelayMax: 5000 };
  const late = {
    'it swallows the last packet of the upgrade': { client, up: (n) => n === 0 },
    'it closes on the last packet of the upgrade': { client, up: (n) => n === 0 || 'close' },
    'it closes on the first packet behind the upgrade': { client, down: (n) => n === 0 || 'close' },
  };
  await allPaths(late, ({ path, tab }) => {
    assert.ok(tab.disconnects.length > 0);
    assert.ok(tab.recovered.slice(1).every((recovered) => recovered), `${tab.recovered}`);
    assert.ok(path.requests < 5 * UPDATES, `${path.requests} requests`);
  });
});

/** The status line and the rest of the answer to `request`; for a websocket, the first bytes that it is sent. */
async function answer(request, socket) {
  const raw = socket ?? (await rawConnection(gateway));
  raw.write(request);
  await until('an answer', () => raw.received.includes('\r\n\r\n'));
  const status = Number(raw.received.match(/^HTTP\/1.\d (\d+)/)[1]);
  if (status !== 101) await until('its body', () => raw.received.split('\r\n\r\n')[1].length >= Number(raw.received.match(/content-length: (\d+)/i)?.[1] ?? 0));
  const [head, body] = raw.received.split('\r\n\r\n');
  raw.destroy();
  return { status, head, body };
}

const without = (header) => HANDSHAKE.replace(new RegExp(`${header}: .*\r\n`), '');
const instead = (header, value) => HANDSHAKE.replace(new RegExp(`${header}: .*\r\n`), `${header}: ${value}\r\n`);
const besides = (line) => HANDSHAKE.replace('Host: x\r\n', `Host: x\r\n${line}\r\n`);
const KEY = 'dGhlIHNhbXBsZSBub25jZQ==';

describe('a websocket request', () => {
  const good = {
    'as browsers send it': [HANDSHAKE],
    'with tokens in any case, among others': [instead('Connection', 'keep-alive, UPGRADE').replace('Upgrade: websocket', 'Upgrade: WebSocket')],
    'with the Connection header in two lines': [besides('Connection: keep-alive')],
    'with extensions, which are not used': [besides('Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits')],
    'with a key whose last character has bits to spare': [instead('Sec-WebSocket-Key', `${'A'.repeat(21)}B==`)],
  };
  for (const [name, [request]] of Object.entries(good)) {
    test(`${name} is answered with 101`, async () => {
      const { status, head } = await answer(request);
      assert.equal(status, 101);
      assert.match(head, /^connection: upgrade\r?$/im);
      assert.match(head, /^upgrade: websocket\r?$/im);
      assert.doesNotMatch(head, /sec-websocket-(extensions|protocol)/i);
      if (request.includes(KEY)) assert.match(head, /^sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK\+xOo=\r?$/im);
    });
  }

  const bad = {
    'without Upgrade': [without('Upgrade'), 400],
    'without Connection': [without('Connection'), 400],
    'with neither': [without('Upgrade').replace('Connection: Upgrade\r\n', ''), 400],
    'with another Connection': [instead('Connection', 'keep-alive'), 400],
    'for h2c': [instead('Upgrade', 'h2c'), 400],
    'over HTTP/1.0': [HANDSHAKE.replace('HTTP/1.1', 'HTTP/1.0'), 400],
    'without a key': [without('Sec-WebSocket-Key'), 400],
    'with an empty key': [instead('Sec-WebSocket-Key', ''), 400],
    'with a short key': [instead('Sec-WebSocket-Key', 'c2hvcnQ='), 400],
    'with a long key': [instead('Sec-WebSocket-Key', `${'A'.repeat(30)}==`), 400],
    'with a key that is not base64': [instead('Sec-WebSocket-Key', `${'-'.repeat(22)}==`), 400],
    'with two keys': [besides(`Sec-WebSocket-Key: ${KEY}`), 400],
    'of version 12': [instead('Sec-WebSocket-Version', '12'), 426],
    'of no version': [without('Sec-WebSocket-Version'), 426],
    'of two versions': [besides('Sec-WebSocket-Version: 13'), 426],
    'with an empty subprotocol': [besides('Sec-WebSocket-Protocol: a,,b'), 400],
    'with a subprotocol twice': [besides('Sec-WebSocket-Protocol: a, a'), 400],
    'with a body': [besides('Content-Length: 5').concat('hello'), 400],
    'that is a POST': [HANDSHAKE.replace('GET', 'POST').replace('Host: x', 'Host: x\r\nContent-Length: 0'), 400, '{"code":2,"message":"Bad handshake method"}'],
    'of Engine.IO 3': [HANDSHAKE.replace('EIO=4', 'EIO=3'), 400, '{"code":5,"message":"Unsupported protocol version"}'],
    'without a version of Engine.IO': [HANDSHAKE.replace('EIO=4&', ''), 400, '{"code":5,"message":"Unsupported protocol version"}'],
    'for a session that does not exist': [HANDSHAKE.replace('EIO=4', 'EIO=4&sid=AAAAAAAAAAAAAAAA'), 400, '{"code":1,"message":"Session ID unknown"}'],
    'for a session that cannot exist': [HANDSHAKE.replace('EIO=4', 'EIO=4&sid=nonsense'), 400, '{"code":1,"message":"Session ID unknown"}'],
  };
  for (const [name, [request, expected, text]] of Object.entries(bad)) {
    test(`${name} is refused with ${expected}`, async () => {
      const { status, head, body } = await answer(request);
      assert.equal(status, expected);
      if (expected === 426) assert.match(head, /^sec-websocket-version: 13\r?$/im);
      if (text) assert.deepEqual(JSON.parse(body.replace(/"code":"(\d)"/, '"code":$1')), JSON.parse(text));
    });
  }

  test('is given the first of its subprotocols', async () => {
    const { status, head } = await answer(besides('Sec-WebSocket-Protocol: v2, v1\r\nSec-WebSocket-Protocol: v0'));
    assert.equal(status, 101);
    assert.match(head, /^sec-websocket-protocol: v2\r?$/im);
    const tab = await Tab.open(gateway, 'usr_protocols', { transports: ['websocket'], protocols: ['chat', 'other'] });
    await tab.saw(publisher.update('usr_protocols'));
  });
});

test('where a proxy takes the Upgrade header away, a client that tries all transports falls back to polling', async () => {
  const strip = (data) => Buffer.from(data.toString('latin1').replace(/^(upgrade|connection): .*\r\n/gim, ''), 'latin1');
  const path = await Path.to(gateway, { request: strip });
  const tab = new Tab(gateway, token('usr_stripped'), { url: path.url, transports: ['websocket', 'polling'], tryAllTransports: true });
  await tab.when('connected', () => tab.connects > 0);
  assert.equal(tab.socket.io.engine.transport.name, 'polling');
  assert.ok((await gateway.metric('connects_refused_total{reason="bad_websocket"}')) > 0);
  await tab.saw(publisher.update('usr_stripped'));
});

/** A raw websocket whose probe was answered. */
async function probing(upgradeRequest) {
  const websocket = await rawConnection(gateway);
  websocket.write(upgradeRequest);
  await until('the upgrade', () => websocket.received.includes('101 Switching'));
  websocket.write(frame('2probe'));
  await until('the probe reply', () => websocket.received.includes('3probe'));
  return websocket;
}

test('one websocket at a time may take over a session, once in a while, and never a session that is a websocket', async () => {
  const { upgradeRequest, poll } = await pollingSession(gateway, 'usr_twice');
  const first = await probing(upgradeRequest);
  assert.equal((await answer(upgradeRequest)).status, 400, 'while the first is at it');
  first.destroy();
  await pause(300);
  assert.equal((await answer(upgradeRequest)).status, 400, 'right after the first has failed');
  const update = publisher.update('usr_twice');
  await until('the update over polling', async () => (await (await poll()).text()).includes(update._id));
  const later = await until('another turn', async () => {
    const websocket = await rawConnection(gateway);
    websocket.write(upgradeRequest);
    await until('an answer', () => /^HTTP\/1.1 \d+/.test(websocket.received));
    return websocket.received.includes('101 Switching') ? websocket : websocket.destroy() && null;
  });
  later.write(Buffer.concat([frame('2probe'), frame('5')]));
  const next = publisher.update('usr_twice');
  await until('the update over the websocket', () => later.received.includes(next._id));
  const { status, body } = await answer(upgradeRequest);
  assert.deepEqual([status, JSON.parse(body).message], [400, 'Bad request']);
  assert.equal((await poll()).status, 400);
  later.destroy();
});

test('the poll that waits is answered with a noop, and no update that comes during the upgrade is lost', async () => {
  const { upgradeRequest, poll } = await pollingSession(gateway, 'usr_release');
  const waiting = poll();
  const websocket = await probing(upgradeRequest);
  assert.equal(await (await waiting).text(), '6');
  const update = publisher.update('usr_release');
  await pause(300);
  websocket.write(frame('5'));
  await until('the update', () => websocket.received.includes(update._id));
  websocket.destroy();
});

test('a CONNECT reply that was not read when its session upgrades carries the pid, over the websocket', async () => {
  const open = await (await gateway.get('/socket.io/?EIO=4&transport=polling')).text();
  const { sid } = JSON.parse(open.slice(1));
  const url = `/socket.io/?EIO=4&transport=polling&sid=${sid}`;
  await gateway.get(url, { method: 'POST', body: `40${JSON.stringify({ token: token('usr_unread') })}` });
  await gateway.metricIs('sockets', (await gateway.metric('sockets')) || 1);
  const websocket = await probing(HANDSHAKE.replace('EIO=4', `EIO=4&sid=${sid}`));
  websocket.write(frame('5'));
  await until('the reply', () => /40\{"sid":"[^"]+","pid":"[0-9a-f]{32}"\}/.test(websocket.received));
  websocket.destroy();
});

test('a packet that arrives in one piece with the last packet of the upgrade is not lost', async () => {
  const open = await (await gateway.get('/socket.io/?EIO=4&transport=polling')).text();
  const { sid } = JSON.parse(open.slice(1));
  const websocket = await rawConnection(gateway);
  const connect = frame(`40${JSON.stringify({ token: token('usr_piece') })}`);
  websocket.write(HANDSHAKE.replace('EIO=4', `EIO=4&sid=${sid}`));
  await until('the upgrade', () => websocket.received.includes('101 Switching'));
  websocket.write(Buffer.concat([frame('2probe'), frame('', { opcode: 9 }), frame('5'), connect]));
  await until('the CONNECT reply', () => websocket.received.includes('40{"sid"'));
  websocket.destroy();
});

test('closing a socket closes the websocket that is about to take over', async () => {
  const { upgradeRequest } = await pollingSession(gateway, 'usr_closed');
  const websocket = await probing(upgradeRequest);
  const start = Date.now();
  await gateway.get('/api/users/usr_closed/disconnect', { method: 'POST', headers: { authorization: 'Bearer operator' } });
  await websocket.ended;
  assert.ok(Date.now() - start < 5_000, `it ended after ${Date.now() - start} ms`);
});

test('what a websocket sends before it takes over is bounded, and so are the answers', async () => {
  const { upgradeRequest, poll } = await pollingSession(gateway, 'usr_pings');
  const websocket = await probing(upgradeRequest);
  websocket.pause();
  const pings = Buffer.concat(Array.from({ length: 1000 }, () => frame('x'.repeat(100), { opcode: 9 })));
  websocket.write(pings);
  websocket.resume();
  await websocket.ended;
  assert.ok(websocket.received.length < 4_000, `${websocket.received.length} bytes`);
  const update = publisher.update('usr_pings');
  await until('the update over polling', async () => (await (await poll()).text()).includes(update._id));
});
