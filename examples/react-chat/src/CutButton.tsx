import { useState, type RefObject } from 'react';
import type { ChatSocket } from './useChatUpdates';

/** For demonstrations: breaks the connection as a lost network would, and keeps the client away until pressed again. */
export function CutButton({ socket, isConnected }: { socket: RefObject<ChatSocket | null>; isConnected: boolean }) {
  const [wasCut, setWasCut] = useState(false);
  const isCut = wasCut && !isConnected;
  const toggle = () => {
    const mine = socket.current;
    if (!mine) return;
    mine.io.reconnection(isCut);
    if (isCut) mine.connect();
    else mine.io.engine.close();
    setWasCut(!isCut);
  };
  return (
    <button onClick={toggle} disabled={!isConnected && !isCut} title="Breaks the connection until you press it again">
      {isCut ? 'Reconnect' : 'Cut'}
    </button>
  );
}
