import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { describe, test } from 'node:test';
import { GrantedRoom } from '../../src/client/granted-room.js';
import { readPiece } from '../../src/client/put-source.js';
import { StreamReader } from '../../src/client/stream-reader.js';
import { ValueCrc } from '../../src/client/value-crc.js';
import { WriteWindow, WriteWindows } from '../../src/client/write-windows.js';
import { crc32c, type PeerId, PeerPath } from '../../src/fabric/index.js';
import type { WindowOffer__Output } from '../../src/protocol/generated/fabrickv/v1/WindowOffer.js';
import { fromBigInt } from '../../src/protocol/wire.js';
import { ClientRail } from './support/client-rail.js';

async function* chunks(...values: unknown[]): AsyncGenerator<Uint8Array> {
  for (const value of values) {
    await Promise.resolve();
    yield value as Uint8Array;
  }
}

async function readAll(reader: StreamReader, max: number): Promise<Buffer> {
  const taken: Buffer[] = [];
  while ((await reader.ready()) === 'bytes') taken.push(Buffer.from(reader.take(max)));
  return Buffer.concat(taken);
}

describe('the reader of a stream', () => {
  const value = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251));

  test('gives what was kept, and then the rest, in pieces of any size', async () => {
    for (const [chunk, keep, max] of [
      [1000, 0, 7],
      [1000, 64 * 1024, 100_000],
      [200_000, 100, 4096],
      [333, 1_000_000, 65_536],
    ] as const) {
      const pieces: Buffer[] = [];
      for (let from = 0; from < value.length; from += chunk) pieces.push(value.subarray(from, from + chunk));
      const reader = new StreamReader(chunks(...pieces, Buffer.alloc(0)));
      const kept = await reader.keep(keep);
      assert.equal(kept, keep >= value.length ? 'ended' : 'bytes');
      assert.ok(Buffer.concat(reader.keptBlocks()).equals(value.subarray(0, reader.keptBytes)));
      assert.equal(reader.spent, false);
      assert.ok((await readAll(reader, max)).equals(value), `chunks of ${chunk}, ${keep} kept, ${max} at a time`);
      assert.equal(reader.spent, true);
    }
  });

  test('keeps a copy: a source may use its buffer again', async () => {
    const buffer = Buffer.alloc(4);
    async function* reusing(): AsyncGenerator<Uint8Array> {
      for (let i = 1; i <= 3; i++) {
        buffer.fill(i);
        yield buffer;
      }
    }
    const reader = new StreamReader(reusing());
    assert.equal(await reader.keep(100), 'ended');
    assert.deepEqual([...Buffer.concat(reader.keptBlocks())], [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
  });

  test('keeps no more than it is asked to: the rest stays where it is', async () => {
    const large = Buffer.alloc(10_000_000, 7);
    const reader = new StreamReader(chunks(Buffer.from('some'), large));
    assert.equal(await reader.keep(65_536), 'bytes');
    assert.deepEqual(
      [reader.keptBytes, reader.hasMoreThan(10_000_003), reader.hasMoreThan(10_000_004)],
      [4, true, false],
    );
    assert.equal(reader.take(100).length, 4);
    assert.equal(reader.take(100).buffer, large.buffer);
  });

  test('that is interrupted can be waited for again in the same turn', async () => {
    let give: (chunk: Buffer) => void = () => undefined;
    const waits: boolean[] = [];
    async function* waiting(): AsyncGenerator<Uint8Array> {
      yield await new Promise<Buffer>((resolve) => {
        give = resolve;
      });
    }
    const reader = new StreamReader(waiting(), (now) => waits.push(now));
    const first = reader.keep(0);
    reader.interrupt();
    const second = reader.keep(0);
    assert.equal(await first, 'interrupted');
    give(Buffer.from('later'));
    assert.equal(await second, 'bytes');
    assert.deepEqual(waits, [true, false, true, false]);
  });

  test('that is interrupted loses nothing', async () => {
    let give: (chunk: Buffer) => void = () => undefined;
    async function* waiting(): AsyncGenerator<Uint8Array> {
      yield await new Promise<Buffer>((resolve) => {
        give = resolve;
      });
    }
    const reader = new StreamReader(waiting());
    const first = reader.ready();
    reader.interrupt();
    assert.equal(await first, 'interrupted');
    give(Buffer.from('later'));
    assert.equal(await reader.ready(), 'bytes');
    assert.equal(Buffer.from(reader.take(100)).toString(), 'later');
    assert.equal(await reader.ready(), 'ended');
  });

  test('a source that gives something else, or fails, says so each time', async () => {
    for (const wrong of ['text', 5, null, { length: 3 }]) {
      const reader = new StreamReader(chunks(wrong));
      await assert.rejects(reader.ready(), { code: 'ERR_FABRICKV_INVALID_ARGUMENT' });
      await assert.rejects(reader.keep(5), { code: 'ERR_FABRICKV_INVALID_ARGUMENT' });
    }
    const cause = new Error('broken');
    const readable = new Readable({ read: () => readable.destroy(cause) });
    await assert.rejects(new StreamReader(readable).ready(), { code: 'ERR_FABRICKV_SOURCE', cause });
    for (const nothing of [undefined, null, 'text', Buffer.alloc(3), { next: 1 }, Promise.resolve()]) {
      assert.throws(() => new StreamReader(nothing), { code: 'ERR_FABRICKV_INVALID_ARGUMENT' });
    }
  });

  test('closing it destroys the source, also while it waits for it', async () => {
    const readable = new Readable({ read: () => undefined });
    const reader = new StreamReader(readable);
    const waiting = reader.ready();
    reader.close();
    assert.equal(await waiting, 'interrupted');
    assert.equal(readable.destroyed, true);
    let returned = false;
    const iterable = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise<never>(() => undefined),
        return: () => {
          returned = true;
          return Promise.reject(new Error('nobody wants to know'));
        },
      }),
    };
    const other = new StreamReader(iterable);
    const never = other.ready();
    other.close();
    other.close();
    assert.deepEqual([await never, returned], ['interrupted', true]);
  });
});

