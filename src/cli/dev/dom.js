// What every part of the page needs: elements, requests, the clipboard.

export const byId = (id) => document.getElementById(id);
export const part = (pane, role) => pane.root.querySelector(`[data-role="${role}"]`);

export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function show(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

export async function postJson(url, body, method = 'POST') {
  let response;
  try {
    response = await fetch(url, { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
  } catch {
    throw Object.assign(new Error('The gateway does not answer. Is it still running?'), { unreachable: true });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `HTTP ${response.status}`);
  return answer;
}

// What a phone's first screen has no room for starts folded there.
export function foldOnPhones(root) {
  const phone = matchMedia('(max-width: 720px)');
  const fold = () => root.querySelectorAll('[data-fold]').forEach((details) => (details.open = !phone.matches));
  phone.addEventListener('change', fold);
  fold();
}

// navigator.clipboard exists on https and localhost only; a page opened by LAN address needs the old way.
function copyTheOldWay(text) {
  const focused = document.activeElement;
  const box = element('textarea', 'visually-hidden');
  box.value = text;
  document.body.append(box);
  box.select();
  const copied = document.execCommand('copy');
  box.remove();
  focused?.focus();
  return copied;
}

export async function copyText(button, text) {
  const copied = await Promise.resolve().then(() => navigator.clipboard.writeText(text)).then(() => true, () => copyTheOldWay(text));
  if (!button.dataset.label) button.dataset.label = button.textContent;
  button.textContent = copied ? 'Copied' : 'Copy failed';
  byId('announcer').textContent = button.textContent;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    button.textContent = button.dataset.label;
    byId('announcer').textContent = ''; // so that the same words are announced again next time
  }, 1500);
}

// Single quotes keep everything literal in a POSIX shell; a single quote inside has to leave and re-enter them.
function shellQuote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export function curlOf(path, body) {
  return `curl ${shellQuote(location.origin + path)} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shellQuote(JSON.stringify(body))}`;
}

// A whole program, for Node and for pages of this machine, which alone get tokens from another origin.
export function connectSnippet(user) {
  return `// npm install socket.io-client
import { io } from 'socket.io-client';

// In production, your backend signs the token: it knows who is signed in.
async function askForToken() {
  const asked = { method: 'POST', headers: { 'content-type': 'application/json' }, body: ${JSON.stringify(JSON.stringify(user))} };
  return (await (await fetch('${location.origin}/dev/tokens', asked)).json()).token;
}

const socket = io('${location.origin}', { auth: (give) => askForToken().then((token) => give({ token }), console.warn) });

socket.on('connect', () => console.log(socket.recovered ? 'recovered: what was missed follows' : 'connected: fetch your state now'));
socket.on('connect_error', (error) => console.log('not connected:', error.message));

socket.on('chat3:update', (update) => console.log('update', update));     // every update, whole
socket.on('message:new', (message) => console.log('message', message));   // what message.create is about
socket.on('message:update', (update) => console.log('changed', update));  // every other message.*
socket.on('dialog:update', (update) => console.log('dialog', update));    // every dialog.*`;
}
