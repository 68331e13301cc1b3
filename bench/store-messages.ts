/**
 * What a benchmark and its client process say to each other, over the channel that Node.js gives a forked process.
 */

import type { Duration, Measurement } from './measurement.js';

/** How a value is moved: `get` into memory of the client's, `getinto` into a region, `put` from a region. */
export type StoreOperation = 'get' | 'getinto' | 'put';

/** One case. */
export interface StoreCase extends Duration {
  readonly operation: StoreOperation;
  readonly sizeBytes: number;
  readonly inFlight: number;
  /** Of a GET: the values of this size that are read in turn. */
  readonly keys: number;
  /** Of a PUT: with the CRC-32C that the server verifies, as is the default. */
  readonly checksum: boolean;
}

/** To the client process. */
export type StoreRequest =
  | {
      readonly kind: 'connect';
      readonly serverAddr: string;
      readonly serverPid: number;
      readonly provider: 'efa' | 'verbs' | 'tcp';
      readonly fabricAddr: string;
      readonly receiveMemory: number;
      readonly timeoutMs: number;
    }
  /** Stores `count` values of this size. */
  | { readonly kind: 'load'; readonly sizeBytes: number; readonly count: number }
  | { readonly kind: 'measure'; readonly case: StoreCase };

/** From it, one for each request that did not fail. */
export type StoreReply = { readonly kind: 'done' } | { readonly kind: 'measured'; readonly measurement: Measurement };
