import type { RefObject } from 'react';
import type { ChatSocket } from './useChatUpdates';

/** For demonstrations: breaks the connection; the client is back after 2.5 to 5 s. */
export function CutButton({ socket }: { socket: RefObject<ChatSocket | null> }) {
  const cut = () => {
    const manager = socket.current?.io;
    if (!manager) return;
    const delay = manager.reconnectionDelay();
    manager.reconnectionDelay(5000);
    manager.once('reconnect', () => manager.reconnectionDelay(delay));
    manager.engine.close();
  };
  return (
    <button onClick={cut} title="Break the connection for some seconds">
      Cut
    </button>
  );
}
