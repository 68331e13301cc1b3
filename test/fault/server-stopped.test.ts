import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { spawnClient, startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { memoryLog } from '../support/memory-log.js';
import { FULL, PROCESS_SLACK_MS, SETTLE_SLACK_MS } from '../support/mode.js';
import { makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;
const LENGTH = 256 * MIB;
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

  for (const [op, stage, prepare] of [
    ['get', 'get.write.submitted', true],
    ['put', 'put.granted', false],
  ] as const) {
    test(`in the middle of a large ${op}`, async () => {
      await using server = await startServer({ args: ['--memory', '544MiB'] });
      const { logger, records } = memoryLog();
      await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', logger });
      const region = await client.allocate(LENGTH);
      const value = makeValue(LENGTH, 1);
      value.copy(region.buffer);
      if (prepare) {
        await client.put('value', region);
        region.buffer.fill(0);
      }
      const timeoutMs = 1500;
      const call = settle(op, () =>
        op === 'get' ? client.getInto('value', region, { timeoutMs }) : client.put('value', region, { timeoutMs }),
      );
      await server.waitForRecord((record) => record.stage === stage);
      server.kill('SIGSTOP');
      const { ms, error } = await call;
      assert.equal(error?.code, 'ERR_FABRICKV_DEADLINE');
      assert.ok(ms <= timeoutMs + SETTLE_SLACK_MS, `it took ${ms} of ${timeoutMs} ms`);
      assert.equal(error.stage, op === 'get' ? 'get.request.sent' : 'put.write.submitted');
      if (op === 'put') assert.equal(error.outcome, 'not-applied');
      if (op === 'get') assert.ok(region.busy, 'the server may still write: the region must be busy');
      server.kill('SIGCONT');
      await region.quiesced();
      if (op === 'get')
        assert.ok(
          records.some((record) => record.stage === 'get.quarantined'),
          'the quarantine is a stage',
        );
      // What the region holds now stays: nothing of the old GET arrives any more.
      region.buffer.fill(0xee);
      const marked = Buffer.alloc(LENGTH, 0xee);
      if (op === 'get') {
        const got = await client.get('value', { verify: true });
        assert.ok(got?.bytes.equals(value));
        got?.release();
      } else {
        assert.equal(await client.exists('value'), false);
      }
      assert.ok(region.buffer.equals(marked), 'late bytes in a quiet region');
      await countersWhen(async () => (await client.ping()).counters, isQuiet, {
        what: "the server's quarantine to drain",
      });
    });
  }

  test('kv-client ends by its deadline with 6, or with 3 where it cannot even connect', async () => {
    await using server = await startServer({ args: ['--memory', '288MiB'] });
    const put = await server.client(['put', 'value', '-'], { stdin: makeValue(LENGTH, 1) });
    assert.equal(put.code, 0, put.stderr);
    const timeoutMs = 1500;
    const common = ['--server-addr', server.addr, '--timeout', `${timeoutMs}ms`, '--json'];
    const client = spawnClient([...common, 'get', 'value', '--out', '/dev/null']);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    server.kill('SIGSTOP');
    const [midway, connecting] = await Promise.all([
      client.waitForEnd(timeoutMs * 5),
      spawnClient([...common, 'get', 'value']).waitForEnd(timeoutMs * 5),
    ]);
    assert.equal(midway.code, 6, midway.stderr);
    assert.equal(connecting.code, 3, connecting.stderr);
    for (const { ms, stderr } of [midway, connecting]) {
      assert.ok(ms <= timeoutMs + SETTLE_SLACK_MS + PROCESS_SLACK_MS, `it took ${ms} ms`);
      const { error } = JSON.parse(stderr) as { error: Record<string, unknown> };
      assert.equal(error['peer'], server.addr);
    }
  });
});
