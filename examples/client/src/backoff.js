// How long to wait before another attempt. Pure.

const FIRST_MS = 1000;
const LONGEST_MS = 30_000;

/**
 * The pause after so many `failures` in a row, in ms: 1, 2, 4 … 30 s, each up to twice as long by
 * chance, so that clients that failed together do not return together.
 *
 * @param {number} failures from 1
 * @param {() => number} random
 */
export function pauseMs(failures, random = Math.random) {
  return Math.min(FIRST_MS * 2 ** (failures - 1), LONGEST_MS) * (1 + random());
}
