// Events on their way to the application: in order, held while its state is incomplete. Pure.
//
// Invariant: what is held is everything that has come since the stretch began, or nothing of it.

import { Sieve } from './sieve.js';

/** What is held at most, in events and in characters of JSON. Beyond that the state is fetched anew. */
export const MAX_HELD = 2000;
export const MAX_HELD_CHARS = 8 * 1024 * 1024;

export class Feed {
  #sieve = new Sieve();
  /** @type {{ event: string, payload: unknown, chars: number }[]} */
  #held = [];
  #heldChars = 0;
  #isOpen = false;
  #overflowed = false;

  /** @param {(event: string, payload: unknown) => void} handOn must not throw */
  constructor(handOn) {
    this.handOn = handOn;
  }

  /** Whether something of the stretch is missing: it was more than may be held. */
  get overflowed() {
    return this.#overflowed;
  }

  /**
   * @param {string} event
   * @param {unknown} payload
   */
  take(event, payload) {
    if (this.#isOpen) return this.#pass(event, payload);
    if (this.#overflowed) return;
    const chars = JSON.stringify(payload)?.length ?? 0;
    this.#held.push({ event, payload, chars });
    this.#heldChars += chars;
    if (this.#held.length > MAX_HELD || this.#heldChars > MAX_HELD_CHARS) {
      this.#empty();
      this.#overflowed = true;
    }
  }

  /** From now on, events are held. */
  hold() {
    this.#isOpen = false;
  }

  /** From now on, the events of a new stretch are held; those of the old one are dropped. */
  restart() {
    this.hold();
    this.#empty();
    this.#overflowed = false;
    this.#sieve.restart();
  }

  /** @param {Parameters<Sieve['startFrom']>[0]} fetched counters of the state that was fetched */
  startFrom(fetched) {
    this.#sieve.startFrom(fetched);
  }

  /** Hands on what was held, and from now on everything at once. A handler may `hold` or `restart`. */
  release() {
    this.#isOpen = true;
    let next = 0;
    while (this.#isOpen && next < this.#held.length) {
      const { event, payload, chars } = this.#held[next++];
      this.#heldChars -= chars;
      this.#pass(event, payload);
    }
    this.#held.splice(0, next);
  }

  /**
   * @param {string} event
   * @param {unknown} payload
   */
  #pass(event, payload) {
    if (this.#sieve.accepts(event, payload)) this.handOn(event, payload);
  }

  #empty() {
    this.#held = [];
    this.#heldChars = 0;
  }
}
