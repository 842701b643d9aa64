// Attackers without a token, against a real gateway over raw sockets: how much memory, how
// many connections and log lines each may cost, while a bystander notices nothing.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { afterEach, before, test } from 'node:test';

import { rssOf } from './crowd.mjs';
import {
  Broker, Gateway, HANDSHAKE, Poller, Publisher, Tab, frame, pollingSession, rawConnection, rawWebsocket, testsFolder, token, until,
} from './harness.mjs';

let broker;
let publisher;
let gateway;

afterEach(() => gateway?.kill());

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const POLLING = '/socket.io/?EIO=4&transport=polling';

/** The peak of the process's resident memory since the last `resetPeak`, in MiB. */
const peakOf = (pid) => Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;
const resetPeak = (pid) => writeFileSync(`/proc/${pid}/clear_refs`, '5');

/** A quiet machine needs 100 ms; the rest is for one that tests on all its processors, with attacks from this process. */
const P99_MS = 2000;
const NOISE = 20;

const p99Of = (latencies) => latencies.sort((a, b) => a - b)[Math.ceil(latencies.length * 0.99) - 1];

/**
 * Attacks while a bystander with a socket is sent one update after the other: all arrive in time, and
 * the process takes no more than `mebibytes` on top of what it had.
 */
async function holds(attack, { mebibytes }) {
  const bystander = await Tab.open(gateway, 'usr_bystander', { transports: ['websocket'] });
  await bystander.saw(publisher.update('usr_bystander'));
  const { pid } = gateway.child;
  const before = rssOf(pid);
  resetPeak(pid);
  const [quiet, latencies] = [[], []];
  const measure = async (into) => {
    const start = performance.now();
    await bystander.saw(publisher.update('usr_bystander'));
    into.push(performance.now() - start);
    await pause(20);
  };
  while (quiet.length < 20) await measure(quiet);
  let isOver = false;
  const attacking = attack().finally(() => (isOver = true));
  while (!isOver || latencies.length < 20) await measure(latencies);
  await attacking;
  const growth = peakOf(pid) - before;
  const [p99, most] = [p99Of(latencies), Math.max(P99_MS, NOISE * p99Of(quiet))];
  assert.ok(growth < mebibytes, `${growth.toFixed(1)} MiB more`);
  assert.ok(p99 < most, `p99 ${p99.toFixed(0)} ms`);
  assert.deepEqual(bystander.disconnects, []);
  bystander.close();
}

/** A websocket that is open and has sent no CONNECT. */
async function openWebsocket() {
  const socket = await rawConnection(gateway);
  socket.write(HANDSHAKE);
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  return socket;
}

/** Writes `bytes` `count` times, for as long as the connection takes them. */
async function flood(socket, bytes, count) {
  for (let i = 0; i < count && !socket.destroyed; i += 1) {
    if (!socket.write(bytes)) await Promise.race([new Promise((resolve) => socket.once('drain', resolve)), socket.ended, pause(3000)]);
    if (i % 20 === 0) await pause(0);
  }
}

const name = (bytes) => `40/${'x'.repeat(bytes)},`;

for (const [what, packet, reason] of [
  ['made-up namespaces with long names', name(60_000), 'namespaces'],
  ['made-up namespaces', name(100), 'namespaces'],
]) {
  test(`CONNECTs to ${what}, from a peer that does not read, end its connection`, async () => {
    gateway = await Gateway.start(broker);
    await holds(async () => {
      const socket = await openWebsocket();
      socket.pause();
      await flood(socket, frame(packet), 1500);
      await gateway.metricIs(`connections_closed_total{reason="${reason}"}`, 1);
      socket.resume();
      await socket.ended;
    }, { mebibytes: 24 });
    assert.equal(gateway.logs.match(/closing a connection that sends too much/g).length, 1);
  });
}

test('CONNECTs to made-up namespaces in polling requests end their session', async () => {
  gateway = await Gateway.start(broker);
  await holds(async () => {
    for (let session = 0; session < 5; session += 1) {
      const open = await (await gateway.get(POLLING)).text();
      const { sid } = JSON.parse(open.slice(1));
      const statuses = [];
      for (let i = 0; i < 50 && !statuses.some((status) => status !== 200); i += 1) {
        const response = await gateway.get(`${POLLING}&sid=${sid}`, { method: 'POST', body: session % 2 ? name(60_000) : Array(20).fill(name(100)).join('\x1e') });
        statuses.push(response.status);
      }
      assert.equal(statuses.at(-1), 400);
    }
  }, { mebibytes: 24 });
  assert.equal(await gateway.metric('connections_closed_total{reason="namespaces"}'), 5);
});

