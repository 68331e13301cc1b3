import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  alignedLength,
  EXTENT_ALIGNMENT_BYTES,
  ExtentAllocator,
  type Range,
} from '../../src/server/store/extent-allocator.js';
import { configureProperties } from './support/seed.js';

configureProperties(400);

const KIB = 1024;
const PIECE_BYTES_MIN = 64 * KIB;

/** What is taken, kept by the test: the truth that the allocator is held against. */
class Model {
  readonly allocator: ExtentAllocator;
  readonly taken: Range[][] = [];
  private readonly usable: number;

  constructor(
    sizeBytes: number,
    private readonly segmentBytes: number,
  ) {
    this.allocator = new ExtentAllocator(sizeBytes, segmentBytes);
    this.usable = sizeBytes - (sizeBytes % EXTENT_ALIGNMENT_BYTES);
  }

  get freeBytes(): number {
    return this.usable - this.taken.flat().reduce((sum, { length }) => sum + alignedLength(length), 0);
  }

  /** The maximal free ranges, seams respected, by address. */
  get freeRanges(): Range[] {
    const taken = this.taken.flat().toSorted((a, b) => a.offset - b.offset);
    const free: Range[] = [];
    let next = 0;
    for (let start = 0; start < this.usable; start += this.segmentBytes) {
      const end = Math.min(start + this.segmentBytes, this.usable);
      let at = start;
      for (; (taken[next]?.offset ?? Number.POSITIVE_INFINITY) < end; next++) {
        const range = taken[next] ?? { offset: end, length: 0 };
        if (range.offset > at) free.push({ offset: at, length: range.offset - at });
        at = range.offset + alignedLength(range.length);
      }
      if (at < end) free.push({ offset: at, length: end - at });
    }
    return free;
  }

  check(): void {
    const sorted = this.taken.flat().toSorted((a, b) => a.offset - b.offset);
    let end = 0;
    for (const { offset, length } of sorted) {
      assert.ok(offset >= end, `${offset} overlaps what ends at ${end}`);
      assert.equal(offset % EXTENT_ALIGNMENT_BYTES, 0);
      assert.ok(length > 0);
      const last = offset + length - 1;
      assert.equal(Math.floor(offset / this.segmentBytes), Math.floor(last / this.segmentBytes), 'crosses a seam');
      end = offset + alignedLength(length);
    }
    assert.ok(end <= this.usable, 'beyond the end');
    assert.equal(this.allocator.freeBytes, this.freeBytes);
    assert.deepEqual(this.allocator.ranges, this.freeRanges, 'neighbours are merged');
  }

  allocate(length: number, pieceBytesMax: number): void {
    const before = this.freeRanges;
    const ranges = this.allocator.allocate(length, pieceBytesMax);
    if (ranges === undefined) {
      // Refused only when there is not enough, or when the rest would have to come in crumbs.
      const largest = Math.max(0, ...before.map((range) => range.length));
      assert.ok(this.freeBytes < alignedLength(length) || largest < PIECE_BYTES_MIN || hasCrumbs(before, length));
      return;
    }
    assert.equal(
      ranges.reduce((sum, range) => sum + range.length, 0),
      length,
    );
    for (const [i, range] of ranges.entries()) {
      assert.ok(range.length <= pieceBytesMax);
      if (i < ranges.length - 1)
        assert.equal(range.length % EXTENT_ALIGNMENT_BYTES, 0, 'only the last piece is ragged');
    }
    this.taken.push(ranges);
  }

  release(index: number): void {
    const [ranges] = this.taken.splice(index % Math.max(1, this.taken.length), 1);
    for (const range of ranges ?? []) this.allocator.release(range);
  }
}

/** Whether ranges that are too small for a piece are needed for so many bytes. */
function hasCrumbs(free: readonly Range[], length: number): boolean {
  const pieces = free.filter((range) => range.length >= PIECE_BYTES_MIN).reduce((sum, range) => sum + range.length, 0);
  return pieces < alignedLength(length);
}

type Step = readonly ['allocate', number] | readonly ['release', number];

const step = (lengthMax: number): fc.Arbitrary<Step> =>
  fc.oneof(
    { weight: 3, arbitrary: fc.tuple(fc.constant('allocate' as const), fc.integer({ min: 0, max: lengthMax })) },
    { weight: 2, arbitrary: fc.tuple(fc.constant('release' as const), fc.nat(1000)) },
  );

function run(model: Model, steps: readonly Step[], pieceBytesMax: number): void {
  for (const [what, number] of steps) {
    if (what === 'allocate') model.allocate(number, pieceBytesMax);
    else model.release(number);
    model.check();
  }
  while (model.taken.length > 0) model.release(0);
  model.check();
}

