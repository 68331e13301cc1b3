import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LEASE_IDLE_MS, LEASES_PER_SESSION_MAX } from '../../src/protocol/limits.js';
import { ServerCounters } from '../../src/server/counters.js';
import { LeaseTable } from '../../src/server/leases.js';
import { Arena } from '../../src/server/store/arena.js';
import { Store, type StoredValue } from '../../src/server/store/store.js';

const ARENA_BYTES = 64 * 1024;
const BYTES_MAX = ARENA_BYTES / 4;

/** A store, a clock that the test sets, and the tables of as many sessions as it wants. */
class Bench {
  readonly store = new Store(
    new Arena(
      { sizeBytes: ARENA_BYTES, segmentBytes: ARENA_BYTES, segments: [Buffer.alloc(ARENA_BYTES)] },
      ARENA_BYTES,
    ),
  );
  readonly counters = new ServerCounters();
  nowMs = 1000;

  table(): LeaseTable {
    return new LeaseTable({ supersededBytesMax: BYTES_MAX, counters: this.counters, nowMs: () => this.nowMs });
  }

  put(key: string, length = 1024): StoredValue {
    const extents = this.store.arena.allocate(length);
    assert.ok(extents !== undefined, 'the arena is full');
    return this.store.publish({ namespace: 0, key: Buffer.from(key), extents, length, crc32c: undefined });
  }

  remove(key: string): void {
    assert.ok(this.store.remove(0, Buffer.from(key)) !== undefined);
  }

  get used(): number {
    return this.store.arena.usage.usedBytes;
  }
}

function expired(table: LeaseTable, id: bigint): void {
  assert.throws(() => table.find(id), { code: 'ERR_FABRICKV_LEASE_EXPIRED' });
}

describe('a lease', () => {
  test('keeps a value that is overwritten, and one that is deleted, until it ends', () => {
    const bench = new Bench();
    const table = bench.table();
    const first = table.open(bench.put('a'));
    const second = table.open(bench.put('b', 2048));
    assert.deepEqual([table.count, bench.store.heldBytes], [2, 0], 'what is in the index costs nothing');
    bench.put('a');
    bench.remove('b');
    assert.deepEqual([bench.used, bench.store.heldBytes], [2 * 1024 + 2048, 1024 + 2048]);
    assert.equal(table.find(first.id), first);
    table.end(first.id);
    assert.deepEqual([bench.used, bench.store.heldBytes], [1024 + 2048, 2048]);
    expired(table, first.id);
    // What has ended may be ended again.
    table.end(first.id);
    second.end();
    second.end();
    assert.deepEqual([bench.used, bench.store.heldBytes, table.count], [1024, 0, 0]);
    bench.remove('a');
    assert.equal(bench.used, 0);
    table.close();
  });

  test('of several on one value: the last one frees it, and its bytes count once', () => {
    const bench = new Bench();
    const [table, other] = [bench.table(), bench.table()];
    const value = bench.put('a');
    const leases = [table.open(value), table.open(value), other.open(value)];
    bench.remove('a');
    assert.equal(bench.store.heldBytes, 1024);
    for (const lease of leases) {
      assert.equal(bench.used, 1024);
      lease.end();
    }
    assert.deepEqual([bench.used, bench.store.heldBytes], [0, 0]);
    table.close();
    other.close();
  });

  test('runs out after 30 s without a range, and not before', (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] });
    const bench = new Bench();
    const table = bench.table();
    const pass = (ms: number): void => {
      bench.nowMs += ms;
      t.mock.timers.tick(ms);
    };
    const [renewed, quiet] = [table.open(bench.put('a')), table.open(bench.put('b'))];
    pass(LEASE_IDLE_MS - 1);
    renewed.enter();
    renewed.leave();
    assert.equal(table.count, 2);
    pass(1);
    expired(table, quiet.id);
    assert.equal(table.find(renewed.id), renewed);
    pass(LEASE_IDLE_MS - 2);
    assert.equal(table.count, 1);
    pass(1);
    expired(table, renewed.id);
    assert.deepEqual([bench.counters.leasesOpened, bench.counters.leasesExpired], [2, 2]);
    table.close();
  });

  test('does not run out while a range is in flight under it', (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] });
    const bench = new Bench();
    const table = bench.table();
    const pass = (ms: number): void => {
      bench.nowMs += ms;
      t.mock.timers.tick(ms);
    };
    const lease = table.open(bench.put('a'));
    lease.enter();
    lease.enter();
    pass(10 * LEASE_IDLE_MS);
    lease.leave();
    pass(10 * LEASE_IDLE_MS);
    assert.equal(table.find(lease.id), lease);
    lease.leave();
    pass(LEASE_IDLE_MS - 1);
    assert.equal(table.find(lease.id), lease);
    pass(1);
    expired(table, lease.id);
    assert.throws(() => lease.leave(), /more often/);
    table.close();
  });

  test('that ends while a range is in flight is no longer found, and is left in peace', () => {
    const bench = new Bench();
    const table = bench.table();
    const lease = table.open(bench.put('a'));
    lease.enter();
    lease.end();
    expired(table, lease.id);
    lease.leave();
    assert.equal(table.count, 0);
    table.close();
  });

  test('has an id that no other session has, and that is never 0', () => {
    const bench = new Bench();
    const [table, other] = [bench.table(), bench.table()];
    const value = bench.put('a');
    const lease = table.open(value);
    expired(other, lease.id);
    const ids = Array.from({ length: 5 }, () => other.open(value).id);
    assert.equal(new Set([lease.id, ...ids]).size, 6);
    assert.ok(ids.every((id) => id > 0n && id < 2n ** 64n));
    table.close();
    other.close();
  });
});

