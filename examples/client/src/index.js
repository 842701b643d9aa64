// chat3-gateway-client: what a frontend needs besides socket.io-client.

export { createChat3Socket } from './socket.js';
export { dateOf, dialogIn, eventTypeOf, messageIn } from './updates.js';
