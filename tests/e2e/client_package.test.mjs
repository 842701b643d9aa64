// The client package as a package: what is in it, and that its types are those of its code, of the
// recorded updates and of what the development mode publishes.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { before, test } from 'node:test';
import { promisify } from 'node:util';

import { clientFolder, compile, installClient, tool } from './client.mjs';
import { Gateway, generations, Tab, testsFolder, until } from './harness.mjs';

const run = promisify(execFile);
const root = path.join(testsFolder, '..');
const read = (...file) => readFileSync(path.join(...file), 'utf8');
const json = (body) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
const manifest = JSON.parse(read(clientFolder, 'package.json'));

let project;
before(async () => {
  project = await installClient();
});

// ---- Contents -----------------------------------------------------------------

test('the package has its sources, types, licence and README, and nothing else', async () => {
  const { stdout } = await run('npm', ['pack', '--dry-run', '--json'], { cwd: clientFolder });
  const [{ files, unpackedSize }] = JSON.parse(stdout);
  const tracked = await run('git', ['ls-files', 'src'], { cwd: clientFolder });
  const expected = ['LICENSE', 'README.md', 'package.json', ...tracked.stdout.trim().split('\n')];
  assert.deepEqual(files.map(({ path }) => path).sort(), expected.sort());
  assert.ok(unpackedSize < 80_000, `${unpackedSize} bytes`);
});

test('it depends on nothing but its peers, and has the version and the licence of the gateway', () => {
  assert.deepEqual([manifest.dependencies, manifest.devDependencies, manifest.scripts], [undefined, undefined, undefined]);
  assert.deepEqual(Object.keys(manifest.peerDependencies), ['react', 'socket.io-client']);
  assert.ok(read(root, 'Cargo.toml').includes(`\nversion = "${manifest.version}"\n`), manifest.version);
  assert.ok(read(clientFolder, 'README.md').includes(`/v${manifest.version}/chat3-gateway-client-${manifest.version}.tgz`));
  assert.equal(read(clientFolder, 'LICENSE'), read(root, 'LICENSE'));
  // `npm ci` refuses a lock file that does not have the version (`npm install` writes it).
  const { packages } = JSON.parse(read(root, 'examples/react-chat/package-lock.json'));
  const { name, version, license, engines, peerDependencies, peerDependenciesMeta } = manifest;
  assert.deepEqual(packages['../client'], { name, version, license, engines, peerDependencies, peerDependenciesMeta });
});

test('without React, everything but the hook can be imported, and what is declared is there', async () => {
  const declared = (file) => [...read(clientFolder, 'src', file).matchAll(/^export (?:declare )?function (\w+)/gm)].map(([, name]) => name).sort();
  const script = `console.log(JSON.stringify(Object.keys(await import('chat3-gateway-client'))));`;
  const withoutReact = await installClient({ react: null });
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script], { cwd: withoutReact });
  assert.deepEqual(JSON.parse(stdout).sort(), declared('index.d.ts'));
  const hook = await run(process.execPath, ['--input-type=module', '-e', script.replace('client', 'client/react')], { cwd: project });
  assert.deepEqual(JSON.parse(hook.stdout).sort(), declared('react.d.ts'));
});

// ---- The README ---------------------------------------------------------------

const snippets = [...read(clientFolder, 'README.md').matchAll(/^```jsx?\n([\s\S]*?)^```/gm)].map(([, code]) => code);

test("the README's program works as pasted", async () => {
  const gateway = await Gateway.start(null, { args: ['dev'] });
  const file = path.join(project, 'readme.mjs');
  writeFileSync(file, snippets[0].replace('http://localhost:3001', gateway.url));
  const program = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  program.stdout.on('data', (data) => (output += data));
  await until('it is live', () => /^syncing \nfetch your state here\nlive \n/.test(output));
  const { update } = await gateway.json('/dev/updates', json({ userId: 'usr_alice', eventType: 'message.create' }));
  await until('the update', () => output.endsWith(`\nmessage.create ${update.data.message.content}\n`));
  program.kill();
});

