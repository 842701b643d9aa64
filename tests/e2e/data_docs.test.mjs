// docs/DATA.md describes the fixtures. `make docs` writes it.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const fixtures = path.join(root, 'tests/fixtures');
const generations = readdirSync(fixtures).filter((name) => name.endsWith('.json')).sort()
  .map((name) => JSON.parse(readFileSync(path.join(fixtures, name), 'utf8')));

/** The longest line that the page shows without scrolling. */
const WIDTH = 110;

/** JSON in as few lines as possible. */
function json(value, indent = '', taken = 0) {
  const text = JSON.stringify(value, null, 1).replace(/\n */g, ' ');
  if (typeof value !== 'object' || value === null || indent.length + taken + text.length <= WIDTH) return text;
  const deeper = `${indent}  `;
  const lines = Array.isArray(value) ? value.map((item) => json(item, deeper))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${json(item, deeper, name.length + 5)}`);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  return `${open}\n${lines.map((line) => deeper + line).join(',\n')}\n${indent}${close}`;
}

const block = (value) => `\`\`\`json\n${json(value)}\n\`\`\``;
const code = (names) => names.map((name) => `\`${name}\``).join(', ');

/** A paragraph, wrapped to the page's width. */
const lines = (text, width = 140) => text.split(' ').reduce((all, word) => {
  if (all.length && all.at(-1).length + 1 + word.length <= width) all[all.length - 1] += ` ${word}`;
  else all.push(word);
  return all;
}, []).join('\n');
const details = (summary, ...content) => `<details><summary>${lines(summary)}</summary>\n\n${content.join('\n\n')}\n\n</details>`;

// ---- The differences between bodies ------------------------------------------------

/** The kind of a value: times are distinguished by their format, and `null` is of any kind. */
function kind(value) {
  if (value === null) return 'null';
  if (typeof value !== 'string') return typeof value;
  if (/^\d{13}\.\d{6}$/.test(value)) return 'time in milliseconds';
  return /^\d{4}-\d\d-\d\dT/.test(value) ? 'time in ISO 8601' : 'string';
}

/** Fields whose values say what an update is about: two of these differ if their values do. */
const TELLING = ['includedSections', 'updatedFields', 'uiTarget', 'version'];

/** The fields of a body: path and kind of each value in it. Fields of a list's items count once. */
function fields(value, at = [], found = new Map()) {
  if (TELLING.includes(at.at(-1))) found.set(at.join('.'), JSON.stringify(value));
  else if (Array.isArray(value) && value.length) value.forEach((item) => fields(item, [...at.slice(0, -1), `${at.at(-1)}[]`], found));
  else if (value !== null && typeof value === 'object' && Object.keys(value).length) {
    Object.entries(value).forEach(([name, item]) => fields(item, [...at, name], found));
  } else found.set(at.join('.'), kind(value));
  return found;
}

const alike = (one, other) => one === other || (one && other && [one, other].includes('null'));
const differing = (of, from) => [...of].filter(([path, is]) => !alike(is, from.get(path))).map(([path]) => path);

/** The part of `value` that is at one of `paths`. */
function part(value, paths, at = []) {
  if (paths.includes(at.join('.'))) return value;
  if (value === null || typeof value !== 'object') return undefined;
  if (Array.isArray(value)) {
    const items = value.map((item) => part(item, paths, [...at.slice(0, -1), `${at.at(-1)}[]`])).filter((item) => item !== undefined);
    return items.length ? items : undefined;
  }
  const kept = Object.entries(value).map(([name, item]) => [name, part(item, paths, [...at, name])]).filter(([, item]) => item !== undefined);
  return kept.length ? Object.fromEntries(kept) : undefined;
}

/** The highest paths that have nothing left in `rest`: `data.message` if all fields of the message are gone. */
function gone(paths, rest) {
  const left = [...rest.keys()];
  const highest = paths.map((path) => {
    const names = path.split('.');
    const top = names.findIndex((_, i) => !left.some((other) => `${other}.`.startsWith(`${names.slice(0, i + 1).join('.')}.`)));
    return names.slice(0, top + 1).join('.');
  });
  return [...new Set(highest)];
}

/** Bodies, each shown as its difference from the most similar one, if that is shorter than the whole. */
class Shown {
  #all = [];

  /** `value`, which is called `name`. */
  tell(name, value) {
    const has = fields(value);
    const nearest = this.#all.map((other) => {
      const added = differing(has, other.has);
      const missing = differing(other.has, has).filter((path) => !has.has(path));
      return { other, added, missing: gone(missing, has) };
    }).sort((a, b) => a.added.length + a.missing.length - b.added.length - b.missing.length)[0];
    const whole = block(value);
    const { other, added, missing } = nearest ?? {};
    this.#all.push({ name, has });
    if (!other) return [whole];
    const without = missing.length ? `, without ${code(missing)}` : '';
    const difference = [lines(`As ${other.name}${without}${added.length ? `${missing.length ? ',' : ''} with:` : '.'}`)];
    if (added.length) difference.push(block(part(value, added)));
    const size = (texts) => texts.join(' ').split(/\s+/).length;
    return size(difference) < 0.6 * size([whole]) ? difference : [whole];
  }
}

