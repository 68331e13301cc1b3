/**
 * The cases of the suite `peers`, and who takes part in them.
 */

import type { KvClientOptions } from '../src/client/index.js';
import { formatSize } from '../src/protocol/units.js';
import { KIB, keysFor, type LoadCase, MIB } from './load-cases.js';

/** Whom FabricKV is compared with: Redis by ioredis with and without automatic pipelining, and memcached by memjs. */
export type PeerName = 'redis-auto' | 'redis' | 'memcached';

export const PEER_NAMES: readonly PeerName[] = ['redis-auto', 'redis', 'memcached'];

/** What is asked. The last three are YCSB's workloads: half, 95 % and all of it GETs, of some keys far more than of others. */
export type PeersOperation = 'get' | 'put' | 'ycsb-a' | 'ycsb-b' | 'ycsb-c';

/** One case. */
export interface PeersCase extends LoadCase {
  readonly operation: PeersOperation;
}

const READ_RATIOS: Readonly<Record<PeersOperation, number>> = {
  get: 1,
  put: 0,
  'ycsb-a': 0.5,
  'ycsb-b': 0.95,
  'ycsb-c': 1,
};

const SIZES: readonly number[] = [
  16,
  100,
  KIB,
  4 * KIB,
  16 * KIB,
  64 * KIB,
  256 * KIB,
  MIB,
  4 * MIB,
  16 * MIB,
  64 * MIB,
];

/** The in-flight counts that GETs and PUTs are measured with. */
export const IN_FLIGHT: readonly number[] = [1, 8, 64, 1024];

/** Past it the machine's memory would be measured, not the stores. */
export const IN_FLIGHT_BYTES_MAX = 256 * MIB;

/** The values of one size take at most this much. */
const SET_BYTES = 256 * MIB;

const YCSB_SIZES: readonly number[] = [100, 4 * KIB];
const YCSB_IN_FLIGHT = 64;

/**
 * The longest value that memcached is asked to keep. Its item limit could be raised to 1 GiB, but memjs appends each piece
 * of an answer to a new copy of all pieces before: a GET of 16 MiB takes it half a second.
 */
export const MEMCACHED_VALUE_BYTES_MAX = 4 * MIB;

/** From this size on rates are told in GB/s, below in operations per second. */
export const BANDWIDTH_SIZE_BYTES = 64 * KIB;

function peersCase(operation: PeersOperation, sizeBytes: number, inFlight: number): PeersCase {
  return {
    name: `${operation}-${formatSize(sizeBytes)}-x${inFlight}`,
    operation,
    sizeBytes,
    inFlight,
    readRatio: READ_RATIOS[operation],
    distribution: operation === 'get' || operation === 'put' ? 'uniform' : 'zipfian',
    keys: keysFor(sizeBytes, SET_BYTES),
  };
}

function peersCases(): PeersCase[] {
  const plain = (['get', 'put'] as const).flatMap((operation) =>
    SIZES.flatMap((sizeBytes) =>
      IN_FLIGHT.filter((inFlight) => sizeBytes * inFlight <= IN_FLIGHT_BYTES_MAX).map((inFlight) =>
        peersCase(operation, sizeBytes, inFlight),
      ),
    ),
  );
  const mixed = (['ycsb-a', 'ycsb-b', 'ycsb-c'] as const).flatMap((operation) =>
    YCSB_SIZES.map((sizeBytes) => peersCase(operation, sizeBytes, YCSB_IN_FLIGHT)),
  );
  return [...plain, ...mixed];
}

/** All of them, in the order of the report. */
export const PEERS_CASES: readonly PeersCase[] = peersCases();

/** Whether a peer is measured in a case. */
export function takes(peer: PeerName, { sizeBytes }: LoadCase): boolean {
  return peer !== 'memcached' || sizeBytes <= MEMCACHED_VALUE_BYTES_MAX;
}

/** FabricKV as it is set up. */
export interface FabricKvVariant {
  /** Ends the names of its cases, as in `get-100B-x1-low-latency`; empty for what users get who set nothing. */
  readonly suffix: string;
  /** Of `KvClient.connect`, beside `serverAddr`. */
  readonly clientOptions: Omit<KvClientOptions, 'serverAddr' | 'logger'>;
  /** Of kv-server, beside `--listen-addr`, `--memory` and `--log-level`. */
  readonly serverArgs: readonly string[];
  /** The cases that it is measured in; each variant has a server of its own. */
  readonly takes: (one: PeersCase) => boolean;
}

/**
 * How FabricKV is set up: a variant more is an entry more here, and nothing else. The first one takes every case.
 */
export const FABRICKV_VARIANTS: readonly FabricKvVariant[] = [
  { suffix: '', clientOptions: {}, serverArgs: [], takes: () => true },
  {
    suffix: 'low-latency',
    clientOptions: { eventLoopSpinUs: 200 },
    serverArgs: ['--event-loop-spin-us', '200'],
    takes: ({ inFlight, sizeBytes }) => inFlight === 1 && sizeBytes <= 4096,
  },
];

/** How errors and reports call a variant. */
export function variantName({ suffix }: FabricKvVariant): string {
  return suffix === '' ? 'fabrickv' : `fabrickv-${suffix}`;
}
