import { invalidArgument } from './errors.js';

declare const brand: unique symbol;

/** Where a remote region begins, as its owner's provider counts: 0 where `mr_mode` has offsets, else a virtual address. */
export type RemoteAddress = bigint & { readonly [brand]: 'RemoteAddress' };

/** What a peer needs, with a {@link RemoteAddress}, to write into a region. Never a secret: many NICs count upwards. */
export type RemoteKey = bigint & { readonly [brand]: 'RemoteKey' };

/** A peer in a rail's address vector. Never reused within a rail's life. */
export type PeerId = number;

/** A memory region that this process registered. Never reused within a rail's life. */
export type LocalRegionId = number;

/** A peer's memory region that this process may write into. Never reused within a rail's life. */
export type RemoteRegionId = number;

/** A write in progress. Never reused within a rail's life. */
export type TransferId = number;

const MAX_UINT64 = 2n ** 64n - 1n;

/** Brands 64 bits from the wire as a {@link RemoteAddress}. @throws FabricError `INVALID_ARGUMENT` beyond 64 bits. */
export function remoteAddress(value: bigint): RemoteAddress {
  return checked(value, 'remoteAddress') as RemoteAddress;
}

/** Brands 64 bits from the wire as a {@link RemoteKey}. @throws FabricError `INVALID_ARGUMENT` beyond 64 bits. */
export function remoteKey(value: bigint): RemoteKey {
  return checked(value, 'remoteKey') as RemoteKey;
}

function checked(value: bigint, call: string): bigint {
  if (value < 0n || value > MAX_UINT64) throw invalidArgument(call, `${value} is not an unsigned 64-bit number`);
  return value;
}
