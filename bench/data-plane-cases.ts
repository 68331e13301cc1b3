/**
 * The cases of the suite `data-plane`: what each asks of the store, and what the same is for the raw pair.
 */

import type { ProviderName } from '../src/fabric/index.js';
import { formatSize } from '../src/protocol/units.js';
import type { Duration } from './measurement.js';
import type { RawCase, RawTuning } from './raw-pair.js';
import type { StoreCase, StoreOperation } from './store-messages.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** The values that are read in turn take at least this much: more than the caches hold. */
const READ_SET_BYTES = 128 * MIB;
const SPARE_BYTES = 64 * MIB;

/** What PUTs go through, one free extent after the other, as the arena has room for beside what is read. */
const WRITE_SET_BYTES = GIB;

/** One case. */
export interface DataPlaneCase {
  readonly name: string;
  readonly operation: StoreOperation;
  readonly sizeBytes: number;
  readonly inFlight: number;
  /** Of a PUT: see {@link StoreCase.checksum}. */
  readonly checksum: boolean;
}

function dataPlaneCase(operation: StoreOperation, sizeBytes: number, inFlight: number, checksum = true): DataPlaneCase {
  return {
    name: `${operation}-${formatSize(sizeBytes)}-x${inFlight}${checksum ? '' : '-nocrc'}`,
    operation,
    sizeBytes,
    inFlight,
    checksum,
  };
}

/** All of them, in the order of the report. */
export const DATA_PLANE_CASES: readonly DataPlaneCase[] = [
  dataPlaneCase('get', 64 * KIB, 8),
  dataPlaneCase('get', MIB, 1),
  dataPlaneCase('get', MIB, 8),
  dataPlaneCase('get', 16 * MIB, 1),
  dataPlaneCase('get', 16 * MIB, 8),
  dataPlaneCase('get', 64 * MIB, 1),
  dataPlaneCase('get', 64 * MIB, 8),
  dataPlaneCase('getinto', MIB, 1),
  dataPlaneCase('getinto', 64 * MIB, 1),
  dataPlaneCase('put', MIB, 1),
  dataPlaneCase('put', MIB, 8),
  dataPlaneCase('put', 16 * MIB, 1),
  dataPlaneCase('put', 16 * MIB, 1, false),
  dataPlaneCase('put', 64 * MIB, 1),
  dataPlaneCase('put', 64 * MIB, 1, false),
];

/** How many values of a size are stored for the GETs among these cases. */
export function storedValues(cases: readonly DataPlaneCase[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const one of cases) {
    if (one.operation !== 'put') counts.set(one.sizeBytes, Math.max(keysOf(one), counts.get(one.sizeBytes) ?? 0));
  }
  return counts;
}

/** The memory that these cases need on either side; bytes. */
export function memoryFor(cases: readonly DataPlaneCase[]): {
  readonly arena: number;
  /** The client's: what is in flight must fit into three quarters of it, or it is copied. */
  readonly receive: number;
  /** Of each raw process. */
  readonly raw: number;
} {
  const stored = [...storedValues(cases)].reduce((sum, [sizeBytes, count]) => sum + sizeBytes * count, 0);
  const written = cases.some(({ operation }) => operation === 'put') ? WRITE_SET_BYTES : 0;
  const inFlight = Math.max(...cases.map((one) => one.sizeBytes * one.inFlight));
  const rawSides = cases.flatMap((one) => {
    const { sourceBytes, sinkBytes } = rawSets(one);
    return [sourceBytes, sinkBytes];
  });
  return { arena: stored + written + SPARE_BYTES, receive: 2 * inFlight + SPARE_BYTES, raw: Math.max(...rawSides) };
}

/** A case as the store is asked. */
export function storeCase(one: DataPlaneCase, { seconds, warmupSeconds }: Duration): StoreCase {
  const { operation, sizeBytes, inFlight, checksum } = one;
  return { operation, sizeBytes, inFlight, checksum, keys: keysOf(one), seconds, warmupSeconds };
}

/** The same for the raw pair: as much memory is gone through on each side, within the same limits. */
export function rawCase(one: DataPlaneCase, tuning: RawTuning, duration: Duration): RawCase {
  const { sizeBytes, inFlight } = one;
  return { sizeBytes, inFlight, ...rawSets(one), ...tuning, ...duration };
}

function rawSets(one: DataPlaneCase): Pick<RawCase, 'sourceBytes' | 'sinkBytes'> {
  const inFlightBytes = one.sizeBytes * one.inFlight;
  return one.operation === 'put'
    ? { sourceBytes: inFlightBytes, sinkBytes: WRITE_SET_BYTES }
    : { sourceBytes: keysOf(one) * one.sizeBytes, sinkBytes: inFlightBytes };
}

function keysOf({ sizeBytes, inFlight }: DataPlaneCase): number {
  return Math.max(inFlight, Math.ceil(READ_SET_BYTES / sizeBytes));
}

/** The product's own limits on what is in flight, by provider: DEFAULTS in src/fabric/rail.ts. */
export const PRODUCT_TUNING: Readonly<Record<ProviderName, RawTuning>> = {
  tcp: { spinUs: 50, chunkBytes: MIB, chunksInFlight: 4, chunksInFlightPerPeer: 4 },
  verbs: { spinUs: 50, chunkBytes: MIB, chunksInFlight: 16, chunksInFlightPerPeer: 32 },
  efa: { spinUs: 50, chunkBytes: 512 * KIB, chunksInFlight: 16, chunksInFlightPerPeer: 32 },
};
