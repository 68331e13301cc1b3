/**
 * Versions: a hybrid clock of 42 bits of milliseconds and 22 bits of counter.
 */

import type { Version } from '../../protocol/wire.js';

const COUNTER_BITS = 22n;

/** Gives versions that only grow, whatever the wall clock does, and that a restart does not repeat. */
export class VersionClock {
  private last = 0n;

  constructor(private readonly nowMs: () => number = Date.now) {}

  /** A version larger than every one before. */
  next(): Version {
    const fromClock = BigInt(Math.trunc(this.nowMs())) << COUNTER_BITS;
    this.last = fromClock > this.last ? fromClock : this.last + 1n;
    return this.last as Version;
  }
}
