// Random numbers that a seed repeats.

/** A source of numbers; the same seed gives the same ones (mulberry32). */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** From 0 up to, and without, 1. */
  next() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from `least` to `most`. */
  whole(least, most) {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  pick(list) {
    return list[this.whole(0, list.length - 1)];
  }

  /** `list` in another order. */
  shuffled(list) {
    const all = [...list];
    for (let i = all.length - 1; i > 0; i -= 1) {
      const j = this.whole(0, i);
      [all[i], all[j]] = [all[j], all[i]];
    }
    return all;
  }
}
