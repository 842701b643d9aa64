// The load generator while something happens to the servers: its lines of JSON one after the
// other, and words to it.

import path from 'node:path';
import readline from 'node:readline';

import { EXCHANGE, SECRET } from '../e2e/harness.mjs';
import { examples, spawnHere } from './servers.mjs';

export class Load {
  /** `url` is where the sockets go, `pid` the server's. `backoff`: `MS:MS`, with which lost sockets come back. */
  constructor({ url, pid, broker, users, backoff, phases }) {
    this.child = spawnHere(path.join(examples, 'loadgen'), [
      '--port', new URL(url).port, '--amqp', broker.url, '--exchange', EXCHANGE, '--secret', SECRET, '--server-pid', pid, '--broker-pid', broker.child.pid,
      '--users', users, '--reconnect', backoff, ...phases,
    ].map(String), { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child.stdin.on('error', () => {});
    this.exited = new Promise((resolve) => this.child.once('close', resolve));
    this.lines = readline.createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  /** The figures of the next phase that ends, or `{ waiting: true }` when one waits for words. */
  async next() {
    const { value, done } = await this.lines.next();
    if (done) throw new Error('the load generator ended');
    return JSON.parse(value);
  }

  tell(word) {
    this.child.stdin.write(`${word}\n`);
  }

  async stop() {
    this.child.kill('SIGKILL');
    await this.exited;
  }
}
