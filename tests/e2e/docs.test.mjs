// Every relative link of the documentation leads somewhere, anchors included.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { Gateway, temporaryFolder, testsFolder } from './harness.mjs';

const root = join(testsFolder, '..');
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

/** Runs a command of the repository with `stubs` (names and shell scripts) in place of the programs of these names. */
async function withStubs(stubs, command, args, env = {}) {
  const folder = temporaryFolder();
  for (const [name, script] of Object.entries(stubs)) writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const options = { cwd: root, env: { PATH: `${folder}:${process.env.PATH}`, ...env } };
  return promisify(execFile)(command, args, options).then(({ stdout }) => ({ code: 0, stdout }), ({ code, stdout, stderr }) => ({ code, stdout, stderr }));
}

test('the gate runs what is behind a part that fails, then says which failed, and counts', async () => {
  const cargo = `
    case "$1" in
      fmt) exit 1 ;;
      clippy) echo "test result: FAILED. 3 passed; 2 failed; 0 ignored"; exit 101 ;;
      doc) printf '# pass 5\\n# fail 0\\n# cancelled 1\\n' ;;
    esac`;
  const failing = await withStubs({ cargo }, 'make', ['test', 'parts=format clippy rustdoc']);
  assert.match(failing.stdout, /== format: .*3 passed; 2 failed.*# pass 5.*\nfailed: format clippy\n$/s);
  assert.notEqual(failing.code, 0);
  const counted = await withStubs({ cargo }, '.ci/run', [], { MAKEFLAGS: 'parts=clippy rustdoc'.replaceAll(' ', '\\ ') });
  assert.match(counted.stdout, /\nfailed: clippy\n.*\n8 passed, 3 failed\n$/s);
  assert.notEqual(counted.code, 0);
  const passing = await withStubs({ cargo }, 'make', ['test', 'parts=rustdoc']);
  assert.match(passing.stdout, /\nall parts passed\n$/);
  assert.equal(passing.code, 0);
});

test('a Node that is too old is named before anything is installed for it', async () => {
  const node = 'if [ "$1" = --version ]; then echo v12.22.9; else exec ' + process.execPath +
    ' -e "Object.defineProperty(process, \'versions\', { value: { node: \'12.22.9\' } }); $2"; fi';
  const { code, stderr } = await withStubs({ node }, 'make', ['npm']);
  assert.match(stderr, /^Node v12\.22\.9 is too old: 18\.19 or later is needed$/m);
  assert.notEqual(code, 0);
  assert.equal((await withStubs({}, 'make', ['npm'])).code, 0);
});
