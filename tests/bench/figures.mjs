// The figures of the turns: medians over the repeats, and what went wrong in any of them.

/** Counts that are 0 if a server has delivered everything as it should. */
const FAULTS = ['lost', 'doubled', 'misordered', 'foreign', 'closed', 'refused', 'churn_refused', 'churn_missed', 'incomplete'];

export class Figures {
  constructor(turns) {
    this.turns = turns;
  }

  of(scenario, server) {
    return this.turns.filter((turn) => turn.scenario === scenario && turn.server === server);
  }

  /** In the order of their first turn. */
  servers(scenario) {
    return [...new Set(this.turns.filter((turn) => turn.scenario === scenario).map((turn) => turn.server))];
  }

  /** The median of a field such as `latency_us.p99` in a phase such as `rate:3000`; null without a measurement. */
  median(scenario, server, phase, field) {
    const values = this.of(scenario, server)
      .flatMap(({ phases }) => phases.filter(({ spec }) => `${spec}:`.startsWith(`${phase}:`)))
      .map((record) => field.split('.').reduce((value, key) => value?.[key], record))
      .filter((value) => typeof value === 'number')
      .sort((a, b) => a - b);
    if (values.length === 0) return null;
    const middle = Math.floor(values.length / 2);
    return values.length % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  }

  /** The sums of what went wrong, e.g. `{ lost: 12 }`. */
  faults(scenario, server) {
    const sums = {};
    for (const { phases } of this.of(scenario, server)) {
      for (const phase of phases) {
        for (const name of FAULTS) if (phase[name]) sums[name] = (sums[name] ?? 0) + Number(phase[name]);
      }
    }
    return sums;
  }

  failures(scenario, server) {
    return this.of(scenario, server).map(({ failure }) => failure).filter(Boolean);
  }

  /** In words. */
  verdict(scenario, server) {
    const faults = Object.entries(this.faults(scenario, server));
    const failures = this.failures(scenario, server);
    const turns = this.of(scenario, server).length;
    return [
      ...faults.map(([name, count]) => `**${name.replace('_', ' ')} ${count}**`),
      ...(failures.length ? [`**failed in ${failures.length} of ${turns}**: ${failures[0].split('\n')[0].slice(0, 160)}`] : []),
    ].join(', ') || 'all';
  }

  isClean(scenario, server) {
    return Object.keys(this.faults(scenario, server)).length === 0 && this.failures(scenario, server).length === 0;
  }
}
