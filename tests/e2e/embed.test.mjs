// examples/embed.rs: a backend with the gateway inside it.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';

import { Broker, Gateway, Publisher, SECRET, Tab, builtFolder, freePort, token, until } from './harness.mjs';

test('one port serves the backend and the sockets, and the bot is subscribed', async () => {
  const broker = await Broker.start();
  const publisher = await Publisher.connect(broker);
  const port = await freePort();
  const child = spawn(join(builtFolder, 'examples/embed'), [], {
    env: { PATH: process.env.PATH, RABBITMQ_URL: broker.url, JWT_SECRET: SECRET, PORT: String(port) },
  });
  let output = '';
  child.stdout.on('data', (data) => (output += data));
  try {
    await until('the backend listens', () => output.includes('listening on'));
    const backend = Object.assign(new Gateway(), { url: `http://127.0.0.1:${port}`, child, logs: '' });
    assert.equal(await (await backend.get('/hello')).text(), 'hello from the backend');
    await backend.isConnected();
    const tab = new Tab(backend, token('usr_a'));
    await tab.when('connected', () => tab.connects === 1);
    await tab.saw(publisher.update('usr_a'));
    tab.close();
    publisher.update('usr_bot');
    await until('the bot has its update', () => output.includes('update for the bot'));
    child.kill('SIGINT');
    await until('the exit', () => child.exitCode !== null);
    assert.equal(child.exitCode, 0);
  } finally {
    child.kill('SIGKILL');
  }
});
