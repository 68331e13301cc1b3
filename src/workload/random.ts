/**
 * Random numbers that come again with their seed, quick enough to be drawn for every operation.
 */

/** As many values as {@link Random.next} can give. */
export const RANDOM_RANGE = 2 ** 32;

/** Mulberry32: 32 bits of state, a few nanoseconds a number. Good enough to choose keys by, not to keep secrets with. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** An integer from 0 to 2^32 - 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** An integer from 0 to `count` - 1. */
  below(count: number): number {
    return Math.floor((this.next() / RANDOM_RANGE) * count);
  }
}
