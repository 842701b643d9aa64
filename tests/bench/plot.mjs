// The plot: what an update costs the server, against the number of users.

const WIDTH = 760;
const HEIGHT = 400;
const AREA = { left: 60, right: 190, top: 44, bottom: 48 };
const LABEL_HEIGHT = 16;
/** Distinguishable in colour and in grey, on white and on black. */
const STYLES = {
  'gateway per-user': ['#d9480f', ''],
  'gateway shared': ['#1c7ed6', ''],
  'gateway firehose': ['#2b9348', ''],
  'gateway stream': ['#e8a201', ''],
  node: ['#ae3ec9', ''],
  'ceiling per-user': ['#d9480f', '3 4'],
  'ceiling shared': ['#1c7ed6', '3 4'],
};

/** `scenarios`: `[id, users]` in ascending order of users. The SVG, or null with fewer than two points in any line. */
export function plot(figures, scenarios) {
  const lines = Object.entries(STYLES).map(([server, [colour, dash]]) => ({
    server, colour, dash,
    points: scenarios
      .map(([id, users]) => [users, figures.median(id, server, 'saturate', 'server_cpu_us_per_update')])
      .filter(([, cost]) => cost !== null),
  })).filter(({ points }) => points.length > 1);
  if (lines.length === 0) return null;

  const most = Math.max(...lines.flatMap(({ points }) => points.map(([, cost]) => cost)));
  const step = [5, 10, 20, 25, 50, 100, 200, 500, 1000].find((step) => most / step <= 7) ?? 2000;
  const top = Math.ceil(most / step) * step;
  const users = scenarios.map(([, count]) => count);
  const x = (count) => AREA.left + (count / users.at(-1)) * (WIDTH - AREA.left - AREA.right);
  const y = (cost) => HEIGHT - AREA.bottom - (cost / top) * (HEIGHT - AREA.top - AREA.bottom);
  const round = (value) => value.toFixed(1);

  const grid = Array.from({ length: top / step + 1 }, (_, i) => i * step).map((cost) =>
    `<line class="grid" x1="${AREA.left}" x2="${WIDTH - AREA.right}" y1="${round(y(cost))}" y2="${round(y(cost))}"/>` +
    `<text x="${AREA.left - 8}" y="${round(y(cost) + 4)}" text-anchor="end">${cost}</text>`);
  const ticks = users.map((count) =>
    `<text x="${round(x(count))}" y="${HEIGHT - AREA.bottom + 20}" text-anchor="middle">${count.toLocaleString('en-US')}</text>`);
  const drawn = lines.map(({ colour, dash, points }) =>
    `<polyline fill="none" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${dash}" points="${points.map(([count, cost]) => `${round(x(count))},${round(y(cost))}`).join(' ')}"/>` +
    points.map(([count, cost]) => `<circle cx="${round(x(count))}" cy="${round(y(cost))}" r="3.5" fill="${colour}"/>`).join(''));
  const labels = apart(lines.map((line) => ({ ...line, at: y(line.points.at(-1)[1]) }))).map(({ server, colour, at, points }) =>
    `<text x="${round(x(points.at(-1)[0]) + 10)}" y="${round(at + 4)}" style="fill:${colour}">${server}, ${Math.round(points.at(-1)[1])}</text>`);

  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="Server CPU per update at saturation against the number of users">`,
    '<style>text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}.back{fill:#fff}.grid{stroke:#ddd}',
    '@media(prefers-color-scheme:dark){text{fill:#ccc}.back{fill:#0d1117}.grid{stroke:#333}}</style>',
    `<rect class="back" width="${WIDTH}" height="${HEIGHT}"/>`,
    `<text class="title" x="${AREA.left}" y="24">Server CPU per update at saturation, µs</text>`,
    ...grid, ...ticks,
    `<text x="${(AREA.left + WIDTH - AREA.right) / 2}" y="${HEIGHT - 8}" text-anchor="middle">users, a socket each</text>`,
    ...drawn, ...labels, '</svg>', '',
  ].join('\n');
}

/** Moves a label down if it would cover the one above, then all labels up if they leave the area. */
function apart(labels) {
  const sorted = [...labels].sort((a, b) => a.at - b.at);
  for (let i = 1; i < sorted.length; i += 1) sorted[i].at = Math.max(sorted[i].at, sorted[i - 1].at + LABEL_HEIGHT);
  const beyond = Math.max(0, sorted.at(-1).at - (HEIGHT - AREA.bottom));
  return sorted.map((label) => ({ ...label, at: label.at - beyond }));
}
