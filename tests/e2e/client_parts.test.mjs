// The pure parts of the client package: order, repetitions, counters, bounds, pauses, and the repeated fetch.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';

import FakeTimers from '@sinonjs/fake-timers';

import { pauseMs } from '../../examples/client/src/backoff.js';
import { Feed, MAX_HELD, MAX_HELD_CHARS } from '../../examples/client/src/feed.js';
import { Refetch } from '../../examples/client/src/refetch.js';
import { SignIn } from '../../examples/client/src/sign_in.js';
import { keyOf, Sieve } from '../../examples/client/src/sieve.js';
import { dateOf, dialogIn, eventTypeOf, messageIn, statsOf } from '../../examples/client/src/updates.js';
import { generations } from './harness.mjs';

/** Every recorded update in every envelope, by name. */
const recorded = generations().flatMap(({ since, updates }) => updates.flatMap(({ name, body, original, sections, emits }) => [
  { name: `${since} ${name}, auto`, envelope: 'auto', update: body, emits },
  { name: `${since} ${name}, original`, envelope: 'original', update: original ?? body, emits },
  { name: `${since} ${name}, sections`, envelope: 'sections', update: sections.body, emits: sections.emits },
]));
const today = (name) => structuredClone(generations().at(-1).updates.find((update) => update.name === name).body);

// ---- Reading updates ----------------------------------------------------------

test('each update is read as what its specialised event is about, in every envelope and generation', () => {
  for (const { name, envelope, update, emits } of recorded) {
    const isMessage = emits.some((event) => event.startsWith('message:'));
    const isDialog = emits.includes('dialog:update') || emits.includes('typing:update');
    // Counters are about a dialog, although nothing but `chat3:update` tells of them.
    const isCounter = envelope === 'sections' && update.eventType === 'dialog.counter.update';
    const [message, dialog] = [messageIn(update), dialogIn(update)];
    assert.equal(Boolean(message), isMessage, name);
    assert.equal(Boolean(dialog), isDialog || isCounter, name);
    if (message) assert.ok(message.senderId && (message._id || message.messageId), name);
    if (dialog) assert.ok(dialog._id || dialog.dialogId, name);
    assert.match(eventTypeOf(update), /^(message|dialog|user|pack)\./, name);
    if (eventTypeOf(update) === 'dialog.typing') assert.equal(dialog.typing.expiresInMs, 5000, name);
    assert.ok(dateOf(update.createdAt) > new Date('2025-10-01') && dateOf(update.createdAt) < new Date('2027-01-01'), name);
  }
});

// ---- The sieve ----------------------------------------------------------------

test('an update is told by its key, and has none before 2026-05-31', () => {
  const update = today('message.create/update.message');
  for (const field of ['tenantId', 'eventId', 'userId', 'updateType', 'entityId']) {
    assert.notEqual(keyOf({ ...update, [field]: 'another' }), keyOf(update), field);
  }
  assert.equal(keyOf({ ...update, createdAt: '1', data: {} }), keyOf(update));
  for (const { name, update } of recorded) assert.equal(keyOf(update) === null, !/^2026-(05|09)/.test(name), name);
  for (const odd of [null, {}, { updateType: 'x' }, { updateType: 1, eventId: 'e' }]) assert.equal(keyOf(odd), null);
});

test('a repetition is dropped with its specialised event, and what follows is not', () => {
  const sieve = new Sieve();
  const first = today('message.create/update.message');
  const second = { ...first, eventId: 'another' };
  const passed = [first, first, second].map((update) => ['chat3:update', 'message:new'].map((event) => sieve.accepts(event, update)));
  assert.deepEqual(passed, [[true, true], [false, false], [true, true]]);
});

test('the latest thousand updates are remembered and no more', () => {
  const sieve = new Sieve();
  const update = (number) => ({ ...today('message.create/update.message'), eventId: `evt_${number}` });
  const passes = (number) => sieve.accepts('chat3:update', update(number));
  for (let number = 0; number < 1001; number += 1) assert.ok(passes(number));
  assert.equal(passes(1), false);
  assert.equal(passes(1000), false);
  assert.equal(passes(0), true, 'it is too long ago');
});

