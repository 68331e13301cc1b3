/**
 * Zipf's law over the keys: few are asked for often, most are asked for hardly ever.
 */

import { RANDOM_RANGE, type Random } from './random.js';

/** YCSB's skew. */
export const ZIPFIAN_THETA = 0.99;

/** The sum of 1 / i^theta for i from 1 to `count`: what the weights of all ranks add up to. */
export function zeta(count: number, theta = ZIPFIAN_THETA): number {
  let sum = 0;
  for (let rank = 1; rank <= count; rank++) sum += 1 / rank ** theta;
  return sum;
}

/**
 * Draws ranks, 0 the most frequent, as in J. Gray et al., "Quickly Generating Billion-Record Synthetic Databases"
 * (SIGMOD 1994), which is YCSB's ZipfianGenerator. Ranks 0 and 1 come with their exact frequency, the others with that
 * of a smooth curve through them.
 */
export class ZipfianRanks {
  readonly #count: number;
  readonly #random: Random;
  readonly #zeta: number;
  readonly #alpha = 1 / (1 - ZIPFIAN_THETA);
  readonly #eta: number;
  readonly #weightOfFirstTwo = 1 + 0.5 ** ZIPFIAN_THETA;

  constructor(count: number, random: Random) {
    this.#count = count;
    this.#random = random;
    this.#zeta = zeta(count);
    this.#eta = (1 - (2 / count) ** (1 - ZIPFIAN_THETA)) / (1 - this.#weightOfFirstTwo / this.#zeta);
  }

  next(): number {
    const share = this.#random.next() / RANDOM_RANGE;
    const weight = share * this.#zeta;
    if (weight < 1) return 0;
    if (weight < this.#weightOfFirstTwo) return 1;
    const rank = Math.floor(this.#count * (this.#eta * share - this.#eta + 1) ** this.#alpha);
    // Rounding may take the last rank to the one after it.
    return Math.min(rank, this.#count - 1);
  }
}

/**
 * Scatters ranks over `count` keys by a hash, so that the frequent ones are no neighbours. Unlike YCSB's hash it is a
 * permutation: no two ranks fall on one key, and none is left out.
 */
export function scramble(rank: number, count: number): number {
  const bits = 32 - Math.clz32(count - 1);
  const mask = bits === 32 ? 0xffffffff : (1 << bits) - 1;
  const shift = Math.max(1, bits >> 1);
  let key = rank;
  // Each step can be undone within `bits` bits; what falls beyond the keys is hashed again until it does not.
  do {
    key = (Math.imul(key + 0x5bd1e995, 0x9e3779b1) & mask) >>> 0;
    key ^= key >>> shift;
    key = (Math.imul(key, 0x85ebca6b) & mask) >>> 0;
    key = (key ^ (key >>> shift)) >>> 0;
  } while (key >= count);
  return key;
}
