// Many clients that come and go, on raw connections, and what they must not
// leave behind.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import { HANDSHAKE, frame, pollingSession, rawConnection, rawWebsocket, token, until } from './harness.mjs';

/** Enough to keep both sides busy, and far below what the kernel's queue of new connections holds. */
const PARALLEL = 100;
const USERS = 300;

const goodbyes = [
  // Leaves the namespace, then closes the websocket.
  async (gateway, userId) => {
    const socket = await rawWebsocket(gateway, userId);
    socket.write(Buffer.concat([frame('41'), frame('', { opcode: 8 })]));
    await socket.ended;
  },
  // Closes the connection without a DISCONNECT (FIN).
  async (gateway, userId) => {
    const socket = await rawWebsocket(gateway, userId);
    socket.end();
    await socket.ended;
  },
  // Resets the connection (RST).
  async (gateway, userId) => {
    const socket = await rawWebsocket(gateway, userId);
    socket.resetAndDestroy();
  },
  // Resets the connection while it connects.
  async (gateway, userId) => {
    const socket = await rawConnection(gateway);
    socket.write(HANDSHAKE);
    await until('the open packet', () => socket.received.includes('0{"sid"'));
    socket.write(frame(`40${JSON.stringify({ token: token(userId) })}`));
    setTimeout(() => socket.resetAndDestroy(), Math.random() * 20);
    await socket.ended;
  },
  // Polls, and closes its session.
  async (gateway, userId) => {
    const { poll } = await pollingSession(gateway, userId);
    await poll('1');
  },
];

/** Polls once and never again: its session lasts until the heartbeat ends it. */
const abandon = pollingSession;

/** `count` clients connect and leave; with `abandoning`, one in 100 leaves a session behind. */
export async function comeAndGo(gateway, count, { abandoning = false } = {}) {
  let started = 0;
  const client = async () => {
    while (started < count) {
      const i = (started += 1);
      const visit = abandoning && i % 100 === 0 ? abandon : goodbyes[i % goodbyes.length];
      await visit(gateway, `usr_crowd${Math.floor(Math.random() * USERS)}`);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, client));
}

/** Waits until no client has left anything behind, and returns the gateway's memory in MiB. */
export async function nothingIsLeft(gateway, broker) {
  // Sessions without a heartbeat end within 45 s, idle connections within 30 s.
  const limit = 75_000;
  for (const name of ['sockets', 'users', 'subscriptions']) {
    await until(`${name} is 0`, async () => (await gateway.metric(name)) === 0, limit);
  }
  // Except the one that this request uses.
  await until('no connections', () => connectionsTo(gateway) <= 1, limit);
  await broker.queuesAre(0);
  assert.equal((await broker.ctl('list_consumers', '--no-table-headers', 'queue_name')).trim(), '');
  return rssOf(gateway.child.pid);
}

/** How many connections the gateway holds, including those that only the peer has closed. */
function connectionsTo(gateway) {
  const port = Number(new URL(gateway.url).port).toString(16).toUpperCase().padStart(4, '0');
  const [ESTABLISHED, CLOSE_WAIT] = ['01', '08'];
  const lines = readFileSync('/proc/net/tcp', 'utf8').split('\n').slice(1, -1);
  const rows = lines.map((line) => line.trim().split(/\s+/));
  return rows.filter(([, local, , state]) => local.endsWith(`:${port}`) && [ESTABLISHED, CLOSE_WAIT].includes(state)).length;
}

/** Resident memory of a process in MiB. */
export function rssOf(pid) {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;
}
