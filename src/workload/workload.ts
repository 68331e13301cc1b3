/**
 * A load of GETs and PUTs, as kv-client bench and the benchmark suites put it on a store. It knows nothing of what store
 * that is.
 */

import { workloadKeys, workloadValue } from './keys.js';
import type { LatencySummary } from './latency.js';
import type { WorkloadTarget } from './target.js';
import { WorkloadRun } from './workload-run.js';

export type { LatencySummary } from './latency.js';

/**
 * Which key an operation takes. `uniform`: any. `sequential`: one after the other. `zipfian`: YCSB's, with theta 0.99; the
 * frequent keys lie scattered among the others.
 */
export type KeyDistribution = 'uniform' | 'zipfian' | 'sequential';

/** The keys and their values, which all have the same bytes. */
export interface WorkloadKeys {
  /** How many different keys. */
  readonly keys: number;
  /** Key i is this and i in decimal, padded with zeros to the width of the last one. */
  readonly keyPrefix: string;
  readonly valueBytes: number;
  /** Of the values' bytes and of every choice. */
  readonly seed: number;
  /** Ends it early; what is in flight is awaited. */
  readonly signal?: AbortSignal;
}

/** What the load is. */
export interface WorkloadOptions extends WorkloadKeys {
  /** Operations in flight; with `ratePerSecond`, the most of them. */
  readonly concurrency: number;
  /** The share of GETs, 0 to 1. */
  readonly readRatio: number;
  readonly distribution: KeyDistribution;
  /** Of the part that is measured. */
  readonly durationMs: number;
  /** Runs before it, and is not counted. */
  readonly warmupMs: number;
  /**
   * Undefined: closed loop, an operation begins when another has ended. Otherwise open loop: operations are due at this
   * rate, whatever the store does, and the latency of each counts from when it was due. So that they begin on time, the
   * generator watches the clock and keeps its thread busy.
   */
  readonly ratePerSecond?: number;
}

/** What came of it. It counts the operations that began, or were due, after the warm-up; all of them have ended. */
export interface WorkloadResult {
  readonly operations: number;
  readonly gets: number;
  readonly puts: number;
  /** GETs of a key that was not there. */
  readonly misses: number;
  /** Of the values, both ways. */
  readonly bytes: number;
  /** From the end of the warm-up until the last operation had ended. */
  readonly seconds: number;
  /**
   * Open loop: operations that were due and never begun, because the store was too slow for the rate. They are in no
   * other number.
   */
  readonly overdue: number;
  readonly latency: LatencySummary;
  /** Undefined when there was no GET. */
  readonly getLatency: LatencySummary | undefined;
  /** Undefined when there was no PUT. */
  readonly putLatency: LatencySummary | undefined;
}

/** How it goes, since the warm-up ended. */
export interface WorkloadProgress {
  readonly operations: number;
  readonly bytes: number;
  readonly seconds: number;
  /** Since the last progress; 0 when no operation has ended since. */
  readonly p99Us: number;
}

/**
 * Puts every key once, from the first on.
 *
 * @throws what a PUT failed with, or the signal's reason; whatever was in flight has settled by then
 */
export async function loadKeys(
  target: WorkloadTarget,
  options: WorkloadKeys & { readonly concurrency: number },
): Promise<void> {
  checkKeys(options);
  const { concurrency, signal } = options;
  const keys = workloadKeys(options).values();
  const value = workloadValue(options);
  let failure: { readonly error: unknown } | undefined;
  const work = async (): Promise<void> => {
    // All workers take from one iterator.
    for (const key of keys) {
      if (failure !== undefined || signal?.aborted === true) return;
      try {
        await target.put(key, value);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: concurrency }, work));
  signal?.throwIfAborted();
  if (failure !== undefined) throw failure.error;
}

/**
 * Runs the load to its end. An aborted signal ends it early, with what was measured so far; what fails after that is
 * not counted.
 *
 * @param onProgress called twice a second after the warm-up
 * @throws what the first operation that failed failed with; whatever was in flight has settled by then
 */
export async function runWorkload(
  target: WorkloadTarget,
  options: WorkloadOptions,
  onProgress?: (progress: WorkloadProgress) => void,
): Promise<WorkloadResult> {
  checkKeys(options);
  const { readRatio, ratePerSecond = 1 } = options;
  if (!(readRatio >= 0 && readRatio <= 1)) throw new RangeError(`readRatio is ${readRatio}; it must be from 0 to 1`);
  if (!(ratePerSecond > 0)) throw new RangeError(`ratePerSecond is ${ratePerSecond}; it must be over 0`);
  return await new WorkloadRun(target, options, onProgress).run();
}

function checkKeys({ keys, concurrency }: { readonly keys: number; readonly concurrency: number }): void {
  for (const [name, count] of Object.entries({ keys, concurrency })) {
    if (!Number.isSafeInteger(count) || count < 1) throw new RangeError(`${name} is ${count}; it must be 1 or more`);
  }
}
