/**
 * What a PUT sends: bytes of the caller's, or a region.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { UserRegion } from './region.js';

/** The bytes of a PUT. They must not change until it has settled. Blocks follow one another. */
export type PutSource = BytesSource | { readonly kind: 'region'; readonly region: UserRegion; readonly length: number };

/** What is in plain memory. */
export type BytesSource =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array; readonly length: number }
  | { readonly kind: 'blocks'; readonly blocks: readonly Uint8Array[]; readonly length: number };

/**
 * A piece of a source: of bytes a view, of a region a copy, of blocks a view as long as it lies in one of them.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT when the caller has taken the bytes away, or some of them
 */
export function readPiece(source: PutSource, offset: number, length: number): Uint8Array {
  if (length === 0) return new Uint8Array(0);
  return source.kind === 'region' ? source.region.mapping.readSync(offset, length) : bytesOf(source, offset, length);
}

/**
 * A piece of plain memory.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT when the caller has taken the bytes away, or some of them
 */
export function bytesOf(source: BytesSource, offset: number, length: number): Uint8Array {
  if (source.kind === 'bytes') return pieceOf(source.bytes, offset, length);
  const parts: Uint8Array[] = [];
  let start = 0;
  for (const block of source.blocks) {
    const from = Math.max(0, offset - start);
    const to = Math.min(block.length, offset + length - start);
    if (from < to) parts.push(block.subarray(from, to));
    start += block.length;
    if (start >= offset + length) break;
  }
  const [only] = parts;
  return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts, length);
}

/** @throws ERR_FABRICKV_INVALID_ARGUMENT when their ArrayBuffer was detached or shortened */
function pieceOf(bytes: Uint8Array, offset: number, length: number): Uint8Array {
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
