import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { spawnClient, startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { inTheMiddle } from '../support/in-the-middle.js';
import { memoryLog } from '../support/memory-log.js';
import { FULL, PROCESS_SLACK_MS, SETTLE_SLACK_MS } from '../support/mode.js';
import { storeLarge } from '../support/store-large.js';
import { makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;
const LENGTH = 256 * MIB;
const MIDDLE_TIMEOUT_MS = 1500;
const TIMEOUTS_MS = FULL ? [50, 300, 1500, 5000] : [50, 1500];

/** What became of a call, and when. */
interface Settled {
  readonly name: string;
  readonly ms: number;
  readonly error: FabricKvError | undefined;
}

async function settle(name: string, call: () => Promise<unknown>): Promise<Settled> {
  const startedAtMs = performance.now();
  const [outcome] = await Promise.allSettled([call()]);
  const ms = performance.now() - startedAtMs;
  if (outcome.status === 'fulfilled') return { name, ms, error: undefined };
  assert.ok(outcome.reason instanceof FabricKvError, `${name}: ${String(outcome.reason)}`);
  return { name, ms, error: outcome.reason };
}

describe('I1: the server is stopped (SIGSTOP)', () => {
  test('every call ends by its deadline, and all works again when the server goes on', async () => {
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    const value = makeValue(8 * MIB, 1);
    await client.put('large', value);
    await client.put('small', 'small');
    const regions = await Promise.all([client.allocate(8 * MIB), client.allocate(8 * MIB)]);
    const [source, sink] = regions;
    value.copy(source.buffer);
    for (const timeoutMs of TIMEOUTS_MS) {
      server.kill('SIGSTOP');
      const options = { timeoutMs };
      const results = await Promise.all([
        settle('get small', () => client.get('small', options)),
        settle('get large', () => client.get('large', options)),
        settle('get inline', () => client.get('large', { ...options, inlineThreshold: Number.POSITIVE_INFINITY })),
        settle('getInto', () => client.getInto('large', sink, options)),
        settle('put small', () => client.put('put small', 'x', options)),
        settle('put large', () => client.put('put large', value, options)),
        settle('put inline', () =>
          client.put('put inline', value, { ...options, inlineThreshold: Number.POSITIVE_INFINITY }),
        ),
        settle('put region', () => client.put('put region', source, options)),
        settle('delete', () => client.delete('never stored', options)),
        settle('exists', () => client.exists('small', options)),
        settle('stat', () => client.stat('small', options)),
        settle('ping', () => client.ping(options)),
      ]);
      for (const { name, ms, error } of results) {
        assert.equal(error?.code, 'ERR_FABRICKV_DEADLINE', name);
        assert.ok(ms >= timeoutMs - 5 && ms <= timeoutMs + SETTLE_SLACK_MS, `${name} took ${ms} of ${timeoutMs} ms`);
        assert.equal(error.peer, server.addr, name);
        assert.ok(error.stage !== undefined && error.requestId !== undefined, name);
        const isMutation = name.startsWith('put') || name === 'delete';
        assert.equal(error.outcome !== undefined, isMutation, `${name}: outcome ${error.outcome}`);
        // Nothing but a grant had been asked for, so nothing can have been applied.
        if (['put large', 'put inline', 'put region'].includes(name)) assert.equal(error.outcome, 'not-applied', name);
      }
      server.kill('SIGCONT');
      await waitFor(() => !sink.busy && !source.busy, { what: 'the regions to be quiet' });
      const got = await client.get('large', { verify: true });
      assert.deepEqual([got?.path, got?.bytes.equals(value)], ['rdma', true]);
      got?.release();
      assert.equal((await client.getInto('large', sink, { verify: true }))?.path, 'rdma');
      assert.ok(sink.buffer.equals(value));
      assert.equal((await client.put('put region', source)).path, 'rdma');
      assert.equal(await client.exists('put large'), false, 'a PUT that failed not-applied is there');
    }
    assert.equal(client.connection.reconnects, 0);
    await waitFor(() => client.counters().quarantinedBytes === 0, { what: "the client's quarantine to drain" });
  });

  test('in the middle of a large get', () =>
    inTheMiddle(async () => {
      await using server = await startServer({ args: ['--memory', '272MiB'] });
      await storeLarge(server.addr, 'value', LENGTH);
      const { logger, records } = memoryLog();
      await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', logger });
      const region = await client.allocate(LENGTH);
      const call = settle('get', () => client.getInto('value', region, { timeoutMs: MIDDLE_TIMEOUT_MS }));
      await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
      server.kill('SIGSTOP');
      const { ms, error } = await call;
      if (error === undefined) return false;
      assert.equal(error.code, 'ERR_FABRICKV_DEADLINE');
      assert.ok(ms <= MIDDLE_TIMEOUT_MS + SETTLE_SLACK_MS, `it took ${ms} of ${MIDDLE_TIMEOUT_MS} ms`);
      assert.equal(error.stage, 'get.request.sent');
      assert.ok(region.busy, 'the server may still write: the region must be busy');
      server.kill('SIGCONT');
      await region.quiesced();
      assert.ok(
        records.some(({ stage }) => stage === 'get.quarantined'),
        'the quarantine is a stage',
      );
      // What the region holds now stays: nothing of the old GET arrives any more.
      region.buffer.fill(0xee);
      const got = await client.get('value', { verify: true });
      assert.equal(got?.length, LENGTH);
      got?.release();
      assert.ok(region.buffer.equals(Buffer.alloc(LENGTH, 0xee)), 'late bytes in a quiet region');
      await countersWhen(async () => (await client.ping()).counters, isQuiet, { what: 'the server to be quiet' });
      return true;
    }));

  test('in the middle of a large put', async () => {
    await using server = await startServer({ args: ['--memory', '272MiB'] });
    const { logger } = memoryLog(({ stage }) => {
      if (stage === 'put.write.submitted') server.kill('SIGSTOP');
    });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', logger });
    const region = await client.allocate(LENGTH);
    const { ms, error } = await settle('put', () => client.put('value', region, { timeoutMs: MIDDLE_TIMEOUT_MS }));
    assert.equal(error?.code, 'ERR_FABRICKV_DEADLINE');
    assert.ok(ms <= MIDDLE_TIMEOUT_MS + SETTLE_SLACK_MS, `it took ${ms} of ${MIDDLE_TIMEOUT_MS} ms`);
    assert.equal(error.stage, 'put.write.submitted');
    assert.equal(error.outcome, 'not-applied');
    server.kill('SIGCONT');
    await region.quiesced();
    assert.equal(await client.exists('value'), false);
    await countersWhen(async () => (await client.ping()).counters, isQuiet, {
      what: "the server's quarantine to drain",
    });
  });

  test('kv-client ends by its deadline with 6, or with 3 where it cannot even connect', () =>
    inTheMiddle(async () => {
      await using server = await startServer({ args: ['--memory', '272MiB'] });
      await storeLarge(server.addr, 'value', LENGTH);
      const timeoutMs = 1500;
      const common = ['--server-addr', server.addr, '--timeout', `${timeoutMs}ms`, '--json'];
      const client = spawnClient([...common, 'get', 'value', '--out', '/dev/null']);
      await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
      server.kill('SIGSTOP');
      const [midway, connecting] = await Promise.all([
        client.waitForEnd(timeoutMs * 10),
        spawnClient([...common, 'get', 'value']).waitForEnd(timeoutMs * 10),
      ]);
      if (midway.code === 0) return false;
      assert.equal(midway.code, 6, midway.stderr);
      assert.equal(connecting.code, 3, connecting.stderr);
      for (const { ms, stderr } of [midway, connecting]) {
        assert.ok(ms <= timeoutMs + SETTLE_SLACK_MS + PROCESS_SLACK_MS, `it took ${ms} ms`);
        const { error } = JSON.parse(stderr) as { error: Record<string, unknown> };
        assert.equal(error['peer'], server.addr);
      }
      return true;
    }));
});
