import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { chainOf, IdTable } from '../../src/collections/id-table.js';
import { configureProperties } from './support/seed.js';

configureProperties(300);

/** Ids that collide in a small table, and such as are used: counted up, and beyond 32 bits. */
const ids = fc.oneof(
  fc.nat(200),
  fc.nat(40).map((n) => n * 64),
  fc.nat(20).map((n) => 2 ** 40 + n * 2 ** 32),
);

test('a table of ids has what a Map has', () => {
  const step = fc.record({ add: fc.boolean(), id: ids, item: fc.nat() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400, size: 'max' }), (steps) => {
      const table = new IdTable<number>();
      const map = new Map<number, number>();
      for (const { add, id, item } of steps) {
        if (add) {
          table.set(id, item);
          map.set(id, item);
        } else {
          assert.equal(table.delete(id), map.delete(id));
        }
        assert.equal(table.size, map.size);
      }
      for (const { id } of steps) assert.equal(table.get(id), map.get(id));
      const ascending = [...map].sort(([a], [b]) => a - b).map(([, item]) => item);
      assert.deepEqual(table.toArray(), ascending);
      table.clear();
      assert.deepEqual([table.size, table.toArray()], [0, []]);
    }),
  );
});

test('a table that was large gives its room back, and loses nothing', () => {
  const table = new IdTable<number>();
  for (let id = 0; id < 50_000; id++) table.set(id, id);
  for (let id = 0; id < 50_000; id++) if (id % 1000 !== 0) assert.ok(table.delete(id));
  assert.equal(table.size, 50);
  assert.deepEqual(
    table.toArray(),
    Array.from({ length: 50 }, (_, i) => i * 1000),
  );
  assert.equal(table.delete(1), false);
});

test('addresses, whose low bits are alike, do not share chains', () => {
  const chains = 2048;
  for (const step of [1, 64, 2 ** 14, 2 ** 18, 2 ** 33]) {
    const used = new Set<number>();
    for (let i = 0; i < chains / 2; i++) used.add(chainOf(i * step, chains));
    assert.ok(used.size > chains / 8, `${used.size} chains for 1,024 ids in steps of ${step}`);
    assert.ok([...used].every((chain) => chain >= 0 && chain < chains));
  }
});
