/**
 * The proto boundary: 64-bit fields become bigints or checked safe integers here, once, and nowhere else.
 */

import { endianness } from 'node:os';
import type { Long } from '@grpc/proto-loader';
import { FabricKvError } from './errors.js';

/** An opaque 64-bit version of a value; it only grows, and is never used again after a delete or a restart. */
export type Version = bigint & { readonly __brand: 'Version' };

/** A 64-bit address in a peer's registered memory, as its provider wants it. */
export type WireRemoteAddress = bigint;

/** The largest value of a 64-bit field. */
export const UINT64_MAX = 0xffff_ffff_ffff_ffffn;

// The two halves of a 64-bit number beside the number itself: bigints are made of halves several times slower by arithmetic.
const halves = new Uint32Array(2);
const whole = new BigUint64Array(halves.buffer);
const LOW = endianness() === 'LE' ? 0 : 1;
const HIGH = 1 - LOW;

/** Any 64-bit field as a bigint. */
export function toBigInt(value: Long): bigint {
  halves[LOW] = value.low;
  halves[HIGH] = value.high;
  return whole[0] ?? 0n;
}

/** A version from the wire. */
export function toVersion(value: Long): Version {
  return toBigInt(value) as Version;
}

/** A bigint as protobuf.js takes it. */
export function fromBigInt(value: bigint): Long {
  whole[0] = value;
  const low = (halves[LOW] ?? 0) | 0;
  const high = (halves[HIGH] ?? 0) | 0;
  // Only these three fields are read by protobuf.js (Long.fromValue).
  return { low, high, unsigned: true } as Long;
}

/**
 * A 64-bit length or offset as a safe integer.
 *
 * @throws ERR_FABRICKV_PROTOCOL when it is over 2^53-1
 */
export function toSafeInteger(value: Long, field: string): number {
  const number = (value.high >>> 0) * 0x1_0000_0000 + (value.low >>> 0);
  if (!Number.isSafeInteger(number)) {
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `${field} is over 2^53-1`);
  }
  return number;
}

/** A threshold from the wire, where 2^64-1 stands for "all sizes" (Infinity here). */
export function toThreshold(value: Long): number {
  const bytes = toBigInt(value);
  return bytes > BigInt(Number.MAX_SAFE_INTEGER) ? Number.POSITIVE_INFINITY : Number(bytes);
}

/** A threshold for the wire; Infinity becomes 2^64-1. */
export function fromThreshold(bytes: number): Long | number {
  return bytes === Number.POSITIVE_INFINITY ? fromBigInt(UINT64_MAX) : bytes;
}

/** 64 bits as 16 hexadecimal digits, as they stand in request ids and logs. */
export function hex64(value: bigint): string {
  return value.toString(16).padStart(16, '0');
}
