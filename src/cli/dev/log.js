// A user's event log: rows with texts and payloads, latency, filters, counters.

import { copyText, element, part } from './dom.js';
import { eventTypeOf, idOf, publishedAt, textOf } from './updates.js';

const WHOLE = 'chat3:update';
const SPECIALISED = ['message:new', 'message:update', 'dialog:update'];
const RARE = 'typing:update'; // only with CHAT3_ENVELOPE=sections
const MAX_ROWS = 500;
const MAX_REMEMBERED = 1000;
const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3 });

const sentAt = new Map();   // update id -> performance.now() at the moment this page's POST left
const awaiting = new Map(); // update id -> latency cells drawn before the answer to that POST named the id
const entries = new WeakMap(); // row -> what it shows, for the filter and for copying: its time, type, and events with payloads

// A Map keeps insertion order, so the first key is the oldest.
function trimOldest(map) {
  while (map.size > MAX_REMEMBERED) map.delete(map.keys().next().value);
}

export function formatMs(ms) {
  if (ms >= 10000) return `${Math.round(ms / 1000)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
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
function fillPayload(details, entry) {
  if (!details.open || details.querySelector('pre')) return;
  const texts = entry.events.map(({ payload }) => JSON.stringify(payload, null, 2));
  entry.events.forEach(({ event }, i) => {
    const head = element('div', 'row');
    head.append(tagOf(event));
    if (i > 0 && texts[i] === texts[0]) {
      head.append(element('span', 'muted small', `the same payload as ${entry.events[0].event}`));
      return details.append(head);
    }
    const text = element('pre', '', texts[i]);
    const copy = element('button', 'quiet push', 'Copy');
    copy.type = 'button';
    copy.addEventListener('click', () => copyText(copy, text.textContent));
    text.tabIndex = 0;
    head.append(copy);
    details.append(head, text);
  });
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
  const tags = element('span', 'tags');
  const latency = element('span', 'latency');
  const about = element('span', 'about');
  const text = textOf(update);
  row.dataset.events = name;
  row.dataset.type = type;
  time.dateTime = now.toISOString();
  tags.append(tagOf(name));
  about.append(element('span', 'type', type));
  if (text) about.append(' ', element('span', 'text', text));
  about.title = [type, text].filter(Boolean).join(': ');
  // Published before this connection was there and yet received: replayed.
  const replayed = Boolean(update) && pane.recoveredAt > 0 && publishedAt(update) < pane.recoveredAt;
  if (replayed) {
    row.dataset.replayed = '';
    const mark = element('span', 'mark', '↻ replayed');
    mark.title = 'Missed while away, delivered on return';
    about.prepend(mark, ' ');
  } else if (name === WHOLE) latency.dataset.counts = 'yes';
  showLatency(pane, latency, update);
  summary.append(time, tags, latency, about);
  details.append(summary);
  const entry = { at: now.toISOString(), type, replayed, kind: name, events: [{ event: name, payload }] };
  details.addEventListener('toggle', () => fillPayload(details, entry));
  row.append(details);
  entries.set(row, entry);
  filterRow(pane, row);
  pane.log.prepend(row);
  while (pane.log.children.length > MAX_ROWS) pane.log.lastElementChild.remove();
  pane.unfolded = name === WHOLE ? row : null;
  return replayed;
}

// An update's own event comes right behind its chat3:update, and shares its row.
function fold(pane, name, payload) {
  const row = pane.unfolded;
  if (!row) return false;
  const entry = entries.get(row);
  pane.unfolded = null;
  entry.kind = name;
  entry.events.push({ event: name, payload });
  row.dataset.events += ` ${name}`;
  row.querySelector('.tags').append(tagOf(name));
  const details = row.firstElementChild;
  if (details.open) { // already read, with one event
    while (details.lastElementChild.tagName !== 'SUMMARY') details.lastElementChild.remove();
    fillPayload(details, entry);
  }
  filterRow(pane, row);
  return true;
}

// A counter is a switch as well: pressed, the updates that have this event are shown. That of chat3:update is for those
// that have no other.
function addCounter(pane, name) {
  const number = element('span', '', '0');
  const counter = element('button', 'counter');
  counter.type = 'button';
  counter.dataset.filter = name;
  counter.title = name === WHOLE ? 'Every update; shows or hides those without another event' : `Shows or hides updates with ${name}`;
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
  row.hidden = pane.hidden.has(entry.kind) || (wanted !== '' && !JSON.stringify([entry.type, entry.events]).toLowerCase().includes(wanted));
}

function filterAll(pane) {
  for (const row of pane.log.children) filterRow(pane, row);
}

function copyLog(pane, button) {
  const shown = [...pane.log.children].filter((row) => !row.hidden).reverse();
  const events = shown.flatMap((row) => {
    const { at, type, replayed, events } = entries.get(row);
    return events.map(({ event, payload }) => ({ at, event, type, replayed, payload }));
  });
  copyText(button, JSON.stringify(events, null, 2));
}

function clearLog(pane) {
  pane.log.replaceChildren();
  pane.unfolded = null;
  pane.latencies.length = 0;
  part(pane, 'latency').textContent = 'none measured yet';
  for (const number of pane.counters.values()) number.textContent = '0';
}

export function bindLog(pane) {
  [WHOLE, ...SPECIALISED].forEach((name) => addCounter(pane, name));
  part(pane, 'filter').addEventListener('input', () => filterAll(pane));
  part(pane, 'copy-log').addEventListener('click', (event) => copyLog(pane, event.currentTarget));
  part(pane, 'clear').addEventListener('click', () => clearLog(pane));
}

export function onEvent(pane, name, payload) {
  if (name === RARE && !pane.counters.has(name)) addCounter(pane, name);
  const number = pane.counters.get(name);
  if (number) number.textContent = String(Number(number.textContent) + 1);
  const isSpecialised = name === RARE || SPECIALISED.includes(name);
  if (isSpecialised && fold(pane, name, payload)) return;
  const type = eventTypeOf(payload) || payload?.expiresAt || payload?.reason || '';
  const replayed = addRow(pane, name, type, payload, name === WHOLE ? payload : undefined);
  if (!replayed) return;
  pane.replayed += 1;
  part(pane, 'recovered').textContent = `${pane.replayed} replayed`;
  part(pane, 'recovered').hidden = false;
}
