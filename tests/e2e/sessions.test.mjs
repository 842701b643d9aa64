// What one Engine.IO session may do: many CONNECTs, or none.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Broker, Gateway, Poller, Publisher, frame, rawConnection, HANDSHAKE, rawWebsocket, token, until } from './harness.mjs';

let broker;
let publisher;
let gateway;

before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker, { env: { MAX_CONNECTS_PER_SECOND: '0' } });
});
after(() => broker.stop());

const refusals = (text) => text.split('44{').length - 1;

test('a connection that asks to be let in again and again is closed, and logged once', async () => {
  const socket = await rawConnection(gateway);
  socket.write(HANDSHAKE);
  await until('the open packet', () => socket.received.includes('0{"sid"'));
  for (let i = 0; !socket.destroyed && i < 100; i++) {
    const before = refusals(socket.received);
    // A different token each time: a client that repeats one waits for the answer.
    socket.write(frame(`40{"token":"x${i}"}`));
    await until('an answer', () => socket.destroyed || refusals(socket.received) > before);
  }
  await socket.ended;
  assert.equal(refusals(socket.received), 3);
  await gateway.logged(/closing a connection that asks to connect again and again/);
  assert.ok(gateway.logs.match(/Connection refused/g).length <= 3);
  await gateway.metricIs('connects_refused_total{reason="too_many_connects"}', 1);
});

test('so is a session that does it by polling', async () => {
  const poller = await Poller.connect(gateway, { token: 'x' });
  let tokens = 0;
  await until('the end', async () => {
    const { status } = await poller.post(`40{"token":"y${(tokens += 1)}"}`);
    return status !== 200;
  });
  await gateway.metricIs('connects_refused_total{reason="too_many_connects"}', 2);
});

test('a client that polls is refused at once, and gets no ping that delays its leaving', async () => {
  const open = await (await gateway.get('/socket.io/?EIO=4&transport=polling')).text();
  const { sid } = JSON.parse(open.slice(1));
  const poll = async (options) => (await gateway.get(`/socket.io/?EIO=4&transport=polling&sid=${sid}`, options)).text();
  const start = Date.now();
  // python-socketio polls while it sends; a ping that it must answer would delay its close packet.
  const [first] = await Promise.all([poll(), poll({ method: 'POST', body: '40{"token":"heard"}' })]);
  assert.equal(first, '44{"message":"invalid token"}');
  const [last] = await Promise.all([poll(), poll({ method: 'POST', body: '1' })]);
  // The two requests race: a poll that comes after the close packet finds no session.
  assert.match(last, /^6$|Session ID unknown/);
  assert.ok(Date.now() - start < 5_000, `it took ${Date.now() - start} ms`);
});

test('a connection whose socket has left is closed, unless the client connects again', async () => {
  const leaves = await rawWebsocket(gateway, 'usr_leaves');
  const returns = await rawWebsocket(gateway, 'usr_returns');
  const start = Date.now();
  for (const socket of [leaves, returns]) socket.write(frame('41'));
  await gateway.metricIs('sockets', 0);
  returns.write(frame(`40${JSON.stringify({ token: token('usr_returns') })}`));
  await gateway.metricIs('sockets', 1);
  await leaves.ended;
  assert.ok(Date.now() - start > 9_000, 'it had time to come back');
  // The other connection's time is over as well.
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const { _id } = publisher.update('usr_returns');
  await until('its update', () => returns.received.includes(_id));
  returns.destroy();
});
