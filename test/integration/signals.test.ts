import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import { Client, credentials } from '@grpc/grpc-js';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { spawnClient, startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { memoryLog } from '../support/memory-log.js';
import { FULL, PROCESS_SLACK_MS } from '../support/mode.js';
import { makeZeros, storeLarge } from '../support/store-large.js';
import { tempDir } from '../support/temp-dir.js';
import { makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;
const LENGTH = 256 * MIB;

/** What a gRPC health watcher sees, from whatever language: the statuses as they come. */
class HealthWatch implements Disposable {
  readonly statuses: string[] = [];
  ended = false;
  private readonly client: Client;

  constructor(addr: string) {
    this.client = new Client(addr, credentials.createInsecure());
    const call = this.client.makeServerStreamRequest(
      '/grpc.health.v1.Health/Watch',
      (request: Buffer) => request,
      (answer) => answer,
      Buffer.alloc(0),
    );
    // HealthCheckResponse: field 1 is the status, and 0 is not written.
    call.on('data', (answer: Buffer) =>
      this.statuses.push(['UNKNOWN', 'SERVING', 'NOT_SERVING'][answer[1] ?? 0] ?? '?'),
    );
    call.on('error', () => {
      this.ended = true;
    });
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}

describe('a server that is asked to stop', () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(`${signal} while it is idle: NOT_SERVING, GoAway, exit code 0`, async () => {
      await using server = await startServer({ args: ['--log-level', 'info'] });
      using health = new HealthWatch(server.addr);
      const { logger, records } = memoryLog();
      await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', logger });
      await client.put('value', makeValue(MIB, 1));
      await waitFor(() => health.statuses.length > 0, { what: 'the first health status' });
      const ended = await server.stop(signal, 5000);
      assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
      assert.ok(ended.stderr.includes('Stopped'));
      assert.deepEqual(health.statuses, ['SERVING', 'NOT_SERVING']);
      assert.ok(
        records.some(({ msg, reason }) => /stop|go(ing)? ?away/i.test(`${msg} ${String(reason)}`)),
        `the client saw no GoAway: ${JSON.stringify(records.slice(-5))}`,
      );
      await waitFor(() => client.connection.state !== 'open', { what: 'the client to notice' });
    });
  }

  test('in the middle of transfers: they end well, new ones are not begun, exit code 0', async () => {
    await using server = await startServer({ args: ['--memory', '544MiB'] });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: 5000 });
    const source = await client.allocate(LENGTH);
    const sink = await client.allocate(LENGTH);
    makeValue(LENGTH, 1).copy(source.buffer);
    await client.put('value', source);
    const getting = client.getInto('value', sink, { verify: true });
    const putting = client.put('other', source);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    await server.waitForRecord(({ stage, key }) => stage === 'put.granted' && key === 'other');
    server.kill('SIGTERM');
    await server.waitForRecord(({ msg }) => msg === 'Stopping');
    const late = client.get('value', { timeoutMs: 1000 });
    const [got, put, refused] = await Promise.allSettled([getting, putting, late]);
    assert.ok(
      got.status === 'fulfilled' && got.value?.path === 'rdma',
      String(got.status === 'rejected' && got.reason),
    );
    assert.ok(sink.buffer.equals(source.buffer));
    assert.ok(put.status === 'fulfilled', String(put.status === 'rejected' && put.reason));
    assert.ok(refused.status === 'rejected' && refused.reason instanceof FabricKvError);
    const ended = await server.child.waitForEnd(5000);
    assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
  });

  test('with a client that is frozen in a transfer: --drain bounds it, exit code 0', async () => {
    await using server = await startServer({ args: ['--memory', '272MiB', '--drain', '500ms'] });
    await storeLarge(server.addr, 'value', LENGTH);
    await using client = spawnClient(['--server-addr', server.addr, 'get', 'value', '--out', '/dev/null']);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    client.kill('SIGSTOP');
    const ended = await server.stop('SIGTERM', 500 + 3000 + PROCESS_SLACK_MS);
    assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
  });

  test('a second signal ends it at once', async () => {
    await using server = await startServer({ args: ['--memory', '272MiB', '--drain', '1m'] });
    await storeLarge(server.addr, 'value', LENGTH);
    await using client = spawnClient(['--server-addr', server.addr, 'get', 'value', '--out', '/dev/null']);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    client.kill('SIGSTOP');
    server.kill('SIGINT');
    await server.waitForRecord(({ msg }) => msg === 'Stopping');
    server.kill('SIGINT');
    const ended = await server.child.waitForEnd(3000);
    assert.deepEqual([ended.code, ended.signal], [130, null], ended.stderr);
  });

  test('while it starts', async () => {
    await using server = await startServer({ args: ['--memory', '64MiB'] });
    // At the very moment that it is ready; at any earlier one there is nobody to stop.
    const ended = await server.stop('SIGINT', 5000);
    assert.equal(ended.code, 0, ended.stderr);
  });
});

describe('Ctrl-C on kv-client, with libfabric loaded', () => {
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    test(`${signal} while it waits for its input`, async () => {
      await using server = await startServer();
      await using client = spawnClient(['--server-addr', server.addr, '--provider', 'tcp', 'put', 'key', '-'], {
        stdin: 'open',
      });
      await server.waitForRecord(({ msg }) => msg === 'Session opened');
      client.kill(signal);
      const ended = await client.waitForEnd(5000);
      assert.deepEqual([ended.code, ended.signal], [code, null], ended.stderr);
      await waitFor(async () => (await server.counters())['sessions'] === 1, { what: 'the session to end' });
      assert.equal((await server.client(['exists', 'key'])).code, 1);
    });

    const skip = FULL || signal === 'SIGINT' ? false : 'as SIGINT: FABRICKV_TEST_FULL=1 runs it';
    test(`${signal} in the middle of a GET and of a PUT whose server is frozen`, { skip }, async () => {
      await using dir = await tempDir();
      await using server = await startServer({ args: ['--memory', '544MiB'] });
      await storeLarge(server.addr, 'value', LENGTH);
      const common = ['--server-addr', server.addr, '--log-level', 'debug', '--log-format', 'json'];
      await makeZeros(dir.file('in'), LENGTH);
      await using putter = spawnClient([...common, 'put', 'other', '--file', dir.file('in')]);
      await putter.waitForRecord(({ stage }) => stage === 'put.write.submitted');
      server.kill('SIGSTOP');
      putter.kill(signal);
      const putEnded = await putter.waitForEnd(5000);
      assert.deepEqual([putEnded.code, putEnded.signal], [code, null], putEnded.stderr);
      server.kill('SIGCONT');

      await using getter = spawnClient([...common, 'get', 'value', '--out', dir.file('out')]);
      await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
      server.kill('SIGSTOP');
      getter.kill(signal);
      const getEnded = await getter.waitForEnd(5000);
      assert.deepEqual([getEnded.code, getEnded.signal], [code, null], getEnded.stderr);
      assert.ok(!existsSync(dir.file('out')));
      server.kill('SIGCONT');
      await countersWhen(() => server.counters(), isQuiet, { what: 'the sessions and what they held to end' });
      const counters = await server.counters();
      assert.deepEqual([counters['keys'], counters['memoryUsedBytes']], [1, LENGTH]);
    });
  }
});
