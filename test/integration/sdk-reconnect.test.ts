import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { memoryLog } from '../support/memory-log.js';
import { SETTLE_SLACK_MS } from '../support/mode.js';
import { freePort } from '../support/ports.js';
import { TcpProxy } from '../support/tcp-proxy.js';
import { makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;

/** Waits until the server has logged a stage of the client's only operation of that kind. */
async function serverReached(server: TestServer, stage: string): Promise<void> {
  await server.waitForRecord((record) => record.stage === stage);
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

describe('reconnecting', () => {
  test('after a restart on the same port reads go on by themselves, and memory is introduced afresh', async () => {
    const port = await freePort();
    const start = (): Promise<TestServer> =>
      startServer({ args: ['--listen-addr', `127.0.0.1:${port}`, '--memory', '128MiB', '--log-level', 'info'] });
    const first = await start();
    await using client = await KvClient.connect({ serverAddr: first.addr, provider: 'tcp', timeoutMs: 20_000 });
    const region = await client.allocate(8 * MIB);
    const value = makeValue(8 * MIB, 1);
    await client.put('value', value);
    assert.ok((await client.getInto('value', region)) !== undefined);
    const { serverEpoch } = client.connection;

    first.kill('SIGKILL');
    await first.child.ended;
    const reads = Promise.all([client.get('value'), client.stat('value'), client.exists('value'), client.ping()]);
    await using second = await start();
    const [got, stat, exists, pong] = await reads;
    assert.deepEqual([got, stat, exists, pong.provider], [undefined, undefined, false, 'tcp']);
    assert.equal(client.connection.reconnects, 1);
    assert.notEqual(client.connection.serverEpoch, serverEpoch);

    const stored = await client.put('value', value);
    const info = await client.getInto('value', region, { verify: true });
    assert.deepEqual([stored.path, info?.path], ['rdma', 'rdma']);
    assert.ok(region.buffer.equals(value));
    const again = await client.get('value', { verify: true });
    assert.deepEqual([again?.path, again?.bytes.equals(value)], ['rdma', true]);
    assert.equal((await second.counters())['keys'], 1);
  });

  test('mutations that were sent when the server died are unknown, those that were not are stored', async () => {
    const first = await startServer();
    await using proxy = await TcpProxy.start(first.addr);
    await using client = await KvClient.connect({ serverAddr: proxy.addr, provider: 'tcp', timeoutMs: 20_000 });
    await client.put('deleted', 'x');
    proxy.holdAnswers();
    const deleting = rejection(client.delete('deleted'));
    const putting = rejection(client.put('put', 'y'));
    await serverReached(first, 'delete.done');
    await first.waitForRecord(({ stage, key }) => stage === 'put.done' && key === 'put');
    first.kill('SIGKILL');
    await first.child.ended;
    const unsent = client.put('unsent', 'z');
    await using second = await startServer();
    proxy.retarget(second.addr);
    proxy.cut();
    for (const error of await Promise.all([deleting, putting])) {
      assert.equal(error.code, 'ERR_FABRICKV_CONNECTION_LOST');
      assert.equal(error.outcome, 'unknown');
      assert.equal(error.peer, proxy.addr);
      assert.match(String(error.stage), /^(delete|put)\.start$/);
      assert.ok(error.requestId !== undefined && error.remedy !== '');
    }
    // Whether it had been handed to the dying connection, only the client can know: either way it says the truth.
    const [outcome] = await Promise.allSettled([unsent]);
    if (outcome.status === 'rejected') assert.equal((outcome.reason as FabricKvError).outcome, 'unknown');
    else assert.equal((await client.get('unsent'))?.bytes.toString(), 'z');
    assert.equal(await client.exists('put'), false);
  });

  test('at most once: a mutation whose answer was lost gets its first result from the same server', async () => {
    await using server = await startServer({ args: ['--memory', '256MiB'] });
    await using proxy = await TcpProxy.start(server.addr);
    let holdAt: string | undefined;
    const { logger } = memoryLog(({ stage }) => {
      if (stage !== undefined && stage === holdAt) proxy.holdAnswers();
    });
    await using client = await KvClient.connect({ serverAddr: proxy.addr, provider: 'tcp', timeoutMs: 20_000, logger });
    await using other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });

    await client.put('deleted', 'x');
    proxy.holdAnswers();
    const deleting = client.delete('deleted');
    await serverReached(server, 'delete.done');
    await other.put('deleted', 'by the other');
    proxy.cut();
    assert.equal(await deleting, true, 'the first result');
    assert.equal((await other.get('deleted'))?.bytes.toString(), 'by the other', 'it was deleted twice');

    const large = makeValue(24 * MIB, 1);
    for (const [key, value, stage] of [
      ['small', Buffer.from('mine'), undefined],
      ['large', large, 'put.commit.sent'],
    ] as const) {
      holdAt = stage;
      if (stage === undefined) proxy.holdAnswers();
      const putting = client.put(key, value);
      await server.waitForRecord((record) => record.stage === 'put.done' && record['key'] === key);
      holdAt = undefined;
      const { version: newer } = await other.put(key, 'newer');
      proxy.cut();
      const { version } = await putting;
      assert.ok(version < newer, `${key}: the first result has version ${version}, the newer one ${newer}`);
      assert.equal((await other.get(key))?.bytes.toString(), 'newer', `${key}: it was stored twice`);
    }
    const { counters } = await other.ping();
    assert.equal(counters['replayedResults'], 3);
    assert.equal(client.connection.reconnects, 3);
  });

  test('a connection that is cut in the middle of transfers costs a retry, not a wrong byte', async () => {
    await using server = await startServer({ args: ['--memory', '512MiB', '--log-level', 'info'] });
    await using proxy = await TcpProxy.start(server.addr);
    let cutAt: string | undefined;
    const { logger } = memoryLog(({ stage }) => {
      if (stage === undefined || stage !== cutAt) return;
      cutAt = undefined;
      // In a turn of its own: what the stage's turn has to say is on its way then.
      setImmediate(() => proxy.cut());
    });
    await using client = await KvClient.connect({ serverAddr: proxy.addr, provider: 'tcp', timeoutMs: 20_000, logger });
    const value = makeValue(64 * MIB, 3);
    const region = await client.allocate(value.length);
    for (const stage of [
      'put.start',
      'put.grant.requested',
      'put.grant.received',
      'put.write.submitted',
      'put.commit.sent',
    ]) {
      cutAt = stage;
      const { path } = await client.put('value', value);
      assert.deepEqual([path, cutAt], ['rdma', undefined]);
      const got = await client.get('value', { verify: true });
      assert.ok(got?.bytes.equals(value), stage);
      got?.release();
      await client.delete('value');
    }
    await client.put('value', value);
    for (const stage of ['get.start', 'get.buffer.allocated', 'get.location.created', 'get.request.sent']) {
      cutAt = stage;
      const got = await client.get('value', { verify: true });
      assert.equal(cutAt, undefined, stage);
      assert.ok(got?.bytes.equals(value), stage);
      got?.release();
      cutAt = 'get.request.sent';
      await client.getInto('value', region, { verify: true });
      assert.ok(region.buffer.equals(value), stage);
    }
    const inline = { inlineThreshold: Number.POSITIVE_INFINITY };
    cutAt = 'get.request.sent';
    assert.ok((await client.get('value', inline))?.bytes.equals(value));
    cutAt = 'put.grant.received';
    assert.equal((await client.put('inline', value, inline)).path, 'inline');
    assert.ok((await client.get('inline', { verify: true }))?.bytes.equals(value));
    await client.delete('inline');
    const counters = await countersWhen(async () => (await client.ping()).counters, isQuiet, {
      what: 'what the cut sessions held to come back',
    });
    assert.deepEqual(
      [counters['keys'], counters['memoryUsedBytes'], counters['windowsOpen'], counters['operationsInFlight']],
      [1, value.length, 0, 0],
    );
    await waitFor(() => client.counters().quarantinedBytes === 0, { what: "the client's quarantine to drain" });
  });

  test('with no server left every call ends by its deadline, and says what is lost', async () => {
    const server = await startServer();
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: 1000 });
    const [source, sink] = [await client.allocate(MIB), await client.allocate(MIB)];
    await client.put('value', source);
    server.kill('SIGKILL');
    await server.child.ended;
    const calls: Readonly<Record<string, () => Promise<unknown>>> = {
      get: () => client.get('value'),
      getInto: () => client.getInto('value', sink),
      put: () => client.put('value', 'small'),
      'large put': () => client.put('value', source),
      delete: () => client.delete('value'),
      exists: () => client.exists('value'),
      stat: () => client.stat('value'),
      ping: () => client.ping(),
    };
    await Promise.all(
      Object.entries(calls).map(async ([name, call]) => {
        const startedAtMs = performance.now();
        const error = await rejection(call());
        const ms = performance.now() - startedAtMs;
        assert.ok(ms <= 1000 + SETTLE_SLACK_MS, `${name} took ${ms} ms`);
        assert.ok(
          ['ERR_FABRICKV_CONNECTION_LOST', 'ERR_FABRICKV_DEADLINE'].includes(error.code),
          `${name}: ${error.code}`,
        );
        assert.equal(error.peer, server.addr, name);
        assert.ok(error.stage !== undefined && error.remedy !== '', name);
        if (['put', 'large put', 'delete'].includes(name)) assert.equal(error.outcome, 'not-applied', name);
      }),
    );
  });

  test('close ends what is in flight with ERR_FABRICKV_CLOSED, and the server forgets the client', async () => {
    await using server = await startServer({ args: ['--memory', '256MiB'] });
    const client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    await client.put('value', makeValue(64 * MIB, 1));
    const pending = [
      client.get('value'),
      client.put('other', makeValue(64 * MIB, 2)),
      client.ping(),
      client.delete('x'),
    ];
    const settled = Promise.allSettled(pending);
    await Promise.all([client.close(), client.close()]);
    for (const outcome of await settled) {
      if (outcome.status === 'rejected') assert.equal((outcome.reason as FabricKvError).code, 'ERR_FABRICKV_CLOSED');
    }
    assert.equal(client.connection.state, 'closed');
    assert.equal((await rejection(client.get('value'))).code, 'ERR_FABRICKV_CLOSED');
    await waitFor(async () => (await server.counters())['sessions'] === 1, { what: 'the session to end' });
    const counters = await server.counters();
    assert.deepEqual([counters['operationsInFlight'], counters['windowsOpen']], [0, 0]);
  });
});
