// Reads the updates of every generation of Chat3, in every envelope. Pure.

/** @typedef {import('./events.d.ts').AnyUpdate} AnyUpdate */

/** What the functions below look at, in whatever update it is. @typedef {Record<string, any>} Fields */

/** @type {typeof import('./index.d.ts').eventTypeOf} */
export function eventTypeOf(update) {
  const { eventType, sourceEventType, data } = /** @type {Fields} */ (update);
  return eventType ?? sourceEventType ?? data?.context?.eventType;
}

/** @type {typeof import('./index.d.ts').messageIn} */
export function messageIn(update) {
  if (!isAbout(update, 'message')) return null;
  const data = /** @type {any} */ (update.data);
  return data.message !== undefined ? data.message : data;
}

/** @type {typeof import('./index.d.ts').dialogIn} */
export function dialogIn(update) {
  if (!isAbout(update, 'dialog')) return null;
  const data = /** @type {any} */ (update.data);
  return data.dialog ? { ...data.dialog, typing: data.typing ?? undefined } : data;
}

/** @type {typeof import('./index.d.ts').dateOf} */
export function dateOf(time) {
  return new Date(/^[\d.]+$/.test(time) ? Number(time) : time);
}

/**
 * The user's counters, if the update changes nothing else; else null.
 *
 * @param {AnyUpdate} update
 * @returns {import('./subjects.d.ts').UserStats | null}
 */
export function statsOf(update) {
  const { updateType, data } = /** @type {Fields} */ (update ?? {});
  if (updateType !== 'update.user') return null;
  const stats = data?.user?.stats ?? data?.stats;
  const changed = data?.context?.updatedFields;
  const isCounters = Array.isArray(changed) && changed.every((field) => String(field).startsWith('user.stats.'));
  return typeof stats?.statsVersion === 'number' && isCounters ? stats : null;
}

/**
 * @param {AnyUpdate} update
 * @param {'message' | 'dialog'} kind
 */
function isAbout(update, kind) {
  const { updateType, data } = /** @type {Fields} */ (update);
  if (!data) return false;
  return updateType ? updateType === `update.${kind}` : eventTypeOf(update)?.startsWith(`${kind}.`) ?? false;
}
