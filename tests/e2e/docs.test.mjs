// The documentation is true (see also drift.test.mjs): commands work, snippets are safe to paste, and the gate does what it promises.

import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { afterEach, test } from 'node:test';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';
import { io } from 'socket.io-client';
import { parse } from 'yaml';

import { freePort, Gateway, gatewayBinary, SECRET, temporaryFolder, testsFolder, token, until } from './harness.mjs';

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

// ---- The first hour ----------------------------------------------------------------

/** The blocks of the first hour: files by name, commands, and the output. `url` is the gateway's, in place of the one in the text. */
function firstHour(page, url) {
  const text = readFileSync(join(root, page), 'utf8').replaceAll('http://localhost:3001', url);
  const files = Object.fromEntries([...text.matchAll(/^```(?:js|html) (\S+)\n([\s\S]*?)^```/gm)].map(([, name, content]) => [name, content]));
  const commands = [...text.matchAll(/^```sh\n([\s\S]*?)^```/gm)].map(([, command]) => command.trim());
  const command = (word) => commands.find((each) => each.includes(word));
  const [, output] = text.match(/^```text\n([\s\S]*?)^```/m);
  return { files, command, output };
}

/** A folder with the files of the first hour, and what its `npm install` puts there. */
function firstFolder({ files, command }) {
  const folder = temporaryFolder();
  assert.match(command('npm'), /npm install socket\.io-client$/);
  symlinkSync(join(testsFolder, 'node_modules'), join(folder, 'node_modules'));
  writeFileSync(join(folder, 'package.json'), '{}');
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}

const sh = async (script, options) => (await promisify(execFile)('bash', ['-e', '-c', script], options)).stdout;

for (const page of ['docs/GETTING_STARTED.md', 'docs/ru/GETTING_STARTED.md']) {
  test(`the file of ${page} prints what it says, from Node and from a browser`, async () => {
    const gateway = await Gateway.start(null, { args: ['dev'] });
    const hour = firstHour(page, gateway.url);
    assert.ok(hour.files['first.mjs'].trim().split('\n').length <= 15);
    const folder = firstFolder(hour);
    const publish = async () => assert.match(await sh(hour.command('curl').replace('curl ', 'curl -sf ')), /"queues":1/);

    const node = spawn('bash', ['-c', `exec ${hour.command('node first.mjs')}`], { cwd: folder });
    let output = '';
    for (const stream of [node.stdout, node.stderr]) stream.on('data', (data) => (output += data));
    await until('connected', () => output !== '');
    await publish();
    await until('the output', () => output.split('\n').length >= hour.output.split('\n').length);
    node.kill();
    assert.equal(output, hour.output);

    const port = await freePort();
    const server = spawn('bash', ['-c', `exec ${hour.command('http.server').replace('8000', port)}`], { cwd: folder, stdio: 'ignore' });
    const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] });
    try {
      const tab = await browser.newPage();
      let printed = '';
      tab.on('console', (message) => (printed += `${message.text()}\n`));
      const open = () => tab.goto(`http://localhost:${port}/`).then(() => true, () => false);
      await until('the page', open);
      await until('connected', () => printed.includes('connected'));
      await publish();
      await until('the output', () => printed.endsWith(hour.output.split('\n').at(-2) + '\n'));
      // Browsers ask for an icon of their own accord.
      assert.equal(printed.replace(/^Failed to load resource.*404.*\n/m, ''), hour.output);
    } finally {
      await browser.close();
      server.kill();
    }
  });
}

test('examples/client.mjs takes a token and a URL in either order, and says where it connects', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'], env: { JWT_SECRET: SECRET } });
  const folder = temporaryFolder();
  symlinkSync(join(testsFolder, 'node_modules'), join(folder, 'node_modules'));
  writeFileSync(join(folder, 'client.mjs'), readFileSync(join(root, 'examples/client.mjs')));
  const client = (args, env = {}) => {
    const child = spawn(process.execPath, ['client.mjs', ...args], { cwd: folder, env: { PATH: process.env.PATH, ...env } });
    child.output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (child.output += data));
    child.ended = new Promise((resolve) => child.once('close', resolve));
    return child;
  };
  const jwt = token('usr_example');
  const { port } = new URL(gateway.url);
  for (const [args, env, first] of [
    [[jwt, gateway.url], {}, `connecting to ${gateway.url}`],
    [[gateway.url, jwt], {}, `connecting to ${gateway.url}`],
    [[jwt], { PORT: port }, `connecting to http://localhost:${port} (another: node client.mjs TOKEN URL)`],
  ]) {
    const child = client(args, env);
    await until('connected', () => child.output.includes('connected;'));
    child.kill('SIGINT');
    await child.ended;
    assert.equal(child.output.split('\n')[0], first);
  }
  for (const args of [[], [gateway.url]]) {
    const child = client(args);
    assert.equal(await child.ended, 2);
    assert.match(child.output, /^usage: node client\.mjs TOKEN \[URL\] .*http:\/\/localhost:3001\n$/);
  }
});