test('a CONNECT to a namespace that does not exist is still refused', async () => {
  gateway = await Gateway.start(broker);
  const socket = await openWebsocket();
  socket.write(frame('40/chat,{}'));
  await until('the answer', () => socket.received.includes('44/chat,{"message":"Invalid namespace"}'));
  socket.destroy();
});

for (const [what, bytes, first = ''] of [
  ['pings', frame('x'.repeat(125), { opcode: 9 })],
  ['pongs', frame('', { opcode: 10 })],
  ['empty continuations', Buffer.from([0x00, 0x80, 0, 0, 0, 0]), Buffer.from([0x01, 0x80, 0, 0, 0, 0])],
]) {
  test(`a flood of ${what} from a peer that does not read ends its connection`, async () => {
    gateway = await Gateway.start(broker);
    await holds(async () => {
      const socket = await openWebsocket();
      socket.pause();
      socket.write(first);
      const many = Buffer.concat(Array(100).fill(bytes));
      await flood(socket, many, 2000);
      await gateway.metricIs('connections_closed_total{reason="packets"}', 1);
      socket.resume();
      await socket.ended;
    }, { mebibytes: 24 });
  });
}

test('a flood of bytes ends its connection', async () => {
  gateway = await Gateway.start(broker);
  await holds(async () => {
    const socket = await openWebsocket();
    // A pong of the Engine.IO protocol, and bytes that nothing reads.
    await flood(socket, frame(`3${'x'.repeat(60_000)}`), 1000);
    await gateway.metricIs('connections_closed_total{reason="bytes"}', 1);
    await socket.ended;
  }, { mebibytes: 24 });
});

test('a peer that takes nothing is not read from, and is closed like any slow socket', async () => {
  gateway = await Gateway.start(broker, { env: { SOCKET_WRITE_TIMEOUT: '3s', MAX_EVENTS_PER_SECOND: '0', RUST_LOG: 'info,chat3_gateway::sessions=debug' } });
  const socket = await rawWebsocket(gateway, 'usr_stuck');
  socket.pause();
  await holds(async () => {
    const content = 'x'.repeat(100_000);
    for (let i = 0; i < 100; i += 1) publisher.update('usr_stuck', { data: { content } });
    await gateway.logged(/a socket lags behind.*usr_stuck/);
    // No byte was read in between: the flood meets a write that is stuck.
    await flood(socket, Buffer.concat(Array(100).fill(frame('x'.repeat(125), { opcode: 9 }))), 20_000);
    await gateway.metricIs('slow_sockets_total', 1);
    socket.resume();
    await socket.ended;
  }, { mebibytes: 64 });
});

test('heads of requests are limited, however many are sent', { timeout: 120_000 }, async () => {
  gateway = await Gateway.start(broker);
  await holds(async () => {
    const sockets = [];
    const head = `GET /socket.io/?EIO=4 HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(100_000)}`;
    while (sockets.length < 500) {
      const some = await Promise.all(Array.from({ length: 25 }, () => rawConnection(gateway)));
      for (const socket of some) socket.write(head);
      sockets.push(...some);
      // The bystander's client lives in this process.
      await pause(20);
    }
    await Promise.all(sockets.map((socket) => socket.ended));
  }, { mebibytes: 24 });
});

