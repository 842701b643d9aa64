// The documentation is true (see also drift.test.mjs): commands work, snippets are safe to paste, and the gate does what it promises.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, test } from 'node:test';
import { promisify } from 'node:util';

import { io } from 'socket.io-client';

import { Gateway, SECRET, temporaryFolder, testsFolder, token, until } from './harness.mjs';

const root = join(testsFolder, '..');
const pages = execFileSync('git', ['ls-files', '*.md'], { cwd: root, encoding: 'utf8' }).trim().split('\n');

/** The text of every source file. */
const sources = () => execFileSync('git', ['ls-files', 'src/*.rs'], { cwd: root, encoding: 'utf8' }).trim().split('\n')
  .map((file) => readFileSync(join(root, file), 'utf8')).join('\n').replace(/\\\n\s*/g, '');

for (const page of ['docs/OPERATIONS.md', 'docs/ru/OPERATIONS.md']) {
  test(`the log lines in ${page} are those of the code`, () => {
    const [, logs] = readFileSync(join(root, page), 'utf8').match(/^## (?:Logs|Журнал)\n([\s\S]*?)^## /m);
    const code = sources();
    const rows = [...logs.matchAll(/^\| (`.*?) \|/gm)].map(([, texts]) => texts);
    const texts = rows.flatMap((row) => [...row.matchAll(/`([^`]+)`/g)].map(([, text]) => text));
    assert.ok(texts.length > 25);
    assert.deepEqual(texts.filter((text) => !code.includes(text)), []);
    // The lines shown come from the modules that they name.
    const lines = [...logs.matchAll(/ chat3_gateway((?:::\w+)+): (\S+(?: [a-zA-Z]+(?!\S))*)/g)];
    assert.ok(lines.length >= 4);
    const wrong = lines.filter(([, target, text]) => {
      const file = join(root, `src/${target.slice(2).replaceAll('::', '/')}.rs`);
      return !existsSync(file) || !readFileSync(file, 'utf8').includes(`"${text}"`);
    });
    assert.deepEqual(wrong.map(([line]) => line), []);
  });
}

test('the commands of the first hour work, in both languages', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'] });
  for (const page of ['docs/GETTING_STARTED.md', 'docs/ru/GETTING_STARTED.md']) {
    const [, commands] = readFileSync(join(root, page), 'utf8').match(/^```sh\n([\s\S]*?)^```/m);
    const script = commands.replaceAll('http://localhost:3001', gateway.url).replaceAll('curl ', 'curl -sf ');
    const { stdout } = await promisify(execFile)('bash', ['-e', '-c', script]);
    assert.match(stdout, /"token":"eyJ/);
    assert.match(stdout, /"routingKey":"update\.dialog\.tnt_default\.user\.usr_bob\.message"/);
  }
});

/** Runs a command of the repository with `stubs` (names and shell scripts) in place of the programs of these names. */
async function withStubs(stubs, command, args, env = {}) {
  const folder = temporaryFolder();
  for (const [name, script] of Object.entries(stubs)) writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const options = { cwd: root, env: { PATH: `${folder}:${process.env.PATH}`, ...env } };
  return promisify(execFile)(command, args, options).then(({ stdout }) => ({ code: 0, stdout }), ({ code, stdout, stderr }) => ({ code, stdout, stderr }));
}

test('the gate runs the parts after one that fails, then says which failed, and counts', async () => {
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

// ---- Snippets that connect ---------------------------------------------------------

/** The fenced blocks of JavaScript in a page. */
const snippets = (page) => [...readFileSync(join(root, page), 'utf8').matchAll(/^```jsx?\n([\s\S]*?)^```/gm)].map(([, code]) => code);

/** The snippets that make a socket, by page, and those that handle its refusal. */
const connecting = pages.flatMap((page) => snippets(page).filter((code) => /\bio\(/.test(code)).map((code) => ({ page, code })));
const handling = pages.flatMap((page) => snippets(page).filter((code) => !/\bio\(/.test(code) && /connect_error/.test(code)).map((code) => ({ page, code })));

/**
 * Runs a snippet, or the hook that it declares, as pasted: against `gateway`, with `getToken` in place of the reader's
 * function, and with pauses that are recorded and a hundredth as long.
 */
function paste(gateway, code, getToken) {
  const pasted = { pauses: [], connects: 0, signedOut: [] };
  const connect = (_, options) => {
    pasted.socket = io(gateway.url, { ...options, forceNew: true });
    pasted.socket.on('connect', () => (pasted.connects += 1));
    sockets.push(pasted.socket);
    return pasted.socket;
  };
  const own = {
    io: connect, url: '', useEffect: (effect) => (pasted.unmount = effect()), onUpdate: () => {}, fetchState: async () => {},
    getToken, fetchToken: getToken, console: { warn: () => {} }, signOut: (why) => pasted.signedOut.push(why),
    setTimeout: (then, ms) => (pasted.pauses.push(ms), setTimeout(then, ms / 100)),
  };
  const hooks = [...code.matchAll(/^function (use\w+)\((.*)\) \{$/gm)].map(([, name, parameters]) => `${name}(${parameters});`);
  const script = [code.replaceAll(/^import .*$/gm, ''), ...hooks].join('\n');
  new Function(...Object.keys(own), script)(...Object.values(own));
  return pasted;
}

const sockets = [];
afterEach(() => sockets.splice(0).forEach((socket) => socket.disconnect()));

let expiredTokens = 0;
const expired = () => token('usr_snippet', { jti: String((expiredTokens += 1)) }, { expiresIn: -3600 });
const REFUSED = 'connects_refused_total{reason="token_expired"}';

test('a pasted snippet that is refused pauses, longer each time, and ends, in any combination', async () => {
  assert.ok(connecting.length >= 4 && handling.length >= 2);
  // In a hook, the handler belongs where the socket is.
  const within = (code, handler) => code.replace(/^( *)const socket = [\s\S]*?^\1\}\);\n|^ *const socket = .*;\n/m, (made) => made + handler);
  const both = handling.flatMap((handler) => connecting.map(({ page, code }) => (
    { page: `${page} with ${handler.page}`, code: within(code, handler.code), handles: true }
  )));
  for (const { page, code, handles } of [...connecting, ...both]) {
    const gateway = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: SECRET } });
    const pasted = paste(gateway, code, async () => expired());
    const attempts = () => gateway.metric(REFUSED);
    await until(`${page}: the end of its attempts`, async () => {
      assert.ok(await attempts() <= 8, `${page}: ${await attempts()} attempts`);
      // Without a handler, the first attempt is the last one.
      return handles ? pasted.signedOut.length > 0 : !pasted.socket.active;
    });
    assert.equal(pasted.pauses.length, handles ? 5 : 0, page);
    await gateway.metricIs(REFUSED, handles ? 6 : 1);
    assert.ok(pasted.pauses.every((pause, i) => pause >= 1000 * 2 ** i), `${page}: ${pasted.pauses}`);
    assert.deepEqual(pasted.signedOut, handles ? ['token expired'] : [], page);
    assert.equal(pasted.socket.active, false, page);
    await gateway.kill();
  }
});

test('a pasted snippet gets in with the next token, and survives a backend that gives none', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: SECRET } });
  await Promise.all(connecting.map(async ({ page, code }) => {
    let asked = 0;
    const pasted = paste(gateway, code, async () => {
      asked += 1;
      if (asked === 1) throw new Error('the backend is away');
      return token('usr_snippet');
    });
    // The gateway ends a handshake that no CONNECT follows; the client then makes another.
    await until(`${page}: in`, () => pasted.connects === 1, 60_000);
    assert.equal(asked, 2, page);
    pasted.unmount?.();
  }));
});

test('no page shows a socket with a token that is fixed, or a reconnect without a pause', () => {
  const unsafe = pages.flatMap((page) => {
    const text = readFileSync(join(root, page), 'utf8');
    const found = [...text.matchAll(/\bauth: \{ token \}|^(?!.*setTimeout).*\bsocket\.connect\(\);?.*$/gm)];
    return found.map(([line]) => `${page}: ${line.trim()}`);
  });
  assert.deepEqual(unsafe, []);
});