/** A copy of the script that fetches the bundle, with a lock file for `tarball` and stubs for the programs that have a network. */
async function fetchClient(tarball, stubs, integrity = createHash('sha512').update(tarball).digest('base64')) {
  const folder = temporaryFolder();
  cpSync(join(root, 'src/cli/dev/fetch-client'), join(folder, 'fetch-client'));
  const lock = JSON.parse(readFileSync(join(root, 'src/cli/dev/package-lock.json'), 'utf8'));
  lock.packages['node_modules/socket.io-client'].integrity = `sha512-${integrity}`;
  writeFileSync(join(folder, 'package-lock.json'), JSON.stringify(lock, null, 2));
  writeFileSync(join(folder, 'registry.tgz'), tarball);
  const result = await withStubs(stubs(join(folder, 'registry.tgz'), lock.packages['node_modules/socket.io-client'].version), join(folder, 'fetch-client'), []);
  const bundle = join(folder, 'socket.io.min.js');
  return { ...result, bundle: existsSync(bundle) && readFileSync(bundle, 'utf8') };
}

test('the page\'s client is the one of the lock file: fetched without npm, or by it, and never another', async () => {
  const package_ = join(temporaryFolder(), 'package');
  mkdirSync(join(package_, 'dist'), { recursive: true });
  writeFileSync(join(package_, 'dist/socket.io.min.js'), 'the bundle');
  const tarball = execFileSync('tar', ['-cz', '-C', join(package_, '..'), 'package']);
  const curl = (file, version) => `case "$*" in
    *" -o "*"https://registry.npmjs.org/socket.io-client/-/socket.io-client-${version}.tgz") while [ "$1" != -o ]; do shift; done; cp ${file} "$2" ;;
    *) exit 9 ;;
  esac`;
  const noNpm = 'exit 127';
  const fetched = await fetchClient(tarball, (file, version) => ({ curl: curl(file, version), npm: noNpm }));
  assert.deepEqual([fetched.code, fetched.bundle], [0, 'the bundle']);
  assert.match(fetched.stdout, /^fetching socket\.io-client \d+\.\d+\.\d+, /);

  const byNpm = await fetchClient(tarball, (file, version) => ({
    curl: 'exit 6', npm: `case "$*" in "pack "*" socket.io-client@${version}") cp ${file} "$4/socket.io-client-${version}.tgz" ;; *) exit 9 ;; esac`,
  }));
  assert.deepEqual([byNpm.code, byNpm.bundle], [0, 'the bundle']);

  const other = await fetchClient(tarball, (file, version) => ({ curl: curl(file, version) }), createHash('sha512').update('other').digest('base64'));
  assert.deepEqual([other.code, other.bundle], [1, false]);
  assert.match(other.stderr, /is not the file whose hash is in src\/cli\/dev\/package-lock\.json/);

  const alone = await fetchClient(tarball, () => ({ curl: 'exit 6', npm: noNpm }));
  assert.deepEqual([alone.code, alone.bundle], [1, false]);
  assert.match(alone.stderr, /cannot be fetched\. Without a network: put dist\/socket\.io\.min\.js of version \d\S+\s+into src\/cli\/dev yourself/);
});

