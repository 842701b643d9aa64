// docs/DATA.md and its mirror are what the fixtures hold. `make docs` writes them.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const fixtures = path.join(root, 'tests/fixtures');
const generations = readdirSync(fixtures).filter((name) => name.endsWith('.json')).sort()
  .map((name) => JSON.parse(readFileSync(path.join(fixtures, name), 'utf8')));

/** The longest line, which a page of this width still shows. */
const WIDTH = 110;

/** JSON in as few lines as fit. */
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
const details = (summary, ...content) => `<details><summary>${summary}</summary>\n\n${content.join('\n\n')}\n\n</details>`;
const code = (names) => names.map((name) => `\`${name}\``).join(', ');

const languages = {
  'docs/DATA.md': {
    title: 'What is sent: a body of each generation and event',
    other: '[Русская версия](ru/DATA.md)',
    intro: [
      'Recorded shapes of Chat3\'s updates, with invented values. `make docs` writes this page from [tests/fixtures](../tests/fixtures/README.md), on which',
      'the tests run. [PROTOCOL.md](PROTOCOL.md#events) says which update becomes which event, [ENVELOPE.md](ENVELOPE.md) what the envelopes are.',
    ],
    news: '`message:new` in each envelope',
    newsIntro: 'The event\'s first argument, for a `message.create` of each generation.',
    generation: (since) => `Chat3 since ${since}`,
    bound: 'Binding key',
    key: 'Routing key',
    emits: 'events',
    inSections: 'with `sections`',
  },
  'docs/ru/DATA.md': {
    title: 'Что посылается: тело каждого поколения и события',
    other: '[English](../DATA.md)',
    intro: [
      'Записанный вид обновлений Chat3, значения вымышлены. Страницу пишет `make docs` из [tests/fixtures](../../tests/fixtures/README.md), на которых',
      'работают тесты. В какое событие превращается обновление, говорит [PROTOCOL.md](PROTOCOL.md#события); что такое виды — [ENVELOPE.md](ENVELOPE.md).',
    ],
    news: '`message:new` в каждом виде',
    newsIntro: 'Первый аргумент события для `message.create` каждого поколения.',
    generation: (since) => `Chat3 с ${since}`,
    bound: 'Ключ привязки',
    key: 'Ключ маршрутизации',
    emits: 'события',
    inSections: 'с `sections`',
  },
};

function page(words) {
  const parts = [`# ${words.title}`, words.other, words.intro.join('\n'), `## ${words.news}`, words.newsIntro];
  for (const { since, updates } of generations) {
    const { body, original = body, sections } = updates.find(({ emits }) => emits.includes('message:new'));
    parts.push(
      details(`${since}, <code>auto</code>`, block(body.data)),
      details(`${since}, <code>original</code>`, block(original.data)),
      details(`${since}, <code>sections</code>`, block(sections.body.data.message)),
    );
  }
  for (const { since, bindingKeys, updates } of generations) {
    parts.push(`## ${words.generation(since)}`, `${words.bound}: ${code(bindingKeys)}`);
    for (const { name, routingKey, emits, body, sections } of updates) {
      const differs = emits.join() === sections.emits.join() ? '' : `; ${words.inSections}: ${code(sections.emits)}`;
      const about = `${words.key}: \`${routingKey}\`; ${words.emits}: ${code(emits)}${differs}`;
      parts.push(details(`<code>${name}</code>`, about, block(body)));
    }
  }
  return `${parts.join('\n\n')}\n`;
}

for (const [name, words] of Object.entries(languages)) {
  test(`${name} is what the fixtures hold`, () => {
    const file = path.join(root, name);
    if (process.env.UPDATE_DOCS) writeFileSync(file, page(words));
    // Not by assert.equal: a difference of thousands of lines helps nobody.
    assert.ok(readFileSync(file, 'utf8') === page(words), `${name} is not what the fixtures hold: make docs`);
  });
}
