// The modules of a crate and what they import of each other, by their `use` declarations and paths. Their tests do not count.

import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

/** The source without comments, strings and items under `#[cfg(test)]`. */
function code(text) {
  const bare = text
    .replaceAll(/^\s*\/\/.*$/gm, '')
    .replaceAll(/\s\/\/ .*$/gm, '')
    .replaceAll(/r#"[\s\S]*?"#/g, '""')
    .replaceAll(/"(?:\\[\s\S]|[^"\\])*"/g, '""');
  let kept = '';
  let rest = bare;
  for (;;) {
    const at = rest.search(/#\[cfg\((?:all\()?test\b/);
    if (at < 0) return kept + rest;
    kept += rest.slice(0, at);
    rest = rest.slice(at);
    // Up to the end of the item: its semicolon, or the brace that closes it.
    let depth = 0;
    let end = rest.indexOf(']') + 1;
    for (; end < rest.length; end += 1) {
      if (rest[end] === '{') depth += 1;
      else if (rest[end] === '}') depth -= 1;
      if ((depth === 0 && rest[end] === '}') || (depth === 0 && rest[end] === ';')) break;
    }
    rest = rest.slice(end + 1);
  }
}

/** The paths of a `use` declaration: `a::{b, c::{self, d as e}}` is a::b, a::c and a::c::d, each with its name here. */
function expand(tree, before = []) {
  const text = tree.trim();
  const open = text.indexOf('{');
  if (open < 0) {
    const [path, alias] = text.split(/\s+as\s+/);
    const segments = [...before, ...path.split('::').map((name) => name.trim()).filter(Boolean)];
    const whole = segments.at(-1) === 'self' && segments.length > 1 ? segments.slice(0, -1) : segments;
    return [{ path: whole, name: alias ?? whole.at(-1) }];
  }
  const head = [...before, ...text.slice(0, open).split('::').map((name) => name.trim()).filter(Boolean)];
  const parts = [];
  let depth = 0;
  let part = '';
  for (const letter of text.slice(open + 1, text.lastIndexOf('}'))) {
    if (letter === ',' && depth === 0) {
      parts.push(part);
      part = '';
      continue;
    }
    if (letter === '{') depth += 1;
    if (letter === '}') depth -= 1;
    part += letter;
  }
  return [...parts, part].filter((each) => each.trim()).flatMap((each) => expand(each, head));
}

/** Every module below `src` by its path, e.g. `broker::rabbitmq`; the path of the crate's root is empty. */
export function modules(src) {
  const all = new Map();
  const add = (file, path) => {
    const text = readFileSync(file, 'utf8');
    const bare = code(text);
    const uses = [...bare.matchAll(/\buse\s+([^;]+);/g)].flatMap(([, tree]) => expand(tree));
    const paths = [...bare.replaceAll(/\buse\s+[^;]+;/g, '').matchAll(/\b(?:crate|super|self)(?:::\w+)+/g)].map(([found]) => ({ path: found.split('::') }));
    all.set(path, { file: file.slice(src.length - 3), text, uses, paths });
  };
  const walk = (folder, path) => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const inner = [...path, entry.name.replace(/\.rs$/, '')];
      if (entry.isDirectory() && !['node_modules', 'tests'].includes(entry.name)) walk(join(folder, entry.name), inner);
      else if (entry.name.endsWith('.rs') && !['build.rs', 'main.rs', 'lib.rs', 'tests.rs'].includes(entry.name)) add(join(folder, entry.name), inner.join('::'));
    }
  };
  walk(src, []);
  add(join(src, 'lib.rs'), '');
  return all;
}

/** The module in which `path`, as written in module `at`, ends: through submodules and what modules re-export. */
function target(all, at, path, depth = 0) {
  let here = at === '' ? [] : at.split('::');
  const [first] = path;
  const child = (parent, name) => [...parent, name].join('::');
  let segments = path;
  if (first === 'crate') [here, segments] = [[], path.slice(1)];
  else if (first === 'self') segments = path.slice(1);
  else if (first !== 'super' && !all.has(child(here, first))) return null;
  for (let i = 0; i < segments.length; i += 1) {
    const name = segments[i];
    if (name === 'super') {
      here = here.slice(0, -1);
    } else if (all.has(child(here, name))) {
      here = [...here, name];
    } else {
      const brought = all.get(here.join('::'))?.uses.find((use) => use.name === name);
      const onward = brought && depth < 8 && target(all, here.join('::'), [...brought.path, ...segments.slice(i + 1)], depth + 1);
      return onward || here.join('::');
    }
  }
  return here.join('::');
}

/** Each import between modules of one parent: `from`, or a module in it, imports something from `to`, or from a module in that. */
export function edges(all) {
  const found = [];
  for (const [at, { file, uses, paths }] of all) {
    if (at === '') continue;
    for (const { path } of [...uses, ...paths]) {
      const to = target(all, at, path);
      if (to === null) continue;
      const [a, b] = [at.split('::'), to.split('::')];
      let same = 0;
      while (same < a.length && a[same] === b[same]) same += 1;
      if (same < a.length && same < b.length && b[same]) found.push({ parent: a.slice(0, same).join('::'), from: a[same], to: b[same], file, path: path.join('::') });
    }
  }
  return found;
}

/** The groups of modules that reach each other by imports, each as `parent::{a, b}`, with the imports that make the circle. */
export function circles(found) {
  const groups = new Map();
  for (const parent of new Set(found.map((edge) => edge.parent))) {
    const within = found.filter((edge) => edge.parent === parent);
    const reach = (from, seen = new Set()) => {
      for (const { to } of within.filter((edge) => edge.from === from)) if (!seen.has(to)) reach(to, seen.add(to));
      return seen;
    };
    const reached = new Map([...new Set(within.map(({ from }) => from))].map((name) => [name, reach(name)]));
    for (const [name, all] of reached) {
      if (!all.has(name)) continue;
      const group = [...all].filter((other) => reached.get(other)?.has(name)).sort();
      const imports = within.filter(({ from, to }) => group.includes(from) && group.includes(to)).map(({ file, path }) => `${file} imports ${path}`);
      groups.set(`${parent}::{${group.join(', ')}}`, [...new Set(imports)]);
    }
  }
  return groups;
}
