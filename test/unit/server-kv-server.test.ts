import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Client, credentials, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { pino } from 'pino';
import { crc32c } from '../../src/fabric/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import type { DeleteResponse__Output } from '../../src/protocol/generated/fabrickv/v1/DeleteResponse.js';
import type { ExistsResponse__Output } from '../../src/protocol/generated/fabrickv/v1/ExistsResponse.js';
import type { GetResponse__Output } from '../../src/protocol/generated/fabrickv/v1/GetResponse.js';
import type { PutResponse__Output } from '../../src/protocol/generated/fabrickv/v1/PutResponse.js';
import type { StatResponse__Output } from '../../src/protocol/generated/fabrickv/v1/StatResponse.js';
import { KEY_BYTES_MAX, UNARY_VALUE_BYTES_MAX } from '../../src/protocol/limits.js';
import { HEALTH_SERVICE_NAME } from '../../src/protocol/proto.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { KvServer } from '../../src/server/index.js';
import { tempDir } from '../support/temp-dir.js';
import { waitFor } from '../support/wait-for.js';
import { randomId, WireClient } from './support/session-client.js';
import { ARENA_BYTES, serve } from './support/test-server.js';

const KEY = Buffer.from('key');
const VALUE = Buffer.from('a value');

/** A method of another package's proto, by its file and full name. */
function foreignMethod(file: string, service: string, name: string) {
  const definition = loadSync(file, { defaults: true, arrays: true, oneofs: true, enums: String, longs: String })[
    service
  ];
  const method = definition === undefined ? undefined : (definition as unknown as Record<string, unknown>)[name];
  assert.ok(method !== undefined, `${file} has ${service}/${name}`);
  return method as {
    path: string;
    requestSerialize: (value: object) => Buffer;
    responseDeserialize: (bytes: Buffer) => Record<string, unknown>;
  };
}

const moduleFile = (path: string): string => fileURLToPath(new URL(`../../../node_modules/${path}`, import.meta.url));

async function healthOf(client: WireClient, service: string): Promise<unknown> {
  const check = foreignMethod(
    moduleFile('grpc-health-check/proto/health/v1/health.proto'),
    'grpc.health.v1.Health',
    'Check',
  );
  return new Promise((resolve, reject) => {
    client.raw.makeUnaryRequest(
      check.path,
      check.requestSerialize,
      check.responseDeserialize,
      { service },
      (error, response) => {
        if (error !== null) reject(error);
        else resolve(response?.['status']);
      },
    );
  });
}

