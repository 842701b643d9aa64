// Decides which events are handed on: no update twice, and no counters after newer ones. Pure.

import { statsOf } from './updates.js';

/** How many updates are remembered. Chat3 publishes an update and its repetition within seconds. */
const REMEMBERED = 1000;

/** The remembered tenants. A token names one; without a tenant in it, updates of several may come. */
const TENANTS = 100;

/** @typedef {import('./events.d.ts').AnyUpdate} AnyUpdate */
/** @typedef {import('./subjects.d.ts').UserStats} UserStats */

export class Sieve {
  /** @type {Set<string>} The keys of the latest updates, oldest first. */
  #seen = new Set();
  /** @type {Map<string | undefined, UserStats>} The newest counters of each tenant. */
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
    this.#remember(tenantId, stats);
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
    const newest = this.#newest.get(update.tenantId) ?? this.#newest.get(undefined);
    if (newest && isOlder(stats, newest)) return true;
    this.#remember(update.tenantId, stats);
    return false;
  }

  /**
   * @param {string | undefined} tenantId
   * @param {UserStats} stats
   */
  #remember(tenantId, stats) {
    this.#newest.delete(tenantId);
    this.#newest.set(tenantId, stats);
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
  return JSON.stringify([tenantId, eventId, userId, updateType, entityId]);
}

/**
 * Chat3's rule for counters, which its workers may publish out of order: by `statsVersion`, and
 * where that is equal, by the latest of the times.
 *
 * @param {UserStats} one
 * @param {UserStats} other
 */
export function isOlder(one, other) {
  const [version, otherVersion] = [one.statsVersion ?? 0, other.statsVersion ?? 0];
  return version === otherVersion ? countedAt(one) < countedAt(other) : version < otherVersion;
}

/** @param {UserStats} stats */
function countedAt(stats) {
  return Math.max(Number(stats.lastUpdatedAt) || 0, Number(stats['packs.messages.lastUpdatedAt']) || 0);
}

/**
 * @param {Set<unknown> | Map<unknown, unknown>} collection
 * @param {number} limit
 */
function dropOldest(collection, limit) {
  if (collection.size > limit) collection.delete(collection.keys().next().value);
}
