import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL, SETTLE_SLACK_MS } from '../support/mode.js';
import { crc32cOf, makeValue, randomFrom, testSeed } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;
const LENGTH = FULL ? 32 * MIB : 16 * MIB;
const ROUNDS = FULL ? 500 : 30;
const MARK = 0xee;

describe('I3: memory of a GET or PUT that was given up', () => {
  test('aborted at any point, a sink is either quarantined or quiet: no late byte shows', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    const value = makeValue(LENGTH, 5);
    const other = makeValue(LENGTH, 6);
    const marked = Buffer.alloc(LENGTH, MARK);
    await client.put('value', value);
    await client.put('other', other);
    const region = await client.allocate(LENGTH);
    // How long one takes here, so that the points are spread over the whole of it.
    const startedAtMs = performance.now();
    for (let count = 0; count < 3; count++) await client.getInto('value', region);
    const usualMs = (performance.now() - startedAtMs) / 3;

    const outcomes = new Map<string, number>();
    const count = (outcome: string): void => void outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    for (let round = 0; round < ROUNDS; round++) {
      const controller = new AbortController();
      const useDeadline = random() < 0.3;
      const afterMs = 0.1 + random() * usualMs * 1.2;
      const began = performance.now();
      const into = client.getInto(
        'value',
        region,
        useDeadline ? { timeoutMs: afterMs } : { signal: controller.signal },
      );
      const pooled = client.get('value', { signal: controller.signal });
      let intoMs = 0;
      const settled = Promise.allSettled([
        into.finally(() => {
          intoMs = performance.now() - began;
        }),
        pooled,
      ]);
      if (!useDeadline) {
        await sleep(afterMs);
        controller.abort();
      }
      const [intoEnded, pooledEnded] = await settled;
      if (useDeadline) assert.ok(intoMs <= afterMs + SETTLE_SLACK_MS, `it settled ${intoMs - afterMs} ms late (I1)`);
      if (intoEnded.status === 'fulfilled') {
        count('done');
        assert.ok(region.buffer.equals(value));
      } else {
        const { code } = intoEnded.reason as FabricKvError;
        count(code);
        assert.ok(['ERR_FABRICKV_CANCELLED', 'ERR_FABRICKV_DEADLINE'].includes(code), String(intoEnded.reason));
      }
      if (pooledEnded.status === 'fulfilled') pooledEnded.value?.release();

      await waitFor(() => !region.busy, { what: 'the region to be quiet', intervalMs: 1 });
      region.buffer.fill(MARK);
      // Something that takes the same way: what is late would arrive before it has ended.
      const next = await client.get('other', { verify: true });
      assert.ok(next?.bytes.equals(other), 'a result has bytes of an earlier GET');
      next?.release();
      assert.ok(region.buffer.equals(marked), `round ${round}: late bytes in a quiet region`);
    }
    t.diagnostic(`${ROUNDS} rounds: ${[...outcomes].map(([outcome, times]) => `${outcome} ${times}`).join(', ')}`);
    await waitFor(() => client.counters().quarantinedBytes === 0, { what: "the client's quarantine to drain" });
  });

  test('a PUT that is aborted at any point is there wholly or not at all', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    await using reader = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    const source = await client.allocate(LENGTH);
    let current = makeValue(LENGTH, 1);
    current.copy(source.buffer);
    const startedAtMs = performance.now();
    let { version } = await client.put('value', source);
    const usualMs = performance.now() - startedAtMs;
    const outcomes = new Map<string, number>();
    for (let round = 0; round < ROUNDS; round++) {
      const next = makeValue(LENGTH, 1000 + round);
      const isInline = random() < 0.25;
      const controller = new AbortController();
      next.copy(source.buffer);
      const putting = client.put('value', source, {
        signal: controller.signal,
        ...(isInline ? { inlineThreshold: Number.POSITIVE_INFINITY } : {}),
      });
      const settled = Promise.allSettled([putting]);
      await sleep(random() * usualMs * (isInline ? 3 : 1.2));
      controller.abort();
      const [ended] = await settled;
      let outcome = 'done';
      if (ended.status === 'rejected') {
        assert.ok(ended.reason instanceof FabricKvError && ended.reason.code === 'ERR_FABRICKV_CANCELLED');
        outcome = String(ended.reason.outcome);
        assert.ok(outcome === 'not-applied' || outcome === 'unknown');
      }
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      // What the server still does with a commit that was sent, it has done when nothing of this client is in flight.
      await waitFor(async () => (await reader.ping()).counters['operationsInFlight'] === 0, { what: 'the PUT to end' });
      const seen = await reader.get('value', { verify: true });
      assert.ok(seen !== undefined);
      if (outcome === 'done') assert.ok(seen.bytes.equals(next));
      else if (outcome === 'not-applied') assert.equal(seen.version, version);
      if (seen.version === version) {
        assert.ok(seen.bytes.equals(current), 'the old version has changed');
      } else {
        assert.ok(seen.bytes.equals(next), `round ${round}: a mixture, CRC ${crc32cOf(seen.bytes)}`);
        current = next;
        ({ version } = seen);
      }
      seen.release();
      await waitFor(() => !source.busy, { what: 'the source to be quiet', intervalMs: 1 });
    }
    t.diagnostic(`${ROUNDS} rounds: ${[...outcomes].map(([outcome, times]) => `${outcome} ${times}`).join(', ')}`);
    const counters = await countersWhen(
      async () => (await reader.ping()).counters,
      (now) => isQuiet(now, 2),
      { what: 'the quarantine to drain' },
    );
    assert.deepEqual([counters['memoryUsedBytes'], counters['windowsOpen']], [LENGTH, 0]);
  });
});
