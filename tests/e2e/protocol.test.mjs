// The Engine.IO protocol (v4) and the Socket.IO protocol (v5), case by case as their specifications have them
// (socketio/engine.io-protocol, socketio/socket.io-protocol), against a gateway that asks for tokens.
//
// The protocols' own test suites expect a server that echoes. Their cases that are not here:
//
// | case of theirs                                            | why it is left out                                                |
// |-----------------------------------------------------------|-------------------------------------------------------------------|
// | Engine.IO, message: plain text and binary are echoed      | the gateway echoes nothing; that packets arrive and in which      |
// |   (3 over polling, 2 over websocket)                      |   order shows in their answers: "several packets in one payload"  |
// | Socket.IO, connect: to the main namespace without payload | needs a token: "a CONNECT without a token is refused"             |
// | Socket.IO, connect: to a custom namespace (2)             | there is "/" alone: "an unknown namespace is refused"             |
// | Socket.IO, connect: the payload comes back as "auth"      | the gateway sends no such event                                   |
// | Socket.IO, disconnect: from a custom namespace            | there is "/" alone                                                |
// | Socket.IO, message: plain text is echoed                  | events of clients are ignored: "an event that is not understood…" |
// | Socket.IO, message: binary attachments, with and without  | no event of the gateway has attachments, and none that it         |
// |   an acknowledgement (2)                                  |   understands; what becomes of them is in faults.test.mjs         |
// | both, HTTP: `maxPayload` is 1000000                       | it is the gateway's own                                           |

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';

import { Broker, Gateway, HANDSHAKE, Publisher, frame, rawConnection, token, until } from './harness.mjs';

const [PING_INTERVAL, PING_TIMEOUT] = [25_000, 20_000];
const POLLING = '/socket.io/?EIO=4&transport=polling';

let publisher;
let gateway;

before(async () => {
  const broker = await Broker.start();
  publisher = await Publisher.connect(broker);
  gateway = await Gateway.start(broker);
});

const connectPacket = (userId) => `40${JSON.stringify({ token: token(userId) })}`;

/** The frames that a server has written: each a string, or a Buffer if it is binary; and whether the server has closed. */
function framesOf(bytes) {
  const frames = [];
  for (let at = 0; at + 2 <= bytes.length;) {
    const [opcode, short] = [bytes[at] & 15, bytes[at + 1]];
    const [header, length] = short < 126 ? [2, short] : short === 126 ? [4, bytes.readUInt16BE(at + 2)] : [10, Number(bytes.readBigUInt64BE(at + 2))];
    const payload = bytes.subarray(at + header, at + header + length);
    if (payload.length < length) break;
    if (opcode === 1) frames.push(payload.toString());
    if (opcode === 2) frames.push(payload);
    at += header + length;
  }
  return frames;
}

/** A websocket by hand. */
class Websocket {
  static async open(query = 'EIO=4&transport=websocket') {
    const websocket = new Websocket();
    websocket.raw = await rawConnection(gateway);
    websocket.taken = 0;
    websocket.raw.write(HANDSHAKE.replace('EIO=4&transport=websocket', query));
    await until('the answer', () => websocket.raw.received.includes('\r\n\r\n'));
    websocket.status = Number(websocket.raw.received.slice(9, 12));
    return websocket;
  }

  /** A websocket that is signed in. */
  static async of(userId) {
    const websocket = await Websocket.open();
    await websocket.next();
    websocket.send(connectPacket(userId));
    await websocket.next((packet) => packet.startsWith('40'));
    return websocket;
  }

  send(text) {
    this.raw.write(frame(text));
  }

  /** The next packet, or the next one for which `is` holds; earlier ones are skipped. */
  async next(is = () => true, deadlineMs) {
    return until('a packet', () => {
      const body = this.raw.received.slice(this.raw.received.indexOf('\r\n\r\n') + 4);
      const frames = framesOf(Buffer.from(body, 'latin1'));
      while (this.taken < frames.length) {
        const packet = frames[this.taken++];
        if (is(packet)) return packet;
      }
      return null;
    }, deadlineMs);
  }

  get ended() {
    return this.raw.ended;
  }
}

async function openSession() {
  const { sid } = JSON.parse((await (await gateway.get(POLLING)).text()).slice(1));
  return sid;
}
const poll = (sid) => gateway.get(`${POLLING}&sid=${sid}`);
const post = (sid, body) => gateway.get(`${POLLING}&sid=${sid}`, { method: 'POST', body });

function assertHandshake(packet, upgrades) {
  assert.equal(packet[0], '0');
  const { sid, maxPayload, ...rest } = JSON.parse(packet.slice(1));
  assert.deepEqual([typeof sid, typeof maxPayload], ['string', 'number']);
  assert.deepEqual(rest, { upgrades, pingInterval: PING_INTERVAL, pingTimeout: PING_TIMEOUT });
}

