import { useEffect, useReducer, useRef, useState } from 'react';
import type { Api, Session } from './api';
import { chatReducer, EMPTY_CHAT, isToBeFetched } from './chat';
import { Composer } from './Composer';
import { ConnectionBadge } from './ConnectionBadge';
import { CutButton } from './CutButton';
import { Members } from './Members';
import { MessageList } from './MessageList';
import { nameOf } from './people';
import { useChatUpdates } from './useChatUpdates';
import { useReceipts } from './useReceipts';
import { useTypers } from './useTypers';

/** How many times in a row the page asks for a new session; after that, the button does. The pauses before double: none, 2, 4, 8, 16 s. */
const MAX_RENEWALS = 5;

interface Props {
  me: string;
  api: Api;
  session: Session;
  /** Gets another session. */
  signIn: () => void;
}

export function Chat({ me, api, session, signIn }: Props) {
  const [chat, dispatch] = useReducer(chatReducer(me), EMPTY_CHAT);
  const [problem, setProblem] = useState<string | null>(null);
  const [wantedFetch, wantFetch] = useReducer((count: number) => count + 1, 0);
  const doneFetch = useRef(0);

  const { connection, fetched, expiresAt, refresh, socket } = useChatUpdates(session.token, (update) => {
    dispatch({ type: 'update', update });
    if (isToBeFetched(update)) wantFetch();
  });

  const isConnected = ['must-refetch', 'live', 'recovered'].includes(connection.status);

  // The state is fetched when the connection asks for it, and when an update does.
  useEffect(() => {
    if (!isConnected || (connection.status !== 'must-refetch' && wantedFetch === doneFetch.current)) return;
    let isCurrent = true;
    dispatch({ type: 'fetching' });
    api.dialog().then(
      (state) => {
        if (!isCurrent) return;
        dispatch({ type: 'fetched', state });
        doneFetch.current = wantedFetch;
        setProblem(null);
        fetched();
      },
      (error: Error) => isCurrent && setProblem(error.message),
    );
    return () => void (isCurrent = false);
  }, [api, connection, isConnected, fetched, wantedFetch]);

  // The token is replaced in place. If that fails, the next reconnect brings the new one.
  useEffect(() => {
    if (expiresAt) api.session().then(({ token }) => refresh(token)).catch(console.warn);
  }, [api, expiresAt, refresh]);

  // A computer that has slept comes back with an old token. If it has not expired
  // by our clock, the clocks disagree, and the next token would be refused as well.
  const renewals = useRef(0);
  useEffect(() => {
    if (isConnected) renewals.current = 0;
    const isOver = Date.parse(session.expiresAt) <= Date.now();
    if (connection.reason !== 'token expired' || !isOver || renewals.current === MAX_RENEWALS) return;
    const pause = renewals.current === 0 ? 0 : 1000 * 2 ** renewals.current;
    const timer = setTimeout(() => {
      renewals.current += 1;
      signIn();
    }, pause);
    return () => clearTimeout(timer);
  }, [connection, isConnected, session, signIn]);

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
        <ConnectionBadge connection={connection} signIn={signIn} />
        <CutButton socket={socket} isConnected={isConnected} />
        <Members
          me={me}
          members={chat.members}
          add={(member) => attempt(api.addMember(member))}
          remove={(member) => attempt(api.removeMember(member))}
        />
      </header>
      {problem && (
        <p className="problem" role="alert">
          {problem} <button onClick={() => (setProblem(null), wantFetch())}>Try again</button>
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
