// The development page: puts its parts together.

import { byId, connectSnippet, copyText, foldOnPhones } from './dom.js';
import { bindEnvelope } from './envelope.js';
import { bindPublishForm, loadTemplates, showRecipients } from './publish.js';
import { createPane, signIn } from './users.js';

const THEMES = ['auto', 'light', 'dark'];

function stored(value) {
  try {
    if (value) localStorage.setItem('theme', value);
    return localStorage.getItem('theme');
  } catch {
    return value; // storage may be forbidden; the theme then lasts as long as the page
  }
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId('theme').textContent = `Theme: ${theme}`;
}

function bindTheme() {
  showTheme(THEMES.includes(stored()) ? stored() : 'auto');
  byId('theme').addEventListener('click', () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    stored(next);
    showTheme(next);
  });
}

function showSnippet() {
  byId('connect-snippet').textContent = connectSnippet({ userId: 'usr_alice', tenantId: 'tnt_default' });
}

function bindCopyButtons() {
  for (const button of document.querySelectorAll('[data-copy]')) {
    button.addEventListener('click', () => copyText(button, byId(button.dataset.copy).textContent));
  }
}

const hasClient = typeof window.io === 'function';
const panes = { a: createPane('a', 'usr_alice'), b: createPane('b', 'usr_bob') };
bindTheme();
foldOnPhones(document);
bindEnvelope();
bindPublishForm(panes);
bindCopyButtons();
showSnippet();
showRecipients();
loadTemplates();
byId('bundle-missing').hidden = hasClient;
for (const pane of Object.values(panes)) {
  if (hasClient) signIn(pane); else pane.root.querySelector('[data-role="sign"]').disabled = true;
}
