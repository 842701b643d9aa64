// The scenarios that servers are put through, and the servers of each.
//
// A phase is written as the load generator takes it: `rate:1000:5` is 1,000
// updates a second for 5 s.

const GATEWAY = ['gateway per-user', 'gateway shared', 'gateway firehose', 'gateway stream'];
const CEILING = ['ceiling per-user', 'ceiling shared'];
const BASELINE = process.env.GATEWAY_BASELINE ? ['baseline per-user', 'baseline shared', 'baseline firehose', 'baseline stream'] : [];
const ALL = [...GATEWAY, ...BASELINE, 'node', ...CEILING];

export const SCENARIOS = {
  A: {
    title: '1,000 users',
    users: 1_000,
    phases: ['connect', 'idle:3', 'rate:1000:5', 'rate:3000:5', 'saturate:8'],
    servers: ALL,
    repeats: 3,
  },
  B: {
    title: '5,000 users, and a burst of 50,000 updates',
    users: 5_000,
    phases: ['connect', 'idle:3', 'rate:1000:5', 'rate:3000:5', 'saturate:6', 'burst:50000', 'settle:10'],
    servers: [...GATEWAY, 'gateway shared, no recovery', 'node', ...CEILING],
    repeats: 1,
  },
  C: {
    title: '10,000 users, and a restart of the broker',
    users: 10_000,
    phases: ['connect', 'idle:3', 'rate:1000:8', 'saturate:6', 'resubscribe'],
    servers: ALL,
    repeats: 1,
  },
  D: {
    title: '1 user on 1,000 sockets',
    users: 1,
    socketsPerUser: 1_000,
    phases: ['connect', 'rate:10:4', 'saturate:6'],
    servers: ALL,
    repeats: 1,
  },
  E: {
    title: '1,000 users, of whom 200 a second leave and come back',
    users: 1_000,
    phases: ['connect', 'churn:200:10'],
    servers: ALL,
    repeats: 1,
  },
  F: {
    title: '1,000 users, and 99 of 100 updates are for users elsewhere',
    users: 1_000,
    phases: ['connect', 'foreign:6'],
    // The other topologies have RabbitMQ keep such updates away.
    servers: [...GATEWAY, ...BASELINE].filter((name) => /firehose|stream/.test(name)),
    repeats: 3,
  },
  G: {
    // As many as 20,000 open files allow.
    title: '19,000 users',
    users: 19_000,
    phases: ['connect', 'idle:3', 'rate:1000:8'],
    servers: ['gateway shared'],
    repeats: 1,
  },
};

/** For everyday use: one short turn each. */
export const QUICK = {
  A: {
    ...SCENARIOS.A,
    phases: ['connect', 'idle:1', 'rate:1000:3', 'rate:3000:3', 'saturate:4'],
    servers: ['gateway per-user', 'gateway shared', 'node', ...CEILING],
    repeats: 1,
  },
};
