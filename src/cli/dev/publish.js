// The form that publishes. What can be published, and its sample data, the gateway says.

import { byId, curlOf, element, part, postJson, show } from './dom.js';
import { compare } from './envelope.js';
import { formatMs, rememberSent } from './log.js';
import { identity, identityOf } from './users.js';

const drafts = new Map(); // generation and type -> edited JSON, so that switching never loses an edit
let templates = { documented: [] };
let published = Promise.resolve(); // what was pressed so far
let panes;

const generation = () => byId('publish-generation').value;
const templatesNow = () => templates[generation()] || [];
const draftKey = () => `${generation()} ${byId('publish-type').value}`;
const sampleOf = (type) => templatesNow().find((template) => template.eventType === type)?.data;

function groupOf(type) {
  if (generation() === 'original' && !templates.documented.includes(type)) return 'Not documented';
  const family = type.split('.')[0];
  return family[0].toUpperCase() + family.slice(1);
}

function buildTypeSelect() {
  const types = templatesNow().map((template) => template.eventType);
  const select = byId('publish-type');
  const chosen = select.value;
  const groups = Object.groupBy(types, groupOf);
  select.replaceChildren(...Object.entries(groups).map(([label, names]) => {
    const group = element('optgroup');
    group.label = label;
    group.append(...names.map((name) => new Option(name, name)));
    return group;
  }), new Option('other…', 'other'));
  select.value = types.includes(chosen) || chosen === 'other' ? chosen : (types[0] ?? 'other');
  showOther('publish-type');
}

export function showRecipients() {
  for (const key of ['a', 'b']) {
    const option = byId('publish-to').querySelector(`[value="${key}"]`);
    const { userId } = identityOf(panes[key]);
    option.textContent = `User ${key.toUpperCase()}: ${userId || '(no id)'}`;
    part(panes[key], 'name').textContent = userId;
  }
  checkData();
}

function recipients() {
  const to = byId('publish-to').value;
  if (to === 'other') return [identity(byId('publish-user'), byId('publish-tenant'))];
  return to === 'both' ? Object.values(panes).map(identityOf) : [identityOf(panes[to])];
}

function chosenType() {
  const type = byId('publish-type').value;
  return type === 'other' ? byId('publish-type-name').value.trim() : type;
}

function prefillData() {
  const sample = sampleOf(chosenType()) || {};
  byId('publish-data').value = drafts.get(draftKey()) ?? JSON.stringify(sample, null, 2);
  byId('publish-reset').disabled = !drafts.has(draftKey());
  checkData();
}

// Returns { data } or { error }. No text at all means no data field: the gateway then fills in its own.
function parseData() {
  const text = byId('publish-data').value.trim();
  if (!text) return { data: undefined };
  try {
    const data = JSON.parse(text);
    const isObject = data !== null && typeof data === 'object' && !Array.isArray(data);
    return isObject ? { data } : { error: 'data must be a JSON object: { … }' };
  } catch (error) {
    return { error: `Not valid JSON. ${error.message}` };
  }
}

function requestFor(to, eventType, data) {
  return generation() === 'current' ? { ...to, eventType, data } : { ...to, generation: generation(), eventType, data };
}

// Says what is wrong right under the text, which is left as it is, and keeps the curl command in step with it.
function checkData() {
  const { data, error } = parseData();
  const requests = recipients().map((to) => requestFor(to, chosenType(), data));
  byId('publish-data').setAttribute('aria-invalid', String(Boolean(error)));
  show(byId('publish-data-error'), error || '');
  byId('publish-curl').textContent = error ? '# The JSON above has to be valid first.' : requests.map((request) => curlOf('/dev/updates', request)).join('\n');
  compare(error ? null : requests[0]);
  return error ? null : requests;
}

function showResult(state, headline, detail) {
  byId('publish-result').dataset.state = state;
  byId('publish-result').replaceChildren(element('strong', '', headline), ' ', detail);
}

