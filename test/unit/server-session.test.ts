import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { crc32c } from '../../src/fabric/index.js';
import { encodeClientFrame } from '../../src/protocol/codec.js';
import { DATA_BYTES_MAX, FRAME_BYTES_MAX, KEY_BYTES_MAX, PROTOCOL_VERSION } from '../../src/protocol/limits.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { waitFor } from '../support/wait-for.js';
import { randomId, type WireSession } from './support/session-client.js';
import { ARENA_BYTES, serve } from './support/test-server.js';

const KEY = Buffer.from('key');
const EVERYTHING = fromBigInt(2n ** 64n - 1n);

function bytes(length: number, fill = 7): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * fill + (i >> 8)) % 256));
}

function putBody(value: Buffer, key = KEY): { put: { key: Buffer; value: Buffer; crc32c: number } } {
  return { put: { key, value, crc32c: crc32c(value) } };
}

/** Sends a value as Data, in pieces, and commits it. */
function sendData(session: WireSession, operationId: number, value: Buffer, pieceBytes = DATA_BYTES_MAX): void {
  for (let offset = 0; offset < value.length; offset += pieceBytes) {
    session.send({ operationId, data: { offset, bytes: value.subarray(offset, offset + pieceBytes) } });
  }
  session.send({ operationId, putCommit: { crc32c: crc32c(value) } });
}

/** Puts a value of any length as Data. */
async function putInline(session: WireSession, operationId: number, value: Buffer, key = KEY): Promise<void> {
  const { grant, failure } = await session.call(operationId, {
    putOpen: { key, length: value.length, path: 'INLINE' },
  });
  assert.ok(grant !== null && grant !== undefined, failure?.message);
  sendData(session, operationId, value);
  await session.find('the result of the PUT', (message) => message.result?.put);
}

describe('the handshake', () => {
  test('Hello is answered with Welcome', async () => {
    await using served = await serve({ inlineThreshold: Number.POSITIVE_INFINITY, maxInFlight: 5, maxWaiting: 6 });
    const session = await served.client.connect({ clientName: 'test' });
    const welcome = await session.welcome();
    assert.equal(welcome.version, PROTOCOL_VERSION);
    assert.equal(welcome.provider, '');
    assert.match(welcome.inlineOnlyReason, /client has no data plane/);
    assert.notEqual(toBigInt(welcome.serverEpoch), 0n);
    assert.equal(toBigInt(welcome.getInlineThreshold), 2n ** 64n - 1n);
    assert.equal(welcome.advertiseAddr, served.server.boundAddr);
    assert.equal(welcome.limits?.maxOperationsInFlight, 5);
    assert.equal(welcome.limits?.maxOperationsWaiting, 6);
    assert.equal(welcome.limits?.maxKeyBytes, KEY_BYTES_MAX);
    assert.equal(served.server.counters()['sessions'], 1);
  });

  test('providers that the server does not have make an inline-only session', async () => {
    await using served = await serve();
    const session = await served.client.connect({ providers: [{ name: 'efa', rails: [{}] }, { name: 'tcp' }] });
    const { provider, inlineOnlyReason } = await session.welcome();
    assert.equal(provider, '');
    assert.match(inlineOnlyReason, /--provider none/);
  });

  const refused: Readonly<Record<string, { send: (session: WireSession) => void; code: string; message: RegExp }>> = {
    'a version from the future': {
      send: (session) => session.send({ hello: { minVersion: 2, maxVersion: 9, clientId: fromBigInt(1n) } }),
      code: 'ERR_FABRICKV_PROTOCOL_VERSION',
      message: /versions 2 to 9 .* server 1/,
    },
    'a version from the past': {
      send: (session) => session.send({ hello: { minVersion: 0, maxVersion: 0, clientId: fromBigInt(1n) } }),
      code: 'ERR_FABRICKV_PROTOCOL_VERSION',
      message: /versions 0 to 0/,
    },
    'no client id': {
      send: (session) => session.send({ hello: { minVersion: 1, maxVersion: 1 } }),
      code: 'ERR_FABRICKV_PROTOCOL',
      message: /client_id/,
    },
    'an operation before Hello': {
      send: (session) => session.send({ operationId: 1, get: { key: KEY } }),
      code: 'ERR_FABRICKV_PROTOCOL',
      message: /begins with one Hello/,
    },
    'an operation right after Hello, before Welcome': {
      send: (session) =>
        session.send(
          { hello: { minVersion: 1, maxVersion: 1, clientId: fromBigInt(1n) } },
          { operationId: 1, get: { key: KEY } },
        ),
      code: 'ERR_FABRICKV_PROTOCOL',
      message: /waits for Welcome/,
    },
    'bytes that are no frame': {
      send: (session) => session.sendBytes(Buffer.from([0x0b])),
      code: 'ERR_FABRICKV_PROTOCOL',
      message: /malformed frame/,
    },
  };
  for (const [what, { send, code, message }] of Object.entries(refused)) {
    test(`${what} ends the call with ${code}`, async () => {
      await using served = await serve();
      const session = served.client.openSession();
      send(session);
      const { error } = await session.ended;
      assert.equal(error?.code, code);
      assert.match(error.message, message);
      assert.equal(served.server.counters()['sessions'], 0);
      // The server is as it was.
      await served.client.connect();
    });
  }

  test('a second Hello ends the session', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    session.send({ hello: { minVersion: 1, maxVersion: 1, clientId: fromBigInt(1n) } });
    const { error } = await session.ended;
    assert.equal(error?.code, 'ERR_FABRICKV_PROTOCOL');
    assert.match(error.message, /second Hello/);
  });

  test('past --max-sessions a call is refused, until one ends', async () => {
    await using served = await serve({ maxSessions: 2 });
    const first = await served.client.connect();
    await served.client.connect();
    const { error } = await served.client.openSession().ended;
    assert.equal(error?.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.match(error.message, /--max-sessions/);
    assert.equal(error.retryable, true);
    first.send({ bye: {} });
    await first.ended;
    await served.client.connect();
  });
});