describe('Engine.IO, handshake', () => {
  test('polling: a session is opened', async () => {
    const response = await gateway.get(POLLING);
    assert.equal(response.status, 200);
    assertHandshake(await response.text(), ['websocket']);
  });

  for (const query of ['transport=polling', 'EIO=abc&transport=polling', 'EIO=4', 'EIO=4&transport=abc']) {
    test(`polling: ${query} is refused`, async () => {
      assert.equal((await gateway.get(`/socket.io/?${query}`)).status, 400);
    });
  }

  for (const method of ['POST', 'PUT', 'DELETE']) {
    test(`polling: a handshake by ${method} is refused`, async () => {
      assert.equal((await gateway.get(POLLING, { method })).status, 400);
    });
  }

  test('websocket: a session is opened', async () => {
    const websocket = await Websocket.open();
    assertHandshake(await websocket.next(), []);
    websocket.raw.destroy();
  });

  for (const query of ['transport=websocket', 'EIO=abc&transport=websocket', 'EIO=4', 'EIO=4&transport=abc']) {
    test(`websocket: ${query} is refused`, async () => {
      const websocket = await Websocket.open(query);
      assert.equal(websocket.status, 400);
      websocket.raw.destroy();
    });
  }
});

describe('Engine.IO, messages', () => {
  test('polling: several packets in one payload are taken in their order, and answered in one', async () => {
    const sid = await openSession();
    const sent = await post(sid, '40{"token":"first"}\x1e40/a,\x1e40{"token":"second"}');
    assert.deepEqual([sent.status, await sent.text()], [200, 'ok']);
    const answers = [];
    while (answers.length < 3) answers.push(...(await (await poll(sid)).text()).split('\x1e'));
    assert.deepEqual(answers.filter((packet) => packet.startsWith('44{')), Array(2).fill('44{"message":"invalid token"}'));
    assert.ok(answers.includes('44/a,{"message":"Invalid namespace"}'));
  });

  test('polling: a malformed packet ends the session', async () => {
    const sid = await openSession();
    assert.equal((await post(sid, 'abc')).status, 400);
    assert.equal((await poll(sid)).status, 400);
  });

  test('polling: a second poll at the same time ends the session', async () => {
    const sid = await openSession();
    const first = poll(sid);
    await pause(200);
    assert.equal((await poll(sid)).status, 400);
    assert.deepEqual([(await first).status, await (await first).text()], [200, '1']);
    assert.equal((await poll(sid)).status, 400);
  });

  test('websocket: a malformed packet ends the session', async () => {
    const websocket = await Websocket.open();
    websocket.send('abc');
    await websocket.ended;
  });
});

test('Engine.IO, heartbeat: pings come at their interval, and a session that does not answer is ended', { timeout: 180_000 }, async () => {
  const answersPolling = async () => {
    const sid = await openSession();
    await post(sid, connectPacket('usr_polling_heartbeat'));
    for (let pings = 0; pings < 2;) {
      if (!(await (await poll(sid)).text()).split('\x1e').includes('2')) continue;
      pings += 1;
      assert.equal((await post(sid, '3')).status, 200);
    }
  };
  const answersWebsocket = async () => {
    const websocket = await Websocket.of('usr_websocket_heartbeat');
    for (let pings = 0; pings < 2; pings += 1) {
      websocket.send('3');
      await websocket.next((packet) => packet === '2', 2 * PING_INTERVAL);
    }
    websocket.raw.destroy();
  };
  const silentPolling = async () => {
    const sid = await openSession();
    await post(sid, connectPacket('usr_polling_silent'));
    await pause(PING_INTERVAL + PING_TIMEOUT + 2_000);
    assert.equal((await poll(sid)).status, 400);
  };
  const silentWebsocket = async () => {
    const websocket = await Websocket.of('usr_websocket_silent');
    await websocket.ended;
  };
  await Promise.all([answersPolling(), answersWebsocket(), silentPolling(), silentWebsocket()]);
});

describe('Engine.IO, close', () => {
  test('polling: a close packet ends the session, and the poll that waits is answered', async () => {
    const sid = await openSession();
    const waiting = poll(sid);
    await pause(100);
    assert.equal((await post(sid, '1')).status, 200);
    assert.deepEqual([(await waiting).status, await (await waiting).text()], [200, '6']);
    assert.equal((await poll(sid)).status, 400);
  });

  test('websocket: a close packet ends the connection', async () => {
    const websocket = await Websocket.open();
    await websocket.next();
    websocket.send('1');
    await websocket.ended;
  });
});

