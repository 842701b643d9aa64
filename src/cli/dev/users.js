// A user's pane: identity, token, connection and its states. What arrives goes to the log.

import { byId, connectSnippet, copyText, part, postJson, show } from './dom.js';
import { addRow, bindLog, onEvent } from './log.js';

const ONLINE = ['live', 'recovered', 'refetch'];
const SIGNED_IN = [...ONLINE, 'connecting', 'reconnecting', 'cut'];
const STATE_TEXT = { refetch: 'must refetch', cut: 'cut' };
const CONNECT_TEXT = { live: 'new connection', recovered: 'connection state recovered', refetch: 'not recovered: must refetch' };
const REASON = {
  recovered: 'Nothing was lost: what was published meanwhile follows.',
  refetch: 'Something may be missing: a frontend fetches its state anew here.',
};
const isOnline = (state) => ONLINE.includes(state);

function setState(pane, state, reason = '') {
  const signedIn = SIGNED_IN.includes(state);
  const badge = part(pane, 'status');
  const sign = part(pane, 'sign');
  pane.state = state;
  badge.textContent = STATE_TEXT[state] || state;
  badge.dataset.state = state;
  part(pane, 'reason').textContent = reason;
  sign.textContent = signedIn ? 'Sign out' : 'Sign in';
  // A plain button while signed in, so that Enter in a read-only field does not sign the user out.
  sign.type = signedIn ? 'button' : 'submit';
  sign.classList.toggle('primary', !signedIn);
  part(pane, 'user').readOnly = part(pane, 'tenant').readOnly = signedIn;
  part(pane, 'cut').disabled = !(isOnline(state) || state === 'cut');
  part(pane, 'cut').setAttribute('aria-checked', String(state === 'cut'));
  part(pane, 'connect').hidden = !pane.token;
  if (!isOnline(state)) {
    show(part(pane, 'transport'), '');
    part(pane, 'recovered').hidden = true;
    part(pane, 'renew').hidden = true;
  }
}

export function identity(userField, tenantField) {
  const userId = userField.value.trim();
  const tenantId = tenantField.value.trim();
  return tenantId ? { userId, tenantId } : { userId };
}

export const identityOf = (pane) => identity(part(pane, 'user'), part(pane, 'tenant'));

export async function signIn(pane) {
  const turn = ++pane.turn; // a sign-out or a newer sign-in makes this one stale
  setState(pane, 'connecting');
  try {
    const grant = await postJson('/dev/tokens', { ...identityOf(pane), expiresIn: part(pane, 'lifetime').value });
    if (turn !== pane.turn) return;
    pane.token = grant.token;
    pane.expires = new Date(grant.expiresAt);
    showToken(pane);
    setState(pane, 'connecting');
    openSocket(pane);
  } catch (error) {
    if (turn === pane.turn) setState(pane, error.unreachable ? 'offline' : 'refused', error.message);
  }
}

function dropSocket(pane) {
  const socket = pane.socket;
  pane.socket = null; // first, so that the handlers can tell this end from one they did not ask for
  socket?.disconnect();
}

function signOut(pane) {
  pane.turn += 1;
  pane.wasLive = pane.hasState = false;
  pane.token = '';
  dropSocket(pane);
  setState(pane, 'offline');
}

function openSocket(pane) {
  dropSocket(pane);
  const socket = window.io({ auth: (give) => give({ token: pane.token }), forceNew: true });
  pane.socket = socket;
  socket.on('connect', () => onConnect(pane, socket));
  socket.on('disconnect', (reason) => onDisconnect(pane, socket, reason));
  socket.on('connect_error', (error) => onConnectError(pane, socket, error));
  socket.onAny((name, payload) => onEvent(pane, name, payload));
  socket.on('auth:expiring', ({ expiresAt }) => onExpiring(pane, expiresAt));
  socket.io.on('reconnect_attempt', (attempt) => setState(pane, pane.wasLive ? 'reconnecting' : 'connecting', `Attempt ${attempt}`));
}

function onConnect(pane, socket) {
  const engine = socket.io.engine;
  const showTransport = () => show(part(pane, 'transport'), engine.transport.name);
  const state = socket.recovered ? 'recovered' : pane.hasState ? 'refetch' : 'live';
  pane.recoveredAt = socket.recovered ? Date.now() : 0;
  pane.replayed = 0;
  pane.wasLive = pane.hasState = true;
  setState(pane, state, REASON[state] || validity(pane));
  showTransport();
  engine.on('upgrade', showTransport); // polling first, websocket a moment later
  if (state === 'recovered') show(part(pane, 'recovered'), '0 replayed');
  addRow(pane, 'connect', CONNECT_TEXT[state], { id: socket.id, recovered: socket.recovered, transport: engine.transport.name });
}

