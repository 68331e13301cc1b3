import assert from 'node:assert/strict';
import { constants } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import {
  type NodeGCPerformanceDetail,
  type PerformanceEntry,
  PerformanceObserver,
  constants as performanceConstants,
} from 'node:perf_hooks';
import { describe, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { nativeAddon } from '../../src/fabric/addon.js';
import { crc32c, FabricError, type Mapping, mapMemory, memoryBackend } from '../../src/fabric/index.js';
import { PortableMapping, portableCrc32c } from '../../src/fabric/portable-memory.js';
import { until } from './support/peer-process.js';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const isInvalid = (error: unknown): boolean => error instanceof FabricError && error.code === 'INVALID_ARGUMENT';

test('the addon is built, and its memory is used', () => {
  assert.equal(memoryBackend(), 'native');
});

for (const [name, crc] of [
  ['crc32c', crc32c],
  ['portableCrc32c', portableCrc32c],
] as const) {
  test(`${name}: check value, empty input, seeds`, () => {
    assert.equal(crc(Buffer.from('123456789')), 0xe3069283);
    assert.equal(crc(Buffer.alloc(0)), 0);
    const bytes = randomBytes(70_001);
    for (const cut of [0, 1, 9, 4096, 70_000]) {
      assert.equal(crc(bytes.subarray(cut), crc(bytes.subarray(0, cut))), portableCrc32c(bytes));
    }
  });
}

const backends: Record<string, (sizeBytes: number) => Promise<Mapping>> = {
  native: (sizeBytes) => mapMemory({ sizeBytes, prefault: true }),
  portable: async (sizeBytes) => new PortableMapping(sizeBytes),
};

for (const [backend, create] of Object.entries(backends)) {
  describe(`${backend} mapping`, () => {
    test('copies in and out, with the CRC of what was copied', async () => {
      const mapping = await create(3_000_000);
      const bytes = randomBytes(2_000_003);
      assert.equal(await mapping.copyIn({ offset: 5, source: bytes }), crc32c(bytes));
      assert.equal(await mapping.copyIn({ offset: 5, source: bytes, crcSeed: 77 }), crc32c(bytes, 77));
      const target = Buffer.alloc(bytes.length);
      assert.equal(await mapping.copyOut({ offset: 5, target }), crc32c(bytes));
      assert.ok(target.equals(bytes));
      assert.equal(await mapping.crc32c({ offset: 5, length: bytes.length, seed: 3 }), crc32c(bytes, 3));
      assert.equal(await mapping.crc32c({ offset: 0, length: 0, seed: 3 }), 3);
      mapping.close();
    });

    test('views share the memory; readSync copies it', async () => {
      const mapping = await create(65_536);
      const view = mapping.buffer(100, 1000);
      view.fill(7);
      assert.deepEqual(mapping.readSync(99, 3), Buffer.from([0, 7, 7]));
      mapping.writeSync(100, Buffer.from([1, 2, 3]));
      assert.deepEqual([...view.subarray(0, 4)], [1, 2, 3, 7]);
      assert.equal(mapping.readSync(5, 0).length, 0);
      mapping.close();
    });

    test('refuses what leaves it, and everything once it is closed', async () => {
      const mapping = await create(4096);
      for (const [offset, length] of [
        [0, 4097],
        [4096, 1],
        [-1, 2],
        [0.5, 1],
        [Number.NaN, 1],
        [2 ** 53, 1],
      ] as const) {
        assert.throws(() => mapping.buffer(offset, length), isInvalid);
        assert.throws(() => mapping.readSync(offset, length), isInvalid);
        assert.throws(() => mapping.lend({ offset, length, onReturned: () => assert.fail() }), isInvalid);
        await assert.rejects(mapping.crc32c({ offset, length }), isInvalid);
      }
      assert.throws(() => mapping.writeSync(4090, Buffer.alloc(7)), isInvalid);
      await assert.rejects(mapping.copyIn({ offset: 4090, source: Buffer.alloc(7) }), isInvalid);
      await assert.rejects(mapping.copyOut({ offset: 4090, target: Buffer.alloc(7) }), isInvalid);
      mapping.close();
      mapping.close();
      assert.throws(() => mapping.buffer(0, 1), isInvalid);
      await assert.rejects(mapping.crc32c({ offset: 0, length: 1 }), isInvalid);
    });

    test('a released loan is detached and returned once, at once', async () => {
      const mapping = await create(65_536);
      const returned: number[] = [];
      const loan = mapping.lend({ offset: 0, length: 4096, onReturned: () => returned.push(42) });
      const bytes = new Uint8Array(loan.arrayBuffer, 10, 20);
      loan.release();
      assert.deepEqual(returned, [42]);
      assert.equal(loan.arrayBuffer.byteLength, 0);
      assert.equal(bytes.length, 0);
      loan.release();
      collectGarbage();
      await new Promise((resolve) => setTimeout(resolve, 20));
      assert.deepEqual(returned, [42]);
      mapping.close();
    });

    test('a dropped loan is returned by the garbage collector, not before its last view is gone', async () => {
      const mapping = await create(65_536);
      const returned: number[] = [];
      const lend = (token: number): Uint8Array =>
        new Uint8Array(
          mapping.lend({ offset: 0, length: 4096, onReturned: () => returned.push(token) }).arrayBuffer,
        ).subarray(5);
      let kept: Uint8Array | undefined = lend(1);
      lend(2);
      await until('the dropped loan is back', () => {
        collectGarbage();
        return returned.length > 0;
      });
      assert.deepEqual(returned, [2]);
      assert.equal(kept.length, 4091);
      kept = undefined;
      await until('the other one is back, too', () => {
        collectGarbage();
        return returned.length > 1;
      });
      assert.deepEqual(returned, [2, 1]);
      mapping.close();
    });

    test('the same bytes can be lent again and again, and none at all', async () => {
      const mapping = await create(65_536);
      let returned = 0;
      for (let i = 0; i < 1000; i++) {
        const loan = mapping.lend({ offset: 0, length: i % 7, onReturned: () => returned++ });
        loan.release();
      }
      assert.equal(returned, 1000);
      mapping.close();
    });
  });
}

for (const length of [4096, 2 ** 21]) {
  test(`native: ${length} bytes that the user has transferred come back when their new owner is gone`, async () => {
    await transferAndDrop(length);
  });
}

async function transferAndDrop(length: number): Promise<void> {
  const mapping = await mapMemory({ sizeBytes: 2 ** 22, prefault: true });
  const returned: number[] = [];
  const loan = mapping.lend({ offset: 0, length, onReturned: () => returned.push(1) });
  new Uint8Array(loan.arrayBuffer).fill(9);
  const prototype = ArrayBuffer.prototype as { transfer?: () => ArrayBuffer };
  // Without ArrayBuffer.prototype.transfer (Node 20), structuredClone; which may well copy instead.
  const move =
    prototype.transfer ?? ((): ArrayBuffer => structuredClone(loan.arrayBuffer, { transfer: [loan.arrayBuffer] }));
  let moved: ArrayBuffer | undefined = move.call(loan.arrayBuffer);
  const wasMoved = loan.arrayBuffer.byteLength === 0;
  loan.release();
  assert.deepEqual(returned, wasMoved ? [] : [1]);
  assert.equal(new Uint8Array(moved)[0], 9);
  moved = undefined;
  await until('the bytes are back', () => {
    collectGarbage();
    return returned.length > 0;
  });
  assert.deepEqual(returned, [1]);
  mapping.close();
}

/** Runs `work` and counts the mark-compacts meanwhile. */
async function countMarkCompacts(work: () => Promise<void>): Promise<number> {
  let count = 0;
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const { kind } = (entry as PerformanceEntry & { readonly detail: NodeGCPerformanceDetail }).detail;
      if (kind === performanceConstants.NODE_PERFORMANCE_GC_MAJOR) count++;
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  await work();
  // Entries are delivered by immediates.
  await new Promise((resolve) => setTimeout(resolve, 20));
  observer.disconnect();
  return count;
}

describe('native: large loans', () => {
  const length = 64 * 2 ** 20;
  const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  // Loans that earlier tests have dropped are back.
  const settle = (): Promise<void> =>
    until('earlier mappings are gone', () => {
      collectGarbage();
      return nativeAddon().liveMappings() === 0;
    });

  test('one that is released is detached and returned once, at once', async () => {
    const mapping = await mapMemory({ sizeBytes: length, prefault: false });
    const returned: number[] = [];
    const loan = mapping.lend({ offset: 0, length, onReturned: () => returned.push(42) });
    const bytes = Buffer.from(loan.arrayBuffer);
    mapping.writeSync(length - 1, Buffer.from([9]));
    assert.equal(bytes[length - 1], 9);
    loan.release();
    assert.deepEqual(returned, [42]);
    assert.equal(loan.arrayBuffer.byteLength, 0);
    assert.equal(bytes.length, 0);
    loan.release();
    collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(returned, [42]);
    mapping.close();
  });

  test('one that is dropped is returned once, by the garbage collector, and keeps the memory until then', async () => {
    await settle();
    const addon = nativeAddon();
    const mapping = await mapMemory({ sizeBytes: length, prefault: false });
    const returned: number[] = [];
    const lend = (token: number): Uint8Array =>
      new Uint8Array(mapping.lend({ offset: 0, length, onReturned: () => returned.push(token) }).arrayBuffer);
    let kept: Uint8Array | undefined = lend(1);
    lend(2);
    mapping.close();
    await until('the dropped loan is back', () => {
      collectGarbage();
      return returned.length > 0;
    });
    assert.deepEqual(returned, [2]);
    assert.equal(addon.liveMappings(), 1);
    assert.equal(kept[5], 0);
    kept = undefined;
    await until('the other one is back, and the memory unmapped', () => {
      collectGarbage();
      return returned.length > 1 && addon.liveMappings() === 0;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(returned, [2, 1]);
  });

  test('do not make V8 collect garbage when they are released', async () => {
    await settle();
    const mapping = await mapMemory({ sizeBytes: length, prefault: false });
    let returned = 0;
    const markCompacts = await countMarkCompacts(async () => {
      for (let token = 0; token < 100; token++) {
        mapping.lend({ offset: 0, length, onReturned: () => returned++ }).release();
        await nextTurn();
      }
    });
    assert.equal(returned, 100);
    assert.ok(markCompacts <= 2, `${markCompacts} mark-compacts in 100 loans`);
    mapping.close();
  });

  test('make V8 collect garbage when many are dropped', async () => {
    await settle();
    const mapping = await mapMemory({ sizeBytes: length, prefault: false });
    let returned = 0;
    for (let token = 0; token < 1000 && returned === 0; token++) {
      mapping.lend({ offset: 0, length, onReturned: () => returned++ });
      await nextTurn();
    }
    assert.ok(returned > 0);
    mapping.close();
  });

  test('what Node refuses to lend fails, and no more', async () => {
    const sizeBytes = constants.MAX_LENGTH + 2 ** 20;
    if (sizeBytes > 2 ** 40) return;
    await settle();
    const mapping = await mapMemory({ sizeBytes, prefault: false });
    const lend = (): unknown =>
      mapping.lend({ offset: 0, length: sizeBytes, onReturned: () => assert.fail('it was not lent') });
    assert.throws(lend, (error) => error instanceof FabricError && error.code === 'MAPPING_FAILED');
    mapping.close();
    await settle();
  });
});

test('native: memory is unmapped when its handle, views, loans and tasks are gone', async () => {
  const addon = nativeAddon();
  await until('earlier mappings are gone', () => {
    collectGarbage();
    return addon.liveMappings() === 0;
  });
  const use = async (): Promise<void> => {
    const mapping = await mapMemory({ sizeBytes: 32 * 2 ** 20, prefault: false });
    const view = mapping.buffer(0, 4096);
    const loan = mapping.lend({ offset: 0, length: 4096, onReturned: () => undefined });
    const task = mapping.crc32c({ offset: 0, length: 32 * 2 ** 20 });
    mapping.close();
    assert.equal(view[0], 0);
    view[0] = 1;
    assert.equal(await task, await task);
    assert.equal(new Uint8Array(loan.arrayBuffer)[0], 1);
    assert.equal(addon.liveMappings(), 1);
  };
  await use();
  await until('it is unmapped', () => {
    collectGarbage();
    return addon.liveMappings() === 0;
  });
});

test('native: a mapping that is dropped without being closed goes, too', async () => {
  const addon = nativeAddon();
  await mapMemory({ sizeBytes: 4096, prefault: false });
  await until('it is unmapped', () => {
    collectGarbage();
    return addon.liveMappings() === 0;
  });
});

test('what cannot be mapped says so', async () => {
  const isTooMuch = (error: unknown): boolean => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'MAPPING_FAILED');
    assert.equal(error.call, 'mmap');
    assert.equal(error.errnoName, 'ENOMEM');
    return true;
  };
  await assert.rejects(mapMemory({ sizeBytes: 2 ** 50, prefault: false }), isTooMuch);
  for (const sizeBytes of [0, -1, 1.5, Number.NaN]) {
    await assert.rejects(mapMemory({ sizeBytes, prefault: false }), isInvalid);
  }
});

test('huge pages are asked for from 2 MiB on, unless declined', async () => {
  const large = await mapMemory({ sizeBytes: 2 ** 21, prefault: true });
  const declined = await mapMemory({ sizeBytes: 2 ** 21, prefault: true, hugePages: false });
  const small = await mapMemory({ sizeBytes: 4096, prefault: true });
  assert.equal(typeof large.hugePages, 'boolean');
  assert.equal(declined.hugePages, false);
  assert.equal(small.hugePages, false);
  for (const mapping of [large, declined, small]) mapping.close();
});
