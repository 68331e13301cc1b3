/**
 * The one owner of all deadlines of a client: a wheel of buckets with a single timer, because a timer per operation
 * would cost more than a small operation does.
 */

import { Bag } from '../collections/bag.js';

/** What has a deadline. */
export interface Expiring {
  /** Its place among those of the same tick: the wheel's own. */
  deadlinePlace: number;
  /** Called once, when the deadline has passed. */
  onDeadline(): void;
}

class Bucket extends Bag<Expiring> {
  protected override placeOf(entry: Expiring): number {
    return entry.deadlinePlace;
  }

  protected override setPlace(entry: Expiring, place: number): void {
    entry.deadlinePlace = place;
  }
}

/** Names an entry of {@link Deadlines} for {@link Deadlines.cancel}: the bucket that it is in. */
export type DeadlineTick = number;

/** Deadlines are kept this late at most, plus what the event loop is late. */
const TICK_MS = 10;

/** Deadlines on performance.now()'s clock, kept to within 10 ms. While any is pending, the process stays alive. */
export class Deadlines {
  readonly #buckets = new Map<DeadlineTick, Bucket>();
  /** The bucket that was used last: operations that begin together have the same. */
  #lastBucket: Bucket | undefined;
  #lastTick: DeadlineTick = Number.NaN;
  #timer: NodeJS.Timeout | undefined;
  #timerTick: DeadlineTick = Number.POSITIVE_INFINITY;

  /** How many are pending. */
  get size(): number {
    let size = 0;
    for (const bucket of this.#buckets.values()) size += bucket.size;
    return size;
  }

  /** Enters a deadline; an entry may have one at a time. */
  add(entry: Expiring, atMs: number): DeadlineTick {
    const tick = Math.ceil(atMs / TICK_MS);
    if (this.#buckets.size === 0) this.#timer?.ref();
    let bucket = this.#bucket(tick);
    if (bucket === undefined) {
      bucket = new Bucket();
      this.#buckets.set(tick, bucket);
      this.#lastBucket = bucket;
      this.#lastTick = tick;
    }
    bucket.add(entry);
    if (tick < this.#timerTick) this.#arm(tick);
    return tick;
  }

  /** Strikes one off. Does nothing when it has passed. */
  cancel(entry: Expiring, tick: DeadlineTick): void {
    const bucket = this.#bucket(tick);
    if (bucket === undefined) return;
    bucket.delete(entry);
    if (bucket.size > 0) return;
    this.#drop(tick);
    // A timer that finds nothing re-arms itself; only with nothing pending at all must it not keep the process alive.
    if (this.#buckets.size === 0) this.#timer?.unref();
  }

  #bucket(tick: DeadlineTick): Bucket | undefined {
    if (tick === this.#lastTick) return this.#lastBucket;
    const bucket = this.#buckets.get(tick);
    if (bucket !== undefined) {
      this.#lastBucket = bucket;
      this.#lastTick = tick;
    }
    return bucket;
  }

  #drop(tick: DeadlineTick): void {
    this.#buckets.delete(tick);
    if (tick !== this.#lastTick) return;
    this.#lastBucket = undefined;
    this.#lastTick = Number.NaN;
  }

  #arm(tick: DeadlineTick): void {
    clearTimeout(this.#timer);
    this.#timerTick = tick;
    this.#timer = setTimeout(() => this.#expire(), Math.max(0, Math.ceil(tick * TICK_MS - performance.now())));
  }

  #expire(): void {
    this.#timer = undefined;
    this.#timerTick = Number.POSITIVE_INFINITY;
    // A timer may fire up to 1 ms early: what is not due yet is armed again.
    const now = Math.floor(performance.now() / TICK_MS);
    const due: Expiring[] = [];
    let next = Number.POSITIVE_INFINITY;
    for (const [tick, bucket] of this.#buckets) {
      if (tick > now) {
        next = Math.min(next, tick);
        continue;
      }
      this.#drop(tick);
      for (const entry of bucket.takeAll()) due.push(entry);
    }
    if (next !== Number.POSITIVE_INFINITY) this.#arm(next);
    for (const entry of due) entry.onDeadline();
  }

  /** Forgets all of them and ends the timer. */
  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerTick = Number.POSITIVE_INFINITY;
    this.#buckets.clear();
    this.#lastBucket = undefined;
    this.#lastTick = Number.NaN;
  }
}
