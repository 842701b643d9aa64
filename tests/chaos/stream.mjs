// What the stream itself holds, read when a run has failed: says whether RabbitMQ or a
// gateway lost, doubled or swapped something.

import amqplib from 'amqplib';

import { STREAM } from './site.mjs';

/** The stream is read to its end when nothing has come for this long. */
const SILENCE_MS = 3_000;

/** A stream that nobody stops writing to has no end. */
const PATIENCE_MS = 120_000;

/** Counts what is wrong in the stream at `node`, as the ledger knows it. */
export async function lookInto(node, ledger) {
  const connection = await amqplib.connect(node.url);
  let isLost = false;
  connection.on('error', () => {});
  connection.on('close', () => (isLost = true));
  const channel = await connection.createChannel();
  await channel.prefetch(500);
  const seen = new Map();
  const sums = { updates: 0, missing: 0, doubled: 0, swapped: 0 };
  const examples = [];
  let latest = Date.now();
  await channel.consume(STREAM, (message) => {
    latest = Date.now();
    channel.ack(message);
    const update = parsed(message.content);
    if (!update?.n) return;
    sums.updates += 1;
    const user = seen.get(update.userId) ?? { numbers: new Set(), last: 0 };
    seen.set(update.userId, user);
    const isCertain = ledger.user(update.userId).entries[update.n]?.state === 'confirmed';
    const offset = message.properties.headers['x-stream-offset'];
    if (user.numbers.has(update.n)) note('doubled', update, offset);
    else if (update.n < user.last && isCertain) note('swapped', update, offset);
    user.numbers.add(update.n);
    user.last = Math.max(user.last, update.n);
  }, { arguments: { 'x-stream-offset': 'first' } });
  const begun = Date.now();
  while (Date.now() - latest < SILENCE_MS) {
    if (isLost || Date.now() - begun > PATIENCE_MS) throw new Error('the stream could not be read to its end');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await connection.close();
  for (const { userId, entries } of ledger.users.values()) {
    entries.forEach((entry, n) => {
      if (entry?.state === 'confirmed' && !seen.get(userId)?.numbers.has(n)) note('missing', { userId, n }, null);
    });
  }
  return { ...sums, examples };

  function note(what, { userId, n }, offset) {
    sums[what] += 1;
    if (examples.length < 20) examples.push(`${what}: update ${n} of ${userId}${offset === null ? '' : ` at ${offset}`}`);
  }
}

function parsed(content) {
  try {
    return JSON.parse(content.toString());
  } catch {
    // A marker of a gateway.
    return null;
  }
}
