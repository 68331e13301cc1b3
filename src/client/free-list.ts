/**
 * First-fit allocation of ranges of one piece of memory.
 */

import { FabricKvError } from '../protocol/errors.js';

interface FreeRange {
  offset: number;
  length: number;
}

/** Ranges begin and end at multiples of this: a page, so that no two results share one. */
const GRANULE_BYTES = 4096;

/** Rounds a length up to what an allocation of it takes. */
export function allocationBytes(length: number): number {
  return Math.ceil(length / GRANULE_BYTES) * GRANULE_BYTES;
}

/**
 * The free ranges of `[0, sizeBytes)`, in order, neighbours merged. First fit keeps the low addresses in use, whose pages
 * have been touched and are in the caches.
 */
export class FreeList {
  readonly #ranges: FreeRange[];
  #freeBytes: number;

  /**
   * @param seamBytes no allocation crosses a multiple of it, because the memory is registered in pieces of that size
   */
  constructor(sizeBytes: number, seamBytes = sizeBytes) {
    const usable = Math.floor(sizeBytes / GRANULE_BYTES) * GRANULE_BYTES;
    const seam = Math.floor(seamBytes / GRANULE_BYTES) * GRANULE_BYTES;
    this.#seamBytes = seam;
    this.#ranges = [];
    for (let offset = 0; offset < usable; offset += seam) {
      this.#ranges.push({ offset, length: Math.min(seam, usable - offset) });
    }
    this.#freeBytes = usable;
  }

  readonly #seamBytes: number;

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** Takes `length` bytes, rounded up by {@link allocationBytes}; returns their offset, or undefined when none fit. */
  take(length: number): number | undefined {
    const wanted = allocationBytes(length);
    for (let i = 0; i < this.#ranges.length; i += 1) {
      const range = this.#ranges[i];
      if (range === undefined || range.length < wanted) continue;
      const { offset } = range;
      if (range.length === wanted) {
        this.#ranges.splice(i, 1);
      } else {
        range.offset += wanted;
        range.length -= wanted;
      }
      this.#freeBytes -= wanted;
      return offset;
    }
    return undefined;
  }

  /**
   * Gives a range back, or the tail of one.
   *
   * @throws ERR_FABRICKV_INTERNAL when any of it is free already
   */
  give(offset: number, length: number): void {
    const given = allocationBytes(length);
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle]?.offset ?? 0) < offset) low = middle + 1;
      else high = middle;
    }
    const before = this.#ranges[low - 1];
    const after = this.#ranges[low];
    if (
      (before !== undefined && before.offset + before.length > offset) ||
      (after !== undefined && offset + given > after.offset)
    ) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', `receive memory at ${offset} was given back twice`);
    }
    const joinsBefore = before !== undefined && before.offset + before.length === offset && !this.#isSeam(offset);
    const joinsAfter = after !== undefined && after.offset === offset + given && !this.#isSeam(after.offset);
    if (joinsBefore && joinsAfter) {
      before.length += given + after.length;
      this.#ranges.splice(low, 1);
    } else if (joinsBefore) {
      before.length += given;
    } else if (joinsAfter) {
      after.offset = offset;
      after.length += given;
    } else {
      this.#ranges.splice(low, 0, { offset, length: given });
    }
    this.#freeBytes += given;
  }

  #isSeam(offset: number): boolean {
    return offset % this.#seamBytes === 0;
  }
}
