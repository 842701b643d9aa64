// Clients that vanish, stall or misbehave: each is bounded in time and memory,
// and nobody else notices.

import assert from 'node:assert/strict';
import net from 'node:net';
import { afterEach, before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, token, until } from './harness.mjs';

let broker;
let publisher;
let gateway;

afterEach(() => gateway.kill());

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

/** A TCP connection to the gateway on which a test writes what it likes. */
async function rawConnection(gateway) {
  const { port } = new URL(gateway.url);
  const socket = net.connect(Number(port), '127.0.0.1');
  socket.received = '';
  socket.on('data', (data) => (socket.received += data.toString('latin1')));
  socket.on('error', () => {});
  socket.ended = new Promise((resolve) => socket.on('close', resolve));
  await new Promise((resolve) => socket.once('connect', resolve));
  return socket;
}

/** One masked websocket text frame, as clients must send it. */
function frame(text, { opcode = 1, length = Buffer.byteLength(text) } = {}) {
  const payload = Buffer.from(text);
  const head = length < 126 ? [0x80 | opcode, 0x80 | length]
    : length < 65_536 ? [0x80 | opcode, 0xfe, length >> 8, length & 255]
      : [0x80 | opcode, 0xff, 0, 0, 0, 0, (length >> 24) & 255, (length >> 16) & 255, (length >> 8) & 255, length & 255];
  return Buffer.concat([Buffer.from(head), Buffer.alloc(4), payload]);
}

const handshake = 'GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';

/** A websocket that is signed in as `userId`, on a raw connection. */
async function rawWebsocket(gateway, userId) {
  const socket = await rawConnection(gateway);
  socket.write(handshake);
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  socket.write(frame(`40${JSON.stringify({ token: token(userId) })}`));
  await until('the CONNECT reply', () => socket.received.includes('40{"sid"'));
  return socket;
}

test('a socket that stops reading is cut off; the other tab and other users get everything', async () => {
  gateway = await Gateway.start(broker, { env: { SOCKET_WRITE_TIMEOUT: '2s' } });
  const stuck = await rawWebsocket(gateway, 'usr_stuck');
  const tab = await Tab.open(gateway, 'usr_stuck');
  const other = await Tab.open(gateway, 'usr_other');
  stuck.pause();
  const content = 'x'.repeat(20_000);
  const published = Array.from({ length: 200 }, () => publisher.update('usr_stuck', { data: { content } })._id);
  await gateway.metricIs('slow_sockets_total', 1);
  await gateway.metricIs('sockets', 2);
  const neighbour = publisher.update('usr_other');
  await other.saw(neighbour);
  await tab.when('all updates', () => tab.ids.length === published.length);
  assert.deepEqual(tab.ids, published);
  assert.deepEqual([tab.disconnects, other.disconnects], [[], []]);
  stuck.resume();
  await stuck.ended;
});

test('a socket whose buffer overflows is cut off at once, and an honest client comes back by itself', async () => {
  gateway = await Gateway.start(broker);
  const stuck = await rawWebsocket(gateway, 'usr_full');
  const honest = await Tab.open(gateway, 'usr_full', { transports: ['websocket'] });
  stuck.pause();
  const content = 'x'.repeat(200_000);
  // 16 MiB are the limit, and 40 MB are published.
  const published = Array.from({ length: 100 }, () => publisher.update('usr_full', { data: { content } })._id);
  await gateway.logged(/closing a socket that does not keep up user_id=usr_full|closing a socket that does not keep up.*usr_full/);
  await honest.when('all updates', () => honest.ids.includes(published.at(-1)));
  stuck.destroy();
  await gateway.metricIs('sockets', 1);
});