test('a head of 16 KB is not kept by the socket that came with it, and a longer one is refused', async () => {
  const growth = async (padding) => {
    const server = await Gateway.start(broker);
    const headers = `Authorization: Bearer ${token('usr_padded')}\r\nX-Padding: ${'x'.repeat(padding)}\r\n`;
    const handshake = HANDSHAKE.replace('transport=websocket', `transport=websocket&p=${'x'.repeat(padding / 2)}`).replace('Host: x\r\n', `Host: x\r\n${headers}`);
    const connect = async (i) => {
      const socket = await rawConnection(server);
      socket.write(handshake.replace('usr_padded', `usr_padded${i % 10}`));
      await until('the open packet', () => socket.received.includes('0{"sid"'));
      socket.write(frame(`40${JSON.stringify({ token: token(`usr_padded${i % 10}`) })}`));
      await until('the CONNECT reply', () => socket.received.includes('40{"sid"'));
      return socket;
    };
    const sockets = [];
    while (sockets.length < 50) sockets.push(await connect(sockets.length));
    const before = rssOf(server.child.pid);
    while (sockets.length < 450) sockets.push(...(await Promise.all(Array.from({ length: 25 }, (_, i) => connect(sockets.length + i)))));
    const after = rssOf(server.child.pid);
    for (const socket of sockets) socket.destroy();
    await server.kill();
    return after - before;
  };
  const [plain, padded] = [await growth(0), await growth(9000)];
  // The heads of 400 sockets are 5.4 MB.
  assert.ok(padded - plain < 2.5, `${plain} MiB, ${padded} MiB with padding`);
  gateway = await Gateway.start(broker);
  const socket = await rawConnection(gateway);
  socket.write(HANDSHAKE.replace('Host: x', `Host: x\r\nAuthorization: Bearer ${'x'.repeat(17_000)}`));
  await socket.ended;
  assert.match(socket.received, /^HTTP\/1.1 431 /);
});

test('a token in the Authorization header lets the client in, and is not kept for later', async () => {
  gateway = await Gateway.start(broker);
  const socket = await rawConnection(gateway);
  socket.write(HANDSHAKE.replace('Host: x', `Host: x\r\nAuthorization: Bearer ${token('usr_header')}`));
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  socket.write(frame('40'));
  await until('the CONNECT reply', () => socket.received.includes('40{"sid"'));
  socket.write(frame('41'));
  await gateway.metricIs('sockets', 0);
  socket.write(frame('40'));
  await until('the refusal', () => socket.received.includes('44{"message":"token missing"}'));
  socket.destroy();
});

test('handshakes take the slots of MAX_SOCKETS, and give them back', async () => {
  gateway = await Gateway.start(broker, { env: { MAX_SOCKETS: '10', MAX_SOCKETS_PER_USER: '0' } });
  const opened = await Promise.all(Array.from({ length: 200 }, () => gateway.get(POLLING)));
  const texts = await Promise.all(opened.map((response) => (response.status === 200 ? response.text() : null)));
  const sids = texts.filter(Boolean).map((text) => JSON.parse(text.slice(1)).sid);
  assert.equal(sids.length, 10);
  const auth = `40${JSON.stringify({ token: token('usr_many') })}`;
  await Promise.all(sids.map((sid) => gateway.get(`${POLLING}&sid=${sid}`, { method: 'POST', body: auth })));
  await gateway.metricIs('sockets', 10);
  assert.equal((await gateway.get(POLLING)).status, 503);
  await gateway.get(`${POLLING}&sid=${sids[0]}`, { method: 'POST', body: '1' });
  await until('a slot', async () => (await gateway.get(POLLING)).status === 200);
  // A handshake that is not followed by a CONNECT gives its slot back as well.
  await until('the slot again', async () => (await gateway.get(POLLING)).status === 200, 30_000);
});

test('bodies that trickle end after 30 s, at the endpoint and at /api', { timeout: 120_000 }, async () => {
  gateway = await Gateway.start(broker, { env: { ADMIN_TOKEN: 'admin' } });
  const { sid, poll } = await pollingSession(gateway, 'usr_trickles');
  const trickle = async (path, headers = '') => {
    const socket = await rawConnection(gateway);
    socket.write(`POST ${path} HTTP/1.1\r\nHost: x\r\n${headers}Content-Length: 1000\r\n\r\n`);
    const start = Date.now();
    const timer = setInterval(() => !socket.destroyed && socket.write('3'), 2000);
    await socket.ended;
    clearInterval(timer);
    return { status: Number(socket.received.split(' ')[1]), seconds: (Date.now() - start) / 1000 };
  };
  // The session still lives.
  await poll('3');
  let isOver = false;
  const polling = (async () => {
    while (!isOver) if ((await (await poll()).text()).includes('2')) await poll('3');
  })();
  const gone = JSON.parse((await (await gateway.get(POLLING)).text()).slice(1)).sid;
  const [body, order, unknown, ended] = await Promise.all([
    trickle(`${POLLING}&sid=${sid}`),
    trickle('/api/users/alice/disconnect', 'Authorization: Bearer admin\r\n'),
    trickle(`${POLLING}&sid=AAAAAAAAAAAAAAAA`),
    // Its session ends after 10 s without a CONNECT.
    trickle(`${POLLING}&sid=${gone}`),
  ]);
  for (const trickled of [body, order]) {
    assert.equal(trickled.status, 408, JSON.stringify({ body, order }));
    assert.ok(trickled.seconds > 25 && trickled.seconds < 45, `${trickled.seconds} s`);
  }
  assert.equal(unknown.status, 400);
  assert.ok(unknown.seconds < 10, `${unknown.seconds} s`);
  assert.equal(ended.status, 400);
  assert.ok(ended.seconds < 25, `${ended.seconds} s`);
  assert.equal(await gateway.metric('connections_closed_total{reason="slow_body"}'), 1);
  isOver = true;
  publisher.update('usr_trickles');
  await polling;
});

