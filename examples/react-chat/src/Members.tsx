import { hueOf, nameOf, PEOPLE } from './people';

interface Props {
  me: string;
  members: string[];
  add: (member: string) => void;
  remove: (member: string) => void;
}

export function Members({ me, members, add, remove }: Props) {
  const others = PEOPLE.filter((person) => !members.includes(person));
  return (
    <ul className="members" aria-label="Members">
      {members.map((member) => (
        <li key={member}>
          <Avatar user={member} />
          {member === me ? (
            `${nameOf(member)} (you)`
          ) : (
            <>
              <a href={`?user=${member}`} target="_blank" title={`Open ${nameOf(member)}'s window`}>
                {nameOf(member)} <span aria-hidden>↗</span>
              </a>
              <button onClick={() => remove(member)} aria-label={`Remove ${nameOf(member)}`} title="Remove">
                ×
              </button>
            </>
          )}
        </li>
      ))}
      {members.length > 0 &&
        others.map((person) => (
          <li key={person} className="absent">
            <button onClick={() => add(person)}>+ Add {nameOf(person)}</button>
          </li>
        ))}
    </ul>
  );
}

export function Avatar({ user }: { user: string }) {
  return (
    <span className="avatar" style={{ '--hue': hueOf(user) } as React.CSSProperties} aria-hidden>
      {nameOf(user).charAt(0)}
    </span>
  );
}
