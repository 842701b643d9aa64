// The tables, a pair for each scenario: a row is a server, a column is a figure
// of a phase. A column that no server has a figure for is left out.

const micros = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en-US')} µs`;
const millis = (value) => `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} ms`;
const seconds = (value) => `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
const perSecond = (value) => Math.round(value).toLocaleString('en-US');
const mebibytes = (value) => `${(value / 1024).toFixed(0)} MiB`;
const kibibytes = (value) => `${value.toFixed(value < 10 ? 1 : 0)} KiB`;

const WORK = [
  ['CPU per update at 1,000/s', 'rate:1000', 'server_cpu_us_per_update', micros],
  ['at saturation', 'saturate', 'server_cpu_us_per_update', micros],
  ['broker’s', 'saturate', 'broker_cpu_us_per_update', micros],
  ['updates/s', 'saturate', 'per_second', perSecond],
  ['p50 at 1,000/s', 'rate:1000', 'latency_us.p50', millis],
  ['p99', 'rate:1000', 'latency_us.p99', millis],
  ['p99.9', 'rate:1000', 'latency_us.p999', millis],
  ['p50 at 3,000/s', 'rate:3000', 'latency_us.p50', millis],
  ['p99', 'rate:3000', 'latency_us.p99', millis],
  ['p99.9', 'rate:3000', 'latency_us.p999', millis],
];

const STATE = [
  ['connects/s', 'connect', 'connects_per_second', perSecond],
  ['all subscribed after', 'connect', 'subscribed_ms', seconds],
  ['process before', 'connect', 'server_rss_kb_before', mebibytes],
  ['per idle socket', 'idle', 'kb_per_socket', kibibytes],
  ['process idle', 'idle', 'server_rss_kb', mebibytes],
  ['after saturation', 'saturate', 'server_rss_kb', mebibytes],
  ['after the burst', 'burst', 'server_rss_kb', mebibytes],
  ['10 s later', 'settle', 'server_rss_kb', mebibytes],
  ['all resubscribed after', 'resubscribe', 'resubscribed_ms', seconds],
];

const CROWD = [
  ['updates/s at saturation', 'saturate', 'per_second', perSecond],
  ['events/s at saturation', 'saturate', 'events_per_second', perSecond],
  ['server CPU per update of 2,000 events', 'saturate', 'server_cpu_us_per_update', micros],
  ['p99 at 10 updates/s', 'rate:10', 'latency_us.p99', millis],
  ['process after', 'saturate', 'server_rss_kb', mebibytes],
];

const CHURN = [
  ['connects', 'churn', 'churn_connects', perSecond],
  ['updates/s', 'churn', 'per_second', perSecond],
  ['p99', 'churn', 'latency_us.p99', millis],
  ['server CPU per update', 'churn', 'server_cpu_us_per_update', micros],
  ['broker’s', 'churn', 'broker_cpu_us_per_update', micros],
  ['process after', 'churn', 'server_rss_kb', mebibytes],
];

const FOREIGN = [
  ['updates/s at saturation', 'foreign', 'per_second', perSecond],
  ['server CPU per update', 'foreign', 'server_cpu_us_per_update', micros],
  ['broker’s', 'foreign', 'broker_cpu_us_per_update', micros],
  ['process after', 'foreign', 'server_rss_kb', mebibytes],
];

const PAIRS = { D: [CROWD], E: [CHURN], F: [FOREIGN] };

/** The tables of a scenario in Markdown; empty when it has not been run. */
export function tables(figures, id, { title }) {
  const servers = figures.servers(id);
  if (servers.length === 0) return '';
  const [work, ...state] = PAIRS[id] ?? [WORK, STATE];
  const verdict = (server) => figures.verdict(id, server);
  const first = table(figures, id, servers, work, [['delivered', verdict]]);
  return [`### ${title}`, first, ...state.map((columns) => table(figures, id, servers, columns))].join('\n\n');
}

/** The goals' table: a row is a goal, a column one of the gateway's topologies. A missed goal is bold. */
export function goalsTable(judged) {
  const columns = ['per-user', 'shared', 'firehose', 'stream', 'shared, no recovery'];
  const rows = new Map();
  for (const { what, value, unit, goal, isMet } of judged) {
    const [, column] = what.match(/gateway (shared, no recovery|[\w-]+)/);
    const name = what.replace(/,? gateway (shared, no recovery|[\w-]+)/, '').replace(/ceiling [\w-]+/, 'ceiling');
    const measured = value === null ? 'not measured' : `${Number.isInteger(value) ? value : value.toFixed(value < 10 ? 2 : 1)}${unit}`;
    const row = rows.get(name) ?? { goals: new Set() };
    row.goals.add(goal);
    row[column] = value === null || isMet ? measured : `**${measured}**`;
    rows.set(name, row);
  }
  const met = judged.filter(({ isMet }) => isMet).length;
  const lines = [...rows].map(([name, row]) => [name, [...row.goals].join('; '), ...columns.map((column) => row[column] ?? '')]);
  return `${met} of ${judged.length} are reached; those missed are bold.\n\n${markdown([['', 'goal', ...columns], ...lines])}`;
}

function table(figures, id, servers, columns, more = []) {
  const shown = columns.filter(([, phase, field]) => servers.some((server) => figures.median(id, server, phase, field) !== null));
  const cell = (server, [, phase, field, format]) => {
    const value = figures.median(id, server, phase, field);
    return value === null ? '–' : format(value);
  };
  return markdown([
    ['server', ...shown.map(([name]) => name), ...more.map(([name]) => name)],
    ...servers.map((server) => [server, ...shown.map((column) => cell(server, column)), ...more.map(([, of]) => of(server))]),
  ]);
}

function markdown([head, ...rows]) {
  const line = (cells) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), `|${'---|'.repeat(head.length)}`, ...rows.map(line)].join('\n');
}
