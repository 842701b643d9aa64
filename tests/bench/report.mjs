// Renders what `run.mjs` has measured.
//
//   node report.mjs RESULTS.json             prints the tables
//   node report.mjs RESULTS.json --write     writes them to docs/BENCHMARKS.md, the plot beside, and what docs/CAPACITY.md computes from them

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { writeExamples } from './examples.mjs';
import { Figures } from './figures.mjs';
import { judge } from './goals.mjs';
import { plot } from './plot.mjs';
import { SCENARIOS } from './scenarios.mjs';
import { goalsTable, tables } from './tables.mjs';

const docs = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../docs');
const page = path.join(docs, 'BENCHMARKS.md');
const image = path.join(docs, 'images', 'benchmarks.svg');
const BEGIN = '<!-- measured: written by `make bench` -->';
const END = '<!-- end of what is measured -->';

const [file] = process.argv.slice(2);
const isWriting = process.argv.includes('--write');
const { host, turns } = JSON.parse(readFileSync(file, 'utf8'));
const figures = new Figures(turns);

const times = turns.map(({ at }) => at).sort();
const minute = (time) => time.slice(0, 16).replace('T', ' ');
const text = [
  `Measured from ${minute(times[0])} to ${minute(times.at(-1))} UTC with \`${isWriting ? 'make bench' : 'make bench-quick'}\` on ${host.cores} cores\nof ${host.cpu}, ` +
  `${host.memoryGiB} GiB, Linux ${host.kernel}, with RabbitMQ ${host.rabbitmq}, Node ${host.node}, rustc ${host.rustc}. ` +
  `Load average at the start: ${host.load}.`,
  '### Goals',
  goalsTable(judge(figures).filter(({ value }) => isWriting || value !== null)),
  ...Object.entries(SCENARIOS).map(([id, scenario]) => tables(figures, id, scenario)).filter(Boolean),
];

if (isWriting) {
  const drawing = plot(figures, ['A', 'B', 'C'].map((id) => [id, SCENARIOS[id].users]));
  if (drawing) {
    mkdirSync(path.dirname(image), { recursive: true });
    writeFileSync(image, drawing);
  }
  if (existsSync(image)) text.splice(1, 0, '![Server CPU per update against the number of users](images/benchmarks.svg)');
  const [head, rest] = readFileSync(page, 'utf8').split(BEGIN);
  const tail = rest.split(END)[1];
  writeFileSync(page, `${head}${BEGIN}\n\n${text.join('\n\n')}\n\n${END}${tail}`);
  writeExamples();
  console.log(`written: ${page}`);
} else {
  console.log(text.join('\n\n'));
}
