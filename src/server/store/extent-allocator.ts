/**
 * Free space of the arena, by address: best fit by power-of-two classes, neighbours merged at once.
 */

/** A contiguous piece of the arena. */
export interface Range {
  readonly offset: number;
  readonly length: number;
}

/** Every extent begins on a cache line, and takes whole ones. */
export const EXTENT_ALIGNMENT_BYTES = 64;

/** Values are cut into pieces no smaller than this, except the last, so that a fragmented arena yields no confetti. */
const PIECE_BYTES_MIN = 64 * 1024;

/** Rounds a length up to what an extent of it takes. */
export function alignedLength(length: number): number {
  return Math.ceil(length / EXTENT_ALIGNMENT_BYTES) * EXTENT_ALIGNMENT_BYTES;
}

function classOf(length: number): number {
  return Math.floor(Math.log2(length));
}

/**
 * Hands out and takes back ranges of `[0, sizeBytes)`. No range crosses a multiple of `segmentBytes`. All lengths are
 * multiples of {@link EXTENT_ALIGNMENT_BYTES}.
 */
export class ExtentAllocator {
  /** Free ranges by their size class; `classes[c]` maps offsets to lengths in [2^c, 2^(c+1)). */
  private readonly classes: Map<number, number>[] = Array.from({ length: 54 }, () => new Map());
  private readonly lengthByStart = new Map<number, number>();
  private readonly startByEnd = new Map<number, number>();
  private free = 0;
  /** What can be handed out: whole cache lines. */
  readonly usableBytes: number;

  constructor(
    sizeBytes: number,
    private readonly segmentBytes: number,
  ) {
    this.usableBytes = sizeBytes - (sizeBytes % EXTENT_ALIGNMENT_BYTES);
    for (let offset = 0; offset < this.usableBytes; offset += segmentBytes) {
      this.insert(offset, Math.min(segmentBytes, this.usableBytes - offset));
    }
  }

  /** Bytes that are free, in whatever pieces. */
  get freeBytes(): number {
    return this.free;
  }

  /** How many separate free ranges there are; 1 a segment when nothing is fragmented. */
  get freeRanges(): number {
    return this.lengthByStart.size;
  }

  /**
   * Takes ranges for a value: one when there is a range that holds it, otherwise the largest there are, in pieces of at
   * most `pieceBytesMax`.
   *
   * @returns the ranges, in the order of the value's bytes, or undefined when there is not enough; nothing is taken then
   */
  allocate(length: number, pieceBytesMax: number): Range[] | undefined {
    if (alignedLength(length) > this.free) return undefined;
    const ranges: Range[] = [];
    for (let left = length; left > 0; ) {
      const wanted = Math.min(left, pieceBytesMax);
      const range = this.takeFitting(alignedLength(wanted), wanted) ?? this.takeLargest(wanted, left);
      if (range === undefined) {
        for (const taken of ranges) this.release(taken);
        return undefined;
      }
      ranges.push(range);
      left -= range.length;
    }
    return ranges;
  }

  /** Gives a range back. It must be one that {@link allocate} returned, whole. */
  release(range: Range): void {
    let offset = range.offset;
    let length = alignedLength(range.length);
    if (this.lengthByStart.has(offset) || this.free + length > this.usableBytes) {
      throw new Error(`the range at ${offset} is free already`);
    }
    const before = this.startByEnd.get(offset);
    if (before !== undefined && offset % this.segmentBytes !== 0) {
      const beforeLength = this.remove(before);
      offset = before;
      length += beforeLength;
    }
    const end = offset + length;
    if (this.lengthByStart.has(end) && end % this.segmentBytes !== 0) length += this.remove(end);
    this.insert(offset, length);
  }

  private takeFitting(aligned: number, length: number): Range | undefined {
    const firstClass = classOf(aligned);
    let best: { offset: number; length: number } | undefined;
    // In its own class a range may be too short: look at a few. In a higher class any one fits.
    let looked = 0;
    for (const [offset, available] of this.classes[firstClass] ?? []) {
      if (available >= aligned && (best === undefined || available < best.length)) best = { offset, length: available };
      if (++looked === 32) break;
    }
    for (let c = firstClass + 1; best === undefined && c < this.classes.length; c++) {
      for (const [offset, available] of this.classes[c] ?? []) {
        best = { offset, length: available };
        break;
      }
    }
    // Nearly full: then all of its own class, rather than a refusal.
    for (const [offset, available] of best === undefined ? (this.classes[firstClass] ?? []) : []) {
      if (available >= aligned) return this.take(offset, aligned, length);
    }
    return best === undefined ? undefined : this.take(best.offset, aligned, length);
  }

  private takeLargest(wanted: number, left: number): Range | undefined {
    for (let c = this.classes.length - 1; c >= 0; c--) {
      for (const [offset, available] of this.classes[c] ?? []) {
        if (available < PIECE_BYTES_MIN && available < left) return undefined;
        const length = Math.min(wanted, available);
        return this.take(offset, alignedLength(length), length);
      }
    }
    return undefined;
  }

  private take(offset: number, aligned: number, length: number): Range {
    const available = this.remove(offset);
    if (available > aligned) this.insert(offset + aligned, available - aligned);
    return { offset, length };
  }

  private insert(offset: number, length: number): void {
    this.classes[classOf(length)]?.set(offset, length);
    this.lengthByStart.set(offset, length);
    this.startByEnd.set(offset + length, offset);
    this.free += length;
  }

  private remove(offset: number): number {
    const length = this.lengthByStart.get(offset);
    if (length === undefined) throw new Error(`no free range begins at ${offset}`);
    this.classes[classOf(length)]?.delete(offset);
    this.lengthByStart.delete(offset);
    this.startByEnd.delete(offset + length);
    this.free -= length;
    return length;
  }
}
