// A stranger who sends requests on many connections, on each a hundred at a time without waiting for an answer.
// A separate process, so that its load does not slow the measurement.
// Run with { port, connections, target } as JSON; ends with its stdin and prints how many answers it got.
import net from 'node:net';

const { port, connections, target } = JSON.parse(process.argv[2]);
const DEPTH = 100;
const requests = Buffer.from(`GET ${target} HTTP/1.1\r\nHost: x\r\n\r\n`.repeat(DEPTH));
let answered = 0;

function ask() {
  const socket = net.connect(port, '127.0.0.1');
  let waiting = DEPTH;
  socket.on('error', () => {});
  socket.on('connect', () => socket.write(requests));
  socket.on('data', (data) => {
    const answers = data.toString('latin1').split('HTTP/1.1 ').length - 1;
    answered += answers;
    waiting -= answers;
    if (waiting > 0) return;
    waiting += DEPTH;
    socket.write(requests);
  });
}

for (let i = 0; i < connections; i += 1) ask();
process.stdin.resume().on('end', () => {
  console.log(answered);
  process.exit(0);
});