describe('unary calls', () => {
  test('PUT, GET, STAT, EXISTS and DELETE need no session', async () => {
    await using served = await serve();
    const { client } = served;
    const put = await client.unary<PutResponse__Output>('Put', { key: KEY, value: VALUE });
    const get = await client.unary<GetResponse__Output>('Get', { key: KEY });
    assert.deepEqual(get.value, VALUE);
    assert.equal(get.crc32c, crc32c(VALUE));
    assert.deepEqual(get.version, put.version);
    const stat = await client.unary<StatResponse__Output>('Stat', { key: KEY });
    assert.equal(toSafeInteger(stat.length, 'length'), VALUE.length);
    assert.deepEqual(stat.version, put.version);
    assert.equal((await client.unary<ExistsResponse__Output>('Exists', { key: KEY })).exists, true);
    assert.equal((await client.unary<ExistsResponse__Output>('Exists', { key: KEY, namespace: 3 })).exists, false);
    const deleted = await client.unary<DeleteResponse__Output>('Delete', { key: KEY });
    assert.deepEqual([deleted.deleted, deleted.version], [true, put.version]);
    assert.equal((await client.unary<DeleteResponse__Output>('Delete', { key: KEY })).deleted, false);
    assert.equal(served.server.counters()['memoryUsedBytes'], 0);
  });

  test('values of every length up to 1 MiB', async () => {
    await using served = await serve();
    for (const length of [0, 1, 65_537, UNARY_VALUE_BYTES_MAX]) {
      const value = Buffer.alloc(length, 'pattern');
      await served.client.unary('Put', { key: KEY, value });
      const { value: got } = await served.client.unary<GetResponse__Output>('Get', { key: KEY });
      assert.ok(got.equals(value), String(length));
    }
  });

  test('errors carry an ErrorInfo', async () => {
    await using served = await serve({ maxValueBytes: 5000 });
    const { client } = served;
    const cases = [
      ['Get', { key: KEY }, 'ERR_FABRICKV_NOT_FOUND', undefined],
      ['Stat', { key: KEY }, 'ERR_FABRICKV_NOT_FOUND', undefined],
      ['Get', { key: Buffer.alloc(0) }, 'ERR_FABRICKV_INVALID_KEY', undefined],
      ['Exists', { key: Buffer.alloc(KEY_BYTES_MAX + 1) }, 'ERR_FABRICKV_INVALID_KEY', undefined],
      ['Put', { key: KEY, value: Buffer.alloc(5001) }, 'ERR_FABRICKV_VALUE_TOO_LARGE', 'not-applied'],
      [
        'Put',
        { key: KEY, value: Buffer.alloc(UNARY_VALUE_BYTES_MAX + 1) },
        'ERR_FABRICKV_TOO_LARGE_FOR_UNARY',
        'not-applied',
      ],
      ['Delete', { key: Buffer.alloc(0) }, 'ERR_FABRICKV_INVALID_KEY', 'not-applied'],
      [
        'Delete',
        { key: KEY, clientId: fromBigInt(1n), operationId: fromBigInt(2n ** 60n) },
        'ERR_FABRICKV_PROTOCOL',
        'not-applied',
      ],
    ] as const;
    for (const [name, request, code, outcome] of cases) {
      const error = await client.unary(name, request).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      assert.ok(error instanceof FabricKvError, `${name}: ${String(error)}`);
      assert.equal(error.code, code);
      assert.equal(error.outcome, outcome);
      assert.equal(error.stage, `${name.toLowerCase()}.received`);
    }
    assert.equal(served.server.counters()['failures'], cases.length);
  });

  test('the status beside it is right too: a missing key is NOT_FOUND', async () => {
    await using served = await serve();
    const error = await served.client.unary('Get', { key: KEY }).catch((thrown: FabricKvError) => thrown);
    assert.equal((error as { cause?: { code?: number } }).cause?.code, status.NOT_FOUND);
  });

  test('a value over 1 MiB that a session stored is refused with its length', async () => {
    await using served = await serve();
    const session = await served.client.connect();
    const value = Buffer.alloc(UNARY_VALUE_BYTES_MAX + 1);
    await session.call(1, { putOpen: { key: KEY, length: value.length, path: 'INLINE' } });
    for (let offset = 0; offset < value.length; offset += 65_536) {
      session.send({ operationId: 1, data: { offset, bytes: value.subarray(offset, offset + 65_536) } });
    }
    session.send({ operationId: 1, putCommit: { crc32c: crc32c(value) } });
    await session.find('the PUT', (message) => message.result?.put);
    await assert.rejects(served.client.unary('Get', { key: KEY }), {
      code: 'ERR_FABRICKV_TOO_LARGE_FOR_UNARY',
      details: { length: String(value.length) },
    });
    assert.equal(
      toSafeInteger((await served.client.unary<StatResponse__Output>('Stat', { key: KEY })).length, 'l'),
      value.length,
    );
  });

  test('only a GET of nothing counts as one', async () => {
    await using served = await serve();
    await assert.rejects(served.client.unary('Stat', { key: KEY }), { code: 'ERR_FABRICKV_NOT_FOUND' });
    assert.equal(served.server.counters()['getsMissing'], 0);
    await assert.rejects(served.client.unary('Get', { key: KEY }), { code: 'ERR_FABRICKV_NOT_FOUND' });
    assert.equal(served.server.counters()['getsMissing'], 1);
  });

  test('a full arena is a typed error, and nothing is lost', async () => {
    await using served = await serve({ memoryBytes: 4096 });
    await served.client.unary('Put', { key: KEY, value: VALUE });
    await assert.rejects(served.client.unary('Put', { key: Buffer.from('other'), value: Buffer.alloc(4096) }), {
      code: 'ERR_FABRICKV_CAPACITY',
      outcome: 'not-applied',
      retryable: true,
    });
    assert.deepEqual((await served.client.unary<GetResponse__Output>('Get', { key: KEY })).value, VALUE);
    assert.equal(served.server.counters()['memoryUsedBytes'], 64);
  });
});