/** Opens `count` connections, and returns them. */
async function crowd(count, localAddress = '127.0.0.1') {
  const { port } = new URL(gateway.url);
  const sockets = [];
  for (let i = 0; i < count; i += 1) {
    const socket = net.connect({ port: Number(port), host: '127.0.0.1', localAddress });
    socket.on('error', () => {});
    socket.on('close', () => (socket.isClosed = true));
    sockets.push(socket);
    if (i % 20 === 19) await until('connections', () => sockets.every((socket) => !socket.connecting || socket.isClosed));
  }
  return sockets;
}

/** A request on a separate connection. */
function ask(path, localAddress = '127.0.0.1') {
  return new Promise((resolve, reject) => {
    const request = http.get(gateway.url + path, { agent: false, localAddress, timeout: 15_000 }, (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode));
    });
    request.on('timeout', () => request.destroy(new Error(`no answer to ${path}`)));
    request.on('error', reject);
  });
}

test('an address has a limited number of connections without a socket; the longest idle give way', async () => {
  gateway = await Gateway.start(broker, { env: { MAX_CONNECTIONS_PER_ADDRESS: '20' } });
  const tabs = [];
  while (tabs.length < 25) tabs.push(await Tab.open(gateway, `usr_tab${tabs.length}`, { transports: ['websocket'] }));
  const sockets = await crowd(100, '127.0.0.2');
  const open = () => sockets.filter((socket) => !socket.isClosed);
  await until('the first to be closed', () => open().length <= 20);
  assert.deepEqual(open(), sockets.slice(-open().length));
  assert.equal(await ask('/health', '127.0.0.2'), 200);
  assert.equal(await ask('/health'), 200);
  for (const tab of tabs) assert.deepEqual(tab.disconnects, []);
  assert.ok(await gateway.metric('connections_closed_total{reason="address"}') >= 80);
  assert.ok(gateway.logs.match(/MAX_CONNECTIONS_PER_ADDRESS/g).length < 5);
  for (const socket of sockets) socket.destroy();
});

test('with as many half-open connections as descriptors, newcomers and health checks are served', async () => {
  gateway = await Gateway.start(broker, { descriptors: 200, env: { MAX_CONNECTIONS_PER_ADDRESS: '0' } });
  await holds(async () => {
    const sockets = await crowd(400);
    assert.equal(await ask('/health'), 200);
    const tab = await Tab.open(gateway, 'usr_newcomer');
    await tab.saw(publisher.update('usr_newcomer'));
    for (const socket of sockets) socket.destroy();
  }, { mebibytes: 24 });
  assert.ok(await gateway.metric('connections_closed_total{reason="full"}') > 200);
  const lines = gateway.logs.match(/as many as the limit on open files allows/g);
  assert.ok(lines.length >= 1 && lines.length < 10, `${lines.length} lines`);
});

test('full of sockets, it serves health checks and turns everything else away', async () => {
  gateway = await Gateway.start(broker, { descriptors: 200 });
  const sockets = [];
  while (sockets.length < 136) sockets.push(await rawWebsocket(gateway, `usr_full${sockets.length % 10}`));
  // The connections of the test's requests may have to end first.
  await until('a full gateway', async () => (await ask('/metrics')) === 503, 40_000);
  for (const path of ['/health', '/ready']) assert.equal(await ask(path), 200);
  assert.ok(sockets.every((socket) => !socket.destroyed));
  for (const socket of sockets) socket.destroy();
});

