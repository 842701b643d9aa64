// Publishes one update to RabbitMQ as Chat3 0.0.86 does.
//
//   node publisher.mjs USER_ID [TENANT_ID]      RABBITMQ_URL as for the gateway

import amqp from 'amqplib';

const [userId, tenantId = 'tnt_default'] = process.argv.slice(2);
if (!userId) {
  console.error('usage: node publisher.mjs USER_ID [TENANT_ID]');
  process.exit(2);
}

const now = Date.now();
const dialogId = 'dlg_bzb6lcrovbjan0mso2c3';
const messageId = 'msg_jyo7picvci3bq10vznvu';
const update = {
  tenantId,
  userId,
  entityId: messageId,
  eventId: 'evt_507f1f77bcf86cd799439014',
  sourceEventType: 'message.create',
  updateType: 'update.message',
  data: {
    message: { messageId, dialogId, content: 'Hello!', senderId: 'usr_x7m2n4k9', type: 'internal.text', createdAt: now },
    context: { eventType: 'message.create', dialogId, entityId: messageId },
  },
  createdAt: now,
};

const connection = await amqp.connect(process.env.RABBITMQ_URL ?? 'amqp://rmuser:rmpassword@localhost:5672/');
const channel = await connection.createChannel();
await channel.assertExchange('chat3_updates', 'topic', { durable: true });
const options = { persistent: true, contentType: 'application/json', timestamp: now };
const routingKey = `update.dialog.${tenantId}.user.${userId}.message`;
channel.publish('chat3_updates', routingKey, Buffer.from(JSON.stringify(update)), options);
await channel.close(); // answered after the update has arrived
await connection.close();
console.log(`published ${update.sourceEventType} with the key ${routingKey}`);
