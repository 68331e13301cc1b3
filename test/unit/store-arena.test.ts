import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Arena, type Extent, type QuarantineReason, type WriteBarrier } from '../../src/server/store/arena.js';
import { configureProperties } from './support/seed.js';

configureProperties(200);

function arenaOf(sizeBytes: number, segmentBytes: number, extentBytesMax: number): Arena {
  const segments: Buffer[] = [];
  for (let offset = 0; offset < sizeBytes; offset += segmentBytes) {
    segments.push(Buffer.alloc(Math.min(segmentBytes, sizeBytes - offset)));
  }
  return new Arena({ sizeBytes, segmentBytes, segments }, extentBytesMax);
}

/** A barrier that the test proves. */
class Barrier implements WriteBarrier {
  proven = false;
  waitsFor: QuarantineReason = 'proving';
  private readonly callbacks: (() => void)[] = [];

  whenProven(callback: () => void): void {
    if (this.proven) callback();
    else this.callbacks.push(callback);
  }

  prove(): void {
    this.proven = true;
    for (const callback of this.callbacks.splice(0)) callback();
  }
}

function allocate(arena: Arena, length: number): Extent[] {
  const extents = arena.allocate(length);
  assert.ok(extents !== undefined, `no room for ${length}`);
  return extents;
}

function addsUp(arena: Arena): void {
  const { totalBytes, usedBytes, freeBytes, reservedBytes, quarantinedBytes } = arena.usage;
  assert.equal(usedBytes + freeBytes + reservedBytes + quarantinedBytes, totalBytes);
}

test('an empty arena is free to its last whole cache line', () => {
  assert.deepEqual(arenaOf(1000, 512, 512).usage, {
    totalBytes: 960,
    usedBytes: 0,
    freeBytes: 960,
    reservedBytes: 0,
    quarantinedBytes: 0,
  });
});

test('what a peer could write to is used again only after the proof', () => {
  const arena = arenaOf(4096, 4096, 4096);
  const [extent] = allocate(arena, 4000);
  assert.ok(extent !== undefined);
  const barrier = new Barrier();
  extent.barrier = barrier;
  arena.release([extent]);
  assert.deepEqual(arena.usage, {
    totalBytes: 4096,
    usedBytes: 0,
    freeBytes: 64,
    reservedBytes: 0,
    quarantinedBytes: 4032,
  });
  assert.equal(arena.allocate(65), undefined);
  barrier.prove();
  assert.deepEqual(arena.usage, {
    totalBytes: 4096,
    usedBytes: 0,
    freeBytes: 4096,
    reservedBytes: 0,
    quarantinedBytes: 0,
  });
  const [again] = allocate(arena, 4096);
  assert.equal(again?.barrier, undefined, 'the next owner has no barrier of the last');
});

test('an extent whose barrier is proven is free at once, beside one that waits', () => {
  const arena = arenaOf(4096, 4096, 1024);
  const extents = allocate(arena, 3000);
  const barriers = extents.map((extent) => {
    extent.barrier = new Barrier();
    return extent.barrier as Barrier;
  });
  barriers[0]?.prove();
  arena.release(extents);
  assert.equal(arena.usage.quarantinedBytes, 1024 + 960);
  barriers[2]?.prove();
  assert.equal(arena.usage.quarantinedBytes, 1024);
  barriers[1]?.prove();
  assert.deepEqual(arena.usage, {
    totalBytes: 4096,
    usedBytes: 0,
    freeBytes: 4096,
    reservedBytes: 0,
    quarantinedBytes: 0,
  });
});

