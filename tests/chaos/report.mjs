// The verdict: what is printed, and whether the run was good.

/** What must be 0. */
const FAULTS = [
  ['lost', 'lost'],
  ['doubled', 'doubled'],
  ['outOfOrder', 'out of order'],
  ['replayed', 'replayed in spite of a refusal'],
  ['foreign', "somebody else's"],
  ['unfounded', 'without a session'],
  ['away', 'clients that did not come back'],
];

/** What a run without any proves nothing. */
const NEEDED = [
  ['confirmed', 'nothing was confirmed'],
  ['delivered', 'nothing was delivered'],
];

/** Prints what came out; true if it is as it must be. */
export function print({ topology, verdict, stream, counts, complaints, warnings, waiting, errors, failure, faults, repeat }) {
  const { findings, refusedAfter, recoveredAfter, ...sums } = verdict;
  const kinds = {};
  for (const { kind } of faults) kinds[kind] = (kinds[kind] ?? 0) + 1;
  const outcomes = select(counts, /^recoveries_total\{outcome="(\w+)"\}$/);
  const resumes = sums.recovered + sums.refused;
  const bad = [
    ...FAULTS.filter(([field]) => sums[field] > 0).map(([field, words]) => `${words}: ${sums[field]}`),
    ...NEEDED.filter(([field]) => !sums[field]).map(([, words]) => words),
    ...(resumes === 0 && faults.length > 0 ? ['no client ever came back'] : []),
    // An instance that is started without RabbitMQ refuses some; that most are refused has another reason.
    ...(topology === 'stream' && sums.refused > sums.recovered ? ['more sessions were refused than resumed'] : []),
    ...(waiting.length > 0 ? [`still waiting: ${waiting.slice(0, 5).join('; ')}${waiting.length > 5 ? ` and ${waiting.length - 5} more` : ''}`] : []),
    ...complaints,
    ...(failure ? [`the run failed: ${failure.message}`] : []),
  ];
  const line = (name, value) => console.log(`${name.padEnd(34)} ${value}`);
  console.log('');
  line('faults', inline(kinds));
  line('published', `${sums.published}, of them confirmed ${sums.confirmed}, uncertain ${sums.uncertain}`);
  line('events delivered', sums.delivered);
  for (const [field, words] of FAULTS) line(words, sums[field]);
  line('holes, and told to refetch', sums.told);
  line('came although published before', sums.early);
  line('resumes', `${resumes}: recovered ${sums.recovered}, refused ${sums.refused} (${resumes ? ((100 * sums.refused) / resumes).toFixed(2) : 0} %)`);
  line('refused after', inline(refusedAfter));
  line('recovered after', inline(recoveredAfter));
  line('the gateways say', inline(outcomes));
  line('their other counters', inline(select(counts, /^(?!recoveries_total)(.+)$/)));
  line('their warnings', inline(warnings));
  line('errors that clients saw', inline(errors));
  if (stream) {
    const { examples, ...inStream } = stream;
    line('in the stream itself', inline(inStream));
    for (const text of examples) console.log(`  in the stream, ${text}`);
  }
  for (const { what, at, client, user, n, text } of findings) {
    const around = faults.filter(({ began }) => began <= at && began > at - 30_000).slice(-4).map(({ kind, gateway, began }) => `${kind}${gateway === undefined ? '' : ` ${gateway + 1}`} ${((at - began) / 1000).toFixed(1)} s before`);
    console.log(`  ${what}: update ${n} of ${user} at ${client}, ${new Date(at).toISOString().slice(11, 23)}: ${text} [${around.join(', ')}]`);
  }
  console.log(bad.length === 0 ? '\nEvery confirmed update came once and in order, or the client was told to refetch.' : `\nFAILED: ${bad.join('\n        ')}`);
  if (failure?.stack) console.log(failure.stack);
  console.log(`To repeat the faults: ${repeat}`);
  return bad.length === 0;
}

function select(counts, pattern) {
  return Object.fromEntries(Object.entries(counts).filter(([name, count]) => count > 0 && pattern.test(name)).map(([name, count]) => [pattern.exec(name)[1], count]));
}

function inline(counts) {
  return Object.entries(counts).sort(([, a], [, b]) => b - a).map(([name, count]) => `${name} ${count}`).join(', ') || 'none';
}
