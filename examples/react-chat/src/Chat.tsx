import { useMemo, useReducer, useState } from 'react';
import type { Connection } from 'chat3-gateway-client';
import { useChatUpdates } from 'chat3-gateway-client/react';
import { apiOf } from './api';
import { chatReducer, EMPTY_CHAT, isToBeFetched } from './chat';
import { Composer } from './Composer';
import { ConnectionBadge } from './ConnectionBadge';
import { CutButton } from './CutButton';
import { Members } from './Members';
import { MessageList } from './MessageList';
import { nameOf } from './people';
import { useReceipts } from './useReceipts';
import { useTypers } from './useTypers';

const GATEWAY_URL: string = import.meta.env.VITE_GATEWAY_URL ?? `http://${location.hostname}:${import.meta.env.VITE_GATEWAY_PORT}`;

/** The chat of the user at the screen. */
export function Chat({ me }: { me: string }) {
  const api = useMemo(() => apiOf(me), [me]);
  const [chat, dispatch] = useReducer(chatReducer(me), EMPTY_CHAT);
  const [problem, setProblem] = useState<string | null>(null);

  const { connection, resync, connect, chat: socket } = useChatUpdates({
    url: GATEWAY_URL,
    user: me,
    getToken: async () => (await api.session()).token,
    onResync: async ({ signal }) => {
      const state = await api.dialog(signal);
      if (!signal.aborted) dispatch({ type: 'fetched', state });
    },
    onUpdate: (update) => {
      dispatch({ type: 'update', update });
      if (isToBeFetched(update)) resync();
    },
  });
  const failure = failureOf(connection);

  useReceipts(me, api, chat.messages);
  const typers = useTypers(chat.typing);

  /** The changes on the screen arrive through the gateway, as for everyone else; only failures are reported here. */
  const attempt = (call: Promise<void>) =>
    call.then(
      () => true,
      (error: Error) => (setProblem(error.message), false),
    );

  return (
    <main className="chat">
      <header>
        <h1>{chat.title || 'Chat'}</h1>
        <ConnectionBadge connection={connection} signIn={connect} />
        <CutButton chat={socket} isConnected={['syncing', 'live'].includes(connection.status)} />
        <Members
          me={me}
          members={chat.members}
          add={(member) => attempt(api.addMember(member))}
          remove={(member) => attempt(api.removeMember(member))}
        />
      </header>
      {(problem ?? failure) && (
        <p className="problem" role="alert">
          {problem ?? failure} <button onClick={() => (problem ? setProblem(null) : resync())}>{problem ? 'OK' : 'Try again'}</button>
        </p>
      )}
      <MessageList
        me={me}
        messages={chat.messages}
        react={(id, reaction) => attempt(api.react(id, reaction))}
        edit={(id, content) => attempt(api.edit(id, content))}
        remove={(id) => attempt(api.remove(id))}
      />
      <p className="typing" aria-live="polite">
        {typers.length > 0 && `${typers.map(nameOf).join(' and ')} ${typers.length > 1 ? 'are' : 'is'} typing…`}
      </p>
      <Composer send={(content) => attempt(api.send(content))} typing={() => api.typing().catch(() => {})} />
    </main>
  );
}

/** What the user should know about the connection, beyond the badge. */
function failureOf({ status, reason, failures }: Connection): string | null {
  if (status === 'syncing' && failures > 0) return reason;
  if (status === 'connecting' && reason) {
    return `No connection to ${GATEWAY_URL} (${reason}). Start the gateway with \`make run\`; if it has another port: \`PORT=3301 make react\`.`;
  }
  return null;
}
