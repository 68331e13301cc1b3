/**
 * The cases of the suite `inline-threshold`.
 */

import { formatSize } from '../src/protocol/units.js';
import { KIB, keysFor, type LoadCase, MIB } from './load-cases.js';

/** One case. */
export interface InlineThresholdCase extends LoadCase {
  readonly operation: 'get' | 'put';
}

/** Powers of two from the first to the last. */
const SIZE_MIN = KIB;
const SIZE_MAX = 4 * MIB;

/** The in-flight counts that each size is measured with. */
export const IN_FLIGHT: readonly number[] = [1, 16];

/** The values of one size take at most this much. */
const SET_BYTES = 64 * MIB;

function inlineThresholdCases(): InlineThresholdCase[] {
  const cases: InlineThresholdCase[] = [];
  for (const operation of ['get', 'put'] as const) {
    for (const inFlight of IN_FLIGHT) {
      for (let sizeBytes = SIZE_MIN; sizeBytes <= SIZE_MAX; sizeBytes *= 2) {
        cases.push({
          name: `${operation}-${formatSize(sizeBytes)}-x${inFlight}`,
          operation,
          sizeBytes,
          inFlight,
          readRatio: operation === 'get' ? 1 : 0,
          distribution: 'uniform',
          keys: keysFor(sizeBytes, SET_BYTES),
        });
      }
    }
  }
  return cases;
}

/** All of them, in the order of the report: by operation and in flight, so that a crossing can be seen. */
export const INLINE_THRESHOLD_CASES: readonly InlineThresholdCase[] = inlineThresholdCases();