test('no range overlaps another or crosses a seam, and all come back as one a segment', () => {
  const sizes = fc.record({
    sizeBytes: fc.integer({ min: 1, max: 1024 * KIB }),
    segmentBytes: fc.constantFrom(64, 4096, 64 * KIB, 300 * 64, 1024 * KIB),
    pieceBytesMax: fc.constantFrom(64, 1024, 100 * KIB - ((100 * KIB) % 64), 16 * 1024 * KIB),
  });
  fc.assert(
    fc.property(
      sizes.filter(({ sizeBytes, segmentBytes }) => sizeBytes / segmentBytes < 200),
      fc.array(step(200 * KIB), { maxLength: 40 }),
      ({ sizeBytes, segmentBytes, pieceBytesMax }, steps) => {
        const model = new Model(sizeBytes, segmentBytes);
        run(model, steps, pieceBytesMax);
        assert.equal(model.allocator.freeRanges, Math.ceil(model.allocator.usableBytes / segmentBytes));
        assert.equal(model.allocator.freeBytes, model.allocator.usableBytes);
      },
    ),
  );
});

test('large values over fragmented segments come in pieces', () => {
  fc.assert(
    fc.property(fc.array(step(4 * 1024 * KIB), { maxLength: 40 }), (steps) => {
      run(new Model(8 * 1024 * KIB, 2 * 1024 * KIB), steps, 1024 * KIB);
    }),
    { numRuns: 100 },
  );
});

test('a value that fits into one range is not cut', () => {
  const allocator = new ExtentAllocator(1024 * KIB, 1024 * KIB);
  const first = allocator.allocate(100, 1024 * KIB);
  const second = allocator.allocate(500 * KIB, 1024 * KIB);
  assert.equal(first?.length, 1);
  assert.equal(second?.length, 1);
});

test('free space in several places is put together', () => {
  const allocator = new ExtentAllocator(1024 * KIB, 1024 * KIB);
  const quarters = Array.from({ length: 4 }, () => allocator.allocate(256 * KIB, 1024 * KIB)?.[0]);
  const [a, , c] = quarters;
  assert.ok(a !== undefined && c !== undefined);
  allocator.release(a);
  allocator.release(c);
  const ranges = allocator.allocate(400 * KIB, 1024 * KIB);
  assert.deepEqual(ranges?.map(({ length }) => length).toSorted(), [144 * KIB, 256 * KIB]);
  assert.equal(allocator.freeBytes, 112 * KIB);
});

test('what cannot be had takes nothing, pieces on the way included', () => {
  const allocator = new ExtentAllocator(1024 * KIB, 1024 * KIB);
  const taken = Array.from({ length: 16 }, () => allocator.allocate(64 * KIB, 64 * KIB)?.[0]);
  const give = (i: number): void => allocator.release(taken[i] ?? { offset: 0, length: 0 });
  // 24 KiB twice, and 64 KiB twice: 176 KiB are free, but not in pieces of 64 KiB.
  for (const i of [4, 6]) {
    give(i);
    assert.equal(allocator.allocate(40 * KIB, 64 * KIB)?.length, 1);
  }
  give(0);
  give(2);
  const { freeBytes, freeRanges } = allocator;
  assert.equal(freeBytes, 176 * KIB);
  assert.equal(freeRanges, 4);
  assert.equal(allocator.allocate(176 * KIB, 64 * KIB), undefined);
  assert.equal(allocator.allocate(177 * KIB, 64 * KIB), undefined);
  assert.deepEqual([allocator.freeBytes, allocator.freeRanges], [freeBytes, freeRanges]);
  // The last piece may be small.
  assert.deepEqual(
    allocator.allocate(152 * KIB, 64 * KIB)?.map(({ length }) => length),
    [64 * KIB, 64 * KIB, 24 * KIB],
  );
});

test('nothing is given for nothing, and a size that is no multiple of 64 keeps its tail', () => {
  const allocator = new ExtentAllocator(1000, 4096);
  assert.deepEqual(allocator.allocate(0, 64), []);
  assert.equal(allocator.usableBytes, 960);
  assert.equal(allocator.freeBytes, 960);
  assert.equal(allocator.allocate(961, 4096), undefined);
  assert.equal(allocator.allocate(960, 4096)?.length, 1);
  assert.equal(allocator.freeBytes, 0);
});

test('a range that is free is not given back again', () => {
  const allocator = new ExtentAllocator(4096, 4096);
  const [range] = allocator.allocate(64, 64) ?? [];
  const kept = allocator.allocate(64, 64);
  assert.ok(range !== undefined && kept !== undefined);
  allocator.release(range);
  assert.throws(() => allocator.release(range), /free already/);
  assert.equal(allocator.freeBytes, 4096 - 64);
});

test('a range that fits is found, however many shorter ones of its class there are', () => {
  const allocator = new ExtentAllocator(KIB * KIB, KIB * KIB);
  const take = (length: number): Range => {
    const [range] = allocator.allocate(length, KIB * KIB) ?? [];
    assert.ok(range !== undefined);
    return range;
  };
  // Free ranges of 2,048 bytes, kept apart by taken ones, and one of 4,032 of the same class, freed last.
  const ranges = Array.from({ length: 100 }, () => ({ free: take(2048), apart: take(64) }));
  const long = { free: take(4032), apart: take(64) };
  while (allocator.freeBytes > 0) take(Math.min(allocator.freeBytes, 64 * KIB));
  for (const { free } of ranges) allocator.release(free);
  allocator.release(long.free);
  assert.equal(take(4032).offset, long.free.offset);
});
