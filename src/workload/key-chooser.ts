/**
 * Which key the next operation takes.
 */

import type { Random } from './random.js';
import type { KeyDistribution } from './workload.js';
import { scramble, ZipfianRanks } from './zipfian.js';

/** Draws key indexes. */
export interface KeyChooser {
  /** From 0 to the number of keys - 1. */
  next(): number;
}

/** A zipfian index takes a power to draw, so they are drawn before the run; both are powers of two. */
const RING_LENGTH_MIN = 65_536;
const RING_LENGTH_MAX = 1_048_576;

/** A chooser for a distribution over `keys` keys. */
export function createKeyChooser(distribution: KeyDistribution, keys: number, random: Random): KeyChooser {
  switch (distribution) {
    case 'uniform':
      return { next: () => random.below(keys) };
    case 'sequential':
      return new SequentialChooser(keys);
    case 'zipfian':
      return new RingChooser(zipfianRing(keys, random));
  }
}

/** Indexes that are drawn and scattered; as many as there are keys, within the limits, so that rare keys come too. */
function zipfianRing(keys: number, random: Random): Uint32Array {
  let length = RING_LENGTH_MIN;
  while (length < keys && length < RING_LENGTH_MAX) length *= 2;
  const ranks = new ZipfianRanks(keys, random);
  const ring = new Uint32Array(length);
  for (let at = 0; at < length; at++) ring[at] = scramble(ranks.next(), keys);
  return ring;
}

class SequentialChooser implements KeyChooser {
  #next = 0;

  constructor(private readonly keys: number) {}

  next(): number {
    const index = this.#next;
    this.#next = index + 1 === this.keys ? 0 : index + 1;
    return index;
  }
}

class RingChooser implements KeyChooser {
  #at = 0;

  constructor(private readonly ring: Uint32Array) {}

  next(): number {
    const index = this.ring[this.#at] ?? 0;
    this.#at = (this.#at + 1) & (this.ring.length - 1);
    return index;
  }
}
