/**
 * Free space of the arena: good fit by two levels of size classes, as in TLSF (Masmano, Ripoll, Crespo, Real: "TLSF: a new
 * dynamic memory allocator for real-time systems", ECRTS 2004), neighbours merged at once. Free ranges lie in typed arrays, so
 * that allocating and releasing leaves no garbage.
 */

import { IdTable } from '../../collections/id-table.js';

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

/** Each power of two of lengths is divided into so many classes. */
const CLASSES_PER_POWER = 16;
const POWERS = 48;
/** In the lists of free ranges. */
const NONE = -1;
/** How far a list of ranges, some of which are too short, is looked through before a longer one is cut. */
const LOOKED_AT_MAX = 8;

/** Lengths are counted in units of {@link EXTENT_ALIGNMENT_BYTES}. */
function classOf(units: number): number {
  const power = units < 2 ** 31 ? 31 - Math.clz32(units) : Math.floor(Math.log2(units));
  const within = Math.floor((units / 2 ** power - 1) * CLASSES_PER_POWER);
  return power * CLASSES_PER_POWER + within;
}

/**
 * Hands out and takes back ranges of `[0, sizeBytes)`. No range crosses a multiple of `segmentBytes`. All lengths are
 * multiples of {@link EXTENT_ALIGNMENT_BYTES}.
 */
export class ExtentAllocator {
  /** Of the free range in each slot, in units. */
  private starts = new Float64Array(64);
  private lengths = new Float64Array(64);
  /** Its neighbours in the list of its class; of a slot without a range, the next such slot. */
  private next = new Int32Array(64);
  private previous = new Int32Array(64);
  private freeSlot = NONE;
  private usedSlots = 0;
  /** The first slot of each class, and which classes of each power have one. */
  private readonly heads = new Int32Array(POWERS * CLASSES_PER_POWER).fill(NONE);
  private readonly filled = new Uint16Array(POWERS);
  /** Slots by where their ranges start and end. */
  private readonly byStart = new IdTable<number>();
  private readonly byEnd = new IdTable<number>();
  private freeUnits = 0;
  private readonly segmentUnits: number;
  /** What can be handed out: whole cache lines. */
  readonly usableBytes: number;

  constructor(sizeBytes: number, segmentBytes: number) {
    this.usableBytes = sizeBytes - (sizeBytes % EXTENT_ALIGNMENT_BYTES);
    this.segmentUnits = segmentBytes / EXTENT_ALIGNMENT_BYTES;
    const units = this.usableBytes / EXTENT_ALIGNMENT_BYTES;
    for (let start = 0; start < units; start += this.segmentUnits) {
      this.insert(start, Math.min(this.segmentUnits, units - start));
    }
  }

  /** Bytes that are free, in whatever pieces. */
  get freeBytes(): number {
    return this.freeUnits * EXTENT_ALIGNMENT_BYTES;
  }

  /** How many separate free ranges there are; 1 a segment when nothing is fragmented. */
  get freeRanges(): number {
    return this.byStart.size;
  }

  /** All of them, for whoever checks that nothing is lost. */
  get ranges(): Range[] {
    return this.byStart.toArray().map((slot) => ({
      offset: this.startOf(slot) * EXTENT_ALIGNMENT_BYTES,
      length: this.lengthOf(slot) * EXTENT_ALIGNMENT_BYTES,
    }));
  }

  /**
   * Takes ranges for a value: one when there is a range that holds it, otherwise the largest there are, in pieces of at
   * most `pieceBytesMax`.
   *
   * @returns the ranges, in the order of the value's bytes, or undefined when there is not enough; nothing is taken then
   */
  allocate(length: number, pieceBytesMax: number): Range[] | undefined {
    if (alignedLength(length) > this.freeBytes) return undefined;
    const ranges: Range[] = [];
    for (let left = length; left > 0; ) {
      const wanted = Math.min(left, pieceBytesMax);
      const range = this.takeFitting(wanted) ?? this.takeLargest(wanted, left);
      if (range === undefined) {
        for (const taken of ranges) this.release(taken);
        return undefined;
      }
      ranges.push(range);
      left -= range.length;
    }
    return ranges;
  }

  /** Gives a range back. It must be one that {@link allocate} returned, whole, or cut at a cache line. */
  release(range: Range): void {
    let start = range.offset / EXTENT_ALIGNMENT_BYTES;
    let units = alignedLength(range.length) / EXTENT_ALIGNMENT_BYTES;
    const isFree = this.byStart.get(start) !== undefined;
    if (isFree || (this.freeUnits + units) * EXTENT_ALIGNMENT_BYTES > this.usableBytes) {
      throw new Error(`the range at ${range.offset} is free already`);
    }
    const end = start + units;
    const before = start % this.segmentUnits === 0 ? undefined : this.byEnd.get(start);
    if (before !== undefined) {
      start = this.startOf(before);
      units += this.remove(before);
    }
    const after = end % this.segmentUnits === 0 ? undefined : this.byStart.get(end);
    if (after !== undefined) units += this.remove(after);
    this.insert(start, units);
  }

