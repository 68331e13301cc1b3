/**
 * What a PUT sends: bytes of the caller's, or a region.
 */

import type { UserRegion } from './region.js';

/** The bytes of a PUT. They must not change until it has settled. */
export type PutSource =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array; readonly length: number }
  | { readonly kind: 'region'; readonly region: UserRegion; readonly length: number };

/** A piece of a source: of bytes a view, of a region a copy. */
export function readPiece(source: PutSource, offset: number, length: number): Uint8Array {
  if (length === 0) return new Uint8Array(0);
  return source.kind === 'bytes'
    ? source.bytes.subarray(offset, offset + length)
    : source.region.mapping.readSync(offset, length);
}
