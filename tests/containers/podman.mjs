// Podman with a store of its own in target/containers, a service that Compose talks to, and
// stand-ins for the images of registries.

import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { run, testsFolder, until } from '../e2e/harness.mjs';

const folder = path.resolve(testsFolder, '..', 'target', 'containers');
const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

/** Nothing here takes longer on a machine that is not stuck. */
const SLOW_MS = 240_000;

const works = (...command) => {
  try {
    execFileSync(command[0], command.slice(1), { stdio: 'ignore', env: { ...process.env, PATH } });
    return true;
  } catch {
    return false;
  }
};

/** The command of Compose, if it is installed; version 1 cannot read these files. */
const compose = [['docker', 'compose'], ['docker-compose']].find((command) => works('sh', '-c', `${command.join(' ')} version --short | grep -q '^v\\?[2-9]'`));

/** Why containers cannot be run here, or false. */
export function reasonToSkip() {
  if (process.getuid() !== 0) return 'needs root, which Podman needs to make networks of several containers';
  if (process.env.ALONE !== '1') return 'needs namespaces of its own: tests/containers/alone.sh (make deploy)';
  const missing = ['podman', 'crun', 'debootstrap', 'iptables'].filter((command) => !works('sh', '-c', `command -v ${command}`));
  if (missing.length > 0) return `not installed: ${missing.join(', ')}`;
  if (!compose) return 'Compose v2 is not installed';
  return false;
}

let env;

export const podman = async (...args) => (await run('podman', args, { env, maxBuffer: 1 << 26, timeout: SLOW_MS })).stdout.trim();

/** Podman in the foreground, as in a terminal. Returns it, to be ended. */
export const podmanInForeground = (...args) => spawn('podman', args, { env, stdio: ['ignore', 'pipe', 'pipe'] });

/** `docker compose` with a file of docker/. */
export async function composeOf(file, ...args) {
  const path_ = path.resolve(testsFolder, '..', 'docker', file);
  // Where Compose may be installed; Podman would insist on a file there.
  const plugins = process.env.DOCKER_CONFIG ?? path.join(process.env.HOME, '.docker');
  return (await run(compose[0], [...compose.slice(1), '-f', path_, ...args], { env: { ...env, DOCKER_CONFIG: plugins }, maxBuffer: 1 << 26, timeout: SLOW_MS })).stdout.trim();
}

/** Starts the service. Returns it, to be ended. */
export async function start() {
  mkdirSync(path.join(folder, 'networks'), { recursive: true });
  const limit = (letter) => execFileSync('sh', ['-c', `ulimit -H${letter}`], { encoding: 'utf8' }).trim();
  const descriptors = Math.min(Number(limit('n')) || 65_536, 65_536);
  writeFileSync(path.join(folder, 'containers.conf'), `[containers]
# The defaults are above what a root without CAP_SYS_RESOURCE may set.
default_ulimits = ["nofile=${descriptors}:${descriptors}", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
static_dir = "${folder}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "${folder}/networks"
`);
  writeFileSync(path.join(folder, 'storage.conf'), `[storage]\ndriver = "overlay"\ngraphroot = "${folder}/graph"\nrunroot = "/run/containers/storage"\n`);
  const socket = '/run/podman.sock';
  env = {
    PATH,
    HOME: folder,
    CONTAINERS_CONF: path.join(folder, 'containers.conf'),
    CONTAINERS_STORAGE_CONF: path.join(folder, 'storage.conf'),
    DOCKER_HOST: `unix://${socket}`,
    RABBITMQ_TAG: '4.2.9-management',
  };
  const service = spawn('podman', ['system', 'service', '--time=0', `unix://${socket}`], { env, stdio: 'ignore' });
  await until('the service of Podman', () => works('curl', '-sf', '--unix-socket', socket, 'http://d/_ping'));
  return service;
}

/** Runs the health checks of all containers, as Podman has systemd do where there is one. */
export function runHealthChecks() {
  let isStopped = false;
  const loop = async () => {
    while (!isStopped) {
      const ids = await podman('ps', '--quiet').catch(() => '');
      for (const id of ids.split('\n').filter(Boolean)) await podman('healthcheck', 'run', id).catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  };
  loop();
  return { stop: () => (isStopped = true) };
}

/** Makes images under the names that the files of docker/ have. */
export async function makeBases(names) {
  await run('sh', [path.join(testsFolder, 'containers', 'base.sh'), path.join(folder, 'base')], { env, maxBuffer: 1 << 26 });
  const base = 'localhost/base:latest';
  if (!(await podman('images', '-q', base))) {
    await run('sh', ['-c', `tar -C ${folder}/base/root -c . | podman import - ${base}`], { env, maxBuffer: 1 << 26 });
  }
  const commands = {
    rabbitmq: 'RUN mkdir -p /etc/rabbitmq/conf.d\nCMD chown rabbitmq: /var/lib/rabbitmq && exec rabbitmq-server',
    haproxy: 'CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]',
    distroless: 'USER 65532',
  };
  for (const name of names) {
    const [, commandLines] = Object.entries(commands).find(([part]) => name.includes(part));
    const file = path.join(folder, 'Dockerfile.base');
    writeFileSync(file, `FROM ${base}\n${commandLines}\n`);
    await podman('build', '--format', 'docker', '-q', '-t', name, '-f', file, path.join(folder, 'networks'));
  }
}

/** Builds docker/Dockerfile around a binary. Its bases are found by name alone: no stand-in has a registry's digest. */
export async function buildImage(binary, ...args) {
  const context = path.join(folder, 'binary');
  mkdirSync(context, { recursive: true });
  await run('strip', ['-o', path.join(context, 'chat3-gateway'), binary]);
  const text = readFileSync(path.join(testsFolder, '..', 'docker', 'Dockerfile'), 'utf8');
  const file = path.join(folder, 'Dockerfile');
  writeFileSync(file, text.replaceAll(/@sha256:[0-9a-f]{64}/g, ''));
  await podman('build', '--format', 'docker', '--build-context', `binary=${context}`, '-f', file, ...args, path.join(testsFolder, '..'));
}
