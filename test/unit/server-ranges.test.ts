import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc32c } from '../../src/fabric/index.js';
import type { Get } from '../../src/protocol/generated/fabrickv/v1/Get.js';
import type { GetResult__Output } from '../../src/protocol/generated/fabrickv/v1/GetResult.js';
import { DATA_BYTES_MAX, LEASES_PER_SESSION_MAX } from '../../src/protocol/limits.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { waitFor } from '../support/wait-for.js';
import { randomId, type WireSession } from './support/session-client.js';
import { ARENA_BYTES, serve } from './support/test-server.js';

const KEY = Buffer.from('key');
const EVERYTHING = fromBigInt(2n ** 64n - 1n);

let ids = 0;

function nextId(): number {
  ids += 1;
  return ids;
}

function bytes(length: number, fill = 7): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * fill + (i >> 8)) % 256));
}

/** Puts a value of any length as Data; answers with its version. */
async function put(session: WireSession, value: Buffer, key = KEY): Promise<bigint> {
  const operationId = nextId();
  const { grant, failure } = await session.call(operationId, {
    putOpen: { key, length: value.length, path: 'INLINE' },
  });
  assert.ok(grant !== null && grant !== undefined, failure?.message);
  for (let offset = 0; offset < value.length; offset += DATA_BYTES_MAX) {
    session.send({ operationId, data: { offset, bytes: value.subarray(offset, offset + DATA_BYTES_MAX) } });
  }
  session.send({ operationId, putCommit: { crc32c: crc32c(value) } });
  return session.find('the result of the PUT', (message) =>
    toSafeInteger(message.operationId, '') === operationId && message.result?.put
      ? toBigInt(message.result.put.version)
      : undefined,
  );
}

/** A GET that finds its value, with what came of it. */
interface Part {
  readonly result: GetResult__Output;
  readonly bytes: Buffer;
  readonly offset: number;
  readonly leaseId: bigint;
}

async function get(session: WireSession, request: Get): Promise<Part> {
  const operationId = nextId();
  const { get: result, failure } = await session.call(operationId, {
    get: { key: KEY, inlineMax: EVERYTHING, ...request },
  });
  assert.ok(result?.found, failure?.message ?? 'it is not there');
  const data: Buffer[] = [];
  const offset = toSafeInteger(result.rangeOffset, '');
  let at = offset;
  for (const { operationId: id, data: piece } of session.received) {
    if (!piece || toSafeInteger(id, '') !== operationId) continue;
    assert.equal(toSafeInteger(piece.offset, ''), at);
    assert.deepEqual(piece.totalLength, result.length);
    data.push(piece.bytes);
    at += piece.bytes.length;
  }
  const whole = data.length === 0 ? result.value : Buffer.concat(data);
  assert.equal(whole.length, toSafeInteger(result.rangeLength, ''));
  return { result, bytes: whole, offset, leaseId: toBigInt(result.leaseId) };
}

/** The code with which a GET fails. */
async function failureOf(session: WireSession, request: Get): Promise<string | undefined> {
  const { failure } = await session.call(nextId(), { get: { key: KEY, inlineMax: EVERYTHING, ...request } });
  return failure?.code;
}

async function unlease(session: WireSession, leaseId: bigint): Promise<void> {
  session.send({ leaseEnd: { leaseId: fromBigInt(leaseId) } });
  await session.settled();
}

