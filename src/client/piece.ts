/**
 * One piece of a value that is streamed: its way from a request into the consumer's hands.
 */

import { crc32c, type Mapping } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { RANGE_BYTES_MAX, SYNC_BYTES_MAX } from './limits.js';
import type { Block, LentBytes, ReceivePool } from './receive-pool.js';

/** A piece takes at most this part of the receive memory, so that several streams and other operations have room. */
const POOL_SHARE = 16;

/** Registered memory comes in pages, and a range of less is not worth its request. */
const PIECE_BYTES_MIN = 64 * 1024;

/** Of a client that has no receive memory. */
const INLINE_PIECE_BYTES = 1024 * 1024;

/** A piece in the consumer's hands. */
export interface Piece {
  /** Its bytes; of registered memory they are detached by {@link release}. */
  readonly bytes: Buffer;
  /** The consumer is done with it. Idempotent. */
  release(): void;
  /** The bytes in memory that is the consumer's for good, copied off the JS thread if that is needed; the piece is released. */
  keep(): Promise<Buffer>;
}

/**
 * - `missing`: to be asked for. - `waiting`: for memory. - `asked`: in flight. - `checking`: here, its CRC is being
 * computed. - `ready`: for the consumer.
 */
export type EntryState = 'missing' | 'waiting' | 'asked' | 'checking' | 'ready';

/** A piece on its way. */
export class Entry {
  state: EntryState = 'missing';
  /** Of the receive pool, in transit: from its allocation until the bytes are here. */
  block: Block | undefined;
  /** Whether the bytes come inline, into {@link plain}. */
  isInline = false;
  plain: Buffer<ArrayBuffer> | undefined;
  lent: LentBytes | undefined;
  /** Where {@link lent} is in the pool's mapping. */
  lentOffset = 0;
  crc = 0;
  /** Whether the pool has no block for it, and will have none soon. */
  refused = false;

  constructor(
    readonly offset: number,
    public length: number,
  ) {}

  get bytes(): Buffer {
    return this.lent?.bytes ?? this.plain ?? Buffer.alloc(0);
  }
}

/** How long pieces are: none of a client takes much of its receive memory. */
export function pieceBytesOf(pool: ReceivePool | undefined): number {
  if (pool === undefined) return INLINE_PIECE_BYTES;
  const share = Math.floor(pool.sizeBytes / POOL_SHARE / PIECE_BYTES_MIN) * PIECE_BYTES_MIN;
  return Math.min(RANGE_BYTES_MAX, Math.max(PIECE_BYTES_MIN, share));
}

/** The CRC-32C of bytes that begin at `offset` of a mapping; of long ones on libuv's pool. */
export async function crcOf(mapping: Mapping, offset: number, bytes: Buffer): Promise<number> {
  return bytes.length <= SYNC_BYTES_MAX ? crc32c(bytes) : mapping.crc32c({ offset, length: bytes.length });
}

/** Plain memory for what is received. @throws ERR_FABRICKV_MEMORY */
export function allocateBytes(length: number): Buffer<ArrayBuffer> {
  try {
    return Buffer.allocUnsafeSlow(length);
  } catch (error) {
    throw new FabricKvError('ERR_FABRICKV_MEMORY', `no memory for ${length} bytes`, { cause: error });
  }
}
