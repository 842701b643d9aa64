// What the documentation says about the tree is true: imports, names, paths, links. Needs neither a broker nor a build.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { parse } from 'yaml';

import { circles, edges, modules } from './modules.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const read = (file) => readFileSync(join(root, file), 'utf8');
/** Paths of other projects, and patterns, that pages also name. */
const FOREIGN = ['tests/e2e/NAME.test.mjs', 'tests/NAME.rs', 'src/services/RabbitMQService.js', 'src/websocket/index.js', 'docs/MIGRATION_UPDATES_TENANT_ROUTING.md'];
const files = execFileSync('git', ['ls-files', '-co', '--exclude-standard'], { cwd: root, encoding: 'utf8' }).trim().split('\n')
  .filter((file) => existsSync(join(root, file)));
const pages = files.filter((file) => file.endsWith('.md'));
const prose = (page) => read(page).replace(/^ *```[\s\S]*?^ *```/gm, '');

/** The texts in backticks in a page, outside its code blocks. */
const quoted = (page) => [...prose(page).matchAll(/(`+)(.+?)\1/gs)].map(([, , text]) => text.trim());

// ---- The source ------------------------------------------------------------------------

/** The wings, as src/lib.rs lists them: each line may import the lines below it. */
const wings = [...read('src/lib.rs').matchAll(/^\/\/! - (.*?):/gm)].map(([, names]) => [...names.matchAll(/`(\w+)`/g)].map(([, name]) => name));

test('imports run down the list of wings in src/lib.rs', () => {
  const level = new Map(wings.flatMap((names, at) => names.map((name) => [name, at])));
  const all = modules(join(root, 'src'));
  const tops = [...all.keys()].filter((path) => path && !path.includes('::'));
  assert.deepEqual(tops.filter((name) => !level.has(name) && !['internal', 'prelude'].includes(name)), [], 'modules that the list does not have');
  const upward = edges(all).filter(({ parent, from, to }) => parent === '' && level.get(from) >= level.get(to) && level.get(from) !== level.get(to));
  assert.deepEqual(upward.map(({ file, to }) => `${file} imports ${to}`), []);
});

test('no modules of one parent import each other in a circle', () => {
  assert.deepEqual(Object.fromEntries(circles(edges(modules(join(root, 'src'))))), {});
});

test('every module says what it owns', () => {
  const silent = files.filter((file) => /^src\/.*\.rs$/.test(file) && !file.endsWith('/tests.rs') && !read(file).startsWith('//!'));
  assert.deepEqual(silent, []);
});

// ---- Names and paths -----------------------------------------------------------------------

/** The names of all tests, by file: sentences in node's tests, functions in Rust's. */
const tests = new Map();
for (const file of files.filter((name) => /\.(rs|mjs)$/.test(name) && /^(src|tests|fuzz)\//.test(name))) {
  const text = read(file);
  const names = file.endsWith('.rs') ? [...text.matchAll(/\bfn (\w+)/g)].map(([, name]) => name)
    : text.split('\n').map((line) => /^ *[\w.(= ?:)]*\((['"`])((?:\\.|(?!\1).)*)\1, /.exec(line)?.[2]).filter(Boolean)
      .map((name) => name.replaceAll(/\$\{.*?\}/g, '…').replaceAll('\\', ''));
  tests.set(file, names);
}

/** Whether some text is both `one` and `other`, in each of which "…" stands for anything. */
function meet(one, other) {
  // Row by row: whether the rests after `i` and `j` match.
  let below = [];
  for (let i = one.length; i >= 0; i -= 1) {
    const row = [];
    for (let j = other.length; j >= 0; j -= 1) {
      if (i === one.length && j === other.length) row[j] = true;
      else if (one[i] === '…') row[j] = below[j] || (j < other.length && row[j + 1]);
      else if (other[j] === '…') row[j] = row[j + 1] || (i < one.length && below[j]);
      else row[j] = i < one.length && one[i] === other[j] && below[j + 1];
    }
    below = row;
  }
  return Boolean(below[0]);
}
const isOneOf = (cited, names) => names.some((name) => meet(cited, name));

