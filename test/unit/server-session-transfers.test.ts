import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc32c } from '../../src/fabric/index.js';
import { DATA_BYTES_MAX } from '../../src/protocol/limits.js';
import { waitFor } from '../support/wait-for.js';
import type { WireSession } from './support/session-client.js';
import { bytes, EVERYTHING, KEY, putBody, putInline, sendData } from './support/session-values.js';
import { serve } from './support/test-server.js';

describe('a PUT as Data', () => {
  const length = 200_000;
  const value = bytes(length);
  const piece = (operationId: number, offset: number, data: Buffer) => ({ operationId, data: { offset, bytes: data } });

  const wrong: Readonly<Record<string, { send: (session: WireSession) => void; code: string }>> = {
    'a gap': {
      send: (session) => session.send(piece(2, 0, bytes(10)), piece(2, 11, bytes(10))),
      code: 'ERR_FABRICKV_PROTOCOL',
    },
    'a piece twice': {
      send: (session) => session.send(piece(2, 0, bytes(10)), piece(2, 0, bytes(10))),
      code: 'ERR_FABRICKV_PROTOCOL',
    },
    'a piece beyond the end': {
      send: (session) => session.send(piece(2, 0, bytes(65_536)), piece(2, 65_536, bytes(length))),
      code: 'ERR_FABRICKV_PROTOCOL',
    },
    'progress beyond what has come': {
      send: (session) => session.send(piece(2, 0, bytes(10)), { operationId: 2, putProgress: { bytesWritten: 11 } }),
      code: 'ERR_FABRICKV_PROTOCOL',
    },
    'a commit before all has come': {
      send: (session) =>
        session.send(piece(2, 0, bytes(10)), { operationId: 2, putCommit: { crc32c: crc32c(bytes(10)) } }),
      code: 'ERR_FABRICKV_PROTOCOL',
    },
    'options that are not served': {
      send: (session) => session.send({ operationId: 2, putCommit: { crc32c: 0, options: { ifAbsent: true } } }),
      code: 'ERR_FABRICKV_UNIMPLEMENTED',
    },
  };
  for (const [what, { send, code }] of Object.entries(wrong)) {
    test(`${what} fails, changes nothing and keeps no memory`, async () => {
      await using served = await serve();
      const session = await served.client.connect();
      await session.call(1, putBody(bytes(5)));
      const before = await session.counters();
      assert.ok((await session.call(2, { putOpen: { key: KEY, length, path: 'INLINE' } })).grant);
      send(session);
      const failure = await session.find('the failure', (message) =>
        message.result?.failure?.code === code ? message.result.failure : undefined,
      );
      assert.equal(failure.outcome, 'NOT_APPLIED');
      const after = await session.counters();
      assert.equal(after['memoryUsedBytes'], before['memoryUsedBytes']);
      assert.equal(after['operationsInFlight'], 0);
      const { get } = await session.call(3, { get: { key: KEY, inlineMax: EVERYTHING } });
      assert.deepEqual(get?.value, bytes(5));
      // Under the same id it may be tried again.
      session.received.length = 0;
      assert.ok((await session.call(2, { putOpen: { key: KEY, length, path: 'INLINE' } })).grant);
    });
  }

  test('bytes that do not have the announced CRC are thrown away', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await session.call(1, { putOpen: { key: KEY, length: 10, path: 'INLINE' } });
    session.received.length = 0;
    session.send(piece(1, 0, bytes(10)), { operationId: 1, putCommit: { crc32c: 5 } });
    assert.equal((await session.result(1)).failure?.code, 'ERR_FABRICKV_CHECKSUM');
    assert.equal((await session.call(2, { exists: { key: KEY } })).exists?.exists, false);
    assert.equal((await session.counters())['memoryUsedBytes'], 0);
  });

  test('until it is committed, readers see the old value', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await session.call(1, putBody(bytes(5)));
    await session.call(2, { putOpen: { key: KEY, length, path: 'INLINE' } });
    session.send(piece(2, 0, value.subarray(0, 65_536)));
    assert.deepEqual((await session.call(3, { get: { key: KEY, inlineMax: EVERYTHING } })).get?.value, bytes(5));
    session.received.length = 0;
    session.send(piece(2, 65_536, value.subarray(65_536, 131_072)), piece(2, 131_072, value.subarray(131_072)), {
      operationId: 2,
      putCommit: { crc32c: crc32c(value) },
    });
    assert.equal((await session.result(2)).put?.path, 'INLINE');
    await session.call(4, { get: { key: KEY, inlineMax: EVERYTHING } });
    assert.ok(session.data(4).equals(value));
  });

  test('PutAbort and Cancel give the memory back; Cancel is answered, known or not', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await session.call(1, { putOpen: { key: KEY, length, path: 'INLINE' } });
    await session.call(2, { putOpen: { key: KEY, length, path: 'INLINE' } });
    session.send({ operationId: 1, putAbort: {} }, { operationId: 2, cancel: {} }, { operationId: 3, cancel: {} });
    await session.quiesced(2);
    await session.quiesced(3);
    const counters = await session.counters();
    assert.equal(counters['memoryUsedBytes'], 0);
    assert.equal(counters['putsAborted'], 2);
    // What was on its way means nothing any more.
    session.send(piece(1, 0, bytes(10)), { operationId: 2, putProgress: { bytesWritten: 5 } });
    await session.settled();
    assert.equal((await session.call(4, { exists: { key: KEY } })).exists?.exists, false);
  });

  test('a grant that is not used in its time is taken back, with a failure', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await session.call(1, { putOpen: { key: KEY, length, path: 'INLINE', deadlineMs: 20 } });
    const failure = await session.find('the failure', (message) => message.result?.failure);
    assert.equal(failure.code, 'ERR_FABRICKV_DEADLINE');
    assert.equal(failure.outcome, 'NOT_APPLIED');
    assert.equal(failure.stage, 'put.granted');
    assert.equal((await session.counters())['memoryUsedBytes'], 0);
  });

  test('two PUTs under one id: the second fails, the first goes on', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const small = bytes(100);
    await session.call(1, { putOpen: { key: KEY, length: 100, path: 'INLINE' } });
    session.received.length = 0;
    session.send({ operationId: 1, putOpen: { key: KEY, length: 100, path: 'INLINE' } });
    assert.equal((await session.result(1)).failure?.code, 'ERR_FABRICKV_PROTOCOL');
    session.received.length = 0;
    sendData(session, 1, small);
    assert.ok((await session.result(1)).put);
  });
});

