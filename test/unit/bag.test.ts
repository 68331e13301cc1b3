import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bag } from '../../src/collections/bag.js';
import { configureProperties } from './support/seed.js';

configureProperties(300);

interface Item {
  readonly name: number;
  place: number;
}

class Items extends Bag<Item> {
  protected override placeOf(item: Item): number {
    return item.place;
  }

  protected override setPlace(item: Item, place: number): void {
    item.place = place;
  }
}

test('a bag has what a Set has', () => {
  const step = fc.record({ add: fc.boolean(), name: fc.nat(9) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const bag = new Items();
      const set = new Set<Item>();
      const items = Array.from({ length: 10 }, (_, name): Item => ({ name, place: -1 }));
      for (const { add, name } of steps) {
        const item = items[name];
        assert.ok(item);
        if (add) {
          bag.add(item);
          set.add(item);
        } else {
          assert.equal(bag.delete(item), set.delete(item));
        }
        assert.equal(bag.size, set.size);
      }
      assert.deepEqual(new Set(bag.toArray()), set);
      assert.deepEqual(new Set(bag.takeAll()), set);
      assert.equal(bag.size, 0);
      assert.ok(items.every(({ place }) => place === -1));
    }),
  );
});

test('an item that has a place in another bag is not taken out of this one', () => {
  const here = new Items();
  const there = new Items();
  const ours: Item = { name: 1, place: -1 };
  const theirs: Item = { name: 2, place: -1 };
  here.add(ours);
  there.add(theirs);
  assert.equal(here.delete(theirs), false);
  assert.deepEqual([here.toArray(), there.toArray()], [[ours], [theirs]]);
});
