// Which faults happen when: drawn from a seed before anything starts, so that the same seed
// gives the same faults at the same times. Knows nothing of what they are done to.

import { Random } from './random.mjs';

/** The pause before the next fault. */
const PAUSE_MS = [1_500, 4_500];

/** A node needs this long to be killed, started again, and in step with the others. */
const NODE_MS = 30_000;

/** For a rolling restart of three instances. */
const ROLLING_MS = 20_000;

/** A silent connection is noticed by its pings alone, which takes up to 45 s. */
const SILENT_MS = 60_000;

/** One of each of `cards` is dealt before any of them is dealt again. */
const DECK = {
  'gateway-kill': { cards: 3, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1), downMs: random.whole(0, 4_000) }) },
  'gateway-stop': { cards: 3, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1), downMs: random.whole(0, 2_000) }) },
  'gateway-freeze': { cards: 2, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1), ms: random.whole(1_000, 8_000) }) },
  'links-reset': { cards: 1, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1) }) },
  'links-cut': { cards: 1, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1), ms: random.whole(1_000, 10_000) }) },
  'links-silent': { cards: 1, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1) }) },
  'door-reset': { cards: 1, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1) }) },
  'door-cut': { cards: 1, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1), ms: random.whole(500, 6_000) }) },
  'door-silent': { cards: 1, lastMs: SILENT_MS, of: (random, { gateways }) => ({ gateway: random.whole(0, gateways - 1) }) },
  'rolling-restart': { cards: 1, gapMs: ROLLING_MS, of: (random) => ({ pauseMs: random.whole(0, 2_000) }) },
  'leader-kill': { cards: 1, gapMs: NODE_MS, isOfNodes: true, of: (random) => ({ downMs: random.whole(500, 6_000) }) },
  'node-kill': { cards: 1, gapMs: NODE_MS, isOfNodes: true, of: (random, { nodes }) => ({ node: random.whole(0, nodes - 1), downMs: random.whole(500, 6_000) }) },
  'node-stop': { cards: 1, gapMs: NODE_MS, isOfNodes: true, of: (random, { nodes }) => ({ node: random.whole(0, nodes - 1), downMs: random.whole(500, 6_000) }) },
  'node-freeze': { cards: 1, gapMs: NODE_MS, isOfNodes: true, of: (random, { nodes }) => ({ node: random.whole(0, nodes - 1), ms: random.whole(500, 4_000) }) },
  'clients-reset': { cards: 2, of: some },
  'clients-offline': { cards: 2, of: (random, size) => ({ ...some(random, size), ms: random.whole(500, 12_000) }) },
  'clients-leave': { cards: 2, of: (random, size) => ({ ...some(random, size), ms: random.whole(0, 3_000) }) },
  'clients-move': { cards: 3, of: some },
  'clients-torn': { cards: 1, of: some },
};

/** The kinds of faults. */
export const KINDS = Object.keys(DECK);

/** Up to a tenth of the clients. */
function some(random, { clients }) {
  const count = random.whole(1, Math.max(1, Math.floor(clients / 10)));
  return { clients: random.shuffled(Array.from({ length: clients }, (_, i) => i)).slice(0, count) };
}

/** The faults of a run of `ms`, in order: `{ at, kind, … }`. `size`: how many `gateways`, `nodes` and `clients` there are. */
export function plan(seed, ms, size) {
  const random = new Random(seed);
  const faults = [];
  let deck = [];
  /** When the nodes, and rolling restarts, may be had again. */
  const free = {};
  for (let at = random.whole(...PAUSE_MS); at < ms; at += random.whole(...PAUSE_MS)) {
    const may = (kind) => {
      const { isOfNodes, gapMs = 0, lastMs = 0 } = DECK[kind];
      return at >= (free[isOfNodes ? 'nodes' : kind] ?? 0) && at + Math.max(gapMs, lastMs) < ms + (isOfNodes ? NODE_MS / 2 : 0);
    };
    if (!deck.some(may)) deck.push(...random.shuffled(KINDS.flatMap((kind) => Array(DECK[kind].cards).fill(kind))));
    const place = deck.findIndex(may);
    if (place < 0) continue;
    const [kind] = deck.splice(place, 1);
    const { isOfNodes, gapMs = 0, of } = DECK[kind];
    free[isOfNodes ? 'nodes' : kind] = at + gapMs;
    faults.push({ at, kind, ...of(random, size) });
  }
  return faults;
}

/** A fault in a few words. */
export function inWords({ kind, gateway, node, clients, ms, downMs }) {
  return [
    kind,
    gateway === undefined ? '' : `of gateway ${gateway + 1}`,
    node === undefined ? '' : `of node ${node + 1}`,
    clients ? `of ${clients.length} clients` : '',
    ms === undefined ? '' : `for ${(ms / 1000).toFixed(1)} s`,
    downMs === undefined ? '' : `down for ${(downMs / 1000).toFixed(1)} s`,
  ].filter(Boolean).join(' ');
}