describe('limits', () => {
  test('past the transfers in flight they wait; past the waiting they are refused; cancelled ones make room', async () => {
    await using served = await serve({ maxInFlight: 1, maxWaiting: 1 });
    const session = await served.client.connect();
    const open = (operationId: number): Parameters<WireSession['send']>[0] => ({
      operationId,
      putOpen: { key: Buffer.from(`k${operationId}`), length: 100_000, path: 'INLINE' },
    });
    assert.ok((await session.call(1, open(1))).grant);
    session.send(open(2));
    const { failure } = await session.call(3, open(3));
    assert.equal(failure?.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.match(failure.message, /--max-waiting/);
    assert.equal((await session.counters())['operationsInFlight'], 2);
    session.send({ operationId: 2, cancel: {} });
    await session.quiesced(2);
    session.send(open(4));
    await session.settled();
    assert.equal((await session.counters())['operationsInFlight'], 2);
    session.send({ operationId: 1, putAbort: {} });
    assert.ok((await session.result(4)).grant);
    assert.equal((await session.counters())['operationsInFlight'], 1);
  });

  test('an operation that waits has its deadline too', async () => {
    await using served = await serve({ maxInFlight: 1 });
    const session = await served.client.connect();
    await session.call(1, putBody(bytes(10)));
    await putInline(session, 2, bytes(100_000), Buffer.from('big'));
    assert.ok((await session.call(3, { putOpen: { key: KEY, length: 100, path: 'INLINE' } })).grant);
    const { failure } = await session.call(4, {
      get: { key: Buffer.from('big'), inlineMax: EVERYTHING, deadlineMs: 20 },
    });
    assert.equal(failure?.code, 'ERR_FABRICKV_DEADLINE');
    assert.equal(failure.stage, 'get.found');
  });

  test('a client that does not read is not answered without end', async () => {
    await using served = await serve();
    const writer = await served.client.connect();
    const value = bytes(DATA_BYTES_MAX);
    await writer.call(1, putBody(value));
    const session = await served.newClient().connect();
    session.stream.pause();
    // 64 MiB are asked for in one frame of 20 KiB.
    const count = 1024;
    session.send(
      ...Array.from({ length: count }, (_, i) => ({ operationId: i + 1, get: { key: KEY, inlineMax: EVERYTHING } })),
    );
    // Others are served meanwhile, and when that has gone on for a while, little has been answered.
    let answered = 0;
    for (let quiet = 0; quiet < 50; ) {
      const { getsInline = 0 } = await writer.counters();
      quiet = getsInline === answered ? quiet + 1 : 0;
      answered = getsInline;
    }
    assert.ok(answered > 0 && answered < 256, `${answered} of ${count} GETs were answered into nowhere`);
    // Reading, it gets all.
    session.stream.resume();
    for (const id of [1, count / 2, count]) assert.ok((await session.result(id)).get?.value.equals(value));
    await session.settled();
    assert.equal((await session.counters())['getsInline'], count);
  });

  test('a large value stops where a client does not read, and goes on where it does', async () => {
    await using served = await serve();
    const writer = await served.client.connect();
    const value = bytes(6_000_000);
    await putInline(writer, 1, value);
    const session = await served.newClient().connect();
    session.stream.pause();
    session.send({ operationId: 1, get: { key: KEY, inlineMax: EVERYTHING } });
    await waitFor(() => served.server.counters()['operationsInFlight'] === 1, { what: 'the GET' });
    // Deleted under the reader, it keeps its bytes.
    await writer.call(2, { delete: { key: KEY } });
    assert.ok((served.server.counters()['memoryUsedBytes'] ?? 0) >= value.length);
    session.stream.resume();
    assert.ok((await session.result(1)).get);
    assert.ok(session.data(1).equals(value));
    await waitFor(() => served.server.counters()['memoryUsedBytes'] === 0, { what: 'the memory' });
  });

  test('Cancel stops a large value', async () => {
    await using served = await serve();
    const writer = await served.client.connect();
    await putInline(writer, 1, bytes(6_000_000));
    const session = await served.newClient().connect();
    session.stream.pause();
    session.send({ operationId: 1, get: { key: KEY, inlineMax: EVERYTHING } });
    await waitFor(() => served.server.counters()['operationsInFlight'] === 1, { what: 'the GET' });
    session.send({ operationId: 1, cancel: {} });
    // The server does not read on before this client does: what was in flight comes first.
    session.stream.resume();
    await session.quiesced(1);
    const received = session.data(1).length;
    await session.settled();
    assert.equal(session.data(1).length, received, 'nothing follows Quiesced');
    assert.equal(served.server.counters()['operationsInFlight'], 0);
  });
});
