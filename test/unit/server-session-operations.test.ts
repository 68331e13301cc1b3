import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { crc32c } from '../../src/fabric/index.js';
import { DATA_BYTES_MAX, FRAME_BYTES_MAX, KEY_BYTES_MAX } from '../../src/protocol/limits.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import type { WireSession } from './support/session-client.js';
import { bytes, EVERYTHING, KEY, putBody, putInline } from './support/session-values.js';
import { ARENA_BYTES, serve } from './support/test-server.js';

describe('operations', () => {
  test('what is put is got, of every length around the limits, and STAT tells of it', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    let id = 0;
    for (const length of [0, 1, 63, 64, 65, 65_535, DATA_BYTES_MAX]) {
      const value = bytes(length);
      const { put, failure } = await session.call(++id, putBody(value));
      assert.ok(put, failure?.message);
      const { get } = await session.call(++id, { get: { key: KEY, inlineMax: EVERYTHING } });
      assert.equal(get?.path, 'INLINE');
      assert.deepEqual(get.value, value);
      assert.equal(get.crc32c, crc32c(value));
      assert.deepEqual(toBigInt(get.version), toBigInt(put.version));
      const { stat } = await session.call(++id, { stat: { key: KEY } });
      assert.equal(stat?.found, true);
      assert.equal(toSafeInteger(stat.length, 'length'), length);
      assert.equal(stat.crc32c, crc32c(value));
      assert.deepEqual(toBigInt(stat.version), toBigInt(put.version));
    }
    const counters = await session.counters();
    assert.equal(counters['keys'], 1);
    assert.equal(counters['valueBytes'], DATA_BYTES_MAX);
    assert.equal(counters['putsInline'], 7);
    assert.equal(counters['getsInline'], 7);
  });

  test('what is not there is told as such', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    assert.equal((await session.call(1, { get: { key: KEY } })).get?.found, false);
    assert.equal((await session.call(2, { exists: { key: KEY } })).exists?.exists, false);
    assert.equal((await session.call(3, { stat: { key: KEY } })).stat?.found, false);
    assert.equal((await session.call(4, { delete: { key: KEY } })).delete?.deleted, false);
    await session.call(5, putBody(bytes(10)));
    assert.equal((await session.call(6, { exists: { key: KEY } })).exists?.exists, true);
    assert.equal((await session.call(7, { exists: { key: KEY, namespace: 1 } })).exists?.exists, false);
    assert.equal((await session.call(8, { delete: { key: KEY } })).delete?.deleted, true);
    assert.equal((await session.counters())['memoryUsedBytes'], 0);
  });

  test('values over 64 KiB come as Data before their result, in order', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(1_000_003);
    await putInline(session, 1, value);
    const { get } = await session.call(2, { get: { key: KEY, inlineMax: EVERYTHING } });
    assert.equal(get?.value.length, 0);
    assert.equal(toSafeInteger(get.length, 'length'), value.length);
    assert.deepEqual(session.data(2), value);
    const pieces = session.received.flatMap(({ data }) => (data ? [data] : []));
    for (const piece of pieces) {
      assert.ok(piece.bytes.length <= DATA_BYTES_MAX);
      assert.equal(toSafeInteger(piece.totalLength, 'total'), value.length);
    }
  });

  test('a value over inline_max, without a sink, is announced', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = bytes(100);
    await session.call(1, putBody(value));
    const { sinkTooSmall } = await session.call(2, { get: { key: KEY, inlineMax: 99 } });
    assert.equal(toSafeInteger(sinkTooSmall?.length ?? EVERYTHING, 'length'), 100);
    assert.equal(sinkTooSmall?.crc32c, crc32c(value));
    assert.equal((await session.call(3, { get: { key: KEY, inlineMax: 100 } })).get?.found, true);
  });

  test('everything of one frame is answered, matched by its id', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const ids = Array.from({ length: 1000 }, (_, i) => i + 1);
    session.send(...ids.map((id) => ({ operationId: id, ...putBody(bytes(id), Buffer.from(`k${id}`)) })));
    session.send(
      ...ids.map((id) => ({ operationId: 1000 + id, get: { key: Buffer.from(`k${id}`), inlineMax: EVERYTHING } })),
    );
    for (const id of ids) assert.deepEqual((await session.result(1000 + id)).get?.value, bytes(id));
  });

  const failures: Readonly<
    Record<string, { body: Parameters<WireSession['call']>[1]; code: string; outcome: string; id?: number }>
  > = {
    'an empty key': {
      body: { get: { key: Buffer.alloc(0) } },
      code: 'ERR_FABRICKV_INVALID_KEY',
      outcome: 'NOT_A_MUTATION',
    },
    'a key too long': {
      body: putBody(bytes(1), Buffer.alloc(KEY_BYTES_MAX + 1)),
      code: 'ERR_FABRICKV_INVALID_KEY',
      outcome: 'NOT_APPLIED',
    },
    'a value over --max-value': {
      body: putBody(bytes(5001)),
      code: 'ERR_FABRICKV_VALUE_TOO_LARGE',
      outcome: 'NOT_APPLIED',
    },
    'a PutOpen over --max-value': {
      body: { putOpen: { key: KEY, length: 5001, path: 'INLINE' } },
      code: 'ERR_FABRICKV_VALUE_TOO_LARGE',
      outcome: 'NOT_APPLIED',
    },
    'a wrong CRC': {
      body: { put: { key: KEY, value: bytes(10), crc32c: 1 } },
      code: 'ERR_FABRICKV_CHECKSUM',
      outcome: 'NOT_APPLIED',
    },
    'a range under a lease that is not there': {
      body: { get: { leaseId: fromBigInt(5n), rangeLength: 5 } },
      code: 'ERR_FABRICKV_LEASE_EXPIRED',
      outcome: 'NOT_A_MUTATION',
    },
    'a version that is not there': {
      body: { get: { key: KEY, onlyVersion: fromBigInt(5n) } },
      code: 'ERR_FABRICKV_VERSION_CHANGED',
      outcome: 'NOT_A_MUTATION',
    },
    'a TTL': {
      body: { put: { ...putBody(bytes(1)).put, options: { ttlMs: 5 } } },
      code: 'ERR_FABRICKV_UNIMPLEMENTED',
      outcome: 'NOT_APPLIED',
    },
    'a condition of a DELETE': {
      body: { delete: { key: KEY, ifVersion: 1 } },
      code: 'ERR_FABRICKV_UNIMPLEMENTED',
      outcome: 'NOT_APPLIED',
    },
    'a List': { body: { list: {} }, code: 'ERR_FABRICKV_UNIMPLEMENTED', outcome: 'NOT_A_MUTATION' },
    'a message without a body': { body: {}, code: 'ERR_FABRICKV_UNIMPLEMENTED', outcome: 'NOT_A_MUTATION' },
    'a sink in no region': {
      body: { get: { key: Buffer.from('there'), inlineMax: 0, sink: { regionId: 9, offset: 0, length: 10 } } },
      code: 'ERR_FABRICKV_INVALID_ARGUMENT',
      outcome: 'NOT_A_MUTATION',
    },
    'a PUT by RDMA without a data plane': {
      body: { putOpen: { key: KEY, length: 100, path: 'RDMA' } },
      code: 'ERR_FABRICKV_DATA_PLANE',
      outcome: 'NOT_APPLIED',
    },
    'a PutOpen without a path': {
      body: { putOpen: { key: KEY, length: 100 } },
      code: 'ERR_FABRICKV_PROTOCOL',
      outcome: 'NOT_APPLIED',
    },
    'a PutCommit of nothing': { body: { putCommit: {} }, code: 'ERR_FABRICKV_GRANT_ENDED', outcome: 'NOT_APPLIED' },
    'a PUT without an id': { body: putBody(bytes(1)), code: 'ERR_FABRICKV_PROTOCOL', outcome: 'NOT_A_MUTATION', id: 0 },
    'a DELETE without an id': {
      body: { delete: { key: KEY } },
      code: 'ERR_FABRICKV_PROTOCOL',
      outcome: 'NOT_A_MUTATION',
      id: 0,
    },
  };
  for (const [what, { body, code, outcome, id = 7 }] of Object.entries(failures)) {
    test(`${what} fails alone with ${code}`, async () => {
      await using served = await serve({ maxValueBytes: 5000 });
      const session = await served.client.connect();
      await session.call(1, putBody(bytes(100), Buffer.from('there')));
      const before = await session.counters();
      const { failure } = await session.call(id, body);
      assert.equal(failure?.code, code);
      assert.equal(failure.outcome, outcome);
      assert.equal(failure.sinkBusy, false);
      // The session lives, and nothing was kept.
      const after = await session.counters();
      assert.equal(after['memoryUsedBytes'], before['memoryUsedBytes']);
      assert.equal(after['keys'], 1);
      assert.equal(after['operationsInFlight'], 0);
    });
  }

  test('a body of a later version is answered UNIMPLEMENTED', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    // ClientFrame.messages[0] = {operation_id: 9, field 30: {}}.
    session.sendBytes(Buffer.from([0x0a, 0x05, 0x08, 9, 0xf2, 0x01, 0x00]));
    assert.equal((await session.result(9)).failure?.code, 'ERR_FABRICKV_UNIMPLEMENTED');
    await session.settled();
  });

  test('a Region without a data plane, and a frame that is too large, end the session', async () => {
    await using served = await serve();
    const one = await served.client.connect();
    one.send({ region: { regionId: 1, length: 10, rails: [{ address: 0, rkey: 1 }] } });
    assert.equal((await one.ended).error?.code, 'ERR_FABRICKV_PROTOCOL');
    const two = await served.client.connect();
    two.sendBytes(Buffer.alloc(FRAME_BYTES_MAX + 1));
    assert.equal((await two.ended).status?.code, status.RESOURCE_EXHAUSTED);
    const three = await served.client.connect();
    three.send({ operationId: fromBigInt(2n ** 60n), get: { key: KEY } });
    assert.equal((await three.ended).error?.code, 'ERR_FABRICKV_PROTOCOL');
    await served.client.connect();
  });

  test('a full arena refuses with its numbers, keeps what it has, and takes more when there is room', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const big = bytes(ARENA_BYTES - 1_000_000);
    await putInline(session, 1, big);
    const { failure } = await session.call(2, {
      putOpen: { key: Buffer.from('other'), length: 1_000_064, path: 'INLINE' },
    });
    assert.equal(failure?.code, 'ERR_FABRICKV_CAPACITY');
    assert.equal(failure.retryable, true);
    assert.equal(failure.outcome, 'NOT_APPLIED');
    assert.equal(failure.details['freeBytes'], String(1_000_000 - (1_000_000 % 64)));
    const hopeless = await session.call(3, {
      putOpen: { key: Buffer.from('other'), length: ARENA_BYTES, path: 'INLINE' },
    });
    assert.equal(hopeless.failure?.code, 'ERR_FABRICKV_CAPACITY');
    await session.call(4, { get: { key: KEY, inlineMax: EVERYTHING } });
    assert.ok(session.data(4).equals(big));
    await session.call(5, { delete: { key: KEY } });
    assert.ok((await session.call(6, { putOpen: { key: KEY, length: ARENA_BYTES, path: 'INLINE' } })).grant);
  });
});
