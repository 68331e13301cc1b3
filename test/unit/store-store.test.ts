import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Arena } from '../../src/server/store/arena.js';
import { alignedLength } from '../../src/server/store/extent-allocator.js';
import { Store, type StoredValue } from '../../src/server/store/store.js';
import { VersionClock } from '../../src/server/store/version-clock.js';
import { configureProperties } from './support/seed.js';

configureProperties(200);

const SIZE = 64 * 1024;

function newStore(): Store {
  return new Store(new Arena({ sizeBytes: SIZE, segmentBytes: SIZE, segments: [Buffer.alloc(SIZE)] }, 1024));
}

function publish(store: Store, key: string, value: Uint8Array, namespace = 0): StoredValue {
  const extents = store.arena.allocate(value.length);
  assert.ok(extents !== undefined);
  store.arena.write(extents, 0, value);
  return store.publish({ namespace, key: Buffer.from(key), extents, length: value.length, crc32c: value.length });
}

function bytesOf(store: Store, { extents, length }: StoredValue): Buffer {
  return Buffer.concat(
    extents.map((extent) => store.arena.view(extent)),
    length,
  );
}

test('a value is found under its key and namespace, whatever bytes the key has', () => {
  const store = newStore();
  publish(store, 'k', Buffer.from('one'));
  publish(store, 'k', Buffer.from('two'), 1);
  const bytes = Buffer.from([0, 0x80, 0xff, 0xc3]);
  store.publish({ namespace: 0, key: bytes, extents: [], length: 0, crc32c: 0 });
  assert.equal(store.keys, 3);
  assert.equal(store.valueBytes, 6);
  assert.equal(bytesOf(store, store.lookup(0, Buffer.from('k')) as StoredValue).toString(), 'one');
  assert.equal(bytesOf(store, store.lookup(1, Buffer.from('k')) as StoredValue).toString(), 'two');
  assert.equal(store.lookup(0, bytes)?.length, 0);
  assert.equal(store.lookup(2, Buffer.from('k')), undefined);
  // Bytes that are no UTF-8 must not fall together.
  assert.equal(store.lookup(0, Buffer.from([0, 0x80, 0xfe, 0xc3])), undefined);
});

test('a key is read through a view of a larger buffer', () => {
  const store = newStore();
  publish(store, 'key', Buffer.from('v'));
  assert.ok(store.lookup(0, Buffer.from('--key--').subarray(2, 5)));
  assert.equal(store.remove(0, Buffer.from('--key--').subarray(2, 4)), undefined);
});

test('readers keep the version that they started with', () => {
  const store = newStore();
  const old = publish(store, 'k', Buffer.alloc(5000, 1));
  old.retain();
  old.retain();
  const next = publish(store, 'k', Buffer.alloc(3000, 2));
  assert.ok(next.version > old.version);
  assert.equal(store.lookup(0, Buffer.from('k')), next);
  assert.equal(store.valueBytes, 3000);
  // Nothing that is stored meanwhile lands in what is still read.
  publish(store, 'other', Buffer.alloc(40_000, 3));
  assert.deepEqual(bytesOf(store, old), Buffer.alloc(5000, 1));
  const used = store.arena.usage.usedBytes;
  old.release();
  assert.equal(store.arena.usage.usedBytes, used);
  old.release();
  assert.equal(store.arena.usage.usedBytes, used - alignedLength(5000 % 1024) - 4 * 1024);
});

test('a value that is deleted lives until its last reader is done', () => {
  const store = newStore();
  const value = publish(store, 'k', Buffer.alloc(100, 1));
  value.retain();
  assert.equal(store.remove(0, Buffer.from('k')), value.version);
  assert.equal(store.remove(0, Buffer.from('k')), undefined);
  assert.equal(store.lookup(0, Buffer.from('k')), undefined);
  assert.deepEqual([store.keys, store.valueBytes], [0, 0]);
  assert.equal(store.arena.usage.usedBytes, 128);
  value.release();
  assert.equal(store.arena.usage.usedBytes, 0);
});

test('references that do not match are defects', () => {
  const store = newStore();
  const value = publish(store, 'k', Buffer.alloc(100));
  store.remove(0, Buffer.from('k'));
  assert.throws(() => value.hold({ onSuperseded: () => undefined }), /has left the index/);
  assert.throws(() => value.letGo({ onSuperseded: () => undefined }), /does not hold it/);
  assert.throws(() => value.release(), /twice/);
  assert.throws(() => value.retain(), /freed/);
  assert.equal(store.arena.usage.usedBytes, 0);
});

test('the store holds what a model holds', () => {
  const key = fc.constantFrom('a', 'b', 'c');
  const namespace = fc.constantFrom(0, 1);
  const step = fc.oneof(
    fc.record({ op: fc.constant('put' as const), key, namespace, length: fc.nat(2000) }),
    fc.record({ op: fc.constant('delete' as const), key, namespace, length: fc.constant(0) }),
    fc.record({ op: fc.constant('read' as const), key, namespace, length: fc.constant(0) }),
    fc.record({ op: fc.constant('done' as const), key, namespace, length: fc.nat(5) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const store = newStore();
      const model = new Map<string, Buffer>();
      const readers: { value: StoredValue; bytes: Buffer }[] = [];
      let version = 0n;
      for (const [i, { op, key: name, namespace: space, length }] of steps.entries()) {
        const id = `${space}/${name}`;
        const present = store.lookup(space, Buffer.from(name));
        if (op === 'put' && store.arena.usage.freeBytes > 4096) {
          const bytes = Buffer.alloc(length, i + 1);
          const value = publish(store, name, bytes, space);
          assert.ok(value.version > version);
          version = value.version;
          model.set(id, bytes);
        } else if (op === 'delete') {
          assert.equal(store.remove(space, Buffer.from(name)), present?.version);
          model.delete(id);
        } else if (op === 'read' && present !== undefined) {
          present.retain();
          readers.push({ value: present, bytes: model.get(id) ?? Buffer.alloc(0) });
        } else if (op === 'done') {
          readers.splice(length, 1)[0]?.value.release();
        }
        for (const { value, bytes } of readers) assert.deepEqual(bytesOf(store, value), bytes);
        assert.equal(store.keys, model.size);
        assert.equal(
          store.valueBytes,
          [...model.values()].reduce((sum, bytes) => sum + bytes.length, 0),
        );
      }
      for (const { value } of readers) value.release();
      for (const [id] of model) store.remove(Number(id[0]), Buffer.from(id.slice(2)));
      assert.deepEqual([store.keys, store.valueBytes, store.arena.usage.usedBytes], [0, 0, 0]);
    }),
  );
});

test('versions only grow, whatever the clock does', () => {
  let now = 1000;
  const clock = new VersionClock(() => now);
  const versions: bigint[] = [];
  for (const at of [1000, 1000, 1001.7, 5, 0, 1001, 1002]) {
    now = at;
    versions.push(clock.next(), clock.next());
  }
  for (const [i, version] of versions.entries()) assert.ok(i === 0 || version > (versions[i - 1] ?? 0n));
  assert.equal(versions[0], 1000n << 22n);
  assert.equal(versions.at(-2), 1002n << 22n, 'it follows the clock again when that has caught up');
});

test('a version of today has 64 bits', () => {
  const version = new VersionClock().next();
  assert.ok(version < 2n ** 64n);
  assert.ok(version >> 22n >= BigInt(Date.parse('2024-01-01')));
});
