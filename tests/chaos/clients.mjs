// The clients: real socket.io-clients, each behind a network of its own and with an account
// in the ledger, into which it enters all that it sees.

import { io as io46 } from 'socket.io-client-4.6';
import { io as io48 } from 'socket.io-client';

import { Network, token } from '../e2e/harness.mjs';

const VERSIONS = { 4.6: io46, 4.8: io48 };

/** Six of ten have websockets alone, two poll, and two begin with polling and upgrade. */
const TRANSPORTS = [
  ['websocket'], ['polling'], ['websocket'], ['polling', 'websocket'], ['websocket'],
  ['websocket'], ['polling'], ['websocket'], ['polling', 'websocket'], ['websocket'],
];

/** How long a torn connection stays open on the gateway's side. */
const TORN_MS = 20_000;

/** An address of loopback for each client: its instance, if it polls, is found by it. */
function address(n, turn) {
  return `127.${1 + (turn % 200)}.${1 + (n >> 8)}.${n & 255}`;
}

export class Client {
  static async start(n, { userId, url, ledger, causeOf }) {
    const client = new Client();
    const version = n % 2 ? '4.6' : '4.8';
    const transports = TRANSPORTS[(n >> 1) % TRANSPORTS.length];
    Object.assign(client, { n, userId, turn: 0, cause: null, errors: {} });
    client.name = `client ${n} (${version}, ${transports.join('+')})`;
    client.account = ledger.client(client.name, userId);
    client.network = await Network.to({ url }, { from: address(n, 0) });
    client.socket = VERSIONS[version](client.network.url, {
      auth: (give) => give({ token: token(userId, {}, { expiresIn: '1d' }) }),
      transports, forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 1_000, timeout: 5_000,
    });
    client.socket.on('connect', () => client.account.connect({
      recovered: Boolean(client.socket.recovered), asked: client.hadSession, cause: client.cause ?? undefined,
    }));
    client.socket.on('connect', () => {
      client.hadSession = true;
      client.cause = null;
    });
    client.socket.on('disconnect', () => {
      client.account.disconnect();
      client.cause ??= causeOf();
    });
    client.socket.on('connect_error', ({ message }) => (client.errors[message] = (client.errors[message] ?? 0) + 1));
    client.socket.on('chat3:update', (update) => client.account.receive('update', update.userId, update.n));
    client.socket.on('message:new', (message) => client.account.receive('message', message.userId, message.n));
    return client;
  }

  reset(cause) {
    this.cause ??= cause;
    this.network.reset();
  }

  async offline(cause, ms) {
    this.cause ??= cause;
    this.network.cut();
    await pause(ms);
    this.network.restore();
  }

  /** Leaves as a page does, and comes back. */
  async leave(cause, ms) {
    this.cause ??= cause;
    this.socket.disconnect();
    await pause(ms);
    this.socket.connect();
  }

  /** Comes from another address from now on. */
  move(cause) {
    this.turn += 1;
    this.network.from = address(this.n, this.turn);
    this.reset(cause);
  }

  /** Its end of the connections is closed, and the gateway does not hear of it for a while. */
  tear(cause) {
    this.cause ??= cause;
    for (const link of [...this.network.links]) {
      const [near, far] = link;
      near.unpipe();
      far.unpipe();
      near.removeAllListeners('close');
      far.resume();
      near.destroy();
      const end = setTimeout(() => far.destroy(), TORN_MS);
      far.once('close', () => clearTimeout(end));
    }
  }

  close() {
    this.socket.disconnect();
    this.network.cut();
    this.network.server.close();
  }
}

export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
