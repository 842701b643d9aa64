// Publishes one update to RabbitMQ as Chat3 does.
//
//   node publisher.mjs USER_ID [TENANT_ID]      RABBITMQ_URL as for the gateway

import amqp from 'amqplib';

const [userId, tenantId = 'tnt_default'] = process.argv.slice(2);
if (!userId) {
  console.error('usage: node publisher.mjs USER_ID [TENANT_ID]');
  process.exit(2);
}

const now = new Date();
const update = {
  _id: '507f1f77bcf86cd799439011',
  tenantId,
  userId,
  dialogId: '507f1f77bcf86cd799439012',
  entityId: '507f1f77bcf86cd799439013',
  eventId: '507f1f77bcf86cd799439014',
  eventType: 'message.create',
  data: { _id: '507f1f77bcf86cd799439013', content: 'Hello!', senderId: 'usr_x7m2n4k9', type: 'text', createdAt: now },
  published: true,
  publishedAt: now,
  createdAt: now,
};

const connection = await amqp.connect(process.env.RABBITMQ_URL ?? 'amqp://rmuser:rmpassword@localhost:5672/');
const channel = await connection.createChannel();
await channel.assertExchange('chat3_updates', 'topic', { durable: true });
const options = { persistent: true, contentType: 'application/json', timestamp: now.getTime() };
const routingKey = `user.${userId}.messageupdate`;
channel.publish('chat3_updates', routingKey, Buffer.from(JSON.stringify(update)), options);
await channel.close(); // answered after the update has arrived
await connection.close();
console.log(`published ${update.eventType} with the key ${routingKey}`);
