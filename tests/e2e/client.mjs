// The client package as its users have it: packed, and installed beside its peers.

import { execFile } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

import { generations, temporaryFolder, testsFolder, until } from './harness.mjs';

const run = promisify(execFile);

export const clientFolder = path.join(testsFolder, '..', 'examples', 'client');

/** Has esbuild, TypeScript, React 19 and the types of both peers. */
const example = path.join(testsFolder, '..', 'examples', 'react-chat');
export const tool = (file) => path.join(example, 'node_modules', file);

/** The React that is tested, by its major version. */
const reacts = { 18: path.join(testsFolder, 'node_modules'), 19: path.join(example, 'node_modules') };

/** Resolves with a project's folder whose node_modules has the package and its peers; `react` may be null. */
export async function installClient({ react = 19, socketIo = 'socket.io-client' } = {}) {
  const folder = temporaryFolder();
  const modules = path.join(folder, 'node_modules');
  const installed = path.join(modules, 'chat3-gateway-client');
  mkdirSync(path.join(modules, '@types'), { recursive: true });
  mkdirSync(installed);
  const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', folder], { cwd: clientFolder });
  await run('tar', ['-xzf', path.join(folder, stdout.trim()), '-C', installed, '--strip-components=1']);
  symlinkSync(path.join(testsFolder, 'node_modules', socketIo), path.join(modules, 'socket.io-client'));
  if (react === null) return folder;
  for (const name of ['react', 'react-dom', 'scheduler']) symlinkSync(path.join(reacts[react], name), path.join(modules, name));
  for (const name of ['react', 'react-dom']) symlinkSync(tool(`@types/${name}`), path.join(modules, '@types', name));
  return folder;
}

/** What the compiler says about `files`, in `folder`'s project; empty if they compile. */
export async function compile(folder, files, options = {}) {
  const config = path.join(folder, 'tsconfig.json');
  const compilerOptions = {
    noEmit: true, strict: true, noUnusedLocals: true, noUnusedParameters: true, target: 'es2022', module: 'esnext', moduleResolution: 'bundler',
    lib: ['es2022', 'dom', 'dom.iterable'], types: [], skipLibCheck: true, ...options,
  };
  writeFileSync(config, JSON.stringify({ compilerOptions, files }));
  const compiler = run(process.execPath, [tool('typescript/bin/tsc'), '-p', config], { maxBuffer: 1 << 26 });
  return compiler.then(() => '', (error) => error.stdout || error.message);
}

/** Imports the package as an application in `folder` does. */
export async function importClient(folder) {
  const file = path.join(folder, 'app.mjs');
  writeFileSync(file, "export * from 'chat3-gateway-client';\n");
  return import(pathToFileURL(file));
}

const [{ body: MESSAGE }] = generations().at(-1).updates;

/** An update of today's Chat3 with a number. */
export function numbered(number, userId) {
  const update = structuredClone(MESSAGE);
  const ids = { userId, eventId: `evt_${number}`, entityId: `msg_${number}` };
  Object.assign(update, ids);
  Object.assign(update.data.message, { messageId: ids.entityId, content: String(number) });
  return update;
}

export const numberOf = (update) => Number(update.data.message.content);
export const TENANT = MESSAGE.tenantId;
export const keyFor = (userId) => `update.dialog.${TENANT}.user.${userId}.message`;

/** Waits until all users are subscribed: on a busy machine, the gateway may let a client in before that. */
export async function subscribed(gateway) {
  await until('all subscriptions', async () => {
    const [subscriptions, ...online] = await Promise.all(['subscriptions', 'users', 'users_away'].map((name) => gateway.metric(name)));
    return subscriptions === online[0] + online[1];
  });
}

/** A backend for one user: what it has published is what its state has, as with Chat3. */
export class Backend {
  published = 0;

  constructor(publisher, userId) {
    this.publisher = publisher;
    this.userId = userId;
  }

  /** Publishes `count` updates, numbered from 1. */
  publish(count = 1) {
    for (let i = 0; i < count; i += 1) {
      this.published += 1;
      this.publisher.publish(keyFor(this.userId), numbered(this.published, this.userId));
    }
  }
}
