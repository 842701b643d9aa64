// The judge of the chaos runs can fail: each kind of fault in what a client received is found,
// and what is allowed is not. Needs neither a broker nor a gateway.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { BEHIND_MS, Ledger, TOLD_WITHIN_MS } from '../chaos/ledger.mjs';
import { KINDS, plan } from '../chaos/plan.mjs';
import { Random } from '../chaos/random.mjs';
import { print } from '../chaos/report.mjs';
import { population } from '../chaos/users.mjs';

const USER = 'usr.a';

/** A ledger with one connected client, and short words for what happens. */
function scene() {
  let time = 1_000_000;
  const ledger = new Ledger({ now: () => (time += 1) });
  const client = ledger.client('client', USER);
  const it = {
    ledger,
    client,
    /** Publishes, and has it confirmed. */
    confirmed: () => {
      const n = ledger.publish(USER);
      ledger.confirm(USER, n);
      return n;
    },
    /** Publishes, and the confirmation gets lost. */
    uncertain: () => {
      const n = ledger.publish(USER);
      ledger.fail(USER, n);
      return n;
    },
    got: (...numbers) => numbers.forEach((n) => ['update', 'message'].forEach((kind) => client.receive(kind, USER, n))),
    begin: () => client.connect({ recovered: false, asked: false }),
    refused: () => {
      client.disconnect();
      client.connect({ recovered: false, asked: true, cause: 'kill' });
    },
    recovered: () => {
      client.disconnect();
      client.connect({ recovered: true, asked: true, cause: 'cut' });
    },
    after: (ms) => (time += ms),
    /** The counts that are not 0. */
    faults: () => {
      const verdict = ledger.verdict();
      return Object.fromEntries(['lost', 'doubled', 'outOfOrder', 'replayed', 'foreign', 'unfounded', 'away', 'told'].filter((name) => verdict[name]).map((name) => [name, verdict[name]]));
    },
  };
  it.begin();
  return it;
}

function confirmed(it, count) {
  return Array.from({ length: count }, it.confirmed);
}

test('all, once and in order: no fault', () => {
  const it = scene();
  it.got(...confirmed(it, 5));
  it.recovered();
  it.got(...confirmed(it, 5));
  assert.deepEqual(it.faults(), {});
  const { published, confirmed: count, delivered, recovered, recoveredAfter } = it.ledger.verdict();
  assert.deepEqual([published, count, delivered, recovered, recoveredAfter], [10, 10, 20, 1, { cut: 1 }]);
  assert.deepEqual(it.ledger.waiting, []);
});

test('an update is missing between two others, at the end, over a recovered connect, or whole', () => {
  const hole = scene();
  const [first, , third] = confirmed(hole, 3);
  hole.got(first, third);
  assert.deepEqual(hole.faults(), { lost: 2 });

  const end = scene();
  end.got(confirmed(end, 2)[0]);
  assert.deepEqual(end.faults(), { lost: 2 });
  assert.equal(end.ledger.waiting.length, 1);

  const gap = scene();
  gap.got(gap.confirmed());
  gap.confirmed();
  gap.recovered();
  gap.got(gap.confirmed());
  assert.deepEqual(gap.faults(), { lost: 2 });

  const whole = scene();
  whole.confirmed();
  assert.deepEqual(whole.faults(), { lost: 2 });
});

test('only one of the two events is missing', () => {
  for (const kind of ['update', 'message']) {
    const it = scene();
    const [first, second, third] = confirmed(it, 3);
    it.got(first);
    it.client.receive(kind, USER, second);
    it.got(third);
    assert.equal(it.faults().lost, 1, kind);
  }
});

test('an update comes twice: at once, later, over a recovered connect, or one of its events', () => {
  const once = scene();
  const [n] = confirmed(once, 1);
  once.got(n, n);
  assert.deepEqual(once.faults(), { doubled: 2 });

  const later = scene();
  const [first, second] = confirmed(later, 2);
  later.got(first, second, first);
  assert.deepEqual(later.faults(), { doubled: 2 });

  const resumed = scene();
  const [old, next] = confirmed(resumed, 2);
  resumed.got(old);
  resumed.recovered();
  resumed.got(old, next);
  assert.deepEqual(resumed.faults(), { doubled: 2 });

  const event = scene();
  event.got(event.confirmed());
  event.client.receive('message', USER, 1);
  assert.deepEqual(event.faults(), { doubled: 1 });
});