describe('unary mutations with ids', () => {
  test('a retry gets the first result', async () => {
    await using served = await serve();
    const ids = { clientId: fromBigInt(randomId()), operationId: 5 };
    const first = await served.client.unary<PutResponse__Output>('Put', { key: KEY, value: VALUE, ...ids });
    await served.client.unary('Put', { key: KEY, value: Buffer.from('newer') });
    const again = await served.client.unary<PutResponse__Output>('Put', { key: KEY, value: VALUE, ...ids });
    assert.deepEqual(again.version, first.version);
    assert.equal((await served.client.unary<GetResponse__Output>('Get', { key: KEY })).value.toString(), 'newer');
    assert.equal(served.server.counters()['replayedResults'], 1);
  });

  test('calls at the same time are one', async () => {
    await using served = await serve();
    const ids = { clientId: fromBigInt(randomId()), operationId: 5 };
    const versions = await Promise.all(
      Array.from({ length: 20 }, () =>
        served.client.unary<PutResponse__Output>('Put', { key: KEY, value: VALUE, ...ids }),
      ),
    );
    assert.equal(new Set(versions.map(({ version }) => toBigInt(version))).size, 1);
    assert.equal(served.server.counters()['putsInline'], 1);
    const deletes = await Promise.all(
      Array.from({ length: 20 }, () =>
        served.client.unary<DeleteResponse__Output>('Delete', { key: KEY, ...ids, operationId: 6 }),
      ),
    );
    assert.ok(deletes.every(({ deleted }) => deleted));
    assert.equal(served.server.counters()['deletes'], 1);
  });

  test('one id without the other is no id: each call is applied', async () => {
    await using served = await serve();
    const clientId = fromBigInt(randomId());
    for (const [value, ids] of [
      ['one', { clientId }],
      ['two', { clientId }],
      ['three', { operationId: 1 }],
      ['four', { operationId: 1 }],
    ] as const) {
      await served.client.unary('Put', { key: KEY, value: Buffer.from(value), ...ids });
      assert.equal((await served.client.unary<GetResponse__Output>('Get', { key: KEY })).value.toString(), value);
    }
  });

  test('a PUT that failed may be tried again under its ids', async () => {
    await using served = await serve({ memoryBytes: 4096 });
    const ids = { clientId: fromBigInt(randomId()), operationId: 5 };
    await served.client.unary('Put', { key: KEY, value: Buffer.alloc(4000) });
    const other = { key: Buffer.from('other'), value: Buffer.alloc(4000), ...ids };
    await assert.rejects(served.client.unary('Put', other), { code: 'ERR_FABRICKV_CAPACITY' });
    await served.client.unary('Delete', { key: KEY });
    await served.client.unary('Put', other);
  });
});