describe('a range', () => {
  test('is what was asked for, without what lies beyond the end', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(3 * DATA_BYTES_MAX + 17);
    const { length } = value;
    await put(session, value);
    for (const [rangeOffset, rangeLength, start, end] of [
      [0, 0, 0, length],
      [0, 1, 0, 1],
      [0, length, 0, length],
      [5, 0, 5, length],
      [5, 10, 5, 15],
      [length - 1, 1, length - 1, length],
      [length - 1, 100, length - 1, length],
      [length, 0, length, length],
      [length, 1, length, length],
      [length + 1, 5, length, length],
      [1, 2 * DATA_BYTES_MAX, 1, 2 * DATA_BYTES_MAX + 1],
      [DATA_BYTES_MAX, DATA_BYTES_MAX, DATA_BYTES_MAX, 2 * DATA_BYTES_MAX],
      [7, Number.MAX_SAFE_INTEGER, 7, length],
      [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, length, length],
      [7, EVERYTHING, 7, length],
      [EVERYTHING, EVERYTHING, length, length],
      [fromBigInt(2n ** 53n), 1, length, length],
      [fromBigInt(2n ** 63n), fromBigInt(2n ** 63n), length, length],
    ] as const) {
      const part = await get(session, { rangeOffset, rangeLength });
      assert.deepEqual([part.offset, part.bytes.length], [start, end - start]);
      assert.ok(part.bytes.equals(value.subarray(start, end)));
      assert.equal(toSafeInteger(part.result.length, ''), length);
      assert.deepEqual([part.result.crc32c, part.result.withoutCrc, part.leaseId], [crc32c(value), false, 0n]);
    }
  });

  test('of the empty value is empty', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await put(session, Buffer.alloc(0));
    for (const rangeOffset of [0, 1]) {
      const { result, offset } = await get(session, { rangeOffset, rangeLength: 5, inlineMax: 0 });
      assert.deepEqual([offset, toSafeInteger(result.rangeLength, ''), result.value.length], [0, 0, 0]);
    }
  });

  test('goes inline by its own length, not by that of the value', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(DATA_BYTES_MAX + 5000);
    await put(session, value);
    const fits = await get(session, { inlineMax: 1000, rangeOffset: 4000, rangeLength: 1000 });
    assert.ok(fits.bytes.equals(value.subarray(4000, 5000)));
    const end = await get(session, { inlineMax: 1000, rangeOffset: value.length - 1000, rangeLength: 1001 });
    assert.equal(end.bytes.length, 1000);
    const { sinkTooSmall } = await session.call(nextId(), {
      get: { key: KEY, inlineMax: 1000, rangeOffset: 4000, rangeLength: 1001 },
    });
    assert.deepEqual(
      [toSafeInteger(sinkTooSmall?.length ?? fail(), ''), toSafeInteger(sinkTooSmall?.rangeLength ?? fail(), '')],
      [value.length, 1001],
    );
    const counters = await session.counters();
    assert.deepEqual([counters['rangesRead'], counters['bytesReadInline']], [2, 2000]);
  });
});

