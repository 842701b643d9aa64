// Decides which events are handed on: no update twice, and no counters after newer ones. Pure.

import { statsOf } from './updates.js';

/** How many updates are remembered. Chat3 publishes an update and its repetition within seconds. */
const REMEMBERED = 1000;

/** The remembered tenants. A token names one; without a tenant in it, updates of several may come. */
const TENANTS = 100;

/** How long a key or a tenant's id may be to be remembered, in characters. Chat3's have some tens; a body may have a million. */
const MAX_CHARS = 1000;

/** @typedef {import('./events.d.ts').AnyUpdate} AnyUpdate */
/** @typedef {import('./subjects.d.ts').UserStats} UserStats */
/** When counters were counted. @typedef {{ version: number, at: number }} Counted */

export class Sieve {
  /** @type {Set<string>} The keys of the latest updates, oldest first. */
  #seen = new Set();
  /** @type {Map<string | undefined, Counted>} The newest counters of each tenant. */
  #newest = new Map();
  /** Whether the latest update was dropped, and its specialised event is to be dropped with it. */
  #isDropping = false;

  /**
   * Returns whether an event is to be handed on. A specialised event comes right after its
   * `chat3:update`, and shares its fate.
   *
   * @param {string} event
   * @param {unknown} payload
   */
  accepts(event, payload) {
    if (event === 'chat3:update') {
      const update = /** @type {AnyUpdate} */ (payload);
      this.#isDropping = this.#isRepeated(update) || this.#isStale(update);
    }
    return !this.#isDropping;
  }

  /** For a new stretch of updates, which does not continue the earlier one. */
  restart() {
    this.#isDropping = false;
    this.#newest.clear();
  }

  /**
   * The counters of the fetched state: older ones are dropped from now on.
   *
   * @param {{ tenantId?: string, stats: UserStats }} fetched
   */
  startFrom({ tenantId, stats }) {
    this.#remember(tenantId, countedOf(stats));
  }

  /** @param {AnyUpdate} update */
  #isRepeated(update) {
    const key = keyOf(update);
    if (key === null) return false;
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    dropOldest(this.#seen, REMEMBERED);
    return false;
  }

  /** @param {AnyUpdate} update */
  #isStale(update) {
    const stats = statsOf(update);
    if (!stats) return false;
    const counted = countedOf(stats);
    const newest = this.#newest.get(update.tenantId) ?? this.#newest.get(undefined);
    if (newest && isOlder(counted, newest)) return true;
    this.#remember(update.tenantId, counted);
    return false;
  }

  /**
   * @param {string | undefined} tenantId
   * @param {Counted} counted
   */
  #remember(tenantId, counted) {
    if (String(tenantId).length > MAX_CHARS) return;
    this.#newest.delete(tenantId);
    this.#newest.set(tenantId, counted);
    dropOldest(this.#newest, TENANTS);
  }
}

/**
 * What tells an update from all others since 2026-05-31, by the fields of Chat3's own unique index.
 * Null for earlier generations, which may say something new under the same ids.
 *
 * @param {AnyUpdate} update
 */
export function keyOf(update) {
  const { tenantId, eventId, userId, updateType, entityId } = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (update ?? {}));
  if (typeof updateType !== 'string' || typeof eventId !== 'string') return null;
  const key = JSON.stringify([tenantId, eventId, userId, updateType, entityId]);
  return key.length > MAX_CHARS ? null : key;
}

/**
 * Chat3's rule for counters, which its workers may publish out of order: by `statsVersion`, and
 * where that is equal, by the latest of the times.
 *
 * @param {Counted} one
 * @param {Counted} other
 */
function isOlder(one, other) {
  return one.version === other.version ? one.at < other.at : one.version < other.version;
}

/**
 * @param {UserStats} stats
 * @returns {Counted}
 */
function countedOf(stats) {
  const at = Math.max(Number(stats.lastUpdatedAt) || 0, Number(stats['packs.messages.lastUpdatedAt']) || 0);
  return { version: stats.statsVersion ?? 0, at };
}

/**
 * @param {Set<unknown> | Map<unknown, unknown>} collection
 * @param {number} limit
 */
function dropOldest(collection, limit) {
  if (collection.size > limit) collection.delete(collection.keys().next().value);
}