test('make run asks for neither node nor npm, and says what it is about to do', async () => {
  const none = 'echo "not for make run: $0" >&2; exit 1';
  const plan = await withStubs({ node: none, npm: none, cargo: 'echo cargo "$@"' }, 'make', ['run', '--dry-run', '--always-make']);
  assert.equal(plan.code, 0, plan.stderr);
  assert.doesNotMatch(plan.stdout, /\bnpm\b|node_modules/);
  assert.match(plan.stdout, /fetch-client[\s\S]*compiling [\s\S]*cargo run --locked --no-default-features --features cli -- dev/);
  const without = await withStubs({}, 'env', [`PATH=${stubFolder({ sh: 'exec /bin/sh "$@"' })}`, '/usr/bin/make', 'compiler']);
  assert.notEqual(without.code, 0);
  assert.match(without.stderr, /Rust is missing: get it from https:\/\/rustup\.rs\//);
});

test('whatever compiles as a part of make test gets a C compiler first', async () => {
  const [, parts] = /^parts := (.*)$/m.exec(readFileSync(join(root, 'Makefile'), 'utf8'));
  for (const part of parts.split(' ').filter((name) => !['toolchain', 'format', 'dependencies'].includes(name))) {
    const plan = await withStubs({}, 'make', [part, '--dry-run']);
    assert.match(plan.stdout, /command -v cc[\s\S]*cargo (clippy|doc|build|test)/, part);
  }
});

test('what a target installs is named first, with how much that is', async () => {
  const aptGet = 'case "$*" in *" -s "*) printf "Inst a (1)\\nInst b (1)\\nConf a (1)\\n" ;; update*) ;; *) [ -z "$FAILS" ] || exit 100; echo "got $*" >&2 ;; esac';
  const PATH = stubFolder({ sh: 'exec /bin/sh "$@"', id: 'echo 0', grep: 'exec /bin/grep "$@"', 'apt-get': aptGet });
  const installing = await withStubs({}, 'env', [`PATH=${PATH}`, 'sh', '-c', '/usr/bin/make curl 2>&1']);
  assert.match(installing.stdout, /^curl is missing: apt-get installs curl ca-certificates, 2 packages in all\ngot install -y /m);
  assert.equal((await withStubs({}, 'env', [`PATH=${PATH}`, 'FAILS=1', '/usr/bin/make', 'curl'])).code, 2);
});

// The release workflow's own steps, with a stub of docker, then the README's commands on what they made.
for (const page of ['README.md', 'docs/ru/README.md']) {
  test(`the binary of a release is downloaded, checked and run by the commands of ${page}`, async () => {
    const { jobs } = parse(readFileSync(join(root, '.github/workflows/release.yml'), 'utf8'));
    const step = (name) => jobs.release.steps.find((each) => each.name?.startsWith(name)).run;
    const place = temporaryFolder();
    for (const path of ['LICENSE', 'README.md', 'CHANGELOG.md', '.env.example', 'docker/systemd/chat3-gateway.service']) cpSync(join(root, path), join(place, path));
    const binary = join(place, 'binary');
    writeFileSync(binary, `#!/bin/sh\nexec ${gatewayBinary} "$@"\n`, { mode: 0o755 });
    const docker = `case "$1" in create) echo container ;; cp) cp ${binary} "$3/chat3-gateway" ;; rm) ;; *) exit 9 ;; esac`;
    const env = { ...process.env, PATH: `${stubFolder({ docker })}:${process.env.PATH}`, IMAGE: 'image', VERSION: '9.8.7' };
    await sh(step('Take the binaries'), { cwd: place, env });
    await sh(step('Write the checksums'), { cwd: place, env });

    const block = [...readFileSync(join(root, page), 'utf8').matchAll(/^```sh\n([\s\S]*?)^```/gm)].map(([, text]) => text).find((text) => text.includes('SHA256SUMS'));
    const server = createServer((request, response) => {
      const file = join(place, 'dist', request.url.slice(1));
      if (existsSync(file)) response.end(readFileSync(file)); else response.writeHead(404).end();
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const release = 'https://github.com/antirek/chat3-gateway/releases/latest/download';
    assert.ok(block.includes(release));
    const commands = block.replace(release, `http://127.0.0.1:${server.address().port}`).replace(/ dev$/m, ' --version');
    try {
      const home = temporaryFolder();
      assert.match(await sh(commands, { cwd: home }), /^chat3-gateway-\S+: OK\nchat3-gateway \d+\.\d+\.\d+\n$/);
      // A download that was changed on its way is not run.
      const archive = readdirSync(join(place, 'dist')).find((name) => name.startsWith(`chat3-gateway-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}`));
      writeFileSync(join(place, 'dist', archive), 'something else');
      const changed = await sh(commands, { cwd: temporaryFolder() }).then(() => null, (error) => error);
      assert.match(changed.stderr, /did NOT match/);
    } finally {
      server.close();
    }
  });
}

test('the image and the page that the first command of README.md names are those of the release', async () => {
  const { jobs } = parse(readFileSync(join(root, '.github/workflows/release.yml'), 'utf8'));
  const [, repository] = readFileSync(join(root, 'Cargo.toml'), 'utf8').match(/^repository = "https:\/\/github\.com\/(.*)"$/m);
  const image = jobs.release.env.IMAGE.replace('${{ github.repository }}', repository);
  for (const page of ['README.md', 'docs/ru/README.md', 'docs/GETTING_STARTED.md', 'docs/ru/GETTING_STARTED.md']) {
    const [, first] = readFileSync(join(root, page), 'utf8').match(/^```sh\n([\s\S]*?)^```/m);
    assert.equal(first, `docker run --rm -p 127.0.0.1:3001:3001 ${image} dev\n`, page);
  }
  // What the image is, the development mode obeys: the address of its environment, and no log file.
  const [, settings] = readFileSync(join(root, 'docker/Dockerfile'), 'utf8').match(/^ENV (LOG_FILE.*)$/m);
  const env = Object.fromEntries([...settings.matchAll(/(\w+)=(\S+)/g)].map(([, name, value]) => [name, value.replaceAll('"', '')]));
  const gateway = await Gateway.start(null, { args: ['dev'], env });
  assert.match(gateway.logs, /Listening on 0\.0\.0\.0:\d+: whoever reaches it can sign in as anybody/);
});

// ---- The gate ----------------------------------------------------------------------

/** A folder with programs of these names and shell scripts. */
function stubFolder(stubs) {
  const folder = temporaryFolder();
  for (const [name, script] of Object.entries(stubs)) writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return folder;
}

/** Runs a command of the repository with `stubs` (names and shell scripts) in place of the programs of these names. */
async function withStubs(stubs, command, args, env = {}) {
  const folder = stubFolder(stubs);
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