  private takeFitting(length: number): Range | undefined {
    const units = alignedLength(length) / EXTENT_ALIGNMENT_BYTES;
    const own = classOf(units);
    // In its own class a range may be too short. In a higher class any one fits.
    const fitting = this.fittingOf(own, units, LOOKED_AT_MAX) ?? this.firstFrom(own + 1);
    // Nearly full: then all of its own class, rather than a refusal.
    const slot = fitting ?? this.fittingOf(own, units, Number.POSITIVE_INFINITY);
    return slot === undefined ? undefined : this.take(slot, units, length);
  }

  private takeLargest(wanted: number, left: number): Range | undefined {
    const slot = this.last();
    if (slot === undefined) return undefined;
    const available = this.lengthOf(slot) * EXTENT_ALIGNMENT_BYTES;
    if (available < PIECE_BYTES_MIN && available < left) return undefined;
    const length = Math.min(wanted, available);
    return this.take(slot, alignedLength(length) / EXTENT_ALIGNMENT_BYTES, length);
  }

  private take(slot: number, units: number, length: number): Range {
    const start = this.startOf(slot);
    const available = this.remove(slot);
    if (available > units) this.insert(start + units, available - units);
    return { offset: start * EXTENT_ALIGNMENT_BYTES, length };
  }

  /** The first of a class that is long enough, among the first so many. */
  private fittingOf(sizeClass: number, units: number, lookedAtMax: number): number | undefined {
    let slot = this.heads[sizeClass] ?? NONE;
    for (let looked = 0; slot !== NONE && looked < lookedAtMax; looked++) {
      if (this.lengthOf(slot) >= units) return slot;
      slot = this.next[slot] ?? NONE;
    }
    return undefined;
  }

  /** One of the shortest of a class or those above it. */
  private firstFrom(sizeClass: number): number | undefined {
    let within = sizeClass % CLASSES_PER_POWER;
    for (let power = Math.floor(sizeClass / CLASSES_PER_POWER); power < POWERS; power++) {
      const filled = (this.filled[power] ?? 0) & -(1 << within);
      if (filled !== 0) return this.heads[power * CLASSES_PER_POWER + (31 - Math.clz32(filled & -filled))];
      within = 0;
    }
    return undefined;
  }

  /** One of the longest. */
  private last(): number | undefined {
    for (let power = POWERS - 1; power >= 0; power--) {
      const filled = this.filled[power] ?? 0;
      if (filled !== 0) return this.heads[power * CLASSES_PER_POWER + (31 - Math.clz32(filled))];
    }
    return undefined;
  }

  private startOf(slot: number): number {
    return this.starts[slot] ?? 0;
  }

  private lengthOf(slot: number): number {
    return this.lengths[slot] ?? 0;
  }

  private insert(start: number, units: number): void {
    const slot = this.takeSlot();
    this.starts[slot] = start;
    this.lengths[slot] = units;
    this.byStart.set(start, slot);
    this.byEnd.set(start + units, slot);
    this.freeUnits += units;
    const sizeClass = classOf(units);
    const head = this.heads[sizeClass] ?? NONE;
    this.next[slot] = head;
    this.previous[slot] = NONE;
    if (head !== NONE) this.previous[head] = slot;
    this.heads[sizeClass] = slot;
    this.mark(sizeClass, true);
  }

  /** @returns the length of the range that was there */
  private remove(slot: number): number {
    const start = this.startOf(slot);
    const units = this.lengthOf(slot);
    const sizeClass = classOf(units);
    const next = this.next[slot] ?? NONE;
    const previous = this.previous[slot] ?? NONE;
    if (next !== NONE) this.previous[next] = previous;
    if (previous !== NONE) this.next[previous] = next;
    else this.heads[sizeClass] = next;
    if (this.heads[sizeClass] === NONE) this.mark(sizeClass, false);
    this.byStart.delete(start);
    this.byEnd.delete(start + units);
    this.freeUnits -= units;
    this.next[slot] = this.freeSlot;
    this.freeSlot = slot;
    return units;
  }

  private mark(sizeClass: number, isFilled: boolean): void {
    const power = Math.floor(sizeClass / CLASSES_PER_POWER);
    const bit = 1 << (sizeClass % CLASSES_PER_POWER);
    const filled = this.filled[power] ?? 0;
    this.filled[power] = isFilled ? filled | bit : filled & ~bit;
  }

  private takeSlot(): number {
    const slot = this.freeSlot;
    if (slot !== NONE) {
      this.freeSlot = this.next[slot] ?? NONE;
      return slot;
    }
    if (this.usedSlots === this.starts.length) this.grow();
    this.usedSlots += 1;
    return this.usedSlots - 1;
  }

  private grow(): void {
    const { starts, lengths, next, previous } = this;
    const slots = 2 * starts.length;
    this.starts = new Float64Array(slots);
    this.lengths = new Float64Array(slots);
    this.next = new Int32Array(slots);
    this.previous = new Int32Array(slots);
    this.starts.set(starts);
    this.lengths.set(lengths);
    this.next.set(next);
    this.previous.set(previous);
  }
}
