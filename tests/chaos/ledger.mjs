// What was published to whom, what RabbitMQ has confirmed of it, and what each client
// received. Knows no network and no clock but the one that it is given.
//
// A user's updates are numbered from 1 in the order of their publication. A client's chain
// begins with a connect that was not recovered, and goes on over all that were:
//
// - Every confirmed update that was published after the chain's begin comes, once, in the
//   order of the numbers, as `chat3:update` and right behind it as `message:new`.
// - An update that was published before may come or not: the client has fetched it, and the
//   instance may have been behind. But from the first that comes on, all come. One that was
//   confirmed long before the begin must not come: it was replayed in spite of the refusal.
// - An update whose confirmation failed may come or not, at any place, once.
// - A hole counts as told if the next connect comes soon and is not recovered.

/** The longest that an instance may be behind: it was stopped, or its connection to RabbitMQ was down. */
export const BEHIND_MS = 20_000;

/** How soon after a hole the client must be told to refetch. */
export const TOLD_WITHIN_MS = 30_000;

/** How many findings are kept for the report. */
const SHOWN = 40;

const KINDS = ['update', 'message'];

export class Ledger {
  constructor({ now = Date.now } = {}) {
    this.now = now;
    this.users = new Map();
    this.accounts = [];
    this.published = 0;
    this.confirmed = 0;
    this.uncertain = 0;
  }

  user(userId) {
    let user = this.users.get(userId);
    if (!user) this.users.set(userId, (user = { userId, entries: [null], lastConfirmed: 0 }));
    return user;
  }

  /** The number of the user's next update, which is on its way from now on. */
  publish(userId) {
    const { entries } = this.user(userId);
    this.published += 1;
    return entries.push({ state: 'under way', publishedAt: this.now(), confirmedAt: Infinity }) - 1;
  }

  confirm(userId, n) {
    const user = this.user(userId);
    Object.assign(user.entries[n], { state: 'confirmed', confirmedAt: this.now() });
    user.lastConfirmed = Math.max(user.lastConfirmed, n);
    this.confirmed += 1;
  }

  /** Nobody will know whether RabbitMQ has it. */
  fail(userId, n) {
    this.user(userId).entries[n].state = 'uncertain';
    this.uncertain += 1;
  }

  /** The account of a client of `userId`. */
  client(name, userId) {
    const account = new Account(this, name, this.user(userId));
    this.accounts.push(account);
    return account;
  }

  /** When which client was refused its session, for whoever looks into it. */
  get refusals() {
    return this.accounts.flatMap(({ refusals }) => refusals).sort((a, b) => a.at - b.at);
  }

  /** The clients that are away or still wait for something. */
  get waiting() {
    return this.accounts.filter((account) => !account.hasAll);
  }

  /** The sums of all accounts; final once nothing is under way. */
  verdict() {
    const sums = {
      delivered: 0, lost: 0, doubled: 0, outOfOrder: 0, replayed: 0, foreign: 0, unfounded: 0, away: 0, told: 0, early: 0,
      recovered: 0, refused: 0, fresh: 0,
    };
    const refusedAfter = {};
    const recoveredAfter = {};
    const findings = [];
    for (const account of this.accounts) {
      const own = account.verdict();
      for (const name of Object.keys(sums)) sums[name] += own[name];
      for (const [from, to] of [[account.refusedAfter, refusedAfter], [account.recoveredAfter, recoveredAfter]]) {
        for (const [cause, count] of Object.entries(from)) to[cause] = (to[cause] ?? 0) + count;
      }
      findings.push(...own.findings);
    }
    const { published, confirmed, uncertain } = this;
    findings.sort((a, b) => a.at - b.at);
    return { published, confirmed, uncertain, ...sums, refusedAfter, recoveredAfter, findings: findings.slice(0, SHOWN) };
  }
}

/** What one client received, chain by chain. */
class Account {
  constructor(ledger, name, user) {
    Object.assign(this, { ledger, name, user, chain: null, isConnected: false });
    this.counts = { delivered: 0, doubled: 0, replayed: 0, foreign: 0, unfounded: 0, early: 0, recovered: 0, refused: 0, fresh: 0 };
    this.ended = [];
    this.refusals = [];
    this.refusedAfter = {};
    this.recoveredAfter = {};
    this.findings = [];
  }

  /**
   * `asked`: the client had a session and wanted to go on with it. `cause`: what had ended its
   * last connection.
   */
  connect({ recovered, asked, cause = 'unknown' }) {
    this.isConnected = true;
    if (recovered) {
      this.counts.recovered += 1;
      this.recoveredAfter[cause] = (this.recoveredAfter[cause] ?? 0) + 1;
      if (this.chain) {
        // It says that nothing is missing: from now on, no hole can be told.
        this.chain.vouchedAt = this.ledger.now();
        return;
      }
      this.counts.unfounded += 1;
      this.found('unfounded', null, 'recovered, and had never been connected');
    } else if (asked) {
      this.counts.refused += 1;
      this.refusedAfter[cause] = (this.refusedAfter[cause] ?? 0) + 1;
      const { at: begun, update: { last } } = this.chain ?? { update: {} };
      this.refusals.push({ at: this.ledger.now(), client: this.name, cause, awayMs: this.ledger.now() - this.lostAt, sessionMs: this.lostAt - begun, last, published: this.user.entries.length - 1 });
    } else {
      this.counts.fresh += 1;
    }
    const at = this.ledger.now();
    if (this.chain) this.ended.push(this.close(this.chain, at));
    // Of the last update before a refusal, the client may have seen the first event alone. An instance that has not read as
    // far refuses it; the next one hands it the second event.
    const half = this.chain?.latest ?? this.chain?.half ?? null;
    this.chain = { at, before: this.user.entries.length - 1, latest: null, half, update: new Track(), message: new Track() };
  }