describe('the end of a session', () => {
  const ways: Readonly<Record<string, (session: WireSession) => void>> = {
    Bye: (session) => session.send({ bye: {} }),
    'the end of the stream': (session) => session.stream.end(),
    'a cancelled call': (session) => session.stream.cancel(),
  };
  for (const [way, leave] of Object.entries(ways)) {
    test(`${way} gives back what was granted`, async () => {
      await using served = await serve();
      const session = await served.client.connect();
      await session.call(1, { putOpen: { key: KEY, length: 1_000_000, path: 'INLINE' } });
      assert.ok((served.server.counters()['memoryUsedBytes'] ?? 0) >= 1_000_000);
      leave(session);
      await waitFor(() => served.server.counters()['sessions'] === 0, { what: 'the end of the session' });
      const counters = served.server.counters();
      assert.deepEqual([counters['memoryUsedBytes'], counters['operationsInFlight']], [0, 0]);
    });
  }

  test('what was asked before Bye is answered', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    session.send({ operationId: 1, ...putBody(bytes(10)) }, { bye: {} });
    assert.equal((await session.ended).status, undefined);
    assert.ok((await session.result(1)).put);
  });

  test('a connection that breaks ends its sessions', async () => {
    await using served = await serve();
    const client = served.newClient();
    const session = await client.connect();
    await session.call(1, { putOpen: { key: KEY, length: 1000, path: 'INLINE' } });
    client[Symbol.dispose]();
    await waitFor(() => served.server.counters()['memoryUsedBytes'] === 0, { what: 'the memory' });
  });
});

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

