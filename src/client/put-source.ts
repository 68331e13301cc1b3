/**
 * What a PUT sends: bytes of the caller's, or a region.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { UserRegion } from './region.js';

/** The bytes of a PUT. They must not change until it has settled. */
export type PutSource =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array; readonly length: number }
  | { readonly kind: 'region'; readonly region: UserRegion; readonly length: number };

/**
 * A piece of a source: of bytes a view, of a region a copy.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT when the caller has taken the bytes away, or some of them
 */
export function readPiece(source: PutSource, offset: number, length: number): Uint8Array {
  if (length === 0) return new Uint8Array(0);
  return source.kind === 'bytes'
    ? pieceOf(source.bytes, offset, length)
    : source.region.mapping.readSync(offset, length);
}

/**
 * A view of bytes of the caller's.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT when their ArrayBuffer was detached or shortened
 */
export function pieceOf(bytes: Uint8Array, offset: number, length: number): Uint8Array {
  let cause: unknown;
  try {
    const piece = bytes.subarray(offset, offset + length);
    if (piece.length === length) return piece;
  } catch (error) {
    cause = error;
  }
  throw new FabricKvError(
    'ERR_FABRICKV_INVALID_ARGUMENT',
    'the bytes of the value were taken away before they were sent',
    {
      cause,
    },
  );
}