function showPublished(answers, headline) {
  const { routingKey, queues } = answers.at(-1);
  const missed = answers.filter((answer) => !answer.queues).length;
  const routed = queues === 1 ? '1 queue' : `${queues} queues`;
  const offline = answers.length === 1 ? 'the user is not online, nobody received it' : `${missed} of them found the user offline and reached nobody`;
  showResult(missed ? 'warn' : 'ok', headline, `Key ${routingKey} → ${routed}${missed ? `; ${offline}` : ''}`);
}

// A press waits for the ones before it: none is lost, and the order in the log is the order of the presses.
function sendAll(requests) {
  published = published.then(() => send(requests));
}

async function send(requests) {
  const begun = performance.now();
  const names = [...new Set(requests.map((request) => request.userId))];
  const answers = [];
  try {
    for (const request of requests) {
      const started = performance.now();
      const answer = await postJson('/dev/updates', request);
      rememberSent(answer.update, started);
      answers.push(answer);
    }
    const took = formatMs(performance.now() - begun);
    showPublished(answers, answers.length === names.length ? `Published to ${names.join(' and ')}` : `Published ${answers.length} updates in ${took}`);
  } catch (error) {
    showResult('error', requests.length === 1 ? 'Not published' : `Stopped after ${answers.length} of ${requests.length}`, error.message);
  }
}

// The browser's own validation covers the required fields; the JSON is ours to check.
function publishTimes(count) {
  if (!byId('publish-form').reportValidity()) return;
  const requests = checkData();
  if (requests) return sendAll(Array(count).fill(requests).flat());
  byId('publish-data').closest('details').open = true;
  byId('publish-data').focus();
}

// Always the samples, whatever is in the editor: this button shows the whole contract at a glance.
function publishEach() {
  if (!byId('publish-form').reportValidity()) return;
  const shown = templatesNow().filter(({ eventType }) => generation() !== 'original' || templates.documented.includes(eventType));
  sendAll(shown.flatMap(({ eventType, data }) => recipients().map((to) => requestFor(to, eventType, data))));
}

export async function loadTemplates() {
  try {
    const response = await fetch('/dev/templates');
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    templates = await response.json();
  } catch (error) {
    showResult('warn', 'The samples could not be loaded', `${error.message}. Type the body of data yourself.`);
  }
  buildTypeSelect();
  prefillData();
}

// Disabled and not only hidden: a hidden required field would block the form without saying why.
function showOther(selectId) {
  const other = byId(`${selectId}-other`);
  other.hidden = other.disabled = byId(selectId).value !== 'other';
}

function onDataInput() {
  drafts.set(draftKey(), byId('publish-data').value);
  byId('publish-reset').disabled = false;
  checkData();
}

function resetData() {
  drafts.delete(draftKey());
  prefillData();
  byId('publish-data').focus(); // this button is now disabled and would lose the focus
}

export function bindPublishForm(bothPanes) {
  panes = bothPanes;
  for (const pane of Object.values(panes)) part(pane, 'identity').addEventListener('input', showRecipients);
  byId('publish-generation').addEventListener('change', () => { buildTypeSelect(); prefillData(); });
  byId('publish-form').addEventListener('submit', (event) => {
    event.preventDefault();
    publishTimes(1);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    publishTimes(1);
  });
  byId('publish-data').addEventListener('input', onDataInput);
  byId('publish-to').addEventListener('change', () => { showOther('publish-to'); checkData(); });
  byId('publish-to-other').addEventListener('input', checkData);
  byId('publish-type').addEventListener('change', () => { showOther('publish-type'); prefillData(); });
  byId('publish-type-name').addEventListener('input', prefillData);
  byId('publish-reset').addEventListener('click', resetData);
  byId('publish-all').addEventListener('click', publishEach);
  byId('publish-burst').addEventListener('click', () => publishTimes(byId('publish-burst-count').valueAsNumber));
}

