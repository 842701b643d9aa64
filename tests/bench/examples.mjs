// The examples of the planner's pages, which are its own output.

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
export const PAGES = ['docs/CAPACITY.md', 'docs/ru/CAPACITY.md'];

/** A page's text as it is and as it should be, and how many examples it has. */
export function examples(page) {
  let count = 0;
  const text = readFileSync(path.join(root, page), 'utf8');
  const updated = text.replaceAll(/^(```text\n\$ make (plan .*)\n)[\s\S]*?^```/gm, (_, head, command) => {
    count += 1;
    // What runs `make` here may itself be run by one.
    const options = { cwd: root, encoding: 'utf8', env: { PATH: process.env.PATH } };
    return `${head}${execFileSync('make', ['--no-print-directory', ...command.split(' ')], options)}\`\`\``;
  });
  return { text, updated, count };
}

export function writeExamples() {
  for (const page of PAGES) writeFileSync(path.join(root, page), examples(page).updated);
}
