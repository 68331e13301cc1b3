import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { type BatchResult, KvClient, type PutEntry, releaseAll } from '../../src/index.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { crc32cOf, makeValue } from '../support/values.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** What must all have succeeded. */
function valuesOf<T>(results: readonly BatchResult<T>[]): T[] {
  return results.map((result, index) => {
    if (result.status === 'rejected') throw new Error(`index ${index} failed`, { cause: result.reason });
    return result.value;
  });
}

describe('batches, with the server in another process', () => {
  let server: TestServer;
  let client: KvClient;

  before(async () => {
    server = await startServer({ args: ['--memory', '256MiB', '--max-value', '8MiB', '--log-level', 'info'] });
    client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 16 * MIB });
  });
  after(async () => {
    await client?.close();
    await server?.[Symbol.asyncDispose]();
  });

  test('values of every size and both paths come back as they were, in the order of the keys', async () => {
    const lengths = [0, 1, 5 * MIB, 100, 64 * KIB + 1, 16 * KIB, MIB + 7, 300 * KIB, 3];
    const values = lengths.map((length, index) => makeValue(length, index + 1));
    const entries = values.map((value, index): PutEntry => [`size-${index}`, value]);
    const keys = entries.map(([key]) => key);
    const stored = valuesOf(await client.mput(entries));
    assert.deepEqual(
      stored.map(({ length, crc32c }) => [length, crc32c]),
      values.map((value) => [value.length, crc32cOf(value)]),
    );
    const reversed = keys.toReversed();
    const results = await client.mget([...reversed, 'never stored', ...keys], { verify: true });
    const got = valuesOf(results);
    assert.equal(got[keys.length], undefined);
    for (const [index, value] of [...values.toReversed(), undefined, ...values].entries()) {
      assert.equal(got[index]?.bytes.equals(value ?? Buffer.alloc(0)), value === undefined ? undefined : true);
    }
    assert.deepEqual(new Set(got.map((value) => value?.path)), new Set(['rdma', 'inline', undefined]));
    assert.ok(client.counters().lentBytes > 0);
    releaseAll(results);
    assert.equal(client.counters().lentBytes, 0);
    assert.deepEqual(valuesOf(await client.mexists(['never stored', ...keys])), [false, ...keys.map(() => true)]);
    assert.deepEqual(valuesOf(await client.mdelete([...keys, 'never stored'])), [...keys.map(() => true), false]);
    assert.deepEqual(
      valuesOf(await client.mexists(keys)),
      keys.map(() => false),
    );
  });

  test('namespace, inlineThreshold and checksum are those of each key', async () => {
    const namespace = 7;
    const value = makeValue(MIB, 1);
    const entries = Object.entries({ a: value, b: value });
    const byRdma = valuesOf(await client.mput(entries, { namespace, checksum: false }));
    assert.deepEqual(
      byRdma.map(({ path, crc32c }) => [path, crc32c]),
      [
        ['rdma', undefined],
        ['rdma', undefined],
      ],
    );
    const inline = await client.mget(['a', 'b'], { namespace, inlineThreshold: Number.POSITIVE_INFINITY });
    assert.deepEqual(
      valuesOf(inline).map((got) => [got?.path, got?.bytes.equals(value)]),
      [
        ['inline', true],
        ['inline', true],
      ],
    );
    assert.deepEqual(valuesOf(await client.mexists(['a', 'b'])), [false, false]);
    assert.deepEqual(valuesOf(await client.mdelete(['a', 'b'])), [false, false]);
    assert.deepEqual(valuesOf(await client.mdelete(['a', 'b'], { namespace })), [true, true]);
  });

  test("one key's failure leaves the others alone", async () => {
    const value = makeValue(100 * KIB, 3);
    const results = await client.mput([
      ['first', value],
      ['too large', Buffer.alloc(8 * MIB + 1)],
      ['last', value],
    ]);
    assert.deepEqual(
      results.map((result) => (result.status === 'fulfilled' ? result.value.length : result.reason.code)),
      [value.length, 'ERR_FABRICKV_VALUE_TOO_LARGE', value.length],
    );
    assert.ok(results[1]?.status === 'rejected');
    assert.equal(results[1].reason.outcome, 'not-applied');
    assert.deepEqual(valuesOf(await client.mdelete(['first', 'too large', 'last'])), [true, false, true]);
  });

  test('far more keys than may be in flight and wait, from several batches at a time', async () => {
    await using narrow = await KvClient.connect({
      serverAddr: server.addr,
      provider: 'tcp',
      maxInFlight: 8,
      maxWaiting: 2,
    });
    const groups = ['a', 'b', 'c'].map((name) => Array.from({ length: 1000 }, (_, index) => `${name}-${index}`));
    await Promise.all(
      groups.map(async (keys) => {
        valuesOf(await narrow.mput(keys.map((key) => [key, `value of ${key}`])));
        const got = valuesOf(await narrow.mget(keys));
        assert.deepEqual(
          got.map((value) => value?.bytes.toString()),
          keys.map((key) => `value of ${key}`),
        );
        assert.ok(valuesOf(await narrow.mdelete(keys)).every((deleted) => deleted));
      }),
    );
  });

  test('values beyond the receive memory are all there, the last ones as copies', async () => {
    const values = Array.from({ length: 40 }, (_, index) => makeValue(MIB, index + 1));
    const keys = values.map((_, index) => `many-${index}`);
    valuesOf(await client.mput(values.map((value, index): PutEntry => [keys[index] ?? '', value])));
    const before = client.counters();
    const results = await client.mget(keys);
    const after = client.counters();
    for (const [index, got] of valuesOf(results).entries()) {
      assert.equal(got?.path, 'rdma');
      assert.ok(got.bytes.equals(values[index] ?? Buffer.alloc(0)), `value ${index}`);
    }
    const copied = after.bytesCopied - before.bytesCopied;
    assert.ok(after.lentBytes > 0 && after.lentBytes <= 16 * MIB, `${after.lentBytes} bytes are lent`);
    assert.ok(copied > 0 && copied + after.lentBytes >= 40 * MIB, `${copied} bytes were copied`);
    releaseAll(results);
    assert.equal(client.counters().lentBytes, 0);
    valuesOf(await client.mdelete(keys));
  });

  test('an abort in the middle leaves nothing behind on either side', async () => {
    const value = makeValue(MIB, 5);
    const keys = Array.from({ length: 24 }, (_, index) => `aborted-${index}`);
    const controller = new AbortController();
    const { signal } = controller;
    const first = client.put('first', value);
    const results = client.mput(
      keys.map((key) => [key, value] as const),
      { signal },
    );
    await first;
    controller.abort();
    for (const [index, result] of (await results).entries()) {
      if (result.status === 'fulfilled') continue;
      const { code, outcome } = result.reason;
      assert.equal(code, 'ERR_FABRICKV_CANCELLED');
      if (outcome === 'not-applied') assert.equal(await client.exists(keys[index] ?? ''), false);
    }
    const counters = await countersWhen(
      async () => {
        // Again, because what was cancelled with an unknown outcome may be published after it was deleted.
        valuesOf(await client.mdelete(['first', ...keys]));
        return (await client.ping()).counters;
      },
      (now) => isQuiet(now) && now['keys'] === 0,
      { what: 'the quarantine to drain' },
    );
    assert.equal(counters['memoryUsedBytes'], 0);
    assert.equal(client.counters().quarantinedBytes, 0);
    assert.deepEqual(client.operations(), []);
  });
});