describe('at most once', () => {
  test('a PUT that is sent again gets its first result, over a reconnect too', async () => {
    await using served = await serve();
    const clientId = fromBigInt(randomId());
    const session = await served.client.connect({ clientId });
    const first = await session.call(1, putBody(bytes(10)));
    await session.call(2, putBody(bytes(20)));
    session.send({ bye: {} });
    await session.ended;
    const again = await served.client.connect({ clientId });
    const replayed = await again.call(1, putBody(bytes(10)));
    assert.deepEqual(replayed.put, first.put);
    assert.deepEqual((await again.call(3, { get: { key: KEY, inlineMax: EVERYTHING } })).get?.value, bytes(20));
    assert.equal((await again.counters())['replayedResults'], 1);
    // Another client's first operation is its own.
    const other = await served.client.connect();
    assert.notDeepEqual((await other.call(1, putBody(bytes(30)))).put?.version, first.put?.version);
  });

  test('a DELETE that is sent again says what the first one did', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    await session.call(1, putBody(bytes(10)));
    const { delete: first } = await session.call(2, { delete: { key: KEY } });
    assert.equal(first?.deleted, true);
    session.received.length = 0;
    await session.call(3, putBody(bytes(20)));
    assert.deepEqual((await session.call(2, { delete: { key: KEY } })).delete, first);
    assert.equal((await session.call(4, { exists: { key: KEY } })).exists?.exists, true);
  });

  test('PutOpen and PutCommit of a PUT that was stored get its result', async () => {
    await using served = await serve();
    const clientId = fromBigInt(randomId());
    const value = bytes(100);
    const session = await served.client.connect({ clientId });
    await session.call(1, { putOpen: { key: KEY, length: 100, path: 'INLINE' } });
    session.received.length = 0;
    sendData(session, 1, value);
    const { put } = await session.result(1);
    assert.ok(put);
    session.stream.cancel();
    const again = await served.client.connect({ clientId });
    assert.deepEqual((await again.call(1, { putCommit: { crc32c: crc32c(value) } })).put, put);
    again.received.length = 0;
    assert.deepEqual((await again.call(1, { putOpen: { key: KEY, length: 100, path: 'INLINE' } })).put, put);
    assert.equal((await again.counters())['memoryUsedBytes'], 128);
  });

  test('a client that comes back before its lost session is noticed has one session, and one PUT', async () => {
    await using served = await serve();
    const clientId = fromBigInt(randomId());
    const value = bytes(100);
    const lost = await served.client.connect({ clientId });
    assert.ok((await lost.call(1, { putOpen: { key: KEY, length: 100, path: 'INLINE' } })).grant);
    const other = await served.client.connect();
    const session = await served.client.connect({ clientId });
    assert.equal((await lost.ended).status, undefined);
    const counters = await session.counters();
    assert.deepEqual([counters['sessions'], counters['memoryUsedBytes'], counters['operationsInFlight']], [2, 0, 0]);
    // What it had sent to the lost session means nothing there any more; here it begins again, under the same id.
    assert.equal((await session.call(1, { putCommit: { crc32c: 0 } })).failure?.code, 'ERR_FABRICKV_GRANT_ENDED');
    session.received.length = 0;
    assert.ok((await session.call(1, { putOpen: { key: KEY, length: 100, path: 'INLINE' } })).grant);
    session.received.length = 0;
    sendData(session, 1, value);
    assert.ok((await session.result(1)).put);
    await other.settled();
  });

  test('a PUT that failed may be tried again under its id', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const wrong = await session.call(1, { put: { key: KEY, value: bytes(10), crc32c: 1 } });
    assert.equal(wrong.failure?.code, 'ERR_FABRICKV_CHECKSUM');
    session.received.length = 0;
    assert.ok((await session.call(1, putBody(bytes(10)))).put);
  });
});

test('a frame that is refused ends only its own session', async () => {
  await using served = await serve();
  const honest = await served.client.connect();
  const hostile = await served.newClient().connect();
  hostile.sendBytes(Buffer.alloc(FRAME_BYTES_MAX, Buffer.from([0x0a, 0x00])));
  const { error } = await hostile.ended;
  assert.equal(error?.code, 'ERR_FABRICKV_PROTOCOL');
  assert.match(error.message, /4096 messages/);
  await honest.settled();
  assert.equal(encodeClientFrame([]).length, 0);
});