  disconnect() {
    this.isConnected = false;
    this.lostAt = this.ledger.now();
  }

  /** An event: `kind` is `update` or `message`, `n` the number that its update has. */
  receive(kind, userId, n) {
    const { chain, counts, user } = this;
    const entry = userId === user.userId ? user.entries[n] : null;
    if (!entry) {
      counts.foreign += 1;
      return this.found('foreign', n, `${kind} of ${userId}`);
    }
    if (!chain) {
      counts.unfounded += 1;
      return this.found('unfounded', n, `${kind} before a connect`);
    }
    counts.delivered += 1;
    if (n <= chain.before && kind === 'update') {
      counts.early += 1;
      if (entry.confirmedAt < chain.at - BEHIND_MS) {
        counts.replayed += 1;
        this.found('replayed', n, `confirmed ${chain.at - entry.confirmedAt} ms before a connect that was not recovered`);
      }
    }
    const outcome = chain[kind].take(n, chain.before, this.ledger.now());
    if (outcome === 'doubled') {
      counts.doubled += 1;
      this.found('doubled', n, kind);
    }
    // Its two events come one behind the other.
    if (kind === 'update') chain.latest = n;
    else if (chain.latest !== n && outcome !== 'doubled' && !(chain.latest === null && chain.half === n)) chain.astray = [...(chain.astray ?? []), { n, behind: chain.latest, at: this.ledger.now() }];
  }

  /** Whether it is connected and has all that must have come by now. */
  get hasAll() {
    const { chain, user } = this;
    if (!this.isConnected || !chain) return false;
    return user.lastConfirmed <= chain.before || KINDS.every((kind) => chain[kind].last >= user.lastConfirmed);
  }

  /** What is left to judge of a chain that ended at `endedAt` with a refusal; an update may still be under way. */
  close(chain, endedAt) {
    const kept = { late: [], holes: [], astray: chain.astray ?? [] };
    for (const kind of KINDS) {
      for (const late of chain[kind].late) kept.late.push({ kind, ...late });
      for (const [n, at] of chain[kind].holes) kept.holes.push({ kind, n, at, isTold: endedAt - at < TOLD_WITHIN_MS && !(chain.vouchedAt >= at) });
    }
    return kept;
  }

  verdict() {
    const { chain, user } = this;
    const findings = [...this.findings];
    const sums = { ...this.counts, lost: 0, told: 0, outOfOrder: 0, away: this.isConnected ? 0 : 1 };
    const isCertain = (n) => user.entries[n].state === 'confirmed';
    const add = (what, n, at, text) => {
      sums[what] += 1;
      if (findings.length < SHOWN) findings.push({ what, at, client: this.name, user: user.userId, n, text });
    };
    const last = chain ? [this.close(chain, Infinity)] : [];
    for (const { late, holes, astray } of [...this.ended, ...last]) {
      for (const { kind, n, at, behind } of late) if (isCertain(n)) add('outOfOrder', n, at, `${kind} behind ${behind}`);
      for (const { n, at, behind } of astray) if (isCertain(n)) add('outOfOrder', n, at, `message behind update ${behind}`);
      for (const { kind, n, at, isTold } of holes) if (isCertain(n)) add(isTold ? 'told' : 'lost', n, at, kind);
    }
    if (chain) {
      for (const kind of KINDS) {
        for (let n = (chain[kind].last ?? chain.before) + 1; n < user.entries.length; n += 1) {
          if (isCertain(n)) add('lost', n, this.ledger.now(), `${kind}, nothing behind it came either`);
        }
      }
    }
    return { ...sums, findings };
  }

  found(what, n, text) {
    if (this.findings.length < SHOWN) this.findings.push({ what, at: this.ledger.now(), client: this.name, user: this.user.userId, n, text });
  }
}

/** Which numbers of one kind of event came in a chain, and in which order. */
class Track {
  first = null;
  last = null;
  /** Numbers that were passed over, with the time. */
  holes = new Map();
  /** Numbers that came behind a higher one. */
  late = [];
  /** Those of them below the first. */
  below = new Set();

  /** `before`: the last number that need not come. */
  take(n, before, at) {
    if (this.first === null) {
      this.first = Math.min(n, before + 1);
      this.last = this.first - 1;
    }
    if (n > this.last) {
      for (let passed = this.last + 1; passed < n; passed += 1) this.holes.set(passed, at);
      this.last = n;
      return 'next';
    }
    if (this.holes.delete(n) || (n < this.first && !this.below.has(n))) {
      if (n < this.first) this.below.add(n);
      this.late.push({ n, at, behind: this.last });
      return 'late';
    }
    return 'doubled';
  }
}
