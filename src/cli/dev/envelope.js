// The envelope: which one the gateway sends in, and what the update in the form becomes in each.

import { byId, element, postJson } from './dom.js';

const ENVELOPES = ['auto', 'sections', 'original'];
const TYPING_PAUSE_MS = 200; // no request for every keystroke
const RESTART_MS = 15000;
const hint = byId('compare-hint');
const hintText = [...hint.childNodes];

let used = 'auto'; // what the gateway sends in
let comparison = null;
let request = null;
let timer;
let turn = 0; // answers that come late are of no interest

function fillColumns() {
  const lines = (payload) => JSON.stringify(payload, null, 2).split('\n');
  const known = new Set(comparison.auto.flatMap(({ payload }) => lines(payload)).map(bare));
  byId('compare-columns').replaceChildren(...ENVELOPES.map((envelope) => column(envelope, comparison[envelope], lines, known)));
}

// A line without what its neighbours decide: indent and comma.
function bare(line) {
  return line.trim().replace(/,$/, '');
}

function column(envelope, events, lines, known) {
  const root = element('section', 'column');
  const head = element('div', 'row');
  root.dataset.envelope = envelope;
  head.append(element('h3', 'mono', envelope));
  if (envelope === used) head.append(element('span', 'tag push', 'in use'));
  else {
    const use = element('button', 'quiet push', 'Use');
    use.type = 'button';
    use.title = `Restarts this gateway with CHAT3_ENVELOPE=${envelope}`;
    use.addEventListener('click', () => switchTo(envelope));
    head.append(use);
  }
  root.append(head);
  events.forEach(({ event, payload }, i) => {
    const tag = element('span', 'tag', event);
    tag.dataset.name = event;
    const title = element('p', 'row');
    title.append(tag);
    root.append(title);
    if (i > 0 && JSON.stringify(payload) === JSON.stringify(events[0].payload)) {
      return title.append(element('span', 'muted small', `the same payload as ${events[0].event}`));
    }
    const text = element('pre', 'code');
    text.tabIndex = 0;
    text.setAttribute('aria-label', `${event} with ${envelope}`);
    for (const line of lines(payload)) {
      const indent = line.slice(0, line.length - line.trimStart().length);
      text.append(indent, known.has(bare(line)) ? line.trimStart() : element('mark', '', line.trimStart()), '\n');
    }
    root.append(text);
  });
  if (events.length === 1) root.append(element('p', 'muted small', 'No other event.'));
  return root;
}

function showTabs(shown) {
  byId('compare-columns').dataset.shown = shown;
  for (const tab of byId('compare-tabs').children) tab.setAttribute('aria-pressed', String(tab.textContent === shown));
}

function showUsed(envelope) {
  used = envelope;
  byId('envelope').value = envelope;
  showTabs(envelope);
  if (comparison) fillColumns();
}

async function ask() {
  const asked = ++turn;
  try {
    const answer = await postJson('/dev/comparisons', request);
    if (asked !== turn) return;
    comparison = answer;
    hint.replaceChildren(...hintText);
    fillColumns();
  } catch (error) {
    if (asked === turn) hint.textContent = error.message;
  }
}

// Shows what `next`, a request to publish, would become; null leaves what is shown.
export function compare(next) {
  if (!next || JSON.stringify(next) === JSON.stringify(request)) return;
  request = next;
  clearTimeout(timer);
  timer = setTimeout(ask, TYPING_PAUSE_MS);
}

async function envelopeUsed() {
  const response = await fetch('/dev/envelope');
  return (await response.json()).envelope;
}

// The next gateway has the same port; until it listens, nobody answers.
async function switchTo(envelope) {
  const select = byId('envelope');
  select.value = envelope;
  select.disabled = true;
  try {
    await postJson('/dev/envelope', { envelope }, 'PUT');
    for (const end = Date.now() + RESTART_MS; Date.now() < end && used !== envelope;) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      used = await envelopeUsed().catch(() => used);
    }
  } catch (error) {
    hint.textContent = error.message;
  }
  select.disabled = false;
  showUsed(used);
}

export function bindEnvelope() {
  byId('compare-tabs').append(...ENVELOPES.map((envelope) => {
    const tab = element('button', 'tab', envelope);
    tab.type = 'button';
    tab.addEventListener('click', () => showTabs(envelope));
    return tab;
  }));
  byId('envelope').addEventListener('change', (event) => switchTo(event.currentTarget.value));
  showTabs(used);
  envelopeUsed().then(showUsed, () => {});
}