describe('Engine.IO, upgrade', () => {
  const upgrading = (sid) => Websocket.open(`EIO=4&transport=websocket&sid=${sid}`);

  test('a session goes on over the websocket, after a poll that a noop ends', async () => {
    const sid = await openSession();
    const websocket = await upgrading(sid);
    websocket.send('2probe');
    assert.equal(await websocket.next(), '3probe');
    const response = await poll(sid);
    assert.deepEqual([response.status, await response.text()], [200, '6']);
    websocket.send('5');
    websocket.send(connectPacket('usr_upgrade'));
    assert.match(await websocket.next(), /^40\{"sid":/);
    websocket.raw.destroy();
  });

  test('polls of a session that was upgraded are refused, and it goes on', async () => {
    const sid = await openSession();
    const websocket = await upgrading(sid);
    for (const packet of ['2probe', '5', connectPacket('usr_upgraded_poll')]) websocket.send(packet);
    await websocket.next((packet) => packet.startsWith('40'));
    assert.equal((await poll(sid)).status, 400);
    const update = publisher.update('usr_upgraded_poll');
    await websocket.next((packet) => packet.includes(update._id));
    websocket.raw.destroy();
  });

  test('so are further websockets', async () => {
    const sid = await openSession();
    const websocket = await upgrading(sid);
    for (const packet of ['2probe', '5', connectPacket('usr_upgraded_websocket')]) websocket.send(packet);
    await websocket.next((packet) => packet.startsWith('40'));
    const second = await upgrading(sid);
    await second.ended;
    const update = publisher.update('usr_upgraded_websocket');
    await websocket.next((packet) => packet.includes(update._id));
    websocket.raw.destroy();
  });
});

describe('Socket.IO, connect', () => {
  test('with a token, to the main namespace', async () => {
    const websocket = await Websocket.open();
    await websocket.next();
    websocket.send(connectPacket('usr_connect'));
    const reply = JSON.parse((await websocket.next((packet) => packet.startsWith('40'))).slice(2));
    assert.deepEqual(Object.keys(reply), ['sid', 'pid']);
    assert.equal(typeof reply.sid, 'string');
    websocket.raw.destroy();
  });

  test('without recovery, the reply has the sid alone', async () => {
    const websocket = await Websocket.open();
    await websocket.next();
    websocket.send(`40${JSON.stringify({ token: token('usr_plain'), recovery: false })}`);
    const reply = JSON.parse((await websocket.next((packet) => packet.startsWith('40'))).slice(2));
    assert.deepEqual(Object.keys(reply), ['sid']);
    websocket.raw.destroy();
  });

  for (const [what, packet, answer] of [
    ['without a token', '40', '44{"message":"token missing"}'],
    ['with a bad token', '40{"token":"fourth"}', '44{"message":"invalid token"}'],
    ['to an unknown namespace', '40/random,', '44/random,{"message":"Invalid namespace"}'],
  ]) {
    test(`${what}, it is refused`, async () => {
      const websocket = await Websocket.open();
      await websocket.next();
      websocket.send(packet);
      assert.equal(await websocket.next((packet) => packet.startsWith('4')), answer);
      websocket.raw.destroy();
    });
  }

  test('something else in its place ends the connection', async () => {
    const websocket = await Websocket.open();
    websocket.send('4abc');
    await websocket.ended;
  });

  test('without one, the connection ends', async () => {
    const websocket = await Websocket.open();
    const start = Date.now();
    await websocket.ended;
    assert.ok(Date.now() - start < 19_000, 'before its first ping would be missed');
  });
});

describe('Socket.IO, disconnect and messages', () => {
  test('after a disconnect nothing more comes, and the connection is there for another connect', async () => {
    const [websocket, witness] = [await Websocket.of('usr_disconnect'), await Websocket.of('usr_disconnect')];
    websocket.send('41');
    websocket.send('40{"token":"third"}');
    await websocket.next((packet) => packet.startsWith('44'));
    const missed = publisher.update('usr_disconnect');
    await witness.next((packet) => packet.includes(missed._id));
    assert.ok(!websocket.raw.received.includes(missed._id));
    websocket.send(connectPacket('usr_disconnect'));
    await websocket.next((packet) => packet.startsWith('40'));
    const update = publisher.update('usr_disconnect');
    await websocket.next((packet) => packet.includes(update._id));
    assert.ok(!websocket.raw.received.includes(missed._id));
    for (const { raw } of [websocket, witness]) raw.destroy();
  });

  test('an event that is not understood is ignored, and one that is has its acknowledgement', async () => {
    const websocket = await Websocket.of('usr_ack');
    websocket.send('421["unknown",1,"2",{"3":[true]}]');
    websocket.send(`42456["auth:refresh","x"]`);
    const answer = await websocket.next((packet) => packet.startsWith('43'));
    assert.equal(answer, '43456[{"ok":false,"error":"invalid token"}]');
    websocket.raw.destroy();
  });

  for (const packet of ['4abc', '42{}', '42abc["auth:refresh",1]']) {
    test(`${packet} ends the connection`, async () => {
      const websocket = await Websocket.of('usr_malformed');
      websocket.send(packet);
      await websocket.ended;
    });
  }
});