function validity(pane) {
  return Number.isNaN(pane.expires.getTime()) ? '' : `Token valid until ${pane.expires.toLocaleString()}`;
}

// Closes the transport below the socket, as a lost network would, and keeps the client from coming back
// before the switch is off again.
function cut(pane) {
  const { socket } = pane;
  socket.io.reconnection(false);
  setState(pane, 'cut', 'Publish now: it arrives when you switch the connection on again.');
  socket.io.engine.close();
}

// Cut in the midst of an upgrade, the transport is closed when that is over, and the client, which was told to
// stay away, does. So it is connected after that; not within the event, where it would begin an attempt of its own
// as well and wait for its end ever after.
function restore(pane) {
  const { socket } = pane;
  const connect = () => pane.socket === socket && socket.connect();
  setState(pane, 'reconnecting');
  socket.io.reconnection(true);
  if (socket.connected) socket.once('disconnect', () => setTimeout(connect)); else connect();
}

function onExpiring(pane, expiresAt) {
  part(pane, 'reason').textContent = `auth:expiring: the token ends at ${new Date(expiresAt).toLocaleTimeString()}`;
  part(pane, 'renew').hidden = false;
}

async function renew(pane) {
  try {
    const grant = await postJson('/dev/tokens', identityOf(pane));
    const answer = await pane.socket.timeout(5000).emitWithAck('auth:refresh', grant.token);
    if (!answer.ok) throw new Error(answer.error);
    pane.token = grant.token;
    pane.expires = new Date(answer.expiresAt);
    part(pane, 'renew').hidden = true;
    part(pane, 'reason').textContent = validity(pane);
    showToken(pane);
    addRow(pane, 'auth:refresh', 'token renewed', { expiresAt: answer.expiresAt });
  } catch (error) {
    part(pane, 'reason').textContent = `Not renewed: ${error.message}`;
  }
}

function showToken(pane) {
  part(pane, 'token').textContent = pane.token;
}

function onDisconnect(pane, socket, reason) {
  addRow(pane, 'disconnect', reason, { reason });
  if (pane.socket !== socket || pane.state === 'cut') return;
  if (socket.active) return setState(pane, 'reconnecting', `Disconnected: ${reason}`);
  dropSocket(pane); // the client does not come back by itself when the server ended the connection
  setState(pane, 'offline', `Disconnected: ${reason}`);
}

function onConnectError(pane, socket, error) {
  if (pane.socket !== socket) return;
  // Still active = the transport failed and the client retries; otherwise the gateway itself said no.
  if (socket.active) return setState(pane, pane.wasLive ? 'reconnecting' : 'connecting', error.message);
  addRow(pane, 'connect_error', error.message, { message: error.message, data: error.data });
  dropSocket(pane);
  if (!pane.wasLive) return setState(pane, 'refused', error.message);
  // A user who was live is refused: the token expired or the gateway restarted. Take a new one, once.
  pane.wasLive = false;
  signIn(pane);
}

export function createPane(key, userId) {
  const root = byId('pane-template').content.firstElementChild.cloneNode(true);
  const pane = { key, root, state: 'offline', turn: 0, token: '', expires: new Date(NaN), socket: null, wasLive: false,
    hasState: false,
    unfolded: null, recoveredAt: 0, replayed: 0, latencies: [], hidden: new Set(), counters: new Map(), log: root.querySelector('[data-role="log"]') };
  const title = `User ${key.toUpperCase()}`;
  root.dataset.userPane = key;
  root.setAttribute('aria-label', title);
  root.querySelector('h2 span').textContent = title;
  pane.log.setAttribute('aria-label', `Events of ${title}, newest first`);
  part(pane, 'user').value = userId;
  bindLog(pane);
  part(pane, 'identity').addEventListener('submit', (event) => {
    event.preventDefault();
    pane.wasLive = pane.hasState = false;
    signIn(pane);
  });
  part(pane, 'sign').addEventListener('click', (event) => {
    if (!SIGNED_IN.includes(pane.state)) return;
    event.preventDefault(); // signOut turns this into a submit button, which would sign in again within this very click
    signOut(pane);
  });
  part(pane, 'copy-token').addEventListener('click', (event) => copyText(event.currentTarget, pane.token));
  part(pane, 'copy-snippet').addEventListener('click', (event) => copyText(event.currentTarget, connectSnippet(identityOf(pane))));
  part(pane, 'renew').addEventListener('click', () => renew(pane));
  part(pane, 'cut').addEventListener('click', () => (pane.state === 'cut' ? restore(pane) : cut(pane)));
  byId('compare').before(root);
  return pane;
}