describe('the leases of a session', () => {
  test('end with it, and give everything back', () => {
    const bench = new Bench();
    const table = bench.table();
    for (const key of ['a', 'b', 'c']) table.open(bench.put(key));
    const reading = table.open(bench.put('d'));
    reading.enter();
    for (const key of ['b', 'c', 'd']) bench.remove(key);
    table.close();
    assert.deepEqual([table.count, bench.store.heldBytes, bench.used], [0, 0, 1024]);
    reading.leave();
  });

  test('are so many, and one more when one has ended', () => {
    const bench = new Bench();
    const table = bench.table();
    const value = bench.put('a');
    const leases = Array.from({ length: LEASES_PER_SESSION_MAX }, () => table.open(value));
    assert.throws(() => table.open(value), { code: 'ERR_FABRICKV_RESOURCE_EXHAUSTED', message: /256 leases/ });
    leases[7]?.end();
    table.open(value);
    table.close();
  });

  test('keep so many bytes of values that are in no index: past that the one used longest ago ends', () => {
    const bench = new Bench();
    const table = bench.table();
    const keys = ['a', 'b', 'c', 'd'];
    const [a, b, c, d] = keys.map((key) => table.open(bench.put(key, BYTES_MAX / 2)));
    assert.ok(a !== undefined && b !== undefined && c !== undefined && d !== undefined);
    // A range in flight speaks for a lease, however long ago it began.
    a.enter();
    for (const lease of [c, b, d]) {
      lease.enter();
      lease.leave();
    }
    for (const key of ['a', 'b']) bench.remove(key);
    assert.equal(table.count, 4, 'within the bound');
    bench.remove('c');
    expired(table, c.id);
    bench.remove('d');
    expired(table, b.id);
    assert.deepEqual([table.find(a.id), table.find(d.id)], [a, d]);
    assert.deepEqual([bench.store.heldBytes, bench.used], [BYTES_MAX, BYTES_MAX]);
    assert.equal(bench.counters.leasesDisplaced, 2);
    table.close();
    assert.equal(bench.used, 0);
  });

  test('keep one value, however long it is', () => {
    const bench = new Bench();
    const table = bench.table();
    const small = table.open(bench.put('small'));
    const large = table.open(bench.put('large', 2 * BYTES_MAX));
    bench.remove('small');
    bench.remove('large');
    expired(table, small.id);
    assert.equal(table.find(large.id), large);
    assert.equal(bench.store.heldBytes, 2 * BYTES_MAX);
    table.close();
  });
});
