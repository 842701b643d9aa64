import { useEffect, useRef, useState, type FormEvent } from 'react';
import type { ChatMessage } from './chat';
import { Avatar } from './Members';
import { nameOf } from './people';

const REACTIONS = ['👍', '❤️', '😂'];

interface Actions {
  react: (id: string, reaction: string) => void;
  edit: (id: string, content: string) => void;
  remove: (id: string) => void;
}

export function MessageList({ me, messages, ...actions }: { me: string; messages: ChatMessage[] } & Actions) {
  const end = useRef<HTMLLIElement>(null);
  useEffect(() => {
    end.current?.scrollIntoView({ block: 'end' });
  }, [messages.length]);
  return (
    <ol className="messages" aria-label="Messages" tabIndex={0}>
      {messages.length === 0 && (
        <li className="empty">No messages yet. Open the other user's window by the link above, and say hello.</li>
      )}
      {messages.map((message, index) => (
        <MessageItem
          key={message.id}
          me={me}
          message={message}
          isFollowUp={messages[index - 1]?.senderId === message.senderId}
          {...actions}
        />
      ))}
      <li ref={end} aria-hidden className="end" />
    </ol>
  );
}

type ItemProps = { me: string; message: ChatMessage; isFollowUp: boolean } & Actions;

function MessageItem({ me, message, isFollowUp, react, edit, remove }: ItemProps) {
  const [isEditing, setIsEditing] = useState(false);
  const { id, senderId, content, at, reactions } = message;
  const isMine = senderId === me;
  return (
    <li className="message" data-mine={isMine} data-follow-up={isFollowUp}>
      {!isMine && <Avatar user={senderId} />}
      <div className="bubble" tabIndex={0}>
        <p className={isMine || isFollowUp ? 'visually-hidden' : 'sender'}>{nameOf(senderId)}</p>
        {isEditing ? (
          <EditForm content={content} save={(text) => edit(id, text)} close={() => setIsEditing(false)} />
        ) : (
          <p className="content">{content}</p>
        )}
        <p className="facts">
          {message.isEdited && 'edited · '}
          <time dateTime={at.toISOString()}>{at.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })}</time>
          {isMine && <Status message={message} />}
        </p>
        {reactions.length > 0 && (
          <ul className="reactions" aria-label="Reactions">
            {reactions.map(({ reaction, count, me }) => (
              <li key={reaction}>
                <button aria-pressed={me} onClick={() => react(id, reaction)}>
                  {reaction} {count}
                </button>
              </li>
            ))}
          </ul>
        )}
      </div>
      <div className="tools">
        {REACTIONS.map((reaction) => (
          <button key={reaction} onClick={() => react(id, reaction)} aria-label={`React with ${reaction}`}>
            {reaction}
          </button>
        ))}
        {isMine && <button onClick={() => setIsEditing(true)}>Edit</button>}
        {isMine && <button onClick={() => remove(id)}>Delete</button>}
      </div>
    </li>
  );
}

/** The furthest status of the message among its readers. */
function Status({ message }: { message: ChatMessage }) {
  const statuses = Object.values(message.statuses);
  const status = statuses.includes('read') ? 'read' : statuses.includes('delivered') ? 'delivered' : 'sent';
  return (
    <span className="status" data-status={status}>
      <span aria-hidden>{status === 'sent' ? '✓' : '✓✓'}</span> {status}
    </span>
  );
}

function EditForm({ content, save, close }: { content: string; save: (text: string) => void; close: () => void }) {
  const [text, setText] = useState(content);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text.trim() && text !== content) save(text.trim());
    close();
  };
  return (
    <form onSubmit={submit} onKeyDown={(event) => event.key === 'Escape' && close()}>
      <input autoFocus aria-label="Edit message" value={text} onChange={(event) => setText(event.target.value)} />
      <button>Save</button>
    </form>
  );
}
