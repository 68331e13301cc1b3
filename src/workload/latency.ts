/**
 * Latencies, collected in HDR histograms of three significant digits.
 */

import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';

/** What a set of latencies says; microseconds. Percentiles are within 0.1 percent; of an empty set all is 0. */
export interface LatencySummary {
  readonly count: number;
  readonly meanUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  readonly maxUs: number;
}

/** Histograms count in units of 100 ns. */
const UNITS_PER_MS = 10_000;
const UNITS_PER_US = 10;

/**
 * The latencies of one kind of operation. Node's own histogram takes 20 to 40 ns a record where hdr-histogram-js takes 38 (its
 * WebAssembly) or 140.
 */
export class LatencyRecorder {
  readonly #total = createHistogram();
  readonly #recent = createHistogram();

  record(ms: number): void {
    // 0 is no value for a histogram, and a clock may stand still for an operation.
    this.#recent.record(Math.max(1, Math.round(ms * UNITS_PER_MS)));
  }

  /** Adds what was recorded since the last time to `histogram`. */
  takeRecent(histogram: RecordableHistogram): void {
    histogram.add(this.#recent);
    this.#total.add(this.#recent);
    this.#recent.reset();
  }

  /** All that was taken. */
  get total(): RecordableHistogram {
    return this.#total;
  }
}

/** What several recorders have collected since the last time, together. */
export function takeRecent(recorders: readonly LatencyRecorder[]): LatencySummary {
  const recent = createHistogram();
  for (const recorder of recorders) recorder.takeRecent(recent);
  return summarize(recent);
}

/** What several recorders have collected in all, together. */
export function summarizeAll(recorders: readonly LatencyRecorder[]): LatencySummary {
  takeRecent(recorders);
  const sum = createHistogram();
  for (const recorder of recorders) sum.add(recorder.total);
  return summarize(sum);
}

function summarize(histogram: RecordableHistogram): LatencySummary {
  if (histogram.count === 0) return { count: 0, meanUs: 0, p50Us: 0, p99Us: 0, p999Us: 0, maxUs: 0 };
  return {
    count: histogram.count,
    meanUs: histogram.mean / UNITS_PER_US,
    p50Us: histogram.percentile(50) / UNITS_PER_US,
    p99Us: histogram.percentile(99) / UNITS_PER_US,
    p999Us: histogram.percentile(99.9) / UNITS_PER_US,
    maxUs: histogram.max / UNITS_PER_US,
  };
}