test('floods of foreign origins and of refused CONNECTs are a few lines', async () => {
  gateway = await Gateway.start(broker, { env: { CORS_ORIGIN: 'https://chat.example.com', MAX_CONNECTS_PER_SECOND: '0' } });
  const start = Date.now();
  for (let i = 0; i < 20; i += 1) {
    await Promise.all(Array.from({ length: 10 }, () => gateway.get(POLLING, { headers: { origin: 'https://evil.com' } })));
  }
  for (let i = 0; i < 10; i += 1) {
    const pollers = await Promise.all(Array.from({ length: 10 }, () => Poller.connect(gateway, { token: 'x' })));
    await Promise.all(pollers.map((poller) => poller.post('1')));
  }
  await gateway.metricIs('connects_refused_total{reason="foreign_origin"}', 200);
  await gateway.metricIs('connects_refused_total{reason="token_invalid"}', 100);
  const seconds = (Date.now() - start) / 1000;
  for (const line of [/its origin is not in CORS_ORIGIN/g, /Connection refused peer=\S+ reason/g]) {
    const lines = gateway.logs.match(line)?.length ?? 0;
    assert.ok(lines >= 1 && lines <= seconds + 2, `${lines} lines like ${line} in ${seconds} s`);
  }
  await pause(1000);
  await gateway.get(POLLING, { headers: { origin: 'https://evil.com' } });
  await gateway.logged(/its origin is not in CORS_ORIGIN.*left_out=\d+/);
});

test('a poll that is aborted ends its session', async () => {
  gateway = await Gateway.start(broker, { env: { MAX_SOCKETS_PER_USER: '1' } });
  const { sid } = await pollingSession(gateway, 'usr_aborts');
  await gateway.metricIs('sockets', 1);
  const socket = await rawConnection(gateway);
  socket.write(`GET ${POLLING}&sid=${sid} HTTP/1.1\r\nHost: x\r\n\r\n`);
  await pause(200);
  socket.destroy();
  await gateway.metricIs('sockets', 0, 10_000);
  assert.equal(await gateway.metric('users_away'), 1);
  const tab = await Tab.open(gateway, 'usr_aborts');
  assert.equal((await gateway.get(`${POLLING}&sid=${sid}`)).status, 400);
  tab.close();
});

test('a poll that is aborted before the gateway has looked at it ends its session as well', async () => {
  gateway = await Gateway.start(broker);
  const { sid } = await pollingSession(gateway, 'usr_leaves_at_once');
  const socket = await rawConnection(gateway);
  // The request and the end of the stream are both there when the gateway reads.
  gateway.child.kill('SIGSTOP');
  await new Promise((resolve) => socket.end(`GET ${POLLING}&sid=${sid} HTTP/1.1\r\nHost: x\r\n\r\n`, resolve));
  gateway.child.kill('SIGCONT');
  await gateway.metricIs('sockets', 0);
});

test('the announced maxPayload is the limit, and a client splits its payloads by it', async () => {
  gateway = await Gateway.start(broker);
  const { maxPayload } = JSON.parse((await (await gateway.get(POLLING)).text()).slice(1));
  assert.equal(maxPayload, 65_536);
  const websocket = await openWebsocket();
  assert.equal(JSON.parse(websocket.received.match(/0(\{"sid".*?\})/)[1]).maxPayload, 65_536);
  websocket.destroy();
  const post = async (bytes) => {
    const { sid } = JSON.parse((await (await gateway.get(POLLING)).text()).slice(1));
    return (await gateway.get(`${POLLING}&sid=${sid}`, { method: 'POST', body: `42["${'x'.repeat(bytes - 6)}"]` })).status;
  };
  assert.deepEqual([await post(maxPayload), await post(maxPayload + 1)], [200, 413]);
  const tab = await Tab.open(gateway, 'usr_splits', { transports: ['polling'] });
  for (let i = 0; i < 40; i += 1) tab.socket.emit('note', 'x'.repeat(2000));
  assert.equal((await tab.socket.emitWithAck('auth:refresh', token('usr_splits'))).ok, true);
  assert.deepEqual(tab.disconnects, []);
});

for (const transports of [['websocket'], ['polling']]) {
  test(`attachments end no transport (${transports})`, async () => {
    gateway = await Gateway.start(broker);
    const tab = await Tab.open(gateway, 'usr_binary', { transports });
    for (const count of [1, 2, 10]) tab.socket.emit('files', ...Array.from({ length: count }, () => Buffer.alloc(1000)));
    assert.equal((await tab.socket.emitWithAck('auth:refresh', token('usr_binary'))).ok, true);
    assert.deepEqual(tab.disconnects, []);
  });
}

/** Sends on a separate connection, and returns all that arrives until its end. */
async function exchange(text) {
  const socket = await rawConnection(gateway);
  socket.write(text);
  await socket.ended;
  return socket.received;
}

