// The machine, and the versions of the software on it.

import os from 'node:os';

import { run, testsFolder } from '../e2e/harness.mjs';

export async function host(broker) {
  const { stdout: rustc } = await run('rustc', ['--version'], { cwd: testsFolder });
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: os.cpus()[0].model.trim(),
    cores: os.cpus().length,
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: os.release(),
    load: os.loadavg()[0].toFixed(2),
    rabbitmq: (await broker.ctl('version')).trim(),
    node: process.version.slice(1),
    rustc: rustc.split(' ')[1],
  };
}