const counters = (statsVersion, { eventId = `evt_${statsVersion}`, tenantId = 'tnt_velo', lastUpdatedAt = '1790773641625.5' } = {}) => {
  const update = today('message.create/update.user');
  Object.assign(update.data.user.stats, { statsVersion, lastUpdatedAt, 'packs.messages.lastUpdatedAt': 0 });
  return { ...update, eventId, tenantId };
};

test('counters that are older than what was seen are dropped', () => {
  const sieve = new Sieve();
  const passes = (update) => sieve.accepts('chat3:update', update);
  assert.deepEqual([counters(6), counters(8), counters(7), counters(9)].map(passes), [true, true, false, true]);
  assert.equal(passes(counters(9, { eventId: 'evt_9b' })), true, 'equal ones replace each other');
  assert.equal(passes(counters(9, { eventId: 'evt_9c', lastUpdatedAt: '1790773641625.4' })), false, 'the time decides');
  assert.equal(passes(counters(1, { tenantId: 'tnt_other' })), true, 'another tenant counts for itself');
  sieve.restart();
  assert.equal(passes(counters(2)), true, 'a new stretch, such as after a restored backup');
  sieve.startFrom({ stats: { statsVersion: 5 } });
  assert.deepEqual([counters(4), counters(5)].map(passes), [true, true], 'the tenant has counters of its own');
});

test('counters that are older than the fetched ones are dropped', () => {
  const sieve = new Sieve();
  sieve.startFrom({ stats: { statsVersion: 5 } });
  assert.deepEqual([4, 5, 6].map((version) => sieve.accepts('chat3:update', counters(version))), [false, true, true]);
});

test('what changes more than counters is never dropped for being old', () => {
  const sieve = new Sieve();
  const renamed = counters(3);
  renamed.data.context.updatedFields.push('user.meta');
  assert.deepEqual([counters(8), renamed].map((update) => sieve.accepts('chat3:update', update)), [true, true]);
  const withCounters = recorded.filter(({ update }) => statsOf(update)).map(({ name }) => name);
  assert.ok(withCounters.length >= 60, `${withCounters.length}`);
  assert.deepEqual(withCounters.filter((name) => !name.includes('/update.user')), []);
});

test('nothing that is as large as a publisher likes is remembered', () => {
  const long = 'x'.repeat(2000);
  assert.equal(keyOf({ ...today('message.create/update.message'), entityId: long }), null);
  const sieve = new Sieve();
  const large = (statsVersion) => counters(statsVersion, { tenantId: long });
  assert.deepEqual([large(8), large(7)].map((update) => sieve.accepts('chat3:update', update)), [true, true]);
});

// ---- The feed -----------------------------------------------------------------

/** A feed, and what it has handed on. */
function feedOf(onEvent = () => {}) {
  const passed = [];
  const feed = new Feed((event, payload) => {
    passed.push(payload);
    onEvent(payload, feed);
  });
  return { feed, passed };
}

test('what arrives while the feed is closed is handed on later, in order, before what is new', () => {
  const { feed, passed } = feedOf();
  feed.take('chat3:update', 1);
  feed.take('chat3:update', 2);
  assert.deepEqual(passed, []);
  feed.release();
  feed.take('chat3:update', 3);
  feed.hold();
  feed.take('chat3:update', 4);
  assert.deepEqual(passed, [1, 2, 3]);
  feed.release();
  assert.deepEqual(passed, [1, 2, 3, 4]);
});

test('a new stretch drops what was held of the old one', () => {
  const { feed, passed } = feedOf();
  feed.take('chat3:update', 1);
  feed.restart();
  feed.take('chat3:update', 2);
  feed.release();
  assert.deepEqual(passed, [2]);
});

test('a new stretch begins its counters anew', () => {
  const { feed, passed } = feedOf();
  feed.release();
  feed.take('chat3:update', counters(8));
  feed.restart();
  feed.take('chat3:update', counters(3));
  feed.startFrom({ stats: { statsVersion: 2 } });
  feed.release();
  assert.deepEqual(passed.map(({ data }) => data.user.stats.statsVersion), [8, 3]);
});

test('a handler may close the feed: the rest stays held, and what arrives meanwhile is behind it', () => {
  const { feed, passed } = feedOf((payload, feed) => payload === 2 && feed.hold());
  for (const payload of [1, 2, 3]) feed.take('chat3:update', payload);
  feed.release();
  assert.deepEqual(passed, [1, 2]);
  feed.take('chat3:update', 4);
  feed.release();
  assert.deepEqual(passed, [1, 2, 3, 4]);
});