test('two updates, or the two events of one, are swapped', () => {
  const updates = scene();
  const [first, second, third] = confirmed(updates, 3);
  updates.got(first, third, second);
  assert.deepEqual(updates.faults(), { outOfOrder: 2 });

  const events = scene();
  events.confirmed();
  events.client.receive('message', USER, 1);
  events.client.receive('update', USER, 1);
  assert.deepEqual(events.faults(), { outOfOrder: 1 });

  const apart = scene();
  confirmed(apart, 2);
  for (const [kind, n] of [['update', 1], ['update', 2], ['message', 1], ['message', 2]]) apart.client.receive(kind, USER, n);
  assert.deepEqual(apart.faults(), { outOfOrder: 1 });
});

test('the second half of the last update before a refusal may come behind it, and no other', () => {
  for (const [half, expected] of [[1, 0], [0, 1]]) {
    const it = scene();
    const [a, b] = confirmed(it, 2);
    it.got(a);
    it.client.receive('update', USER, b);
    it.refused();
    it.recovered();
    it.client.receive('message', USER, [a, b][half]);
    it.after(BEHIND_MS);
    assert.equal(it.faults().outOfOrder ?? 0, expected);
  }
});

test('an update that is late twice is out of order and doubled', () => {
  const it = scene();
  const [first, second, third] = confirmed(it, 3);
  it.got(first, third, second, second);
  assert.deepEqual(it.faults(), { doubled: 2, outOfOrder: 2 });
});

test('after a refusal, the gap need not come, and what is published from then on must', () => {
  const it = scene();
  it.got(it.confirmed());
  confirmed(it, 3);
  it.refused();
  it.got(it.confirmed());
  assert.deepEqual(it.faults(), {});
  const { refused, refusedAfter } = it.ledger.verdict();
  assert.deepEqual([refused, refusedAfter], [1, { kill: 1 }]);

  const missing = scene();
  missing.got(missing.confirmed());
  missing.refused();
  const [, second] = confirmed(missing, 2);
  missing.got(second);
  assert.deepEqual(missing.faults(), { lost: 2 });
});

test('after a refusal, an instance that is behind may send the end of the gap, but all of it from its first on', () => {
  const it = scene();
  it.got(it.confirmed());
  const [, second, third] = confirmed(it, 3);
  it.refused();
  it.got(second, third, it.confirmed());
  assert.deepEqual(it.faults(), {});
  assert.equal(it.ledger.verdict().early, 2);

  const hole = scene();
  hole.got(hole.confirmed());
  const [early] = confirmed(hole, 3);
  hole.refused();
  hole.got(early, hole.confirmed());
  assert.deepEqual(hole.faults(), { lost: 4 });

  const swapped = scene();
  const [one, two] = confirmed(swapped, 2);
  swapped.refused();
  swapped.got(two, one);
  assert.deepEqual(swapped.faults(), { outOfOrder: 2 });
});

test('after a refusal, what was confirmed long before is a replay', () => {
  const it = scene();
  const [n] = confirmed(it, 1);
  it.after(BEHIND_MS + 1_000);
  it.refused();
  it.got(n);
  assert.deepEqual(it.faults(), { replayed: 1 });
});

test('a hole counts as told when the client is refused soon afterwards, and as lost otherwise', () => {
  const told = scene();
  const [first, , third] = confirmed(told, 3);
  told.got(first, third);
  told.refused();
  assert.deepEqual(told.faults(), { told: 2 });

  const late = scene();
  const [one, , three] = confirmed(late, 3);
  late.got(one, three);
  late.after(TOLD_WITHIN_MS);
  late.refused();
  assert.deepEqual(late.faults(), { lost: 2 });

  const vouched = scene();
  const [a, , c] = confirmed(vouched, 3);
  vouched.got(a, c);
  vouched.recovered();
  vouched.refused();
  assert.deepEqual(vouched.faults(), { lost: 2 }, 'a recovered connect says that nothing is missing');
});

