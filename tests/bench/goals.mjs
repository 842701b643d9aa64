// The gateway's goals, as figures of one run: ratios to the limit and to Node, which ran
// beside it, and a few absolute ones.

const GATEWAYS = ['gateway per-user', 'gateway shared', 'gateway firehose'];
const [PER_USER, SHARED, FIREHOSE] = GATEWAYS;
/** Held against the firehose, which reads the same updates. */
const STREAM = 'gateway stream';
const LIMIT = { [PER_USER]: 'ceiling per-user', [SHARED]: 'ceiling shared' };

/** `{ what, value, unit, goal, isMet }` each; `value` is null when not measured. */
export function judge(figures) {
  const judged = [];
  const of = (scenario, server, phase, field) => figures.median(scenario, server, phase, field);
  const add = (what, value, comparison, bound, unit = '') => {
    const isMet = value !== null && (comparison === '≤' ? value <= bound : comparison === '<' ? value < bound : value >= bound);
    judged.push({ what, value, unit, goal: `${comparison} ${bound}${unit}`, isMet });
  };
  const ratio = (a, b) => (a === null || !b ? null : a / b);
  const scaled = (a, by) => (a === null ? null : a / by);

  const cpu = 'server_cpu_us_per_update';
  for (const [server, bound] of [[PER_USER, 1.3], [SHARED, 1.25]]) {
    add(`1,000 users: CPU per update at saturation, ${server} ÷ ${LIMIT[server]}`,
      ratio(of('A', server, 'saturate', cpu), of('A', LIMIT[server], 'saturate', cpu)), '≤', bound);
    add(`1,000 users: CPU per update at 1,000/s, ${server} ÷ ${LIMIT[server]}`,
      ratio(of('A', server, 'rate:1000', cpu), of('A', LIMIT[server], 'rate:1000', cpu)), '≤', 1.3);
  }
  for (const server of GATEWAYS) {
    add(`1,000 users: CPU per update at 1,000/s, ${server} ÷ node`,
      ratio(of('A', server, 'rate:1000', cpu), of('A', 'node', 'rate:1000', cpu)), '≤', 0.5);
    add(`1,000 users: CPU per update at saturation, ${server} ÷ node`,
      ratio(of('A', server, 'saturate', cpu), of('A', 'node', 'saturate', cpu)), '≤', 0.33);
  }
  for (const [server, bound] of [[PER_USER, 0.85], [SHARED, 0.93]]) {
    add(`1,000 users: updates/s at saturation, ${server} ÷ ${LIMIT[server]}`,
      ratio(of('A', server, 'saturate', 'per_second'), of('A', LIMIT[server], 'saturate', 'per_second')), '≥', bound);
  }
  add(`1,000 users: updates/s at saturation, ${SHARED} ÷ node`,
    ratio(of('A', SHARED, 'saturate', 'per_second'), of('A', 'node', 'saturate', 'per_second')), '≥', 1.5);
  for (const [scenario, users, bound] of [['A', '1,000', 0.12], ['B', '5,000', 0.1]]) {
    for (const server of GATEWAYS) {
      add(`${users} users: p99 at 3,000/s, ${server} ÷ node`,
        ratio(of(scenario, server, 'rate:3000', 'latency_us.p99'), of(scenario, 'node', 'rate:3000', 'latency_us.p99')), '≤', bound);
    }
  }

  add(`1,000 users: CPU per update at saturation, ${STREAM} ÷ firehose`,
    ratio(of('A', STREAM, 'saturate', cpu), of('A', FIREHOSE, 'saturate', cpu)), '≤', 1.15);
  add(`1,000 users: p99 at 1,000/s, ${STREAM} ÷ firehose`,
    ratio(of('A', STREAM, 'rate:1000', 'latency_us.p99'), of('A', FIREHOSE, 'rate:1000', 'latency_us.p99')), '≤', 2);
  add(`CPU per update of users elsewhere, at saturation, ${STREAM}`, of('F', STREAM, 'foreign', cpu), '≤', 4, ' µs');

  const subscribed = (server) => of('B', server, 'connect', 'subscribed_ms');
  add(`5,000 users: time to subscribe all, ${PER_USER} ÷ node`, ratio(subscribed(PER_USER), subscribed('node')), '≤', 0.5);
  add(`5,000 users: time to subscribe all, ${SHARED} ÷ ${LIMIT[SHARED]}`, ratio(subscribed(SHARED), subscribed(LIMIT[SHARED])), '≤', 1.5);
  for (const [server, bound] of [[PER_USER, 8], [SHARED, 3]]) {
    add(`10,000 users: resubscribed after a restart of the broker, ${server}`,
      scaled(of('C', server, 'resubscribe', 'resubscribed_ms'), 1000), '≤', bound, ' s');
  }

  for (const server of [...GATEWAYS, STREAM]) {
    add(`5,000 users: memory per idle socket, ${server}`, of('B', server, 'idle', 'kb_per_socket'), '≤', server === PER_USER ? 33 : 21, ' KiB');
  }
  const rss = (server, phase) => of('B', server, phase, 'server_rss_kb');
  for (const server of [...GATEWAYS, 'gateway shared, no recovery']) {
    const bound = server.endsWith('no recovery') ? 0.5 : 1;
    add(`5,000 users: process after the burst, ${server} ÷ node`, ratio(rss(server, 'burst'), rss('node', 'burst')), '≤', bound);
    add(`5,000 users: process 10 s after the burst ÷ idle, ${server}`, ratio(rss(server, 'settle'), rss(server, 'idle')), '≤', 1.3);
  }

  for (const server of [...GATEWAYS, STREAM]) {
    add(`10,000 users: p99 at 1,000/s, ${server}`, scaled(of('C', server, 'rate:1000', 'latency_us.p99'), 1000), '<', 50, ' ms');
    add(`10,000 users: events lost, sockets closed, ${server}`, missing('C', server), '≤', 0);
    add(`CPU per update at saturation with 10,000 users ÷ with 1,000, ${server}`,
      ratio(of('C', server, 'saturate', cpu), of('A', server, 'saturate', cpu)), '≤', 1.2);
  }
  add(`19,000 users: p99 at 1,000/s, ${SHARED}`, scaled(of('G', SHARED, 'rate:1000', 'latency_us.p99'), 1000), '≤', 10, ' ms');
  for (const server of GATEWAYS) {
    add(`1 user on 1,000 sockets: events/s, ${server} ÷ node`,
      ratio(of('D', server, 'saturate', 'events_per_second'), of('D', 'node', 'saturate', 'events_per_second')), '≥', 15);
    add(`1 user on 1,000 sockets: events lost, sockets closed, ${server}`, missing('D', server), '≤', 0);
  }
  return judged;

  function missing(scenario, server) {
    if (of(scenario, server, 'saturate', 'lost') === null) return null;
    const { lost = 0, closed = 0 } = figures.faults(scenario, server);
    return lost + closed;
  }
}
