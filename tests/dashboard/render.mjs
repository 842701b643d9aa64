// Draws the panels of a Grafana dashboard: its queries asked of a Prometheus, its units,
// thresholds and legends, laid out as its grid says. Only what our dashboard uses.

/** Grafana's classic palette. */
const COLORS = ['#73bf69', '#f2cc0c', '#5794f2', '#ff9830', '#f2495c', '#b877d9', '#8ab8ff', '#fade2a', '#c4162a', '#37872d'];
const NAMED = { green: '#37872d', red: '#c4162a', yellow: '#e0b400', blue: '#1f60c4' };
const [COLUMN, ROW, GAP] = [56, 34, 8];

const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));
const scaled = (value, steps) => {
  const [size, unit] = steps.find(([least]) => Math.abs(value) >= least) ?? steps.at(-1);
  return `${trimmed(value / size, 3)}${unit}`;
};

/** How Grafana writes values of a unit. */
const UNITS = {
  short: (value) => scaled(value, [[1e6, ' Mil'], [1e3, ' K'], [1, '']]),
  cps: (value) => `${scaled(value, [[1e6, ' Mil'], [1e3, ' K'], [1, '']])} c/s`,
  s: (value) => (value === 0 ? '0 s' : scaled(value, [[60, ' min'], [1, ' s'], [1e-3, ' ms'], [1e-6, ' µs']])),
  bytes: (value) => scaled(value, [[2 ** 30, ' GiB'], [2 ** 20, ' MiB'], [2 ** 10, ' KiB'], [1, ' B']]),
};

const escape = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** What a panel shows: `{ panel, series: [{ name, points: [[ms, value]] }] }`. */
export async function ask(prometheus, panel, { from, to, stepSeconds, rateSeconds }) {
  const series = [];
  for (const { expr, legendFormat = '' } of panel.targets ?? []) {
    const query = expr.replaceAll('$instance', '.*').replaceAll('$__rate_interval', `${rateSeconds}s`)
      .replaceAll('$__range', `${Math.round((to - from) / 1000)}s`);
    const parameters = new URLSearchParams({ query, start: from / 1000, end: to / 1000, step: stepSeconds });
    const answer = await fetch(`${prometheus}/api/v1/query_range?${parameters}`);
    if (!answer.ok) throw new Error(`${panel.title}: ${await answer.text()}`);
    for (const { metric, values } of (await answer.json()).data.result) {
      const name = legendFormat.replaceAll(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? '') || Object.values(metric).join(' ');
      const points = values.map(([at, value]) => [at * 1000, Number(value)]).filter(([, value]) => Number.isFinite(value));
      if (points.length > 0) series.push({ name, points });
    }
  }
  return { panel, series };
}

const unitOf = ({ fieldConfig: { defaults } }) => UNITS[defaults.unit ?? 'short'];

function stat({ panel, series }) {
  const { mappings = [], thresholds, decimals } = panel.fieldConfig.defaults;
  const value = series[0]?.points.at(-1)?.[1];
  if (value === undefined) return '<div class="none">No data</div>';
  const mapped = mappings.flatMap(({ options }) => options[String(value)]?.text ?? [])[0];
  const color = thresholds.steps.filter((step) => step.value === null || value >= step.value).at(-1).color;
  const text = mapped ?? unitOf(panel)(decimals === 0 ? Math.round(value) : value);
  return `<div class="stat" style="background:${NAMED[color]}">${escape(text)}</div>`;
}

/** What the panel's overrides set for a series, beside its defaults. */
function styleOf({ fieldConfig: { defaults, overrides = [] } }, name) {
  const set = overrides.filter(({ matcher }) => matcher.options === name).flatMap(({ properties }) => properties);
  return { ...defaults.custom, ...Object.fromEntries(set.map(({ id, value }) => [id.replace('custom.', ''), value])) };
}

/** The axis: its marks, and where a value lies between the lowest and the highest, from 0 to 1. */
function axis(panel, values) {
  if (panel.fieldConfig.defaults.custom.scaleDistribution?.type === 'log') {
    const positive = values.filter((value) => value > 0);
    const [least, most] = [Math.floor(Math.log10(Math.min(...positive))), Math.ceil(Math.log10(Math.max(...positive)))];
    const marks = Array.from({ length: Math.max(most, least + 1) - least + 1 }, (_, i) => 10 ** (least + i));
    return { marks, at: (value) => (Math.log10(Math.max(value, marks[0])) - least) / (marks.length - 1) };
  }
  const most = Math.max(...values) || 1;
  const rough = most / 4;
  const isBinary = panel.fieldConfig.defaults.unit === 'bytes';
  const power = isBinary ? 2 ** Math.floor(Math.log2(rough)) : 10 ** Math.floor(Math.log10(rough));
  const step = (isBinary ? [1, 2] : [1, 2, 2.5, 5, 10]).map((each) => each * power).find((each) => each >= rough);
  const marks = Array.from({ length: Math.ceil(most / step) + 1 }, (_, i) => i * step);
  return { marks, at: (value) => value / marks.at(-1) };
}

