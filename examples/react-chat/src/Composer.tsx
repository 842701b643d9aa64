import { useRef, useState, type FormEvent } from 'react';

/** How often the others are told that the user is typing; they assume so for 5 s. */
const TYPING_INTERVAL_MS = 3000;

interface Props {
  /** Resolves with whether the message was accepted. */
  send: (content: string) => Promise<boolean>;
  typing: () => void;
}

export function Composer({ send, typing }: Props) {
  const [text, setText] = useState('');
  const toldAt = useRef(0);

  const change = (text: string) => {
    setText(text);
    if (!text.trim() || Date.now() - toldAt.current < TYPING_INTERVAL_MS) return;
    toldAt.current = Date.now();
    typing();
  };

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    const content = text.trim();
    if (!content) return;
    setText('');
    toldAt.current = 0;
    if (!(await send(content))) setText((now) => now || content);
  };

  return (
    <form className="composer" onSubmit={submit}>
      <input
        autoFocus
        aria-label="Message"
        placeholder="Message"
        autoComplete="off"
        value={text}
        onChange={(event) => change(event.target.value)}
      />
      <button disabled={!text.trim()}>Send</button>
    </form>
  );
}
