import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { allocationBytes, FreeList } from '../../src/client/free-list.js';
import { type Block, ReceivePool } from '../../src/client/receive-pool.js';
import { mapMemory } from '../../src/fabric/index.js';
import { waitFor } from '../support/wait-for.js';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const KIB = 1024;
const MIB = 1024 * KIB;

async function poolOf(sizeBytes: number, regionBytesMax = sizeBytes): Promise<ReceivePool> {
  const mapping = await mapMemory({ sizeBytes, prefault: false });
  return new ReceivePool({ mapping, regionBytesMax, waitersMax: 10 });
}

function allocated(block: Block | undefined): Block {
  assert.ok(block !== undefined, 'no room');
  return block;
}

describe('the free list', () => {
  test('whatever is taken and given back, ranges never overlap, never cross a seam, and all comes back', () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.integer({ min: 1, max: 40_000 }), fc.constant('give' as const))), (steps) => {
        const list = new FreeList(300 * KIB, 128 * KIB);
        const all = list.freeBytes;
        const taken: { offset: number; length: number }[] = [];
        for (const step of steps) {
          if (step === 'give') {
            const range = taken.splice(Math.floor(taken.length / 2), 1)[0];
            if (range !== undefined) list.give(range.offset, range.length);
            continue;
          }
          const offset = list.take(step);
          if (offset === undefined) continue;
          const end = offset + allocationBytes(step);
          assert.ok(Math.floor(offset / (128 * KIB)) === Math.floor((end - 1) / (128 * KIB)), 'it crosses a seam');
          for (const other of taken) {
            assert.ok(end <= other.offset || offset >= other.offset + allocationBytes(other.length), 'they overlap');
          }
          taken.push({ offset, length: step });
        }
        for (const { offset, length } of taken) list.give(offset, length);
        assert.equal(list.freeBytes, all);
        assert.equal(list.take(128 * KIB), 0, 'neighbours were not merged');
      }),
    );
  });

  test('giving back twice is a defect, and is caught', () => {
    const list = new FreeList(64 * KIB);
    const offset = list.take(5000);
    assert.ok(offset !== undefined);
    list.give(offset, 5000);
    assert.throws(() => list.give(offset, 5000), { code: 'ERR_FABRICKV_INTERNAL' });
  });
});

describe('the receive pool', () => {
  test("a quarantined block is nobody else's until it is freed (I3)", async () => {
    const pool = await poolOf(MIB);
    const block = allocated(pool.tryAllocate(MIB));
    pool.quarantine(block);
    assert.deepEqual([pool.quarantinedBytes, pool.transitBytes, pool.freeBytes], [MIB, 0, 0]);
    assert.equal(pool.tryAllocate(1), undefined);
    assert.throws(() => pool.lend(block), { code: 'ERR_FABRICKV_INTERNAL' });
    pool.free(block);
    assert.deepEqual([pool.quarantinedBytes, pool.freeBytes], [0, MIB]);
    assert.throws(() => pool.free(block), { code: 'ERR_FABRICKV_INTERNAL' });
    allocated(pool.tryAllocate(1));
    pool.close();
  });

  test('a quarter always stays for operations in flight', async () => {
    const pool = await poolOf(MIB);
    const lent = [];
    for (let count = 0; count < 3; count++) {
      const block = allocated(pool.tryAllocate(256 * KIB));
      assert.ok(pool.canLend(block));
      lent.push(pool.lend(block));
    }
    const fourth = allocated(pool.tryAllocate(4096));
    assert.equal(pool.canLend(fourth), false);
    lent[0]?.release();
    assert.equal(pool.canLend(fourth), true);
    assert.equal(pool.lentBytes, 512 * KIB);
    pool.free(fourth);
    for (const { release } of lent) release();
    assert.equal(pool.freeBytes, MIB);
    pool.close();
  });

  test('lent bytes are the memory itself, detached at release, and released once', async () => {
    const pool = await poolOf(MIB);
    const block = allocated(pool.tryAllocate(100));
    pool.mapping.writeSync(block.offset, Buffer.from('hello'));
    const { bytes, release } = pool.lend(block);
    assert.equal(bytes.subarray(0, 5).toString(), 'hello');
    release();
    release();
    assert.deepEqual([bytes.length, pool.freeBytes, pool.lentBytes], [0, MIB, 0]);
    pool.close();
  });

  test('a block that was too long gives its end back', async () => {
    const pool = await poolOf(MIB);
    const block = allocated(pool.tryAllocate(512 * KIB));
    pool.shrink(block, 5000);
    assert.deepEqual([block.length, pool.transitBytes, pool.freeBytes], [5000, 8192, MIB - 8192]);
    assert.throws(() => pool.shrink(block, 9000), { code: 'ERR_FABRICKV_INTERNAL' });
    pool.free(block);
    assert.equal(pool.freeBytes, MIB);
    pool.close();
  });

  test('who waits is served in order, and is sent away when nothing in flight is left to wait for', async () => {
    const pool = await poolOf(MIB);
    const blocks = Array.from({ length: 8 }, () => allocated(pool.tryAllocate(128 * KIB)));
    const served: (string | undefined)[] = [];
    const wait = (name: string, length: number): (() => void) =>
      pool.allocate(length, (block) => served.push(block === undefined ? `${name}: none` : name));
    wait('a', 256 * KIB);
    wait('b', 4096);
    const stop = wait('c', 4096);
    stop();
    pool.free(allocated(blocks[0]));
    assert.deepEqual(served, [], 'b overtook a');
    pool.free(allocated(blocks[1]));
    assert.deepEqual(served, ['a']);
    const lent = blocks.slice(2).map((block) => pool.lend(block));
    assert.deepEqual(served, ['a'], 'a is in flight');
    wait('too long', 257 * KIB);
    assert.deepEqual(served, ['a', 'too long: none'], 'more than a quarter never waits');
    for (const { release } of lent.slice(0, 1)) release();
    assert.deepEqual(served, ['a', 'too long: none', 'b']);
    pool.close();
    wait('d', 1);
    assert.equal(served.at(-1), 'd: none');
    for (const { release } of lent) release();
  });

  test('a guess is refused while half of the pool is in use', async () => {
    const pool = await poolOf(MIB);
    allocated(pool.tryGuess(256 * KIB));
    allocated(pool.tryGuess(256 * KIB));
    assert.equal(pool.tryGuess(4096), undefined);
    allocated(pool.tryAllocate(4096));
    pool.close();
  });

  test('what is lent and dropped comes back with the garbage', async () => {
    const pool = await poolOf(MIB);
    for (let i = 0; i < 3; i++) pool.lend(allocated(pool.tryAllocate(4096)));
    assert.ok(pool.lentBytes > 0);
    await waitFor(
      () => {
        collectGarbage();
        return pool.lentBytes === 0;
      },
      { what: 'the lent bytes', intervalMs: 5 },
    );
    pool.close();
  });
});
