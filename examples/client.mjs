// Connects as a frontend does and prints what arrives.
//
//   node client.mjs TOKEN [URL]      TOKEN: from `chat3-gateway token`, or the one that `make run` prints
//                                    URL:   of the gateway, http://localhost:3001 unless given

import { io } from 'socket.io-client';

const isUrl = (text) => /^https?:\/\//.test(text);
const given = process.argv.slice(2);
const token = given.find((text) => !isUrl(text));
const url = given.find(isUrl) ?? `http://localhost:${process.env.PORT ?? 3001}`;
if (!token) {
  console.error('usage: node client.mjs TOKEN [URL]      URL: of the gateway, such as http://localhost:3001');
  process.exit(2);
}
console.log(`connecting to ${url}${given.some(isUrl) ? '' : ' (another: node client.mjs TOKEN URL)'}`);

// A page fetches a fresh token here: docs/PROTOCOL.md#connecting.
const socket = io(url, { auth: (give) => give({ token }) });

socket.on('connect', () => console.log('connected; an update that RabbitMQ hands to the gateway from now on arrives'));
socket.on('disconnect', (reason) => console.log('disconnected:', reason, socket.active ? '(reconnecting)' : ''));
socket.on('connect_error', (error) => {
  console.log(`connect_error at ${url}:`, error.message);
  // A refused token: the client does not retry on its own.
  if (!socket.active) process.exit(1);
});

socket.on('chat3:update', (update) => console.log('chat3:update', update));
socket.on('message:new', (message) => console.log('message:new', message));
// Today's Chat3 calls it `sourceEventType`.
const typeOf = (update) => update.eventType ?? update.sourceEventType;
socket.on('message:update', (update) => console.log('message:update', typeOf(update)));
socket.on('dialog:update', (update) => console.log('dialog:update', typeOf(update)));

process.once('SIGINT', () => socket.disconnect());