describe('beside the service', () => {
  test('health is served, for the server and the service', async () => {
    await using served = await serve();
    assert.equal(await healthOf(served.client, ''), 'SERVING');
    assert.equal(await healthOf(served.client, HEALTH_SERVICE_NAME), 'SERVING');
  });

  test('reflection lists the service', async () => {
    await using served = await serve();
    const method = foreignMethod(
      moduleFile('@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto'),
      'grpc.reflection.v1.ServerReflection',
      'ServerReflectionInfo',
    );
    const call = served.client.raw.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
    );
    call.write({ listServices: '' });
    const [response] = (await once(call, 'data')) as [{ listServicesResponse?: { service: { name: string }[] } }];
    call.on('error', () => undefined);
    call.end();
    assert.ok(response.listServicesResponse?.service.some(({ name }) => name === HEALTH_SERVICE_NAME));
  });

  test('a method that does not exist is UNIMPLEMENTED', async () => {
    await using served = await serve();
    const identity = (bytes: Buffer): Buffer => bytes;
    const error = await new Promise<{ code?: number } | null>((resolve) => {
      served.client.raw.makeUnaryRequest(
        '/fabrickv.v1.FabricKV/Nothing',
        identity,
        identity,
        Buffer.alloc(0),
        (thrown) => resolve(thrown),
      );
    });
    assert.equal(error?.code, status.UNIMPLEMENTED);
  });
});

describe('the start', () => {
  const logger = pino({ level: 'silent' });
  const base = { listenAddr: '127.0.0.1:0', memoryBytes: 1024 * 1024, provider: 'none', logger } as const;

  test('a Unix socket serves like a port', async () => {
    await using dir = await tempDir();
    const server = await KvServer.start({ ...base, listenAddr: `unix:${dir.file('kv.sock')}` });
    const client = new WireClient(server.boundAddr);
    await client.unary('Put', { key: KEY, value: VALUE });
    assert.deepEqual((await client.unary<GetResponse__Output>('Get', { key: KEY })).value, VALUE);
    client[Symbol.dispose]();
    await server.stop();
  });

  test('a start that fails gives its port back', async () => {
    const listener = await KvServer.start(base);
    const { boundAddr } = listener;
    await listener.stop();
    await assert.rejects(KvServer.start({ ...base, listenAddr: boundAddr, memoryBytes: 0 }));
    const again = await KvServer.start({ ...base, listenAddr: boundAddr });
    await again.stop();
  });

  test('a name that leads other machines to themselves is not advertised', async () => {
    await assert.rejects(KvServer.start({ ...base, listenAddr: '0.0.0.0:0', advertiseAddr: 'localhost:1' }), {
      code: 'ERR_FABRICKV_SETTING',
      message: /--advertise-addr localhost:1/,
    });
    const server = await KvServer.start({ ...base, advertiseAddr: 'localhost:1' });
    assert.equal(server.advertiseAddr, 'localhost:1', 'on loopback it may');
    await server.stop();
  });

  test('a size that is no multiple of a cache line is used to its last whole one', async () => {
    const server = await KvServer.start({ ...base, memoryBytes: 100_001 });
    const { memoryUsedBytes, memoryFreeBytes, memoryTotalBytes } = server.counters();
    assert.deepEqual([memoryUsedBytes, memoryFreeBytes, memoryTotalBytes], [0, 99_968, 99_968]);
    await server.stop();
  });
});

