// The users' subscriptions at RabbitMQ, and the link that comes back.
//
// Each online user has a separate queue. The operations at the broker for one user
// form a chain: each step brings the subscription to the state that is wanted by
// then. Otherwise, a user who leaves and comes back would have declare, bind, consume
// and cancel of one queue in flight together; an operation that finds the queue gone
// closes the channel, and every user's consumer with it.

import { EventEmitter } from 'node:events';

import amqp from 'amqplib';

const PREFETCH = 100;
const FIRST_RETRY_MS = 200;
const LAST_RETRY_MS = 5_000;

export class RabbitMQService extends EventEmitter {
  constructor({ url, exchange }) {
    super();
    this.url = url;
    this.exchange = exchange;
    /** By user id: `tabs`, `chain`, and `held`, the subscription if there is one. */
    this.users = new Map();
    this.channel = null;
    this.isClosing = false;
    this.retryMs = FIRST_RETRY_MS;
  }

  async connect() {
    try {
      this.connection = await amqp.connect(this.url, { noDelay: true });
      this.connection.on('error', (error) => console.warn(`RabbitMQ: ${error.message}`));
      this.connection.once('close', () => this.lost());
      const channel = await this.connection.createChannel();
      channel.on('error', (error) => console.warn(`RabbitMQ channel: ${error.message}`));
      // Its consumers are gone too: start again.
      channel.once('close', () => this.connection.close().catch(() => {}));
      await channel.prefetch(PREFETCH);
      this.channel = channel;
      this.retryMs = FIRST_RETRY_MS;
    } catch (error) {
      console.warn(`⚠️  Failed to connect to RabbitMQ. Updates will not be available.\n   Error: ${error.message}`);
      if (!this.channel) this.retry();
      return;
    }
    // All at once. amqplib sends a channel's requests one after the other.
    for (const userId of this.users.keys()) this.settle(userId);
  }

  lost() {
    this.channel = null;
    if (this.isClosing) return;
    console.warn('⚠️  RabbitMQ connection closed');
    this.retry();
  }

  retry() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), this.retryMs);
    this.retryMs = Math.min(this.retryMs * 2, LAST_RETRY_MS);
  }

  subscribeUser(userId) {
    const user = this.users.get(userId) ?? { tabs: 0, chain: Promise.resolve(), held: null };
    this.users.set(userId, user);
    user.tabs += 1;
    if (user.tabs === 1) this.settle(userId);
  }

  unsubscribeUser(userId) {
    const user = this.users.get(userId);
    user.tabs -= 1;
    if (user.tabs === 0) this.settle(userId);
  }

  /** Appends a step to the user's chain: bring the subscription to the state that is wanted by then. */
  settle(userId) {
    const user = this.users.get(userId);
    user.chain = user.chain
      .then(() => this.step(userId, user))
      // The link is gone; the next one subscribes all users again.
      .catch((error) => console.warn(`RabbitMQ, subscription of ${userId}: ${error.message}`));
  }

  async step(userId, user) {
    const { channel } = this;
    const held = user.held?.channel === channel ? user.held : null;
    if (user.tabs > 0 && channel && !held) {
      const { queue } = await channel.assertQueue('', { exclusive: true, autoDelete: true, durable: false });
      await channel.bindQueue(queue, this.exchange, `user.${userId}.*`);
      const { consumerTag } = await channel.consume(queue, (message) => this.receive(channel, userId, message));
      user.held = { channel, consumerTag };
    }
    if (user.tabs === 0) {
      user.held = null;
      // The queue goes with its last consumer.
      if (held) await channel.cancel(held.consumerTag);
      if (user.tabs === 0 && this.users.get(userId) === user) this.users.delete(userId);
    }
  }

  receive(channel, userId, message) {
    // The broker has deleted the queue.
    if (!message) return;
    try {
      this.emit('update', userId, JSON.parse(message.content));
    } catch (error) {
      console.warn(`RabbitMQ: an update for ${userId} is refused: ${error.message}`);
    }
    channel.ack(message);
  }

  async close() {
    this.isClosing = true;
    clearTimeout(this.timer);
    await this.connection?.close().catch(() => {});
  }
}
