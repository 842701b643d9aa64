// Strangers from several addresses who connect with made-up signatures, as fast as they are answered.
// A separate process, so that its load does not slow the measurement.
// Run with { port, addresses, connections, algorithms } as JSON; ends with its stdin and prints how often it asked.
import { randomBytes } from 'node:crypto';
import net from 'node:net';

import { frame, HANDSHAKE } from './harness.mjs';

const { port, addresses, connections, algorithms } = JSON.parse(process.argv[2]);

const base64url = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
const payload = base64url({ userId: 'usr_forged', exp: Math.floor(Date.now() / 1000) + 3600 });
let asked = 0;

/** A token with a signature of the right length, never the same twice. */
function forged() {
  const [alg, signatureBytes] = algorithms[asked % algorithms.length];
  return `${base64url({ alg, typ: 'JWT' })}.${payload}.${randomBytes(signatureBytes).toString('base64url')}`;
}

/** Sends CONNECTs on one connection until it is closed, then on the next one. */
function attack(localAddress) {
  const socket = net.connect({ port, host: '127.0.0.1', localAddress });
  const ask = () => {
    asked += 1;
    socket.write(frame(`40${JSON.stringify({ token: forged() })}`));
  };
  socket.on('connect', () => socket.write(HANDSHAKE));
  socket.on('data', (data) => {
    const text = data.toString('latin1');
    if (text.includes('HTTP/1.1 4') || text.includes('HTTP/1.1 5')) socket.destroy();
    else if (text.includes('0{"sid"') || text.includes('44{')) ask();
  });
  socket.on('error', () => {});
  socket.on('close', () => setTimeout(() => attack(localAddress), 20));
}

for (const address of addresses) for (let i = 0; i < connections; i += 1) attack(address);
process.stdin.resume().on('end', () => {
  console.log(asked);
  process.exit(0);
});
