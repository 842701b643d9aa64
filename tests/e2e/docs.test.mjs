// Every relative link of the documentation leads somewhere, anchors included.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { Gateway } from './harness.mjs';

const root = join(import.meta.dirname, '../..');
const pages = execFileSync('git', ['ls-files', '*.md'], { cwd: root, encoding: 'utf8' }).trim().split('\n');
const prose = (page) => readFileSync(join(root, page), 'utf8').replace(/^```[\s\S]*?^```/gm, '');

/** The anchors that GitHub makes of a page's headings. */
function anchors(page) {
  const headings = [...prose(page).matchAll(/^#+ (.*)$/gm)];
  return headings.map(([, text]) => text.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-'));
}

test('relative links and anchors resolve', () => {
  assert.ok(pages.length > 10);
  const broken = [];
  for (const page of pages) {
    for (const [, link] of prose(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue;
      const [path, anchor] = link.split('#');
      const target = path ? join(dirname(page), path) : page;
      const found = existsSync(join(root, target)) && (!anchor || anchors(target).includes(decodeURIComponent(anchor)));
      if (!found) broken.push(`${page}: ${link}`);
    }
  }
  assert.deepEqual(broken, []);
});

test('the commands of the first hour work, in both languages', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'] });
  for (const page of ['docs/GETTING_STARTED.md', 'docs/ru/GETTING_STARTED.md']) {
    const [, commands] = readFileSync(join(root, page), 'utf8').match(/^```sh\n([\s\S]*?)^```/m);
    const script = commands.replaceAll('http://localhost:3001', gateway.url).replaceAll('curl ', 'curl -sf ');
    const { stdout } = await promisify(execFile)('bash', ['-e', '-c', script]);
    assert.match(stdout, /"token":"eyJ/);
    assert.match(stdout, /"routingKey":"user\.usr_bob\.messageupdate"/);
  }
});