describe('a lease', () => {
  test('reads one version, whatever becomes of the key, and keeps its memory until it ends', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(2 * DATA_BYTES_MAX);
    const version = await put(session, value);
    const { leaseId, bytes: first } = await get(session, { hold: true, rangeLength: 100 });
    assert.notEqual(leaseId, 0n);
    assert.ok(first.equals(value.subarray(0, 100)));
    await put(session, bytes(100, 3));
    const lease = { key: Buffer.alloc(0), leaseId: fromBigInt(leaseId) };
    for (const request of [{ rangeOffset: 100, rangeLength: 50 }, { rangeOffset: 150 }, {}, { hold: true }]) {
      const part = await get(session, { ...lease, ...request });
      assert.ok(part.bytes.equals(value.subarray(part.offset, part.offset + part.bytes.length)));
      assert.deepEqual([part.leaseId, toBigInt(part.result.version)], [leaseId, version]);
    }
    session.send({ operationId: nextId(), delete: { key: KEY } });
    const held = await session.counters();
    assert.deepEqual(
      [held['leases'], held['leasedBytes'], held['leasesOpened'], held['keys'], held['memoryUsedBytes']],
      [1, value.length, 1, 0, value.length],
    );
    await unlease(session, leaseId);
    const free = await session.counters();
    assert.deepEqual([free['leases'], free['leasedBytes'], free['memoryUsedBytes']], [0, 0, 0]);
    assert.equal(await failureOf(session, lease), 'ERR_FABRICKV_LEASE_EXPIRED');
    // One that is not there may be ended.
    await unlease(session, leaseId);
    await unlease(session, 0n);
  });

  test('is not taken when nothing is there, when the sink is too small, and when it is not asked for', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const absent = await session.call(nextId(), { get: { key: KEY, hold: true, inlineMax: EVERYTHING } });
    assert.equal(absent.get?.found, false);
    await put(session, bytes(1000));
    const small = await session.call(nextId(), { get: { key: KEY, hold: true, inlineMax: 10 } });
    assert.ok(small.sinkTooSmall);
    await get(session, { rangeLength: 10 });
    assert.equal(await failureOf(session, { hold: true, onlyVersion: fromBigInt(1n) }), 'ERR_FABRICKV_VERSION_CHANGED');
    const counters = await session.counters();
    assert.deepEqual([counters['leases'], counters['leasesOpened']], [0, 0]);
  });

  test('is of its session, and ends with it', async () => {
    await using served = await serve();
    const session = await served.client.connect({ clientId: fromBigInt(randomId()) });
    const watch = await served.newClient().connect();
    const value = bytes(1000);
    await put(session, value);
    const { leaseId } = await get(session, { hold: true });
    await get(session, { hold: true });
    session.send({ operationId: nextId(), delete: { key: KEY } });
    await session.settled();
    const lease = { leaseId: fromBigInt(leaseId) };
    assert.equal(await failureOf(watch, lease), 'ERR_FABRICKV_LEASE_EXPIRED');
    await unlease(watch, leaseId);
    assert.ok((await get(session, lease)).bytes.equals(value), 'nobody else can end it');
    assert.equal((await watch.counters())['leases'], 2);
    session.send({ bye: {} });
    await session.ended;
    const counters = await watch.counters();
    assert.deepEqual([counters['leases'], counters['leasedBytes'], counters['memoryUsedBytes']], [0, 0, 0]);
  });

  test('is not left over from a client that goes without a word in the middle of a range', async () => {
    await using served = await serve();
    const client = served.newClient();
    const session = await client.connect();
    await put(session, bytes(ARENA_BYTES / 2));
    const { leaseId } = await get(session, { hold: true, rangeLength: 10 });
    // Data that nobody reads: the operation is in flight when the connection goes.
    session.stream.pause();
    session.send({ operationId: nextId(), get: { leaseId: fromBigInt(leaseId), inlineMax: EVERYTHING } });
    const watch = await served.client.connect();
    watch.send({ operationId: nextId(), delete: { key: KEY } });
    await waitFor(async () => (await watch.counters())['operationsInFlight'] === 1, { what: 'the range' });
    client[Symbol.dispose]();
    await waitFor(async () => (await watch.counters())['memoryUsedBytes'] === 0, { what: 'the memory' });
    assert.equal((await watch.counters())['leases'], 0);
  });

  test('stays when a range under it is cancelled, and is not taken by a GET that is', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(ARENA_BYTES / 2);
    await put(session, value);
    const { leaseId } = await get(session, { hold: true, rangeLength: 10 });
    const lease = { key: KEY, inlineMax: EVERYTHING, leaseId: fromBigInt(leaseId) };
    for (const request of [lease, { key: KEY, inlineMax: EVERYTHING, hold: true }]) {
      const operationId = nextId();
      // In one frame: it is cancelled before its Data is through.
      session.send({ operationId, get: request }, { operationId, cancel: {} });
      await session.quiesced(operationId);
    }
    assert.equal((await session.counters())['leases'], 1);
    assert.equal((await get(session, { ...lease, rangeLength: 10 })).leaseId, leaseId);
  });

  test('past the limit is refused', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await put(session, bytes(10));
    for (let i = 0; i < LEASES_PER_SESSION_MAX; i++) await get(session, { hold: true });
    assert.equal(await failureOf(session, { hold: true }), 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.equal((await get(session, {})).leaseId, 0n, 'without a lease it is read all the same');
  });

  test('makes room when its session keeps too much that nobody else finds', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const leases: bigint[] = [];
    // A quarter of the arena is 2 MiB.
    for (let i = 0; i < 5; i++) {
      await put(session, bytes(ARENA_BYTES / 8, i));
      leases.push((await get(session, { hold: true, rangeLength: 1 })).leaseId);
    }
    // Four have been replaced: of those, two may stay.
    const counters = await session.counters();
    assert.deepEqual(
      [counters['leases'], counters['leasesDisplaced'], counters['leasedBytes'], counters['memoryUsedBytes']],
      [3, 2, ARENA_BYTES / 4, (3 * ARENA_BYTES) / 8],
    );
    const codes = await Promise.all(
      leases.map((id) => failureOf(session, { leaseId: fromBigInt(id), rangeLength: 1 })),
    );
    const expired = 'ERR_FABRICKV_LEASE_EXPIRED';
    assert.deepEqual(codes, [expired, expired, undefined, undefined, undefined]);
  });
});

test('only_version is read, or refused when the key leads to another one or none', async () => {
  await using served = await serve();
  const session = await served.client.connect();
  const value = bytes(1000);
  const onlyVersion = fromBigInt(await put(session, value));
  const { leaseId, bytes: whole } = await get(session, { onlyVersion, hold: true });
  assert.ok(whole.equals(value));
  await put(session, bytes(1000, 3));
  assert.equal(await failureOf(session, { onlyVersion }), 'ERR_FABRICKV_VERSION_CHANGED');
  assert.equal(await failureOf(session, { onlyVersion, rangeOffset: 10, hold: true }), 'ERR_FABRICKV_VERSION_CHANGED');
  const under = await get(session, { leaseId: fromBigInt(leaseId), onlyVersion: fromBigInt(1n) });
  assert.ok(under.bytes.equals(value), 'a lease has its version');
  session.send({ operationId: nextId(), delete: { key: KEY } });
  assert.equal(await failureOf(session, { onlyVersion }), 'ERR_FABRICKV_VERSION_CHANGED');
});

function fail(): never {
  assert.fail('it is not there');
}
