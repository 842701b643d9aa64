// A user's event log: rows with payloads, latency, filters, counters.

import { copyText, element, part } from './dom.js';

const EVENTS = ['chat3:update', 'message:new', 'message:update', 'dialog:update'];
const PARTS = { 'message:new': 'message.create', 'typing:update': 'dialog.typing' }; // of which event they carry a part
const MAX_ROWS = 500;
const MAX_REMEMBERED = 1000;
const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3 });

const sentAt = new Map();   // update id -> performance.now() at the moment this page's POST left
const awaiting = new Map(); // update id -> latency cells drawn before the answer to that POST named the id
const entries = new WeakMap(); // row -> what it shows, for the filter and for copying

const idOf = (update) => update?._id ?? update?.eventId; // today's Chat3 has no _id

function eventTypeOf(update) {
  return update?.eventType || update?.sourceEventType || update?.data?.context?.eventType || '';
}

// A Map keeps insertion order, so the first key is the oldest.
function trimOldest(map) {
  while (map.size > MAX_REMEMBERED) map.delete(map.keys().next().value);
}

export function formatMs(ms) {
  if (ms >= 10000) return `${Math.round(ms / 1000)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

// ISO in the first generation, milliseconds as text today.
function publishedAt(update) {
  const text = update.publishedAt ?? update.createdAt;
  return Number.isNaN(Number(text)) ? Date.parse(text) : Number(text);
}

function showMeasured(pane, cell, ms) {
  cell.textContent = formatMs(ms);
  cell.title = 'From this page’s POST to the arrival here';
  if (!cell.dataset.counts) return;
  pane.latencies.push(ms);
  if (pane.latencies.length > MAX_REMEMBERED) pane.latencies.shift();
  const sorted = pane.latencies.toSorted((a, b) => a - b);
  part(pane, 'latency').textContent = `${formatMs(ms)} · median ${formatMs(sorted[sorted.length >> 1])} · worst ${formatMs(sorted.at(-1))}`;
}

function showLatency(pane, cell, update) {
  if (!update) return;
  const arrived = performance.now();
  const id = idOf(update);
  if (sentAt.has(id)) return showMeasured(pane, cell, arrived - sentAt.get(id));
  const age = Date.now() - publishedAt(update);
  if (age >= 0) { // neither NaN nor a clock that runs ahead of this one
    cell.textContent = `~${formatMs(age)}`;
    cell.title = 'From the update’s own time to the arrival here, by two clocks';
  }
  if (!id) return;
  // The socket is often faster than the HTTP answer that tells us this update's id: correct the cell then.
  awaiting.set(id, (awaiting.get(id) || []).concat({ pane, cell, arrived }));
  trimOldest(awaiting);
}

export function rememberSent(update, started) {
  const id = idOf(update);
  if (!id) return;
  sentAt.set(id, started);
  trimOldest(sentAt);
  for (const { pane, cell, arrived } of awaiting.get(id) || []) showMeasured(pane, cell, arrived - started);
  awaiting.delete(id);
}

// Formatted on first opening only: a burst of large messages must not cost 500 pretty-prints nobody reads.
function fillPayload(details, payload) {
  if (!details.open || details.querySelector('pre')) return;
  const text = element('pre', '', JSON.stringify(payload, null, 2));
  const copy = element('button', 'quiet copy', 'Copy');
  copy.type = 'button';
  copy.addEventListener('click', () => copyText(copy, text.textContent));
  text.tabIndex = 0;
  details.append(copy, text);
}

function tagOf(name) {
  const tag = element('span', 'tag', name);
  tag.dataset.name = name;
  return tag;
}

export function addRow(pane, name, type, payload, update) {
  const now = new Date();
  const row = element('li');
  const details = element('details');
  const summary = element('summary');
  const time = element('time', '', CLOCK.format(now));
  const latency = element('span', 'latency');
  const label = element('span', 'type', type);
  row.dataset.event = name;
  row.dataset.type = type;
  time.dateTime = now.toISOString();
  label.title = type;
  // Published before this connection was there and yet received: replayed.
  const replayed = Boolean(update) && pane.recoveredAt > 0 && publishedAt(update) < pane.recoveredAt;
  if (replayed) {
    row.dataset.replayed = '';
    const mark = element('span', 'mark', '↻');
    mark.append(element('span', '', ' replayed'));
    mark.title = 'Missed while away, delivered on return';
    label.append(' ', mark);
  } else if (name === 'chat3:update') latency.dataset.counts = 'yes';
  showLatency(pane, latency, update);
  summary.append(time, tagOf(name), label, latency);
  details.append(summary);
  details.addEventListener('toggle', () => fillPayload(details, payload));
  row.append(details);
  entries.set(row, { at: now.toISOString(), event: name, type, replayed, payload });
  filterRow(pane, row);
  pane.log.prepend(row);
  while (pane.log.children.length > MAX_ROWS) pane.log.lastElementChild.remove();
  return replayed;
}

// A counter is a switch as well: pressed, its events are shown.
function addCounter(pane, name) {
  const number = element('span', '', '0');
  const counter = element('button', 'counter');
  counter.type = 'button';
  counter.dataset.filter = name;
  counter.title = `Show or hide ${name}`;
  counter.setAttribute('aria-pressed', 'true');
  number.dataset.count = name;
  counter.append(tagOf(name), ' ', number);
  counter.addEventListener('click', () => {
    const hide = !pane.hidden.delete(name);
    if (hide) pane.hidden.add(name);
    counter.setAttribute('aria-pressed', String(!hide));
    filterAll(pane);
  });
  part(pane, 'counts').append(counter);
  pane.counters.set(name, number);
}

function filterRow(pane, row) {
  const entry = entries.get(row);
  const wanted = part(pane, 'filter').value.trim().toLowerCase();
  row.hidden = pane.hidden.has(entry.event)
    || (wanted !== '' && !`${entry.event} ${entry.type} ${JSON.stringify(entry.payload)}`.toLowerCase().includes(wanted));
}

function filterAll(pane) {
  for (const row of pane.log.children) filterRow(pane, row);
}

function copyLog(pane, button) {
  const shown = [...pane.log.children].filter((row) => !row.hidden).reverse();
  copyText(button, JSON.stringify(shown.map((row) => entries.get(row)), null, 2));
}

function clearLog(pane) {
  pane.log.replaceChildren();
  pane.latencies.length = 0;
  part(pane, 'latency').textContent = 'none measured yet';
  for (const number of pane.counters.values()) number.textContent = '0';
}

export function bindLog(pane) {
  EVENTS.forEach((name) => addCounter(pane, name));
  part(pane, 'filter').addEventListener('input', () => filterAll(pane));
  part(pane, 'copy-log').addEventListener('click', (event) => copyLog(pane, event.currentTarget));
  part(pane, 'clear').addEventListener('click', () => clearLog(pane));
}

// message:new and typing:update carry a part only; the whole update came right before, and its times serve both rows.
function updateBehind(pane, name, payload) {
  const whole = pane.lastUpdate;
  if (name === 'typing:update') return whole;
  if (name !== 'message:new') return payload;
  return whole && eventTypeOf(whole) === 'message.create' && whole.data?._id === payload?._id ? whole : null;
}

export function onEvent(pane, name, payload) {
  if (name === 'chat3:update') pane.lastUpdate = payload;
  // Only with CHAT3_ENVELOPE=sections.
  if (name === 'typing:update' && !pane.counters.has(name)) addCounter(pane, name);
  const number = pane.counters.get(name);
  if (number) number.textContent = String(Number(number.textContent) + 1);
  const type = PARTS[name] ?? (eventTypeOf(payload) || payload?.expiresAt || payload?.reason || '');
  const replayed = addRow(pane, name, type, payload, updateBehind(pane, name, payload));
  if (replayed && name === 'chat3:update') {
    pane.replayed += 1;
    part(pane, 'recovered').textContent = `${pane.replayed} replayed`;
    part(pane, 'recovered').hidden = false;
  }
}