test("the README's component compiles", async () => {
  const file = path.join(project, 'readme.tsx');
  const types = '{ user: string, getToken: () => Promise<string>, fetchState: (signal: AbortSignal) => Promise<unknown>, reducer: (state: unknown, action: object) => unknown }';
  writeFileSync(file, snippets[1].replace(/(function Chat\(\{.*?\})/, `$1: ${types}`));
  assert.equal(await compile(project, [file], { jsx: 'react-jsx' }), '');
});

// ---- Types --------------------------------------------------------------------

/** What the compiler says about `lines` after the imports; empty if they compile. */
async function compileLines(lines) {
  const file = path.join(project, 'check.ts');
  const head = [
    "import type { ServerToClientEvents } from 'chat3-gateway-client';",
    ...['auto', 'original', 'sections'].map((envelope) => `export declare const ${envelope}: ServerToClientEvents<'${envelope}'>;`),
  ];
  writeFileSync(file, [...head, ...lines].join('\n'));
  return compile(project, [file]);
}

/** An update as the gateway's events, each as a call that must compile. */
function calls(envelope, body, events, payloads = {}) {
  return events.map((event) => `${envelope}['${event}'](${JSON.stringify(payloads[event] ?? body)}, 'offset');`);
}

/** The events of a recorded update in each envelope. */
function received({ body, original = body, sections, emits }) {
  return [
    ...calls('auto', body, emits, { 'message:new': body.data }),
    ...calls('original', original, emits, { 'message:new': original.data }),
    ...calls('sections', sections.body, sections.emits, { 'message:new': sections.body.data.message, 'typing:update': sections.typing }),
  ];
}

test('the code is what its types say', async () => {
  const folder = path.join(clientFolder, 'src');
  const files = readdirSync(folder).map((name) => path.join(folder, name));
  const paths = { 'socket.io-client': [tool('socket.io-client')], react: [tool('@types/react')] };
  assert.equal(await compile(project, files, { allowJs: true, checkJs: true, skipLibCheck: false, baseUrl: project, paths }), '');
});

test('the types describe what each generation of Chat3 publishes, in each envelope, and no event that nobody sends', async () => {
  const lines = [];
  const seen = { auto: new Set(), original: new Set(), sections: new Set() };
  for (const { since, updates } of generations()) {
    for (const update of updates) {
      lines.push(`// ${since} ${update.name}`, ...received(update));
      const { body, original = body, sections } = update;
      seen.auto.add(body.eventType ?? body.sourceEventType);
      seen.original.add(original.eventType);
      seen.sections.add(sections.body.eventType);
    }
  }
  const types = { auto: 'EventType', original: "OriginalUpdate['eventType']", sections: "SectionsUpdate['eventType']" };
  lines.unshift("import type { EventType, OriginalUpdate, SectionsUpdate } from 'chat3-gateway-client';");
  for (const [envelope, names] of Object.entries(seen)) {
    const union = [...names].map((name) => JSON.stringify(name)).join(' | ');
    lines.push(`declare const ${envelope}Unseen: Exclude<${types[envelope]}, ${union}>;`, `export const ${envelope}None: never = ${envelope}Unseen;`);
  }
  assert.equal(await compileLines(lines), '');
});

test('the types describe what the development mode publishes', async () => {
  const gateway = await Gateway.start(null, { args: ['dev'] });
  const { token } = await gateway.json('/dev/tokens', json({ userId: 'usr_types' }));
  const tab = new Tab(gateway, token);
  await tab.when('connected', () => tab.connects === 1);
  // Without `user.update`, whose sample is older than Chat3's own.
  const types = Object.keys(await gateway.json('/dev/samples')).filter((type) => /^(message|dialog)\./.test(type));
  assert.ok(types.length >= 13);
  for (const eventType of types) await gateway.get('/dev/updates', json({ userId: 'usr_types', generation: 'original', eventType }));
  await tab.when('all of them, twice', () => tab.events.length === 2 * types.length);
  assert.equal(await compileLines(tab.events.flatMap(({ event, args }) => calls('auto', args[0], [event]))), '');
});

test('the types refuse fields that do not exist and values of the wrong type', async () => {
  const [{ updates: first }] = generations();
  const { updates: current } = generations().at(-1);
  const [message, dialog] = ['message.create', 'dialog.create'].map((name) => first.find((update) => update.name === name).body);
  const { body: today, original, sections } = current.find(({ name }) => name === 'message.create/update.message');
  const { senderId, ...anonymous } = message.data;
  const { sourceEventType, ...nameless } = today;
  const withoutSection = { ...sections.body, data: { ...sections.body.data, message: null } };
  const wrong = [
    ...calls('auto', { ...message, data: anonymous }, ['chat3:update', 'message:new'], { 'message:new': anonymous }),
    ...calls('auto', { ...message.data, unheardOf: 1 }, ['message:new']),
    ...calls('auto', { ...message, eventType: 'message.created' }, ['chat3:update', 'message:update']),
    ...calls('auto', { ...message, published: 'yes' }, ['chat3:update', 'message:update']),
    ...calls('auto', dialog, ['message:update']),
    ...calls('auto', message, ['dialog:update', 'typing:update']),
    ...calls('auto', { ...today, updateType: 'update.user' }, ['message:update']),
    ...calls('auto', nameless, ['chat3:update', 'message:update']),
    ...calls('sections', today, ['chat3:update', 'message:update', 'message:new']),
    ...calls('sections', withoutSection, ['message:update']),
    ...calls('sections', { ...sections.body, eventType: 'message.changed' }, ['chat3:update']),
    ...calls('sections', { ...sections.body.data.message, unheardOf: 1 }, ['message:new']),
    ...calls('original', today, ['chat3:update', 'message:update']),
    ...calls('original', { ...original, eventType: 'message.changed' }, ['chat3:update', 'message:update']),
    ...calls('original', { ...original.data, unheardOf: 1 }, ['message:new']),
    ...calls('original', original, ['typing:update']),
  ];
  assert.equal(await compileLines(wrong.flatMap((line) => ['// @ts-expect-error', line])), '');
});

test('handlers and options are typed by the envelope', async () => {
  const lines = [
    "import { createChat3Socket, dateOf, eventTypeOf, messageIn } from 'chat3-gateway-client';",
    "import { useChatUpdates } from 'chat3-gateway-client/react';",
    "const both = { url: 'http://localhost:3001', getToken: async () => 'token' };",
    'export const published = createChat3Socket({',
    '  ...both, onUpdate: (update) => [messageIn(update)?.content, eventTypeOf(update), dateOf(update.createdAt).getTime()],',
    '});',
    "export const rewritten = createChat3Socket<'sections'>({",
    "  ...both, events: { 'typing:update': ({ userName }) => userName, 'message:new': ({ content }) => content },",
    '  onUpdate: (update) => update.data.context?.eventType,',
    '  onResync: async ({ signal }) => void (await fetch("/state", { signal })),',
    '});',
    "rewritten.socket.on('message:new', (message, offset) => [message.senderId, offset]);",
    "export const Badge = () => useChatUpdates<'original'>({ ...both, events: { 'message:new': ({ _id }) => _id } }).connection.status === 'live';",
    '// @ts-expect-error',
    "createChat3Socket({ ...both, events: { 'typing:update': () => {} } });",
    '// @ts-expect-error',
    "createChat3Socket({ url: 'http://localhost:3001' });",
    '// @ts-expect-error',
    'createChat3Socket({ ...both, socket: { autoConnect: false } });',
    '// @ts-expect-error',
    'createChat3Socket({ ...both, onUpdate: (update) => update.data.message.content });',
  ];
  assert.equal(await compileLines(lines), '');
});
