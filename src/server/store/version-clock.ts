/**
 * Versions: a hybrid clock of 42 bits of milliseconds and 22 bits of counter.
 */

import type { Version } from '../../protocol/wire.js';

const COUNTER_BITS = 22n;

/** Gives versions that only grow, whatever the wall clock does, and that a restart does not repeat. */
export class VersionClock {
  private last = 0n;
  private lastMs = Number.NEGATIVE_INFINITY;

  constructor(private readonly nowMs: () => number = Date.now) {}

  /** A version larger than every one before. */
  next(): Version {
    const nowMs = Math.trunc(this.nowMs());
    this.last += 1n;
    if (nowMs === this.lastMs) return this.last as Version;
    this.lastMs = nowMs;
    const fromClock = BigInt(nowMs) << COUNTER_BITS;
    if (fromClock > this.last) this.last = fromClock;
    return this.last as Version;
  }
}