test('a handler may begin a new stretch: the rest is dropped', () => {
  const { feed, passed } = feedOf((payload, feed) => payload === 2 && feed.restart());
  for (const payload of [1, 2, 3]) feed.take('chat3:update', payload);
  feed.release();
  feed.take('chat3:update', 4);
  feed.release();
  assert.deepEqual(passed, [1, 2, 4]);
});

test('beyond its bounds the feed holds nothing until a new stretch, by events and by size', () => {
  const large = 'x'.repeat(MAX_HELD_CHARS / 4);
  for (const [count, payload] of [[MAX_HELD, 1], [3, large]]) {
    const { feed, passed } = feedOf();
    for (let i = 0; i < count; i += 1) feed.take('chat3:update', payload);
    assert.equal(feed.overflowed, false);
    feed.take('chat3:update', payload);
    assert.equal(feed.overflowed, true);
    feed.take('chat3:update', 'later');
    feed.restart();
    assert.equal(feed.overflowed, false);
    for (let i = 0; i < count; i += 1) feed.take('chat3:update', payload);
    feed.release();
    assert.equal(feed.overflowed, false);
    assert.equal(passed.length, count);
    // What was handed on no longer counts.
    feed.hold();
    for (let i = 0; i < count; i += 1) feed.take('chat3:update', payload);
    assert.equal(feed.overflowed, false);
  }
});

// ---- Pauses -------------------------------------------------------------------

