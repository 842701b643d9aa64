import { useState } from 'react';
import type { ChatUpdates } from 'chat3-gateway-client/react';

/** For demonstrations: breaks the connection as a lost network would, and keeps the client away until pressed again. */
export function CutButton({ chat, isConnected }: { chat: ChatUpdates['chat']; isConnected: boolean }) {
  const [wasCut, setWasCut] = useState(false);
  const isCut = wasCut && !isConnected;
  const toggle = () => {
    const socket = chat.current?.socket;
    if (!socket) return;
    socket.io.reconnection(isCut);
    if (isCut) socket.connect();
    else socket.io.engine.close();
    setWasCut(!isCut);
  };
  return (
    <button onClick={toggle} disabled={!isConnected && !isCut} title="Breaks the connection until you press it again">
      {isCut ? 'Reconnect' : 'Cut'}
    </button>
  );
}
