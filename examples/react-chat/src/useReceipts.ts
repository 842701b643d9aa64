import { useEffect, useRef, useSyncExternalStore } from 'react';
import type { Api } from './api';
import type { ChatMessage } from './chat';

/** Sends receipts for the messages that have arrived: `read` while the window has the focus, else `delivered`. */
export function useReceipts(me: string, api: Api, messages: ChatMessage[]) {
  const status = useSyncExternalStore(onFocusChange, () => (document.hasFocus() ? 'read' : 'delivered'));
  const told = useRef(new Set<string>());
  useEffect(() => {
    for (const { id, senderId, statuses } of messages) {
      const known = statuses[me];
      const receipt = `${id} ${status}`;
      if (senderId === me || known === status || known === 'read' || told.current.has(receipt)) continue;
      told.current.add(receipt);
      api.mark(id, status).catch(() => told.current.delete(receipt));
    }
  }, [me, api, messages, status]);
}

function onFocusChange(notify: () => void) {
  window.addEventListener('focus', notify);
  window.addEventListener('blur', notify);
  return () => {
    window.removeEventListener('focus', notify);
    window.removeEventListener('blur', notify);
  };
}