describe('stop', () => {
  test('health says NOT_SERVING, sessions hear GoAway, what is in flight ends, nothing new begins', async () => {
    await using served = await serve({ drainMs: 20_000 });
    const { server, client } = served;
    const idle = await served.newClient().connect();
    const session = await client.connect();
    await session.call(1, { putOpen: { key: KEY, length: 10, path: 'INLINE' } });
    const stopped = server.stop();
    assert.equal(server.stop(), stopped, 'twice is once');
    const goAway = await session.find('GoAway', (message) => message.goAway);
    assert.equal(goAway.drainMs, 20_000);
    assert.equal((await idle.ended).status, undefined, 'one with nothing in flight ends at once, well');
    assert.equal(await healthOf(client, ''), 'NOT_SERVING');
    assert.equal(await healthOf(client, HEALTH_SERVICE_NAME), 'NOT_SERVING');
    await assert.rejects(client.unary('Put', { key: KEY, value: VALUE }), {
      code: 'ERR_FABRICKV_SHUTTING_DOWN',
      outcome: 'not-applied',
      retryable: true,
    });
    const refused = await session.call(2, { put: { key: KEY, value: VALUE, crc32c: crc32c(VALUE) } });
    assert.equal(refused.failure?.code, 'ERR_FABRICKV_SHUTTING_DOWN');
    const late = client.openSession();
    assert.equal((await late.ended).error?.code, 'ERR_FABRICKV_SHUTTING_DOWN');
    const newcomer = served.newClient().openSession();
    assert.equal((await newcomer.ended).status?.code, status.UNAVAILABLE);
    session.received.length = 0;
    session.send(
      { operationId: 1, data: { offset: 0, bytes: Buffer.alloc(10) } },
      { operationId: 1, putCommit: { crc32c: crc32c(Buffer.alloc(10)) } },
    );
    assert.ok((await session.result(1)).put, 'what was in flight is carried through');
    assert.equal((await session.ended).status, undefined);
    await stopped;
  });

  test('what does not end in drainMs is ended', async () => {
    await using served = await serve({ drainMs: 50 });
    const session = await served.client.connect();
    await session.call(1, { putOpen: { key: KEY, length: 10, path: 'INLINE' } });
    await served.server.stop();
    assert.equal((await session.ended).status, undefined);
    assert.equal(served.server.counters()['memoryUsedBytes'], 0);
  });

  test('connections that never speak, or never close, do not keep it', async () => {
    await using served = await serve();
    const [, port] = served.server.boundAddr.split(':');
    const silent = connect({ port: Number(port), host: '127.0.0.1', allowHalfOpen: true });
    const deaf = connect({ port: Number(port), host: '127.0.0.1', allowHalfOpen: true });
    for (const socket of [silent, deaf]) socket.on('error', () => undefined);
    await Promise.all([once(silent, 'connect'), once(deaf, 'connect')]);
    deaf.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00');
    await once(deaf, 'data');
    deaf.pause();
    let stopped = false;
    void served.server.stop().then(() => {
      stopped = true;
    });
    try {
      await waitFor(() => stopped, { what: 'the stop' });
    } finally {
      silent.destroy();
      deaf.destroy();
    }
  });

  test('a session that waits for its Hello does not keep it', async () => {
    await using served = await serve({ drainMs: 20_000 });
    const session = served.client.openSession();
    await waitFor(() => served.server.counters()['sessions'] === 1, { what: 'the session' });
    await served.server.stop();
    await session.ended;
  });

  test('a server that has stopped refuses connections', async () => {
    const served = await serve();
    const { boundAddr } = served.server;
    await served[Symbol.asyncDispose]();
    const client = new Client(boundAddr, credentials.createInsecure());
    const error = await new Promise((resolve) => {
      client.waitForReady(Date.now() + 100, resolve);
    });
    assert.ok(error instanceof Error);
    client.close();
  });
});

test('what is reported equals what is held', async () => {
  await using served = await serve();
  for (let i = 0; i < 50; i++) {
    await served.client.unary('Put', { key: Buffer.from(`k${i % 20}`), value: Buffer.alloc(i * 37) });
  }
  const counters = served.server.counters();
  const lengths = Array.from({ length: 20 }, (_, i) => (i < 10 ? i + 40 : i + 20) * 37);
  assert.equal(counters['keys'], 20);
  assert.equal(
    counters['valueBytes'],
    lengths.reduce((sum, length) => sum + length, 0),
  );
  assert.equal(
    counters['memoryUsedBytes'],
    lengths.reduce((sum, length) => sum + Math.ceil(length / 64) * 64, 0),
  );
  assert.equal(counters['memoryTotalBytes'], ARENA_BYTES);
});