test('an update whose confirmation got lost may be missing, come, or come at any place, and once', () => {
  const missing = scene();
  missing.uncertain();
  missing.got(missing.confirmed());
  assert.deepEqual(missing.faults(), {});

  const late = scene();
  const n = late.uncertain();
  late.got(late.confirmed(), n);
  assert.deepEqual(late.faults(), {});
  late.got(n);
  assert.deepEqual(late.faults(), { doubled: 2 });
});

test("somebody else's update, one that nobody published, and events without a session are found", () => {
  const it = scene();
  const n = it.confirmed();
  it.client.receive('update', 'usr.b', n);
  it.client.receive('update', USER, n + 1);
  assert.equal(it.faults().foreign, 2);

  const ledger = new Ledger();
  const early = ledger.client('early', USER);
  ledger.publish(USER);
  early.receive('update', USER, 1);
  early.connect({ recovered: true, asked: true });
  assert.deepEqual(ledger.verdict().unfounded, 2);
});

test('a client that does not come back is found', () => {
  const it = scene();
  it.client.disconnect();
  assert.deepEqual(it.faults(), { away: 1 });
  assert.equal(it.ledger.waiting.length, 1);
});

test('the verdict is good without faults only', () => {
  const quiet = console.log;
  const judge = (change) => {
    const it = scene();
    it.got(it.confirmed());
    it.recovered();
    const verdict = { ...it.ledger.verdict(), ...change.verdict };
    console.log = () => {};
    try {
      return print({ topology: 'stream', verdict, counts: {}, complaints: [], warnings: {}, waiting: [], errors: {}, failure: null, faults: [], repeat: '', ...change });
    } finally {
      console.log = quiet;
    }
  };
  assert.equal(judge({}), true);
  for (const name of ['lost', 'doubled', 'outOfOrder', 'replayed', 'foreign', 'unfounded', 'away']) {
    const change = { verdict: { [name]: 1 } };
    assert.equal(judge({ ...change, verdict: { ...scene().ledger.verdict(), confirmed: 1, delivered: 1, ...change.verdict } }), false, name);
  }
  assert.equal(judge({ verdict: { ...scene().ledger.verdict(), confirmed: 1, delivered: 1, recovered: 1, refused: 2 } }), false);
  assert.equal(judge({ complaints: ['panicked'] }), false);
  assert.equal(judge({ waiting: ['client 1'] }), false);
  assert.equal(judge({ failure: new Error('x') }), false);
});

const SIZE = { gateways: 3, nodes: 3, clients: 300 };

test('a seed gives the same plan each time, and another seed another one', () => {
  assert.deepEqual(plan(7, 600_000, SIZE), plan(7, 600_000, SIZE));
  assert.notDeepEqual(plan(7, 600_000, SIZE), plan(8, 600_000, SIZE));
});

test('a plan has every kind of fault, and gives the nodes time to be whole again', () => {
  for (let seed = 1; seed <= 50; seed += 1) {
    const faults = plan(seed, 600_000, SIZE);
    assert.deepEqual(new Set(faults.map(({ kind }) => kind)), new Set(KINDS));
    const nodes = faults.filter(({ kind }) => /node|leader/.test(kind)).map(({ at }) => at);
    assert.ok(nodes.slice(1).every((at, i) => at - nodes[i] >= 30_000), `seed ${seed}`);
    assert.ok(plan(seed, 120_000, { ...SIZE, clients: 4 }).length > 25, `seed ${seed}`);
  }
});

test('users have one socket or several, some have dots in their ids, and the quiet ones get little', () => {
  const random = new Random(1);
  const users = population(300, random);
  assert.equal(users.of.length, 300);
  const sockets = users.all.map((userId) => users.of.filter((other) => other === userId).length);
  assert.ok(Math.max(...sockets) > 2 && sockets.filter((count) => count === 1).length > 50);
  assert.ok(users.all.some((userId) => userId.includes('.')) && users.quiet.some((userId) => userId.includes('.')));
  const turns = Array.from({ length: 4_000 }, users.next);
  const quiet = turns.filter((userId) => users.quiet.includes(userId)).length;
  assert.ok(quiet > 0 && quiet < 40, `${quiet}`);
});