/** Puts the series that are stacked on one another: each point gets the value below it. */
function stacked(panel, series) {
  const below = new Map();
  return series.map(({ name, points }) => {
    const style = styleOf(panel, name);
    if (style.stacking?.mode !== 'normal') return { name, style, points: points.map(([at, value]) => [at, value, 0]) };
    return { name, style, points: points.map(([at, value]) => {
      const base = below.get(at) ?? 0;
      below.set(at, base + value);
      return [at, base + value, base];
    }) };
  });
}

function timeseries({ panel, series }, width, height, { from, to, stepSeconds }) {
  if (series.length === 0) return '<div class="none">No data</div>';
  const [left, plotWidth, plotHeight] = [62, width - 78, height - 26];
  const drawn = stacked(panel, series);
  const { marks, at: share } = axis(panel, drawn.flatMap(({ points }) => points.map(([, value]) => value)));
  const x = (at) => (left + ((at - from) / (to - from)) * plotWidth).toFixed(1);
  const y = (value) => (8 + plotHeight * (1 - share(value))).toFixed(1);
  const grid = marks.map((mark) => `<line x1="${left}" x2="${left + plotWidth}" y1="${y(mark)}" y2="${y(mark)}" class="grid"/>
    <text x="${left - 6}" y="${Number(y(mark)) + 4}" class="tick" text-anchor="end">${escape(unitOf(panel)(mark))}</text>`);
  const minutes = Array.from({ length: 20 }, (_, i) => Math.ceil(from / 60_000) * 60_000 + i * 60_000).filter((at) => at < to);
  const times = minutes.map((at) => `<text x="${x(at)}" y="${height - 2}" class="tick" text-anchor="middle">${new Date(at).toISOString().slice(11, 16)}</text>`);
  const lines = drawn.map(({ points, style }, i) => {
    // Gaps where nothing was measured, as `spanNulls: false` says.
    const runs = points.reduce((all, point) => {
      const last = all.at(-1)?.at(-1);
      if (last && point[0] - last[0] <= stepSeconds * 1500) all.at(-1).push(point);
      else all.push([point]);
      return all;
    }, []);
    const color = COLORS[i % COLORS.length];
    const path = (points) => points.map(([at, value], j) => `${j ? 'L' : 'M'}${x(at)} ${y(value)}`).join('');
    const dash = style.lineStyle?.fill === 'dash' ? ` stroke-dasharray="${style.lineStyle.dash.join(' ')}"` : '';
    return runs.map((run) => {
      const base = [...run].reverse().map(([at, , below]) => `L${x(at)} ${y(below)}`).join('');
      return `<path d="${path(run)}${base}Z" fill="${color}" fill-opacity="${(style.fillOpacity ?? 0) / 100}"/>
        <path d="${path(run)}" fill="none" stroke="${color}" stroke-width="${style.lineWidth ?? 1.6}"${dash}/>`;
    }).join('');
  });
  return `<svg width="${width}" height="${height}">${grid.join('')}${times.join('')}${lines.join('')}</svg>`;
}

function box(shown, range) {
  const { panel, series } = shown;
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [w * COLUMN - GAP, h * ROW - GAP];
  const style = `left:${x * COLUMN + GAP}px;top:${y * ROW + GAP}px;width:${width}px;height:${height}px`;
  if (panel.type === 'row') return `<h2 style="${style}">${escape(panel.title)}</h2>`;
  const legend = panel.type === 'timeseries' ? series.map(({ name }, i) => `<span><i style="background:${COLORS[i % COLORS.length]}"></i>${escape(name)}</span>`) : [];
  const rows = Math.max(1, Math.ceil(legend.reduce((sum, text) => sum + text.replaceAll(/<[^>]*>/g, '').length * 6.4 + 26, 0) / (width - 20)));
  const body = panel.type === 'stat' ? stat(shown) : timeseries(shown, width - 12, height - 34 - rows * 17, range);
  return `<section style="${style}"><h1 title="${escape(panel.description ?? '')}">${escape(panel.title)}</h1>${body}<footer>${legend.join('')}</footer></section>`;
}

/** The page with all panels, and its size. */
export function page(shown, range) {
  const bottom = Math.max(...shown.map(({ panel: { gridPos: { y, h } } }) => y + h));
  const style = `
    body { margin: 0; background: #111217; color: #ccccdc; font: 12px Inter, Roboto, "DejaVu Sans", sans-serif; }
    section { position: absolute; box-sizing: border-box; background: #181b1f; border: 1px solid #2c3235; border-radius: 3px; padding: 5px 6px; overflow: hidden; }
    h1 { font: 500 13px sans-serif; margin: 0 0 4px 4px; } h2 { position: absolute; font: 500 15px sans-serif; margin: 0; line-height: ${ROW}px; }
    .stat { position: absolute; inset: 26px 0 0 0; display: grid; place-items: center; font-size: 30px; color: #fff; }
    .none { position: absolute; inset: 26px 0 0 0; display: grid; place-items: center; color: #8e8e99; font-size: 15px; }
    .grid { stroke: #2c3235; } .tick { fill: #8e8e99; font-size: 11px; } svg { display: block; }
    footer { position: absolute; bottom: 5px; left: 10px; right: 6px; line-height: 17px; } footer span { margin-right: 12px; white-space: nowrap; }
    footer i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }`;
  const html = `<!doctype html><meta charset="utf-8"><style>${style}</style><body>${shown.map((each) => box(each, range)).join('')}`;
  return { html, width: 24 * COLUMN + GAP, height: bottom * ROW + GAP };
}
