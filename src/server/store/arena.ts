/**
 * The arena: the memory that holds all values, handed out as extents. It knows neither gRPC nor libfabric; who may
 * still write to an extent it learns from the extent's barrier.
 */

import { alignedLength, ExtentAllocator, type Range } from './extent-allocator.js';

/** The bytes themselves: a contiguous range of addresses, viewed in segments. */
export interface ArenaMemory {
  readonly sizeBytes: number;
  /** All segments but the last have this size. */
  readonly segmentBytes: number;
  readonly segments: readonly Buffer[];
}

/**
 * Stands between an extent that a peer could write to and its next use: whether it is proved that no write to it can
 * still land.
 */
export interface WriteBarrier {
  readonly proven: boolean;
  /** Calls back once, when it is proven; at once if it is. */
  whenProven(callback: () => void): void;
}

/** A piece of the arena that belongs to one value, at most 16 MiB. */
export interface Extent extends Range {
  /** Set while, and after, a peer could write to it directly. */
  barrier?: WriteBarrier;
}

/** How the arena's bytes are used; the four add up to `totalBytes`. */
export interface ArenaUsage {
  readonly totalBytes: number;
  readonly usedBytes: number;
  readonly freeBytes: number;
  /** Freed, but it is not proved yet that nobody can write to it. */
  readonly quarantinedBytes: number;
}

/** Hands out extents and takes them back. */
export class Arena {
  private readonly allocator: ExtentAllocator;
  private quarantined = 0;

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
      barrier.whenProven(() => {
        this.quarantined -= bytes;
        this.allocator.release(extent);
      });
    }
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
    return Buffer.alloc(0);
  }

  get usage(): ArenaUsage {
    const { freeBytes, usableBytes } = this.allocator;
    return {
      totalBytes: usableBytes,
      usedBytes: usableBytes - freeBytes - this.quarantined,
      freeBytes,
      quarantinedBytes: this.quarantined,
    };
  }
}
