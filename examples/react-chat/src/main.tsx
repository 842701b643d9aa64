import { StrictMode, useCallback, useEffect, useMemo, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { apiOf, type Session } from './api';
import { Chat } from './Chat';
import './style.css';

/** Signs in as `?user=`, and renders the chat with the token. */
function App({ user }: { user: string }) {
  const api = useMemo(() => apiOf(user), [user]);
  const [session, setSession] = useState<Session | null>(null);
  const [problem, setProblem] = useState<string | null>(null);

  const signIn = useCallback(
    () =>
      api.session().then(
        (session) => (setSession(session), setProblem(null)),
        (error: Error) => setProblem(error.message),
      ),
    [api],
  );
  useEffect(() => void signIn(), [signIn]);

  if (session) return <Chat me={user} api={api} session={session} signIn={signIn} />;
  return (
    <main className="sign-in">
      {problem ? (
        <p role="alert">
          {problem} <button onClick={signIn}>Try again</button>
        </p>
      ) : (
        <p>Signing in…</p>
      )}
    </main>
  );
}

const user = new URLSearchParams(location.search).get('user') ?? 'usr_alice';
createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <App user={user} />
  </StrictMode>,
);
