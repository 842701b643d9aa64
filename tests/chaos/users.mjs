// Who is published to: users with one socket or several, with dots in their ids, and quiet
// ones who get nothing for long.

/** One of so many users is quiet. */
const QUIET = 8;

/** One of so many updates goes to a quiet user. */
const QUIET_TURN = 400;

/**
 * The users of `clients` clients: `of[n]` is the user of client `n`, `all` are all of them, and
 * `next()` says to whom the next update goes.
 */
export function population(clients, random) {
  const of = [];
  const all = [];
  while (of.length < clients) {
    const n = all.length;
    const userId = n % 5 === 0 ? `usr.with.dots.${n}` : `usr_${n}`;
    all.push(userId);
    // Every other user has one socket, some have up to five.
    const sockets = n % 2 ? 1 : random.whole(1, n % 10 === 0 ? 5 : 2);
    for (let i = 0; i < sockets && of.length < clients; i += 1) of.push(userId);
  }
  const quiet = all.filter((_, n) => n % QUIET === 3);
  const busy = all.filter((_, n) => n % QUIET !== 3);
  const next = () => random.pick(quiet.length > 0 && random.whole(1, QUIET_TURN) === 1 ? quiet : busy);
  return { of, all, quiet, next };
}
