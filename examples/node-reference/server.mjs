// The same service in Node: socket.io, amqplib and jsonwebtoken, as Chat3's
// documentation describes it and as one would write it today.
//
//   JWT_SECRET=… node server.mjs      PORT, RABBITMQ_URL and RABBITMQ_UPDATES_EXCHANGE as for the gateway

import { createServer } from 'node:http';

import jwt from 'jsonwebtoken';
import { Server } from 'socket.io';

import { RabbitMQService } from './rabbitmq.mjs';

const {
  HOST = '127.0.0.1',
  PORT = '3001',
  JWT_SECRET,
  RABBITMQ_URL = 'amqp://rmuser:rmpassword@localhost:5672/',
  RABBITMQ_UPDATES_EXCHANGE = 'chat3_updates',
} = process.env;
if (!JWT_SECRET) {
  console.error('JWT_SECRET is not set');
  process.exit(2);
}

const server = createServer();
const io = new Server(server, { cors: { origin: '*' } });
// The handshake's request is not needed again: socket.io's advice on memory.
io.engine.on('connection', (transport) => (transport.request = null));

const rabbitmq = new RabbitMQService({ url: RABBITMQ_URL, exchange: RABBITMQ_UPDATES_EXCHANGE });
rabbitmq.on('update', (userId, update) => {
  const tabs = io.to(userId);
  tabs.emit('chat3:update', update);
  const type = update.eventType ?? '';
  if (type === 'message.create') tabs.emit('message:new', update.data);
  else if (type.startsWith('message.')) tabs.emit('message:update', update);
  else if (type.startsWith('dialog.')) tabs.emit('dialog:update', update);
});

io.use((socket, next) => {
  try {
    const { userId, sub } = jwt.verify(socket.handshake.auth.token, JWT_SECRET, { algorithms: ['HS256'] });
    socket.data.userId = userId ?? sub;
    next(socket.data.userId ? undefined : new Error('Authentication failed: no user in the token'));
  } catch (error) {
    next(new Error(`Authentication failed: ${error.message}`));
  }
});

io.on('connection', (socket) => {
  const { userId } = socket.data;
  socket.join(userId);
  rabbitmq.subscribeUser(userId);
  socket.on('disconnect', () => rabbitmq.unsubscribeUser(userId));
});

await rabbitmq.connect();
server.listen(Number(PORT), HOST, () => console.log(`Listening address=${HOST}:${server.address().port}`));

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, async () => {
    await rabbitmq.close();
    await io.close();
  });
}