// A citation is a file and names: `broker`: "killing the broker…", "…"; `auth::keys`: `keys_that_…`.
const CITATION = /`([\w:]+)`: ((?:(?:"[^"]+"|`\w+…?`)(?:, )?)+)/g;

/**
 * The files that a citation may mean by `name`: tests/e2e/NAME.test.mjs, tests/NAME.rs, those of tests/NAME/, or a module of src by the end of its path, with the modules in it.
 */
function meant(name) {
  const path = `/${name.replaceAll('::', '/')}`;
  const suites = [`tests/e2e/${name}.test.mjs`, `tests/${name}.test.mjs`, `tests/${name}.rs`];
  return [...tests.keys()].filter((file) => suites.includes(file) || file.startsWith(`tests/${name}/`) || (file.startsWith('src/') && (file.endsWith(`${path}.rs`) || file.includes(`${path}/`))));
}

for (const [page, least] of [['docs/SECURITY.md', 80], ['docs/RELIABILITY.md', 80]]) {
  test(`every test that ${page} names exists`, () => {
    const text = prose(page).replaceAll(/\s+/g, ' ');
    const missing = [];
    let count = 0;
    for (const [, file, names] of text.matchAll(CITATION)) {
      const among = meant(file).flatMap((name) => tests.get(name));
      for (const [, sentence, name] of names.matchAll(/"([^"]+)"|`(\w+…?)`/g)) {
        count += 1;
        if (!isOneOf(sentence ?? name, among)) missing.push(`${file}: ${sentence ?? name}`);
      }
    }
    assert.deepEqual(missing, []);
    assert.ok(count >= least, `${count} citations`);
    // Anything else on the page that looks like a test's name.
    const cited = [...text.matchAll(CITATION)].map(([citation]) => citation).join();
    const stray = quoted(page).filter((name) => /^[a-z]+(_[a-z0-9]+){3,}…?$/.test(name) && !cited.includes(`\`${name}\``));
    const known = [...tests.values()].flat();
    assert.deepEqual(stray.filter((name) => !isOneOf(name, known) && !read('docs/METRICS.md').includes(name)), []);
  });
}

test('paths that the pages name exist', () => {
  const folders = new Set(files.map(dirname).flatMap((folder) => folder.split('/').map((_, i, all) => all.slice(0, i + 1).join('/'))));
  const missing = [];
  for (const page of pages.filter((name) => name !== 'CHANGELOG.md')) {
    const named = [...read(page).matchAll(/(?<![\w./:-])(?:src|tests|e2e|docs|docker|examples|fuzz|\.github|\.ci)\/[\w./*{},-]*[\w*}]/g)].map(([path]) => path);
    for (const path of named) {
      const pattern = path.replaceAll(/[.+^$()|[\]\\]/g, '\\$&').replaceAll('*', '[^/]*').replaceAll(/\{([^}]*)\}/g, (_, names) => `(${names.replaceAll(',', '|')})`);
      const is = new RegExp(`^(.*/)?${pattern}$`);
      const built = /\/(node_modules|dist|corpus|target)\b/.test(path);
      if (!built && !FOREIGN.includes(path) && !files.some((file) => is.test(file)) && ![...folders].some((folder) => is.test(folder))) missing.push(`${page}: ${path}`);
    }
  }
  assert.deepEqual(missing, []);
});

test('everything that docs/ARCHITECTURE.md names in the source exists', () => {
  const all = modules(join(root, 'src'));
  // A single word may also be in the tests or a setting.
  const texts = [...[...all.values()].map(({ text }) => text), ...[...tests.keys(), '.env.example', 'Cargo.toml'].map(read)].join('\n');
  const words = new Set([...texts.match(/\w+/g), ...[...tests.keys()].map((file) => file.split('/').at(-1).split('.')[0])]);
  const paths = [...all.keys()];
  const missing = [];
  for (const name of quoted('docs/ARCHITECTURE.md')) {
    if (!/^[A-Za-z_]\w*(::\w+)*$/.test(name)) continue;
    const segments = name.split('::');
    if (segments.length === 1) {
      if (!words.has(name)) missing.push(name);
      continue;
    }
    const isModule = paths.some((path) => `::${path}`.endsWith(`::${name}`));
    if (isModule) continue;
    // A module's item, or an associated item or variant of a type: in the files that define the type or extend it.
    const [owner, item] = [segments.slice(0, -1).join('::'), segments.at(-1)];
    const last = owner.split('::').at(-1);
    const places = [...all].filter(([path, { text }]) => `::${path}`.endsWith(`::${owner}`)
      || new RegExp(`\\b(struct|enum|trait|type) ${last}\\b|\\bimpl\\b[^{;]*\\b${last}\\b[^{;]*\\{`).test(text));
    const has = new RegExp(`\\b(fn|struct|enum|trait|type|const|static|mod) ${item}\\b|^\\s*${item}\\b\\s*[,({]`, 'm');
    if (!places.some(([, { text }]) => has.test(text))) missing.push(name);
  }
  assert.deepEqual(missing, []);
});

test('no script uses what Node 18 lacks', () => {
  const lacking = /\.(toReversed|toSorted|toSpliced)\(|\b(Object|Map)\.groupBy\b|\bArray\.fromAsync\b|\bPromise\.withResolvers\b|\bmock\.timers\b/;
  const scripts = files.filter((name) => /^(tests|examples)\/.*\.(mjs|js|tsx?)$/.test(name) && name !== 'tests/e2e/drift.test.mjs');
  assert.ok(scripts.length > 80);
  assert.deepEqual(scripts.filter((name) => lacking.test(read(name))), []);
});

// ---- Metrics -------------------------------------------------------------------------------

test('docs/METRICS.md repeats the help texts of the code', () => {
  const [file] = files.filter((name) => /^src\/.*\.rs$/.test(name) && read(name).includes('with_prefix("chat3_gateway")'));
  const help = new Map([...read(file).matchAll(/"([a-z_]+)",\s*"([A-Z0-9](?:\\\n\s*|[^"])*)"/g)].map(([, name, text]) => [name, text.replaceAll(/\\\n\s*/g, '')]));
  assert.ok(help.size > 30);
  const entry = /^- `(\w+)(\{\w+\})?`: \*([^*]*)\*/gm;
  const told = new Set();
  const updated = read('docs/METRICS.md').replaceAll(entry, (_, sample, labels = '') => {
    const name = [sample, sample.replace(/_(total|bytes|seconds)$/, '')].find((each) => help.has(each));
    assert.ok(name, `${sample} is a metric`);
    told.add(name);
    return `- \`${sample}${labels}\`: *${help.get(name)}*`;
  });
  assert.deepEqual([...help.keys()].filter((name) => !told.has(name)), [], 'metrics that the page lacks');
  if (process.env.UPDATE_DOCS) writeFileSync(join(root, 'docs/METRICS.md'), updated);
  else assert.ok(read('docs/METRICS.md') === updated, 'docs/METRICS.md has other help texts than the code: make docs');
});

test('every value of a label is listed where metrics are made', () => {
  const listed = read('src/observability/metrics.rs');
  const bodies = files.filter((name) => /^src\/.*\.rs$/.test(name))
    .flatMap((name) => [...read(name).matchAll(/^ *(?:pub(?:\(\w+\))? )?fn (?:label|outcome)\(&?self\) -> &'static str \{\n([\s\S]*?)^    \}$/gm)].map(([, body]) => body));
  assert.ok(bodies.length >= 6, `${bodies.length}`);
  const values = bodies.flatMap((body) => [...body.matchAll(/"(\w+)"/g)].map(([, value]) => value));
  assert.ok(values.length > 30);
  assert.deepEqual(values.filter((value) => !listed.includes(`"${value}"`)), []);
});

test('each panel of the dashboard has a place of its own, a unit and a description', () => {
  const { panels } = JSON.parse(read('docker/grafana/dashboards/chat3-gateway.json'));
  const taken = new Map();
  for (const { id, title, type, gridPos: { x, y, w, h }, description, fieldConfig, targets = [] } of panels) {
    assert.ok(x + w <= 24, title);
    for (let column = x; column < x + w; column += 1) {
      for (let row = y; row < y + h; row += 1) {
        assert.equal(taken.get(`${column},${row}`), undefined, `${title} lies on another panel`);
        taken.set(`${column},${row}`, id);
      }
    }
    if (type === 'row') continue;
    assert.ok(description && fieldConfig.defaults.unit, `${title}: a unit and a description`);
    assert.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length, title);
    for (const { expr } of targets) assert.match(expr, /\{instance=~"\$instance"/, `${title}: ${expr}`);
  }
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
});

// ---- Pages ---------------------------------------------------------------------------------

/** The anchors that GitHub makes of a page's headings. */
function anchors(page) {
  const headings = [...prose(page).matchAll(/^#+ (.*)$/gm)];
  return headings.map(([, text]) => text.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-'));
}

test('relative links and anchors resolve', () => {
  assert.ok(pages.length > 10);
  const broken = [];
  for (const page of pages) {
    for (const [, link] of prose(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue;
      const [path, anchor] = link.split('#');
      const target = path ? join(dirname(page), path) : page;
      const found = existsSync(join(root, target)) && (!anchor || anchors(target).includes(decodeURIComponent(anchor)));
      if (!found) broken.push(`${page}: ${link}`);
    }
  }
  assert.deepEqual(broken, []);
});

test('no line of a page is longer than 160 characters', () => {
  const long = pages.flatMap((page) => read(page).split('\n')
    .map((line, at) => ({ at: `${page}:${at + 1}`, length: [...line].length })).filter(({ length }) => length > 160)
    .map(({ at, length }) => `${at}: ${length}`));
  assert.deepEqual(long, []);
});

test('every page says first whom it is for, and what they can do with it', () => {
  const silent = pages.filter((page) => /^(README\.md|CHANGELOG\.md|docs\/)/.test(page))
    .filter((page) => !(page.startsWith('docs/ru/') ? /^# .+\n\nДля / : /^# .+\n\nFor /).test(read(page)));
  assert.deepEqual(silent, []);
});

test('docs/ru mirrors the pages for users, and no other', () => {
  const mirrored = [
    'ADMIN_API.md', 'CAPACITY.md', 'CONFIGURATION.md', 'DEPLOYMENT.md', 'DOCTOR.md', 'GETTING_STARTED.md', 'MIGRATION.md', 'OPERATIONS.md',
    'PRESENCE.md', 'PROTOCOL.md', 'README.md', 'RECOVERY.md', 'TROUBLESHOOTING.md',
  ];
  assert.deepEqual(readdirSync(join(root, 'docs/ru')).sort(), mirrored);
  // The same sections in the same order, so that a page's mirror lacks none.
  const levels = (page) => [...prose(page).matchAll(/^(#+) /gm)].map(([, level]) => level.length).join(' ');
  const unlike = mirrored.filter((page) => levels(`docs/ru/${page}`) !== levels(page === 'README.md' ? page : `docs/${page}`));
  assert.deepEqual(unlike, [], 'pages whose headings differ from their mirror');
});

// ---- Project files ---------------------------------------------------------------------------

test('the compiler is the same for the gate, the image and CI', () => {
  const [, channel] = read('rust-toolchain.toml').match(/^channel = "(\d+\.\d+\.\d+)"$/m);
  const [, image] = read('docker/Dockerfile').match(/^FROM .*\/rust:([\d.]+)-bookworm@sha256:\w{64} /m);
  const { jobs } = parse(read('.github/workflows/ci.yml'));
  assert.deepEqual([image, jobs.gate.container.image], [channel, `rust:${channel}-bookworm`]);
  const [, oldest] = read('Cargo.toml').match(/^rust-version = "([\d.]+)"$/m);
  for (const page of ['README.md', 'docs/CONTRIBUTING.md', 'docs/ru/README.md']) {
    assert.ok(new RegExp(`\\b${oldest.replace('.', '\\.')}\\b`).test(read(page)), `${page} names the oldest Rust, ${oldest}`);
  }
});

test('Cargo.toml names no file that the image is built without', () => {
  const [, copied] = read('docker/Dockerfile').match(/^FROM .*\/rust:\S+ AS build\n([\s\S]*?)^ +cargo build/m);
  const folder = mkdtempSync(join(tmpdir(), 'image-'));
  try {
    for (const [, paths] of copied.matchAll(/^COPY (.+) \S+$/gm)) for (const path of paths.split(' ')) cpSync(join(root, path), join(folder, path));
    mkdirSync(join(folder, 'src'), { recursive: true });
    for (const name of ['lib', 'main']) writeFileSync(join(folder, `src/${name}.rs`), '');
    // For rustup without a default. The image has the compiler that it names.
    cpSync(join(root, 'rust-toolchain.toml'), join(folder, 'rust-toolchain.toml'));
    // Cargo accepts the manifest before it misses the target, and compiles nothing.
    const { stderr } = spawnSync('cargo', ['build', '--locked', '--offline', '--bin', 'none'], { cwd: folder, encoding: 'utf8' });
    assert.match(stderr, /no bin target named `none`/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('workflows and templates are YAML, and run targets that exist', () => {
  const targets = new Set([...read('Makefile').matchAll(/^([\w-]+):/gm)].map(([, name]) => name));
  const forms = files.filter((file) => /^\.github\/.*\.yml$/.test(file));
  assert.ok(forms.length >= 5);
  for (const form of forms) assert.equal(typeof parse(read(form)), 'object', form);
  for (const workflow of forms.filter((file) => file.includes('/workflows/'))) {
    const steps = Object.values(parse(read(workflow)).jobs).flatMap((job) => job.steps ?? []);
    for (const [, target] of steps.map(({ run }) => /^make (\S+)/.exec(run ?? '')).filter(Boolean)) assert.ok(targets.has(target), `${workflow}: make ${target}`);
    for (const [path] of steps.flatMap(({ run }) => [...(run ?? '').matchAll(/(?<=\s|^)(?:\.ci|docker)\/[\w./-]+/g)])) assert.ok(existsSync(join(root, path)), path);
  }
});

test('dependabot looks into every folder with a lock file', () => {
  const { updates } = parse(read('.github/dependabot.yml'));
  const locked = (name) => files.filter((file) => file.split('/').at(-1) === name).map((file) => `/${dirname(file)}`.replace('/.', '/')).sort();
  const watched = (name) => [...updates.find((update) => update['package-ecosystem'] === name).directories].sort();
  assert.deepEqual(watched('cargo'), locked('Cargo.lock'));
  assert.deepEqual(watched('npm'), locked('package-lock.json'));
});

test('the changelog has the version of Cargo.toml', () => {
  const [, version] = read('Cargo.toml').match(/^version = "(.*)"$/m);
  assert.match(read('CHANGELOG.md'), new RegExp(`^## \\[${version.replaceAll('.', '\\.')}\\] - `, 'm'));
});