describe('the CRC of a value', () => {
  test('counts every byte once, whatever is added again', () => {
    const value = Buffer.from('the quick brown fox jumps over the lazy dog');
    const crc = new ValueCrc(true);
    crc.add(0, value.subarray(0, 10));
    crc.add(0, value.subarray(0, 4));
    crc.add(8, value.subarray(8, 20));
    crc.add(25, value.subarray(25, 30));
    assert.equal(crc.bytes, 20);
    crc.advance(10, 30, 0xdead);
    const { seed } = crc;
    crc.advance(20, 30, crc32c(value.subarray(20, 30), seed));
    crc.advance(20, 30, 0xdead);
    crc.add(0, value);
    assert.deepEqual([crc.bytes, crc.value], [value.length, crc32c(value)]);
  });

  test('that is not wanted is complete from the start', () => {
    const crc = new ValueCrc(false);
    crc.add(0, Buffer.from('abc'));
    assert.deepEqual([crc.bytes, crc.value, crc.fields], [Infinity, undefined, { crc32c: 0, withoutCrc: true }]);
  });
});

describe('room for a value', () => {
  test('is found across extents, in whatever pieces', () => {
    const windows = [1, 2, 3].map((id) => new WriteWindow(id));
    const room = new GrantedRoom();
    const [a, b, c] = windows;
    assert.ok(a && b && c);
    room.add([{ window: a, windowOffset: 100, length: 10 }]);
    room.add([
      { window: b, windowOffset: 0, length: 5 },
      { window: c, windowOffset: 64, length: 20 },
    ]);
    assert.equal(room.length, 35);
    const part = (offset: number, length: number): number[][] =>
      room.part(offset, length).map(({ window, windowOffset, length: bytes }) => [window.id, windowOffset, bytes]);
    assert.deepEqual(part(0, 10), [[1, 100, 10]]);
    assert.deepEqual(part(10, 5), [[2, 0, 5]]);
    assert.deepEqual(part(3, 30), [
      [1, 103, 7],
      [2, 0, 5],
      [3, 64, 18],
    ]);
    assert.deepEqual(part(34, 1), [[3, 83, 1]]);
  });
});

describe('a window that one of the rails of the server does not have', () => {
  test('is not written to on that rail, nor probed there', () => {
    const windows = new WriteWindows(2, () => undefined);
    const rails = [
      { address: fromBigInt(0n), rkey: fromBigInt(0n) },
      { address: fromBigInt(0n), rkey: fromBigInt(5n) },
    ];
    for (const windowId of [1, 2]) {
      windows.offered(offerOf(windowId, windowId === 1 ? rails : [...rails].reverse()));
    }
    const { rail } = new ClientRail();
    const [first, second] = [0, 1].map((index) => new PeerPath(index, rail, 1 as PeerId));
    const targets = windows.grant([{ windowId: 1, windowOffset: fromBigInt(0n), length: fromBigInt(1n) }] as never);
    assert.ok(first && second && targets[0]);
    const { window } = targets[0];
    assert.equal(window.on(first), undefined);
    assert.notEqual(window.on(second), undefined);
    assert.notEqual(windows.probeRegion(first), undefined, 'another window is there');
    second.state = 'gone';
    assert.equal(window.on(second), undefined);
  });
});

function offerOf(windowId: number, rails: readonly object[]): WindowOffer__Output {
  return { windowId, length: fromBigInt(4096n), rails, sessionWindow: false } as never;
}

describe('blocks as a source', () => {
  test('are read in any pieces', () => {
    const value = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251));
    const blocks = [value.subarray(0, 100), value.subarray(100, 101), value.subarray(101)];
    for (const [offset, length] of [
      [0, 100],
      [0, 1000],
      [99, 3],
      [100, 1],
      [500, 500],
      [1000, 0],
    ] as const) {
      const piece = readPiece({ kind: 'blocks', blocks, length: 1000 }, offset, length);
      assert.ok(value.subarray(offset, offset + length).equals(piece), `${length} at ${offset}`);
    }
  });
});
