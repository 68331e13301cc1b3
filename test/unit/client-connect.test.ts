import assert from 'node:assert/strict';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { describe, test } from 'node:test';
import { Server as GrpcServer, ServerCredentials } from '@grpc/grpc-js';
import { FabricKvError, KvClient, type KvClientOptions } from '../../src/index.js';
import { toStatus } from '../../src/protocol/rpc-errors.js';
import { TestPeer } from './client-test-peer.js';

async function refusal(serverAddr: string, options: KvClientOptions = {}): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([
    KvClient.connect({ serverAddr, provider: 'none', connectTimeoutMs: 600, ...options }),
  ]);
  assert.ok(outcome.status === 'rejected', 'it connected');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe('connecting to what is not there, or not a FabricKV server', () => {
  test('a port where nothing listens: refused, at once, and the network is ruled out', async () => {
    const server = createTcpServer();
    const addr = await listening(server);
    await new Promise((resolve) => server.close(resolve));
    const startedAtMs = performance.now();
    const error = await refusal(addr, { connectTimeoutMs: 5000 });
    assert.ok(performance.now() - startedAtMs < 2000);
    assert.deepEqual([error.code, error.peer], ['ERR_FABRICKV_CONNECT', addr]);
    assert.match(error.message, /ECONNREFUSED.*ruled out/);
  });

  test('a Unix socket that does not exist', async () => {
    const error = await refusal('unix:/nowhere/fabrickv.sock');
    assert.equal(error.code, 'ERR_FABRICKV_CONNECT');
    assert.match(error.message, /ENOENT/);
  });

  test('a name that does not resolve', async () => {
    for (const provider of ['none', 'auto'] as const) {
      const error = await refusal('no-such-host.invalid:50051', { provider, connectTimeoutMs: 5000 });
      assert.equal(error.code, 'ERR_FABRICKV_CONNECT');
      assert.match(error.message, /does not resolve \((ENOTFOUND|EAI_AGAIN)\)/);
    }
  });

  test('a TCP server that never answers: it accepts, but is frozen or something else', async () => {
    const sockets: Socket[] = [];
    const server = createTcpServer((socket) => {
      socket.on('error', () => undefined);
      sockets.push(socket);
    });
    const addr = await listening(server);
    const startedAtMs = performance.now();
    const error = await refusal(addr);
    assert.ok(performance.now() - startedAtMs < 1500, 'it took longer than its time');
    assert.equal(error.code, 'ERR_FABRICKV_CONNECT');
    assert.match(error.message, /accepts TCP connections but does not answer/);
    for (const socket of sockets) socket.destroy();
    server.close();
  });

  test('an HTTP/1 server', async () => {
    const server = createHttpServer((_request, response) => response.end('hello'));
    const error = await refusal(await listening(server), { connectTimeoutMs: 5000 });
    assert.equal(error.code, 'ERR_FABRICKV_NOT_FABRICKV');
    server.closeAllConnections();
    server.close();
  });

  test('a server that greets and closes, as SSH does', async () => {
    const server = createTcpServer((socket) => {
      socket.on('error', () => undefined);
      socket.end('SSH-2.0-OpenSSH\r\n');
    });
    const error = await refusal(await listening(server), { connectTimeoutMs: 5000 });
    assert.equal(error.code, 'ERR_FABRICKV_NOT_FABRICKV');
    server.close();
  });

  test('a gRPC server without our service', async () => {
    const server = new GrpcServer();
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    const error = await refusal(`127.0.0.1:${port}`, { connectTimeoutMs: 5000 });
    assert.equal(error.code, 'ERR_FABRICKV_NOT_FABRICKV');
    assert.match(error.message, /UNIMPLEMENTED/);
    server.forceShutdown();
  });

  test('a server of another version, and one that refuses for a reason of its own', async () => {
    await using peer = await TestPeer.start(() => undefined);
    peer.welcome = { version: 7 };
    const older = await refusal(peer.addr, { connectTimeoutMs: 5000 });
    assert.equal(older.code, 'ERR_FABRICKV_PROTOCOL_VERSION');
    peer.welcome = { provider: 'tcp', rails: [{ address: Buffer.alloc(4), format: 'x' }] };
    assert.equal((await refusal(peer.addr, { connectTimeoutMs: 5000 })).code, 'ERR_FABRICKV_PROTOCOL');
  });

  test('what the server says when it refuses is what the caller gets', async () => {
    const server = new GrpcServer();
    server.addService(
      {
        Session: {
          path: '/fabrickv.v1.FabricKV/Session',
          requestStream: true,
          responseStream: true,
          requestSerialize: (bytes: Buffer) => bytes,
          requestDeserialize: (bytes: Buffer) => bytes,
          responseSerialize: (bytes: Buffer) => bytes,
          responseDeserialize: (bytes: Buffer) => bytes,
        },
      },
      {
        Session: (stream: { emit(event: 'error', error: unknown): void }) =>
          stream.emit('error', toStatus(new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', 'too many sessions'))),
      },
    );
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    const error = await refusal(`127.0.0.1:${port}`, { connectTimeoutMs: 5000 });
    assert.deepEqual([error.code, error.message], ['ERR_FABRICKV_RESOURCE_EXHAUSTED', 'too many sessions']);
    server.forceShutdown();
  });

  test('settings that make no sense are refused before anything is tried', async () => {
    const wrong: readonly KvClientOptions[] = [
      { serverAddr: 'nonsense' },
      { serverAddr: '127.0.0.1:99999' },
      { timeoutMs: -1 },
      { receiveMemory: 5 },
      { inlineThreshold: 1.5 },
      { maxInFlight: 0 },
      { provider: 'infiniband' as 'tcp' },
      { namespace: -1 },
      { typo: true } as KvClientOptions,
    ];
    for (const options of wrong) {
      const error = await refusal('127.0.0.1:1', options);
      assert.equal(error.code, 'ERR_FABRICKV_SETTING', JSON.stringify(options));
    }
  });
});