// ---- The page ------------------------------------------------------------------------

const INTRO = `# What is sent: a body of each generation and event

For developers of frontends: look up here which fields an update of your Chat3 has, and what the gateway makes of it.

The shapes are those of Chat3's source, the values are invented, and the newest generation comes first. A body that resembles an earlier one is
described by the difference: the fields that it lacks and the fields that it adds. Ids, texts, numbers, times and the event's name differ as well.
[PROTOCOL.md](PROTOCOL.md#events) says which update becomes which event, [ENVELOPE.md](ENVELOPE.md) what the envelopes are.
\`make docs\` writes this page from [tests/fixtures](../tests/fixtures/README.md), which the tests use.

## \`message:new\` in each envelope

The event's first argument, for a \`message.create\` of each generation. With \`auto\` it is the \`data\` of that body, which is shown below.`;

/** A generation's updates: those with the same key, events and shape together. */
function groups(updates) {
  const all = new Map();
  for (const update of updates) {
    const { routingKey, emits, sections, body } = update;
    const same = JSON.stringify([routingKey, emits, sections.emits, [...fields(body)].map(([path, is]) => (is === 'null' ? path : [path, is])).sort()]);
    all.set(same, [...(all.get(same) ?? []), update]);
  }
  return [...all.values()];
}

function page() {
  const parts = [INTRO];
  const newest = [...generations].reverse();
  for (const [envelope, argument] of [
    ['original', ({ body, original = body }) => original.data],
    ['sections', ({ sections }) => sections.body.data.message],
  ]) {
    const shown = new Shown();
    for (const { since, updates } of newest) {
      const update = updates.find(({ emits }) => emits.includes('message:new'));
      parts.push(details(`<code>${envelope}</code>, Chat3 since ${since}`, ...shown.tell(`since ${since}`, argument(update))));
    }
  }
  const shown = new Shown();
  for (const { since, bindingKeys, updates } of newest) {
    parts.push(`## Chat3 since ${since}`, `Binding key: ${code(bindingKeys)}`);
    for (const alike of groups(updates)) {
      const [{ name, routingKey, emits, body, sections }] = alike;
      const differs = emits.join() === sections.emits.join() ? '' : `; with \`sections\`: ${code(sections.emits)}`;
      const about = lines(`Routing key: \`${routingKey}\`; events: ${code(emits)}${differs}`);
      parts.push(details(alike.map((update) => `<code>${update.name}</code>`).join(', '), about, ...shown.tell(`\`${name}\` since ${since}`, body)));
    }
  }
  return `${parts.join('\n\n')}\n`;
}

test('docs/DATA.md describes the fixtures', () => {
  const file = path.join(root, 'docs/DATA.md');
  if (process.env.UPDATE_DOCS) writeFileSync(file, page());
  // Not assert.equal: a diff of thousands of lines would not help.
  assert.ok(readFileSync(file, 'utf8') === page(), 'docs/DATA.md is not what the fixtures hold: make docs');
});
