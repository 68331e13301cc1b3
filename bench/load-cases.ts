/**
 * What the suites that use src/workload have in common: how many values there are, and how long a turn is.
 */

import type { KeyDistribution } from '../src/workload/workload.js';
import type { Duration } from './measurement.js';

export const KIB = 1024;
export const MIB = 1024 * KIB;

/** More keys than this tell nothing new about a hash table, and take time to store. */
const KEYS_MAX = 10_000;

/** A turn with huge values goes on until about so many have been moved. */
const OPERATIONS_MIN = 8;
const TURN_SECONDS_MAX = 1.5;

/** The arena's room beside the values: windows, grants, and freed memory that waits for its proof. */
const SPARE_BYTES = 1024 * MIB;
/** For values that never travel by RDMA. */
const SPARE_BYTES_SMALL = 128 * MIB;

/** From so many bytes in flight on, one batch is warm-up enough, and a second one before each turn costs minutes. */
const WARMUP_IN_FLIGHT_BYTES_MAX = 16 * MIB;

/** One case. */
export interface LoadCase {
  readonly name: string;
  readonly sizeBytes: number;
  readonly inFlight: number;
  /** The share of GETs, 0 to 1; the rest are PUTs to the same keys. */
  readonly readRatio: number;
  readonly distribution: KeyDistribution;
  /** How many values of this size there are. */
  readonly keys: number;
}

/** One turn of it. */
export interface Turn extends Duration {
  readonly case: LoadCase;
}

/** How many values of a size are stored, when they may take so many bytes. */
export function keysFor(sizeBytes: number, setBytes: number): number {
  return Math.max(1, Math.min(KEYS_MAX, Math.floor(setBytes / sizeBytes)));
}

/** The values among these cases: how many of each size. */
export function storedKeys(cases: readonly LoadCase[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const { sizeBytes, keys } of cases) counts.set(sizeBytes, Math.max(keys, counts.get(sizeBytes) ?? 0));
  return counts;
}

/** What {@link storedKeys} take, keys and records left out; bytes. */
export function storedBytes(cases: readonly LoadCase[]): number {
  return [...storedKeys(cases)].reduce((sum, [sizeBytes, count]) => sum + sizeBytes * count, 0);
}

/** The arena that a kv-server needs for these cases; bytes. */
export function arenaBytes(cases: readonly LoadCase[]): number {
  const inFlight = Math.max(...cases.map((one) => one.sizeBytes * one.inFlight));
  const isSmall = cases.every(({ sizeBytes }) => sizeBytes < KIB);
  return storedBytes(cases) + 2 * inFlight + (isSmall ? SPARE_BYTES_SMALL : SPARE_BYTES);
}

/** A turn as it was asked for, or longer when so few operations fit that their number would be chance. */
export function turnOf(one: LoadCase, asked: Duration, operationsPerSecond: number): Turn {
  const needed = Math.min(TURN_SECONDS_MAX, OPERATIONS_MIN / operationsPerSecond);
  const isHeavy = one.sizeBytes * one.inFlight >= WARMUP_IN_FLIGHT_BYTES_MAX;
  return {
    case: one,
    seconds: Math.max(asked.seconds, needed),
    warmupSeconds: isHeavy ? 0 : asked.warmupSeconds,
  };
}
