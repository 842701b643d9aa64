import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
import { Chat } from './Chat';
import './style.css';

const user = new URLSearchParams(location.search).get('user') ?? 'usr_alice';
createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <Chat me={user} />
  </StrictMode>,
);