test('pauses double up to 30 s, each up to twice as long by chance', () => {
  const shortest = [1, 2, 3, 4, 5, 6, 7, 5000].map((failures) => pauseMs(failures, () => 0));
  assert.deepEqual(shortest, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  assert.equal(pauseMs(1, () => 0.5), 1500);
  const drawn = new Set(Array.from({ length: 20 }, () => pauseMs(1)));
  assert.ok(drawn.size > 10 && [...drawn].every((pause) => pause >= 1000 && pause < 2000));
});

// Not those of `node:test`: in Node 18, a clearTimeout of nothing, or of a timer that is over, ends another one.
let clock;
beforeEach(() => (clock = FakeTimers.install({ toFake: ['setTimeout', 'clearTimeout', 'Date'] })));
afterEach(() => clock.uninstall());

/** Lets what was resolved go on. */
const settle = async () => {
  for (let i = 0; i < 10; i += 1) await Promise.resolve();
};

// ---- The repeated fetch ---------------------------------------------------------

/** A refetch whose attempts a test answers. */
function refetchOf({ objections = [] } = {}) {
  const made = { attempts: [], fetched: [], failed: 0 };
  made.refetch = new Refetch({
    fetchState: ({ signal }) => new Promise((resolve, reject) => made.attempts.push({ signal, resolve, reject })),
    timeoutMs: 5000,
    onBegin: () => {},
    objection: () => objections.shift() ?? null,
    onFetched: (fetched) => made.fetched.push(fetched),
    onFailed: () => (made.failed += 1),
  });
  return made;
}

test('a fetch that fails is repeated after a pause that grows, until one succeeds', async () => {
  const made = refetchOf();
  const { refetch, attempts, fetched } = made;
  refetch.allow();
  refetch.begin();
  await settle();
  for (const [failures, pause] of [[1, 1000], [2, 2000], [3, 4000]]) {
    attempts.at(-1).reject(new Error('503'));
    await settle();
    assert.deepEqual([refetch.failures, refetch.reason, made.failed], [failures, '503', failures]);
    clock.tick(pause - 1);
    await settle();
    assert.equal(attempts.length, failures);
    clock.tick(pause + 1);
    await settle();
    assert.equal(attempts.length, failures + 1);
  }
  attempts.at(-1).resolve('state');
  await settle();
  assert.deepEqual([fetched, refetch.failures, refetch.reason], [['state'], 0, null]);
  assert.equal(attempts.at(-1).signal.aborted, false);
  clock.tick(100_000);
  await settle();
  assert.equal(attempts.length, 4);
});

test('a fetch that does not answer is aborted and repeated, and its late answer is ignored', async () => {
  const { refetch, attempts, fetched } = refetchOf();
  refetch.allow();
  refetch.begin();
  await settle();
  clock.tick(5000);
  await settle();
  assert.equal(attempts[0].signal.aborted, true);
  assert.equal(refetch.reason, 'no answer within 5000 ms');
  attempts[0].resolve('late');
  clock.tick(2000);
  await settle();
  attempts[1].resolve('state');
  await settle();
  assert.deepEqual(fetched, ['state']);
});

test('another beginning aborts the fetch under way', async () => {
  const { refetch, attempts, fetched } = refetchOf();
  refetch.allow();
  refetch.begin();
  await settle();
  refetch.begin();
  await settle();
  assert.deepEqual(attempts.map(({ signal }) => signal.aborted), [true, false]);
  attempts[0].resolve('old');
  attempts[1].resolve('new');
  await settle();
  assert.deepEqual(fetched, ['new']);
});

test('a state that arrives just when another fetch begins is not taken for the new one', async () => {
  for (let moments = 0; moments < 10; moments += 1) {
    const { refetch, attempts, fetched } = refetchOf();
    refetch.allow();
    refetch.begin();
    await settle();
    attempts[0].resolve('old');
    for (let i = 0; i < moments; i += 1) await Promise.resolve();
    const before = [...fetched];
    refetch.begin();
    await settle();
    assert.deepEqual(fetched, before, `after ${moments} moments`);
  }
});

test('two beginnings at once are one fetch', async () => {
  const { refetch, attempts } = refetchOf();
  refetch.allow();
  refetch.begin();
  refetch.begin();
  await settle();
  assert.deepEqual(attempts.map(({ signal }) => signal.aborted), [false]);
});

test('no fetch begins while the connection is lost; one under way may end, one that waits begins afterwards', async () => {
  const { refetch, attempts, fetched } = refetchOf();
  refetch.begin();
  await settle();
  assert.equal(attempts.length, 0);
  refetch.allow();
  await settle();
  refetch.forbid();
  attempts[0].reject(new Error('offline'));
  await settle();
  clock.tick(60_000);
  await settle();
  assert.equal(attempts.length, 1);
  refetch.allow();
  await settle();
  refetch.forbid();
  attempts[1].resolve('state');
  await settle();
  assert.deepEqual(fetched, ['state']);
});

test('a state to which there is an objection is fetched again, after a pause', async () => {
  const { refetch, attempts, fetched } = refetchOf({ objections: ['too much'] });
  refetch.allow();
  refetch.begin();
  await settle();
  attempts[0].resolve('useless');
  await settle();
  assert.deepEqual([fetched, refetch.reason, attempts.length], [[], 'too much', 1]);
  clock.tick(2000);
  await settle();
  attempts[1].resolve('state');
  await settle();
  assert.deepEqual(fetched, ['state']);
});

test('a stopped fetch is aborted and not repeated, whether it was under way or waited', async () => {
  const { refetch, attempts, fetched } = refetchOf();
  refetch.allow();
  refetch.begin();
  await settle();
  refetch.stop();
  attempts[0].resolve('state');
  refetch.begin();
  await settle();
  attempts[1].reject(new Error('503'));
  await settle();
  refetch.stop();
  clock.tick(60_000);
  await settle();
  assert.deepEqual([attempts.length, fetched], [2, []]);
  assert.equal(attempts[0].signal.aborted, true);
});

// ---- Tokens -------------------------------------------------------------------

/** A sign-in with a socket that records what is done to it; `tokens` are given one by one. */
function signInOf(tokens) {
  const made = { given: [], asked: [], problems: [], signedOut: [], connects: 0, closes: 0, refreshes: [] };
  made.signIn = new SignIn({
    getToken: async (request) => {
      made.asked.push(request.fresh);
      const token = tokens.shift();
      if (token instanceof Error) throw token;
      return token;
    },
    onProblem: (reason) => made.problems.push(reason),
    onSignedOut: (reason) => made.signedOut.push(reason),
  });
  made.socket = {
    io: { engine: { close: () => (made.closes += 1) } },
    connect: () => (made.connects += 1),
    timeout: () => ({ emitWithAck: (event, token) => new Promise((resolve, reject) => made.refreshes.push({ event, token, resolve, reject })) }),
  };
  made.give = (auth) => made.given.push(auth.token);
  return made;
}

test('refused tokens are replaced five times, after growing pauses, and then the user is signed out', async () => {
  const made = signInOf([]);
  for (const [refusals, pause] of [1000, 2000, 4000, 8000, 16_000].entries()) {
    made.signIn.refused(made.socket, 'token expired');
    clock.tick(pause - 1);
    assert.equal(made.connects, refusals);
    clock.tick(pause + 1);
    assert.equal(made.connects, refusals + 1);
  }
  made.signIn.refused(made.socket, 'token expired');
  clock.tick(600_000);
  assert.deepEqual([made.connects, made.problems.length, made.signedOut], [5, 5, ['token expired']]);
});

test('a revoked token is replaced once; too many connections never sign out', () => {
  const revoked = signInOf([]);
  for (const signedOut of [[], ['token revoked']]) {
    revoked.signIn.refused(revoked.socket, 'token revoked');
    clock.tick(600_000);
    assert.deepEqual([revoked.connects, revoked.signedOut], [1, signedOut]);
  }
  const crowded = signInOf([]);
  for (let i = 0; i < 20; i += 1) {
    crowded.signIn.refused(crowded.socket, 'too many connections of this user');
    clock.tick(60_000);
  }
  assert.deepEqual([crowded.connects, crowded.signedOut], [20, []]);
});

test('a refusal that nobody has foreseen is like any other', () => {
  for (const reason of ['constructor', '__proto__', '']) {
    const made = signInOf([]);
    for (let i = 0; i < 10; i += 1) {
      made.signIn.refused(made.socket, reason);
      clock.tick(60_000);
    }
    assert.deepEqual([made.connects, made.signedOut[0]], [5, reason]);
  }
});

test('a token that is not to be had ends the attempt after a pause that grows, and the next token is given', async () => {
  const made = signInOf([new Error('backend away'), new Error('backend away'), 'token']);
  const { signIn, socket, give } = made;
  for (const [failures, pause] of [1000, 2000].entries()) {
    signIn.authenticate(socket, give);
    await settle();
    clock.tick(pause - 1);
    assert.equal(made.closes, failures);
    clock.tick(pause + 1);
    assert.equal(made.closes, failures + 1);
    signIn.lost();
  }
  signIn.authenticate(socket, give);
  await settle();
  assert.deepEqual([made.given, made.problems], [['token'], ['backend away', 'backend away']]);
});

test('a token that comes when its connection is gone is not given: another connection would send it', async () => {
  const made = signInOf(['late', 'second']);
  made.signIn.authenticate(made.socket, made.give);
  made.signIn.lost();
  made.signIn.authenticate(made.socket, made.give);
  await settle();
  assert.deepEqual(made.given, ['second']);
});

test('no token means that nobody is signed in', async () => {
  for (const none of [null, undefined]) {
    const made = signInOf([none]);
    made.signIn.authenticate(made.socket, made.give);
    await settle();
    assert.deepEqual([made.given, made.signedOut], [[], ['no token']]);
  }
});

test('an expiring token is replaced, after pauses until it succeeds, and a cached one is not asked for', async () => {
  const made = signInOf([new Error('backend away'), 'refused', 'unanswered', 'good', 'next']);
  const { signIn, socket, refreshes } = made;
  signIn.refresh(socket);
  const step = async (pause) => {
    await settle();
    clock.tick(2 * pause);
    await settle();
  };
  await step(1000);
  refreshes[0].resolve({ ok: false, error: 'token expired' });
  await step(2000);
  refreshes[1].reject(new Error('operation has timed out'));
  await step(4000);
  refreshes[2].resolve({ ok: true, expiresAt: null });
  await step(60_000);
  assert.deepEqual(refreshes.map(({ event, token }) => [event, token]), ['refused', 'unanswered', 'good'].map((token) => ['auth:refresh', token]));
  signIn.authenticate(socket, made.give);
  await settle();
  assert.deepEqual(made.asked, [true, true, true, true, false]);
});

test('a refresh ends with its connection', async () => {
  const made = signInOf([new Error('backend away'), 'never']);
  made.signIn.refresh(made.socket);
  await settle();
  made.signIn.lost();
  clock.tick(60_000);
  await settle();
  assert.deepEqual([made.asked.length, made.refreshes], [1, []]);
});
