// Gives the gateway its tokens: at each connect, when one expires, and after a refusal.

import { pauseMs } from './backoff.js';
import { messageOf } from './refetch.js';

/** How many refusals in a row are answered with another token. */
const MAX_REFUSALS = 5;

/** The refusals for which it is another number. */
const MAX_REFUSALS_FOR = new Map([
  // It concerns older tokens: one of a later second is accepted, or none.
  ['token revoked', 1],
  // It says nothing about the token.
  ['too many connections of this user', Infinity],
]);

const REFRESH_TIMEOUT_MS = 5000;

/** @typedef {import('socket.io-client').Socket} Socket */

export class SignIn {
  /** Whether the latest token was refused or expires, so that a cached one will not do. */
  #isFreshWanted = false;
  #refusals = 0;
  #tokenFailures = 0;
  /** Counts what makes an answer of `getToken` come too late. */
  #moment = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #pause;
  /** @type {(() => void) | null} What follows the pause. */
  #next = null;

  /**
   * @param {object} options
   * @param {import('./index.d.ts').Chat3SocketOptions['getToken']} options.getToken
   * @param {(reason: string) => void} options.onProblem another attempt follows
   * @param {(reason: string) => void} options.onSignedOut no other attempt follows
   */
  constructor({ getToken, onProblem, onSignedOut }) {
    this.getToken = getToken;
    this.onProblem = onProblem;
    this.onSignedOut = onSignedOut;
  }

  /**
   * The socket's `auth`. A token that comes late must not be sent: by then, the same `give` would
   * send it on another connection, as a second CONNECT.
   *
   * @param {Socket} socket
   * @param {(auth: { token: string }) => void} give
   */
  async authenticate(socket, give) {
    const moment = ++this.#moment;
    try {
      const token = await this.#token();
      if (moment !== this.#moment) return;
      if (token == null) return this.onSignedOut('no token');
      this.#tokenFailures = 0;
      give({ token });
    } catch (error) {
      if (moment !== this.#moment) return;
      this.#tokenFailures += 1;
      this.onProblem(messageOf(error));
      // The client then connects again, and asks again. The gateway would wait for 10 s.
      this.#wait(pauseMs(this.#tokenFailures), () => {
        if (moment === this.#moment) socket.io.engine.close();
      });
    }
  }

  connected() {
    this.#isFreshWanted = false;
    this.#refusals = 0;
  }

  /** The token in use will not do for the next connection. */
  revoked() {
    this.#isFreshWanted = true;
  }

  /** The connection has ended, in whatever state it was. */
  lost() {
    this.#moment += 1;
  }

  /**
   * The gateway refused the socket, or ended it: the client does not try again by itself.
   *
   * @param {Socket} socket
   * @param {string} reason
   */
  refused(socket, reason) {
    this.#moment += 1;
    this.#isFreshWanted = true;
    this.#refusals += 1;
    if (this.#refusals > (MAX_REFUSALS_FOR.get(reason) ?? MAX_REFUSALS)) return this.onSignedOut(reason);
    this.onProblem(reason);
    this.#wait(pauseMs(this.#refusals), () => socket.connect());
  }

  /**
   * Replaces the token on the same connection. If that fails until the connection ends, the next one
   * brings another.
   *
   * @param {Socket} socket
   */
  async refresh(socket) {
    const moment = ++this.#moment;
    const isOver = () => moment !== this.#moment;
    this.#isFreshWanted = true;
    for (let failures = 1; ; failures += 1) {
      try {
        const token = await this.#token();
        if (isOver()) return;
        if (token == null) return this.onSignedOut('no token');
        const answer = await socket.timeout(REFRESH_TIMEOUT_MS).emitWithAck('auth:refresh', token);
        if (isOver()) return;
        if (answer.ok) {
          this.#isFreshWanted = false;
          return;
        }
      } catch {
        // No token, or no answer.
      }
      await new Promise((resolve) => this.#wait(pauseMs(failures), () => resolve(null)));
      if (isOver()) return;
    }
  }

  /** Ends a pause between attempts. */
  hurry() {
    const next = this.#next;
    this.#clear();
    next?.();
  }

  /** Begins no other attempt, and forgets the refusals. */
  stop() {
    this.#moment += 1;
    this.#refusals = 0;
    this.#tokenFailures = 0;
    this.#clear();
  }

  /**
   * @param {number} ms
   * @param {() => void} next
   */
  #wait(ms, next) {
    this.#clear();
    this.#next = next;
    this.#pause = setTimeout(() => this.hurry(), ms);
  }

  #clear() {
    clearTimeout(this.#pause);
    this.#next = null;
  }

  /** A function that throws is one that rejects. */
  async #token() {
    return this.getToken({ fresh: this.#isFreshWanted });
  }
}
