// What the page reads of an update, whichever generation and envelope it has.

export const idOf = (update) => update?._id ?? update?.eventId; // today's Chat3 has no _id

export function eventTypeOf(update) {
  return update?.eventType || update?.sourceEventType || update?.data?.context?.eventType || '';
}

// ISO in the first generation, milliseconds as text today.
export function publishedAt(update) {
  const text = update.publishedAt ?? update.createdAt;
  return Number.isNaN(Number(text)) ? Date.parse(text) : Number(text);
}

function nameOf(person) {
  return person?.meta?.displayName ?? person?.name ?? person?.userId;
}

// What a person would want to read of it, in a few words: the message's text, if there is one.
export function textOf(update) {
  const { data } = update ?? {};
  if (data === null || typeof data !== 'object') return '';
  const [family] = eventTypeOf(update).split('.');
  const flat = (name) => (family === name ? data : undefined); // the first generation has no sections
  const message = data.message ?? flat('message');
  const { reactionUpdate: reaction, statusUpdate: status } = message ?? {};
  const typing = data.typing ?? undefined;
  const member = data.member ?? undefined;
  const dialog = data.dialog ?? flat('dialog');
  const words = [
    reaction && [reaction.reaction ?? `${reaction.oldReaction ?? ''} taken back`, 'by', reaction.userId].join(' '),
    status && [status.status, 'by', status.userId].join(' '),
    message?.content,
    typing && `${nameOf(typing.userInfo) ?? typing.userId} is typing`,
    member && nameOf(member),
    dialog && (dialog.meta?.title ?? dialog.name ?? dialog.dialogId ?? dialog._id),
    nameOf(data.user ?? flat('user')),
  ];
  return String(words.find((text) => typeof text === 'string' && text !== '') ?? '').slice(0, 500);
}
