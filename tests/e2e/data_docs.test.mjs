// docs/DATA.md is what the fixtures hold. `make docs` writes it.

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

const INTRO = `# What is sent: a body of each generation and event

Recorded shapes of Chat3's updates, with invented values. \`make docs\` writes this page from [tests/fixtures](../tests/fixtures/README.md), on which
the tests run. [PROTOCOL.md](PROTOCOL.md#events) says which update becomes which event, [ENVELOPE.md](ENVELOPE.md) what the envelopes are.

## \`message:new\` in each envelope

The event's first argument, for a \`message.create\` of each generation.`;

function page() {
  const parts = [INTRO];
  for (const { since, updates } of generations) {
    const { body, original = body, sections } = updates.find(({ emits }) => emits.includes('message:new'));
    parts.push(
      details(`${since}, <code>auto</code>`, block(body.data)),
      details(`${since}, <code>original</code>`, block(original.data)),
      details(`${since}, <code>sections</code>`, block(sections.body.data.message)),
    );
  }
  for (const { since, bindingKeys, updates } of generations) {
    parts.push(`## Chat3 since ${since}`, `Binding key: ${code(bindingKeys)}`);
    for (const { name, routingKey, emits, body, sections } of updates) {
      const differs = emits.join() === sections.emits.join() ? '' : `; with \`sections\`: ${code(sections.emits)}`;
      const about = `Routing key: \`${routingKey}\`; events: ${code(emits)}${differs}`;
      parts.push(details(`<code>${name}</code>`, about, block(body)));
    }
  }
  return `${parts.join('\n\n')}\n`;
}

test('docs/DATA.md is what the fixtures hold', () => {
  const file = path.join(root, 'docs/DATA.md');
  if (process.env.UPDATE_DOCS) writeFileSync(file, page());
  // Not by assert.equal: a difference of thousands of lines helps nobody.
  assert.ok(readFileSync(file, 'utf8') === page(), 'docs/DATA.md is not what the fixtures hold: make docs');
});
