import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc32c } from '../../src/fabric/index.js';
import { encodeClientFrame } from '../../src/protocol/codec.js';
import { FRAME_BYTES_MAX, KEY_BYTES_MAX, PROTOCOL_VERSION } from '../../src/protocol/limits.js';
import { fromBigInt, toBigInt } from '../../src/protocol/wire.js';
import { waitFor } from '../support/wait-for.js';
import { randomId, type WireSession } from './support/session-client.js';
import { bytes, EVERYTHING, KEY, putBody, sendData } from './support/session-values.js';
import { serve } from './support/test-server.js';

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
