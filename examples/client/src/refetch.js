// Fetches the application's state until that succeeds, one attempt at a time. Knows nothing of sockets.

import { pauseMs } from './backoff.js';

/** @typedef {import('./index.d.ts').Fetched} Fetched */

export class Refetch {
  /** How many attempts have failed in a row. */
  failures = 0;
  /** @type {string | null} Why the latest one failed. */
  reason = null;
  /** Whether an attempt may begin: not while the connection is lost, since the next one may need another fetch. */
  #isAllowed = false;
  #isWanted = false;
  /** @type {AbortController | null} Of the attempt under way. */
  #attempt = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #pause;

  /**
   * @param {object} options
   * @param {(request: { signal: AbortSignal }) => void | Fetched | Promise<void | Fetched>} options.fetchState
   * @param {number} options.timeoutMs of an attempt
   * @param {() => void} options.onBegin
   * @param {() => string | null} options.objection why the fetched state is of no use, or null
   * @param {(fetched: void | Fetched) => void} options.onFetched
   * @param {() => void} options.onFailed
   */
  constructor({ fetchState, timeoutMs, onBegin, objection, onFetched, onFailed }) {
    this.fetchState = fetchState;
    this.timeoutMs = timeoutMs;
    this.onBegin = onBegin;
    this.objection = objection;
    this.onFetched = onFetched;
    this.onFailed = onFailed;
  }

  /** Begins at once, from the beginning: an attempt under way is aborted. */
  begin() {
    this.stop();
    this.#isWanted = true;
    this.#run();
  }

  /** Allows attempts, and begins the one that waited for that. */
  allow() {
    this.#isAllowed = true;
    if (this.#pause === undefined) this.#run();
  }

  /** Lets an attempt under way end, and begins no other. */
  forbid() {
    this.#isAllowed = false;
  }

  /** Aborts an attempt under way, and forgets the failures. */
  stop() {
    this.#attempt?.abort(new Error('no longer needed'));
    this.#finish();
  }

  async #run() {
    if (!this.#isWanted || !this.#isAllowed || this.#attempt) return;
    const attempt = (this.#attempt = new AbortController());
    this.onBegin();
    const timer = setTimeout(() => attempt.abort(new Error(`no answer within ${this.timeoutMs} ms`)), this.timeoutMs);
    const { signal } = attempt;
    const aborted = new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    try {
      const fetched = await Promise.race([aborted, this.#fetch(signal)]);
      if (this.#attempt !== attempt) return;
      const objection = this.objection();
      if (objection !== null) throw new Error(objection);
      this.#finish();
      this.onFetched(/** @type {void | Fetched} */ (fetched));
    } catch (error) {
      if (this.#attempt === attempt) this.#fail(error);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Asks the application in a moment: another beginning may come first.
   *
   * @param {AbortSignal} signal
   */
  async #fetch(signal) {
    await null;
    return signal.aborted ? undefined : this.fetchState({ signal });
  }

  #finish() {
    clearTimeout(this.#pause);
    this.#pause = undefined;
    this.#attempt = null;
    this.#isWanted = false;
    this.failures = 0;
    this.reason = null;
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#attempt = null;
    this.failures += 1;
    this.reason = messageOf(error);
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#run();
    }, pauseMs(this.failures));
    this.onFailed();
  }
}

/** @param {unknown} error */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