test('requests that two servers may read differently are refused', async () => {
  gateway = await Gateway.start(broker);
  const close = 'Connection: close\r\n';
  for (const request of [
    `GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n${close}\r\n`,
    `GET /health HTTP/1.1\r\n${close}\r\n`,
    `GET /health HTTP/1.1\nHost: a\nConnection: close\n\n`,
    `GET /health HTTP/1.1\r\nHost: a\nX: y\r\n${close}\r\n`,
    `POST /health HTTP/1.1\r\nHost: a\r\n${close}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`,
    `GET /health HTTP/1.1\r\nHost: a\r\n X: folded\r\n${close}\r\n`,
    `GET /health HTTP/1.1\r\nHost : a\r\n${close}\r\n`,
  ]) {
    assert.match(await exchange(request), /^HTTP\/1\.1 400 /, JSON.stringify(request));
  }
  assert.match(await exchange(`GET /health HTTP/1.1\r\nHost: a\r\n${close}\r\n`), /^HTTP\/1\.1 200 /);
  // A good request before such a one does not make it pass.
  for (const [before, statuses] of [
    ['', ['200', '400']],
    ['Transfer-Encoding-Of: chunked\r\n', ['200', '400']],
    [`Content-Length:${' '.repeat(60)}0\r\n`, ['400']],
    ['Transfer-Encoding: chunked\r\nContent-Length: 5\r\n', ['200']],
    ['Content-Length: 5, 5\r\n', ['400']],
  ]) {
    const body = before.includes('chunked\r\nC') ? '0\r\n\r\n' : '';
    const answers = await exchange(`GET /health HTTP/1.1\r\nHost: a\r\n${before}\r\n${body}GET /health HTTP/1.1\nHost: a\nConnection: close\n\n`);
    assert.deepEqual([...answers.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status), statuses, JSON.stringify(before));
  }
});

test('pipelined requests are answered in order, and no more are read ahead than a head holds', async () => {
  gateway = await Gateway.start(broker);
  const paths = ['/health', '/nowhere', '/ready', '/health'];
  const requests = paths.map((path, i) => `GET ${path} HTTP/1.1\r\nHost: x\r\n${i === 3 ? 'Connection: close\r\n' : ''}\r\n`);
  const statuses = [...(await exchange(requests.join(''))).matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status);
  assert.deepEqual(statuses, ['200', '404', '200', '200']);
  await holds(async () => {
    const { sid } = await pollingSession(gateway, 'usr_pipelines');
    const socket = await rawConnection(gateway);
    // The first one waits for an update; the rest pile up behind it.
    socket.write(`GET ${POLLING}&sid=${sid} HTTP/1.1\r\nHost: x\r\n\r\n`);
    await flood(socket, Buffer.from('GET /health HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(1000)), 100);
    socket.destroy();
  }, { mebibytes: 24 });
});

test('endless requests, on as many connections as an address may have, hold up nobody', { timeout: 240_000 }, async (t) => {
  gateway = await Gateway.start(broker);
  const plan = { port: Number(new URL(gateway.url).port), connections: 900, target: '/health' };
  const bystander = await Tab.open(gateway, 'usr_bystander', { transports: ['websocket'] });
  const flood = spawn(process.execPath, [path.join(testsFolder, 'e2e', 'pipeline.mjs'), JSON.stringify(plan)], { stdio: ['pipe', 'pipe', 'inherit'] });
  let answered = '';
  flood.stdout.on('data', (data) => (answered += data));
  try {
    await pause(3000);
    const latencies = [];
    for (let i = 0; i < 50; i += 1) {
      const start = performance.now();
      await bystander.saw(publisher.update('usr_bystander'), 60_000);
      latencies.push(performance.now() - start);
      await pause(20);
    }
    const p99 = p99Of(latencies);
    t.diagnostic(`half within ${latencies[25].toFixed(0)} ms, 99 of 100 within ${p99.toFixed(0)} ms`);
    assert.ok(p99 < 5000, `p99 ${p99.toFixed(0)} ms`);
    assert.deepEqual(bystander.disconnects, []);
  } finally {
    flood.stdin.end();
    await until('the end of the flood', () => answered !== '' || flood.exitCode !== null);
  }
  t.diagnostic(`${Number(answered)} requests were answered`);
  assert.ok(Number(answered) > 0);
  bystander.close();
});
