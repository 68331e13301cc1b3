/**
 * Transfers of values that are in memory: bytes of the caller's go through staging in registered memory; a region is written
 * from where it is.
 */

import { EXTENT_BYTES_MAX } from '../protocol/limits.js';
import { SYNC_BYTES_MAX } from './limits.js';
import { type BytesSource, bytesOf } from './put-source.js';
import {
  PutTransfer,
  type PutTransferOptions,
  STAGED_PIECE_BYTES,
  STAGED_PIECE_BYTES_MIN,
  STAGED_PIECES_MAX,
} from './put-transfer.js';
import type { Block } from './receive-pool.js';
import type { UserRegion } from './region.js';

/** A region is written in larger pieces, of an extent each: their ends only tell the server how far it may check. */
const REGION_PIECE_BYTES = EXTENT_BYTES_MAX;
const REGION_PIECES_MAX = 2;

/** Writes the first bytes of a region. */
export class RegionTransfer extends PutTransfer {
  constructor(
    private readonly region: UserRegion,
    private readonly length: number,
    options: PutTransferOptions,
  ) {
    super(options);
  }

  protected override pump(): void {
    const { region, length } = this;
    while (this.running && this.nextOffset < length && this.piecesUnderWay < REGION_PIECES_MAX) {
      const offset = this.nextOffset;
      this.write(this.enter(Math.min(REGION_PIECE_BYTES, length - offset), region.mapping, offset));
    }
    this.#continueCrc();
    this.finishIfLanded();
  }

  protected override isComplete(): boolean {
    return this.nextOffset === this.length && this.options.crc.bytes >= this.length;
  }

  /** The CRC is computed beside the writes. */
  #continueCrc(): void {
    const { crc } = this.options;
    const offset = crc.bytes;
    if (this.busy || !this.running || offset >= this.length) return;
    const end = Math.min(offset + REGION_PIECE_BYTES, this.length);
    const seen = this.length <= SYNC_BYTES_MAX ? this.region.seenBytes(offset, end - offset) : undefined;
    if (seen !== undefined) {
      crc.add(offset, seen);
      return;
    }
    void this.stepAsync(async () => {
      const seed = crc.seed;
      crc.advance(offset, end, await this.region.mapping.crc32c({ offset, length: end - offset, seed }));
    });
  }
}

/** Writes bytes of the caller's. */
export class BytesTransfer extends PutTransfer {
  readonly #pieceBytes: number;

  constructor(
    private readonly source: BytesSource,
    options: PutTransferOptions,
  ) {
    super(options);
    const { length } = source;
    // Of a value of less than two pieces the first one is smaller, so that something overlaps. What is copied without a CRC
    // is copied on the JS thread, in pieces that are short enough for it.
    this.#pieceBytes = options.crc.wanted
      ? Math.min(STAGED_PIECE_BYTES, Math.max(STAGED_PIECE_BYTES_MIN, Math.ceil(length / 2)))
      : SYNC_BYTES_MAX;
  }

  protected override pump(): void {
    while (
      this.running &&
      !this.busy &&
      !this.waitingForStaging &&
      this.nextOffset < this.source.length &&
      this.piecesUnderWay < STAGED_PIECES_MAX
    ) {
      if (!this.stage(this.#nextLength(), (block) => this.#fill(block))) break;
    }
    this.finishIfLanded();
  }

  protected override isComplete(): boolean {
    return this.nextOffset === this.source.length;
  }

  /** A piece ends where the CRC of an earlier attempt has ended, so that no byte counts twice. */
  #nextLength(): number {
    const { bytes } = this.options.crc;
    const end = Math.min(this.nextOffset + this.#pieceBytes, this.source.length);
    return (bytes > this.nextOffset && bytes < end ? bytes : end) - this.nextOffset;
  }

  #fill(block: Block): void {
    const { counters, pool, crc } = this.options;
    const { mapping } = pool;
    const offset = this.nextOffset;
    const { length } = block;
    const piece = this.enter(length, mapping, block.offset, block);
    const source = bytesOf(this.source, offset, length);
    counters.bytesCopied += length;
    if (length <= SYNC_BYTES_MAX) {
      crc.add(offset, source);
      mapping.writeSync(block.offset, source);
      this.write(piece);
      return;
    }
    void this.stepAsync(async () => {
      const copied = await mapping.copyIn({ offset: block.offset, source, crcSeed: crc.seed });
      crc.advance(offset, offset + length, copied);
      this.write(piece);
    });
  }
}
