/**
 * The CRC-32C of a value that is still arriving.
 */

import { combineCrc32c, crc32c, type Mapping } from '../fabric/index.js';
import type { Arena, Extent } from './store/arena.js';
import type { Range } from './store/extent-allocator.js';

/** Values up to this length are checked on the spot; longer ones on a worker thread. */
const ON_THE_SPOT_BYTES_MAX = 256 * 1024;

/** What a worker thread checks at a time: of more than this, several threads check parts. */
const PART_BYTES = 4 * 1024 * 1024;

/** The CRC of a value's extents, on whichever threads suit its length. */
export async function crcOfExtents(mapping: Mapping, arena: Arena, extents: readonly Extent[]): Promise<number> {
  const crc = new RunningCrc(mapping, arena);
  crc.add(extents);
  return crc.finish();
}

/** The CRC of `seed`'s bytes and those of a range that follow them. */
async function crcInParts(mapping: Mapping, { offset, length }: Range, seed: number): Promise<number> {
  const lengths: number[] = [];
  for (let at = 0; at < length; at += PART_BYTES) lengths.push(Math.min(PART_BYTES, length - at));
  const crcs = await Promise.all(
    lengths.map((partBytes, i) =>
      mapping.crc32c({ offset: offset + i * PART_BYTES, length: partBytes, seed: i === 0 ? seed : 0 }),
    ),
  );
  return crcs.reduce((crc, part, i) => combineCrc32c(crc, part, lengths[i] ?? 0));
}

/** Follows the writer, extent by extent, as far as it is told that the bytes have landed. */
export class RunningCrc {
  private readonly extents: Extent[] = [];
  private totalBytes = 0;
  private landedBytes = 0;
  /** How far it is checked, */
  private checkedBytes = 0;
  /** in which extent, and where in that. */
  private extentIndex = 0;
  private extentOffset = 0;
  private crc = 0;
  private running: Promise<void> | undefined;
  private stopped = false;
  /** Somebody waits for it. Until then one thread is enough: the others are the transfer's. */
  private awaited = false;

  constructor(
    private readonly mapping: Mapping,
    private readonly arena: Arena,
  ) {}

  /** More room, behind what there is. */
  add(extents: readonly Extent[]): void {
    for (const extent of extents) {
      this.extents.push(extent);
      this.totalBytes += extent.length;
    }
  }

  /** Everything before this has landed; it may be told again, and for less. */
  advance(landedBytes: number): void {
    this.landedBytes = Math.max(this.landedBytes, Math.min(landedBytes, this.totalBytes));
    if (this.landedBytes <= this.checkedBytes || this.stopped) return;
    // What fails is found by whoever asks for the sum.
    this.running ??= this.run();
    this.running.catch(() => undefined);
  }

  /** Nobody wants it any more. */
  stop(): void {
    this.stopped = true;
  }

  /** The CRC of the first `length` bytes, by default of all: everything has landed. */
  async finish(length = this.totalBytes): Promise<number> {
    if (this.checkedBytes === 0 && this.running === undefined && length <= ON_THE_SPOT_BYTES_MAX) {
      return this.onTheSpot(length);
    }
    this.awaited = true;
    this.advance(length);
    while (this.checkedBytes < length && this.running !== undefined) await this.running;
    if (this.checkedBytes !== length)
      throw new Error(`a CRC of ${length} bytes was asked for after ${this.checkedBytes}`);
    return this.crc;
  }

  private onTheSpot(length: number): number {
    let crc = 0;
    let left = length;
    for (const { offset, length: extentBytes } of this.extents) {
      const take = Math.min(left, extentBytes);
      if (take > 0) crc = crc32c(this.arena.view({ offset, length: take }), crc);
      left -= take;
    }
    return crc;
  }

  private async run(): Promise<void> {
    try {
      while (this.checkedBytes < this.landedBytes && !this.stopped) {
        const extent = this.extents[this.extentIndex];
        if (extent === undefined) throw new Error('a value has more bytes than its extents');
        const length = Math.min(extent.length - this.extentOffset, this.landedBytes - this.checkedBytes);
        const range = { offset: extent.offset + this.extentOffset, length };
        this.crc = await (this.awaited
          ? crcInParts(this.mapping, range, this.crc)
          : this.mapping.crc32c({ ...range, seed: this.crc }));
        this.checkedBytes += length;
        this.extentOffset += length;
        if (this.extentOffset === extent.length) {
          this.extentIndex += 1;
          this.extentOffset = 0;
        }
      }
    } finally {
      this.running = undefined;
    }
  }
}
