/**
 * What a benchmark and its load clients say to each other, over the channel that Node.js gives a forked process.
 */

import type { KvClientOptions, ValuePath } from '../src/client/index.js';
import type { LoadCase, Turn } from './load-cases.js';
import type { Measurement } from './measurement.js';

/** What a load client connects to, and with which client. */
export type LoadTargetOptions =
  | {
      readonly kind: 'fabrickv';
      readonly options: Omit<KvClientOptions, 'logger'>;
      /** A value that travels otherwise fails the run; by default each takes the path that is its own. */
      readonly path?: ValuePath;
    }
  | { readonly kind: 'redis'; readonly host: string; readonly port: number; readonly autoPipelining: boolean }
  | { readonly kind: 'memcached'; readonly host: string; readonly port: number };

/** What a turn came to, with each process's part of the CPU seconds. */
export interface LoadMeasurement extends Measurement {
  readonly clientCpuSeconds: number;
  readonly serverCpuSeconds: number;
}

/** What a load client has connected to. */
export interface ConnectedTarget {
  /** With its version, as the server itself says. */
  readonly server: string;
  /** With its version and the options that matter. */
  readonly client: string;
  /** FabricKV's data plane by libfabric's name, and libfabric's version; `none` without. */
  readonly provider: string;
  readonly libfabric: string;
}

/** To a load client. */
export type LoadRequest =
  | { readonly kind: 'connect'; readonly target: LoadTargetOptions; readonly serverPid: number }
  /** Stores `count` values of this size. */
  | { readonly kind: 'load'; readonly sizeBytes: number; readonly count: number }
  | ({ readonly kind: 'measure' } & Turn);

/** From it, one for each request that did not fail. */
export type LoadReply =
  | { readonly kind: 'done' }
  | { readonly kind: 'connected'; readonly target: ConnectedTarget }
  | { readonly kind: 'measured'; readonly measurement: LoadMeasurement };

/** The keys of the values of one size: the same values for every case of that size. */
export function keysOf({ sizeBytes, keys }: Pick<LoadCase, 'sizeBytes' | 'keys'>) {
  return { keys, keyPrefix: `bench/${sizeBytes}/`, valueBytes: sizeBytes, seed: 1 };
}