test('what is reserved is claimed part by part, or given up, and waits for the proof either way', () => {
  const arena = arenaOf(8192, 8192, 4096);
  const [range, second] = arena.reserve(6000) ?? [];
  assert.ok(range !== undefined && second !== undefined);
  assert.deepEqual([range.length, second.length, arena.usage.reservedBytes], [4096, 1904, 4096 + 1920]);
  arena.cancelReservation([second]);
  assert.equal(arena.usage.reservedBytes, 4096);
  const barrier = new Barrier();
  const extent = arena.claim({ offset: range.offset + 64, length: 1000 }, barrier);
  assert.deepEqual([arena.usage.usedBytes, arena.usage.reservedBytes], [1024, 3072]);
  arena.giveUp({ offset: range.offset, length: 64 }, barrier);
  arena.giveUp({ offset: range.offset + 1088, length: 4096 - 1088 }, barrier);
  assert.deepEqual([arena.usage.reservedBytes, arena.usage.quarantinedBytes], [0, 3072]);
  barrier.waitsFor = 'unprovable';
  assert.deepEqual(arena.quarantinedBy(), { open: 0, proving: 0, unprovable: 3072 });
  barrier.prove();
  assert.deepEqual(arena.quarantinedBy(), { open: 0, proving: 0, unprovable: 0 });
  addsUp(arena);
  arena.release([extent]);
  assert.equal(arena.usage.freeBytes, 8192);
  assert.equal(arena.reserve(8193), undefined);
  assert.throws(() => arena.claim({ offset: 0, length: 64 }, barrier), /not reserved/);
});

test('bytes come back as they were written, over extents and segments', () => {
  const write = fc.record({
    length: fc.integer({ min: 1, max: 5000 }),
    cuts: fc.array(fc.nat(5000), { maxLength: 6 }),
    reads: fc.array(fc.tuple(fc.nat(5000), fc.nat(5000)), { maxLength: 6 }),
  });
  fc.assert(
    fc.property(fc.array(write, { minLength: 1, maxLength: 4 }), (values) => {
      const arena = arenaOf(32 * 1024, 4096, 1024);
      const stored = values.map(({ length, cuts }, i) => {
        const extents = allocate(arena, length);
        const bytes = Buffer.from(Array.from({ length }, (_, at) => (at * 31 + i * 7 + 1) % 251));
        const bounds = [0, ...cuts.map((cut) => cut % length).toSorted((a, b) => a - b), length];
        for (const [j, from] of bounds.slice(0, -1).entries()) {
          arena.write(extents, from, bytes.subarray(from, bounds[j + 1]));
        }
        return { extents, bytes };
      });
      for (const [i, { extents, bytes }] of stored.entries()) {
        const pieces: Buffer[] = [];
        for (let at = 0; at < bytes.length; ) {
          const piece = arena.read(extents, at, bytes.length - at);
          assert.ok(piece.length > 0);
          pieces.push(piece);
          at += piece.length;
        }
        assert.deepEqual(Buffer.concat(pieces), bytes);
        for (const [at, length] of values[i]?.reads ?? []) {
          const piece = arena.read(extents, at, length);
          assert.ok(piece.length <= length);
          assert.deepEqual(piece, bytes.subarray(at, at + piece.length));
        }
      }
    }),
  );
});

test('a write beyond its extents is a defect, and says so', () => {
  const arena = arenaOf(4096, 4096, 1024);
  const extents = allocate(arena, 100);
  assert.throws(() => arena.write(extents, 90, Buffer.alloc(11)), /beyond the end/);
  assert.throws(() => arena.write(extents, 200, Buffer.alloc(1)), /beyond the end/);
  assert.equal(arena.read(extents, 100, 10).length, 0);
  assert.throws(() => arena.view({ offset: 5000, length: 1 }), /segment/);
});

test('used, free and quarantined bytes add up whatever happens', () => {
  const step = fc.record({ length: fc.nat(3000), barrier: fc.boolean(), release: fc.nat(9), prove: fc.nat(9) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const arena = arenaOf(16 * 1024, 4096, 1024);
      const held: Extent[][] = [];
      const barriers: Barrier[] = [];
      for (const { length, barrier, release, prove } of steps) {
        const extents = arena.allocate(length);
        if (extents !== undefined) held.push(extents);
        if (barrier) {
          for (const extent of extents ?? []) {
            const fresh = new Barrier();
            barriers.push(fresh);
            extent.barrier = fresh;
          }
        }
        addsUp(arena);
        arena.release(held.splice(release, 1).flat());
        addsUp(arena);
        barriers.splice(prove, 1)[0]?.prove();
        addsUp(arena);
      }
      arena.release(held.flat());
      for (const barrier of barriers) barrier.prove();
      assert.equal(arena.usage.freeBytes, arena.usage.totalBytes);
    }),
  );
});