test('a polling client that stops polling is cut off, and is told that its session is gone', async () => {
  gateway = await Gateway.start(broker);
  const poll = (sid, body) => gateway.get(`/socket.io/?EIO=4&transport=polling${sid ? `&sid=${sid}` : ''}`, body ? { method: 'POST', body } : {});
  const open = await (await poll()).text();
  const { sid } = JSON.parse(open.slice(1));
  await poll(sid, `40${JSON.stringify({ token: token('usr_poll') })}`);
  // The first answer may be the heartbeat's.
  await until('the CONNECT reply', async () => /40\{"sid"/.test(await (await poll(sid)).text()));
  const content = 'x'.repeat(200_000);
  for (let i = 0; i < 60; i += 1) publisher.update('usr_poll', { data: { content } });
  await gateway.metricIs('slow_sockets_total', 1);
  const answer = await poll(sid);
  assert.equal(answer.status, 400);
  assert.match(await answer.text(), /Session ID unknown/);
});

test('a client that vanishes without a word is noticed', async () => {
  gateway = await Gateway.start(broker);
  const socket = await rawWebsocket(gateway, 'usr_gone');
  await broker.queuesAre(1);
  socket.destroy();
  await gateway.metricIs('sockets', 0);
  await broker.queuesAre(0);
});

test('the disconnect that overtakes the connect leaves nothing behind', async () => {
  gateway = await Gateway.start(broker);
  for (let i = 0; i < 300; i += 1) {
    const socket = await rawConnection(gateway);
    socket.write(handshake);
    await until('the open packet', () => socket.received.includes('0{"sid"'));
    const connect = frame(`40${JSON.stringify({ token: token(`usr_${i % 20}`) })}`);
    // Sometimes a goodbye in the same write, sometimes just gone.
    socket.write(i % 2 ? Buffer.concat([connect, frame('41')]) : connect);
    if (i % 3 === 0) socket.end();
    else socket.destroy();
  }
  await gateway.metricIs('sockets', 0);
  await gateway.metricIs('users', 0);
  await gateway.metricIs('subscriptions', 0);
  await broker.queuesAre(0);
  assert.doesNotMatch(gateway.logs, /panicked/);
});

test('a second CONNECT, other namespaces and unknown events do no harm', async () => {
  gateway = await Gateway.start(broker);
  const socket = await rawWebsocket(gateway, 'usr_odd');
  const connect = `40${JSON.stringify({ token: token('usr_odd') })}`;
  for (const packet of [connect, '40/admin,{}', '42["chat3:update",{"userId":"usr_odd"}]', '421["event"]', '430[]']) {
    socket.write(frame(packet));
  }
  const update = publisher.update('usr_odd');
  await until('the update', () => socket.received.includes(update._id));
  assert.equal(socket.received.split(`"chat3:update",`).length, 2);
  assert.equal(await gateway.metric('sockets'), 1);
  socket.destroy();
  await gateway.metricIs('sockets', 0);
});

test('garbage, oversized frames and oversized requests end their own connection only', async () => {
  gateway = await Gateway.start(broker);
  const bystander = await Tab.open(gateway, 'usr_bystander');
  for (const bytes of [
    Buffer.from([0xff, 0xff, 0xff, 0xff]),
    frame('not engine.io'),
    frame('42{"not":"an array"}'),
    frame('', { length: 100_000 }),
    frame('4'.repeat(70_000)),
    frame('451-["b",{"_placeholder":true,"num":0}]'),
  ]) {
    const socket = await rawWebsocket(gateway, 'usr_garbage');
    socket.write(bytes);
    if (bytes.at(0) === 0x81 && bytes.includes('451-')) socket.write(frame('text instead of binary'));
    await socket.ended;
  }
  const post = await gateway.get('/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA', { method: 'POST', body: 'x'.repeat(70_000) });
  assert.equal(post.status, 413);
  const request = await rawConnection(gateway);
  request.write('nonsense\r\n\r\n');
  await request.ended;
  await bystander.saw(publisher.update('usr_bystander'));
  assert.deepEqual(bystander.disconnects, []);
  await gateway.metricIs('sockets', 1);
  assert.doesNotMatch(gateway.logs, /panicked/);
});

test('a CONNECT that never comes ends the session', async () => {
  gateway = await Gateway.start(broker);
  const socket = await rawConnection(gateway);
  socket.write(handshake);
  await socket.ended;
  assert.match(socket.received, /0\{"sid"/);
});
