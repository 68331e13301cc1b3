/**
 * The arena: the memory that holds all values, handed out as extents. It knows neither gRPC nor libfabric; who may
 * still write to an extent it learns from the extent's barrier.
 */

import { alignedLength, EXTENT_ALIGNMENT_BYTES, ExtentAllocator, type Range } from './extent-allocator.js';

/** The bytes themselves: a contiguous range of addresses, viewed in segments. */
export interface ArenaMemory {
  readonly sizeBytes: number;
  /** All segments but the last have this size. */
  readonly segmentBytes: number;
  readonly segments: readonly Buffer[];
}

/**
 * Why freed memory is not free yet. `open`: its window is still offered. `proving`: its window is closed, and the proof is
 * under way. `unprovable`: only the end of a rail's endpoint proves it.
 */
export type QuarantineReason = 'open' | 'proving' | 'unprovable';

/**
 * Stands between an extent that a peer could write to and its next use: whether it is proved that no write to it can
 * still land.
 */
export interface WriteBarrier {
  readonly proven: boolean;
  /** What it waits for, as long as it is not proven. */
  readonly waitsFor: QuarantineReason;
  /** Calls back once, when it is proven; at once if it is. */
  whenProven(callback: () => void): void;
}

/** A piece of the arena that belongs to one value, at most 16 MiB. */
export interface Extent extends Range {
  /** Set while, and after, a peer could write to it directly. */
  barrier?: WriteBarrier;
}

/** How the arena's bytes are used; the others add up to `totalBytes`. */
export interface ArenaUsage {
  readonly totalBytes: number;
  readonly usedBytes: number;
  readonly freeBytes: number;
  /** In windows, for values that are still to come. */
  readonly reservedBytes: number;
  /** Freed, but it is not proved yet that nobody can write to it. */
  readonly quarantinedBytes: number;
}

const NO_BYTES = Buffer.alloc(0);

/** Hands out extents and takes them back. */
export class Arena {
  private readonly allocator: ExtentAllocator;
  private reserved = 0;
  private quarantined = 0;
  private readonly quarantine = new Map<WriteBarrier, number>();

  constructor(
    private readonly memory: ArenaMemory,
    private readonly extentBytesMax: number,
  ) {
    this.allocator = new ExtentAllocator(memory.sizeBytes, memory.segmentBytes);
  }

  get sizeBytes(): number {
    return this.memory.sizeBytes;
  }

  /**
   * Takes extents for a value of `length` bytes, in the order of its bytes.
   *
   * @returns undefined when there is not enough free; nothing is taken then
   */
  allocate(length: number): Extent[] | undefined {
    return this.allocator.allocate(length, this.extentBytesMax);
  }

  /** Gives extents back; those that somebody may still write to stay in quarantine until their barrier is proven. */
  release(extents: readonly Extent[]): void {
    for (const extent of extents) {
      const { barrier } = extent;
      if (barrier === undefined || barrier.proven) {
        this.allocator.release(extent);
        continue;
      }
      const bytes = alignedLength(extent.length);
      this.quarantined += bytes;
      const others = this.quarantine.get(barrier);
      this.quarantine.set(barrier, (others ?? 0) + bytes);
      barrier.whenProven(() => {
        this.quarantined -= bytes;
        this.quarantine.delete(barrier);
        this.allocator.release(extent);
      });
    }
  }

  /**
   * Takes ranges for windows, each at most one extent long. What lies in them is reserved until it is claimed or given up.
   *
   * @returns undefined when there is not enough free; nothing is taken then
   */
  reserve(length: number): Range[] | undefined {
    const ranges = this.allocator.allocate(length, this.extentBytesMax);
    for (const range of ranges ?? []) this.reserved += alignedLength(range.length);
    return ranges;
  }

  /** Gives back what was reserved and nobody ever had access to. */
  cancelReservation(ranges: readonly Range[]): void {
    for (const range of ranges) {
      this.unreserve(range);
      this.allocator.release(range);
    }
  }

  /** A part of what was reserved becomes an extent of a value. It begins at a multiple of the alignment. */
  claim(range: Range, barrier: WriteBarrier): Extent {
    this.unreserve(range);
    return { ...range, barrier };
  }

  /** A part of what was reserved is not wanted any more: it is free when its barrier is proven. */
  giveUp(range: Range, barrier: WriteBarrier): void {
    this.unreserve(range);
    this.release([{ ...range, barrier }]);
  }

  /** What is in quarantine, by what it waits for. */
  quarantinedBy(): Readonly<Record<QuarantineReason, number>> {
    const sums = { open: 0, proving: 0, unprovable: 0 };
    for (const [{ waitsFor }, bytes] of this.quarantine) sums[waitsFor] += bytes;
    return sums;
  }

  /** The bytes of an extent, as a view. */
  view(extent: Range): Buffer {
    const index = Math.floor(extent.offset / this.memory.segmentBytes);
    const start = extent.offset % this.memory.segmentBytes;
    const segment = this.memory.segments[index];
    if (segment === undefined) throw new Error(`no arena segment holds offset ${extent.offset}`);
    return segment.subarray(start, start + extent.length);
  }

  /** Copies `bytes` to where the value's byte `at` lies. The value must be long enough. */
  write(extents: readonly Extent[], at: number, bytes: Uint8Array): void {
    const [first] = extents;
    if (at === 0 && first !== undefined && bytes.length <= first.length) {
      this.view(first).set(bytes);
      return;
    }
    let offset = at;
    let source = bytes;
    for (const extent of extents) {
      if (offset >= extent.length) {
        offset -= extent.length;
        continue;
      }
      const part = source.subarray(0, extent.length - offset);
      this.view(extent).set(part, offset);
      source = source.subarray(part.length);
      offset = 0;
      if (source.length === 0) return;
    }
    if (source.length > 0) throw new Error('write beyond the end of the extents');
  }

  /** A view of up to `length` bytes of the value, from its byte `at`: as many as lie in one extent. */
  read(extents: readonly Extent[], at: number, length: number): Buffer {
    let offset = at;
    for (const extent of extents) {
      if (offset < extent.length) {
        const take = Math.min(length, extent.length - offset);
        return this.view({ offset: extent.offset + offset, length: take });
      }
      offset -= extent.length;
    }
    return NO_BYTES;
  }

  /** A range of the value: a view where it lies in one extent, otherwise a copy. The value must have it. */
  whole(extents: readonly Extent[], offset: number, length: number): Buffer {
    if (length === 0) return NO_BYTES;
    const view = this.read(extents, offset, length);
    return view.length === length ? view : this.copy(extents, offset, length);
  }

  /** A copy of `length` bytes of the value, from its byte `at`. The value must have them. */
  copy(extents: readonly Extent[], at: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const copied = this.read(extents, at + done, length - done).copy(bytes, done);
      if (copied === 0) throw new Error('copy beyond the end of the extents');
      done += copied;
    }
    return bytes;
  }

  get usage(): ArenaUsage {
    const { freeBytes, usableBytes } = this.allocator;
    return {
      totalBytes: usableBytes,
      usedBytes: usableBytes - freeBytes - this.quarantined - this.reserved,
      freeBytes,
      reservedBytes: this.reserved,
      quarantinedBytes: this.quarantined,
    };
  }
  private unreserve({ offset, length }: Range): void {
    const bytes = alignedLength(length);
    if (offset % EXTENT_ALIGNMENT_BYTES !== 0 || bytes > this.reserved) {
      throw new Error(`the range at ${offset} is not reserved`);
    }
    this.reserved -= bytes;
  }
}
