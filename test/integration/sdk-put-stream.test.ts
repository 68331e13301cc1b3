import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { FabricKvError, KvClient } from '../../src/index.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { TcpProxy } from '../support/tcp-proxy.js';
import { crc32cOf, makeValue, randomFrom, testSeed } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** The bytes in pieces of the given lengths, over and over. */
async function* pieces(value: Buffer, lengths: readonly number[]): AsyncGenerator<Buffer> {
  for (let from = 0, i = 0; from < value.length; i++) {
    await Promise.resolve();
    const length = lengths[i % lengths.length] ?? 1;
    yield value.subarray(from, from + length);
    from += length;
  }
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

describe('putStream, with the server in another process', () => {
  let server: TestServer;
  let client: KvClient;
  let inline: KvClient;

  before(async () => {
    server = await startServer({ args: ['--memory', '512MiB', '--max-value', '200MiB', '--log-level', 'info'] });
    client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 16 * MIB });
    inline = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
  });
  after(async () => {
    await client?.close();
    await inline?.close();
    await server?.[Symbol.asyncDispose]();
  });

  async function assertStored(key: string, value: Buffer): Promise<void> {
    const got = await client.get(key, { verify: true, inlineThreshold: 0 });
    assert.ok(got?.bytes.equals(value), `${key}: ${got?.length} of ${value.length} bytes, or others`);
    got?.release();
  }

  test('streams of all lengths and piece sizes, with a length and without, by both paths', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    const lengths = [0, 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 5 * MIB + 3, 17 * MIB + 1];
    for (const length of lengths) {
      for (const known of [true, false]) {
        for (const sender of [client, inline]) {
          const value = makeValue(length, length + 1);
          const sizes = Array.from({ length: 5 }, () => 1 + Math.floor(random() * (length < MIB ? 3000 : 700_000)));
          const stored = await sender.putStream('stream', pieces(value, sizes), known ? { length } : {});
          const expected = sender === client && length > 32 * KIB ? 'rdma' : 'inline';
          assert.deepEqual(
            [stored.length, stored.crc32c, stored.path],
            [length, crc32cOf(value), expected],
            `${length} bytes, ${known ? 'known' : 'unknown'} length, pieces of ${sizes.join(', ')}`,
          );
          await assertStored('stream', value);
        }
      }
    }
  });

  test('a Readable, a web stream and a function are sources too', async () => {
    const value = makeValue(3 * MIB + 7, 2);
    await client.putStream('readable', Readable.from(pieces(value, [65_536])));
    await assertStored('readable', value);
    await client.putStream('web', new Blob([value]).stream(), { length: value.length });
    await assertStored('web', value);
    await client.putStream('function', () => pieces(value, [100_000]));
    await assertStored('function', value);
  });

  test('one that is many times the receive memory is sent in constant memory', async () => {
    const length = 160 * MIB;
    const block = makeValue(MIB, 7);
    const before = client.counters();
    let given = 0;
    let aheadMax = 0;
    const source = (async function* (): AsyncGenerator<Buffer> {
      for (; given < length; given += block.length) {
        await Promise.resolve();
        aheadMax = Math.max(aheadMax, 16 * MIB - client.counters().freeBytes);
        yield block;
      }
    })();
    const stored = await client.putStream('huge', source, { timeoutMs: 60_000 });
    assert.deepEqual([stored.length, stored.path], [length, 'rdma']);
    assert.ok(aheadMax <= 6 * MIB, `${aheadMax} bytes of receive memory were in use`);
    assert.equal(client.counters().freeBytes, before.freeBytes);
    assert.equal(await client.delete('huge'), true);
  });

  test('without a checksum none is computed', async () => {
    const value = makeValue(2 * MIB + 1, 3);
    for (const options of [{}, { length: value.length }]) {
      const stored = await client.putStream('unchecked', pieces(value, [300_000]), { ...options, checksum: false });
      assert.equal(stored.crc32c, undefined);
      await assertStored('unchecked', value);
    }
  });

  test('a source that fails, is too short, too long or not of bytes leaves the old value, and is closed', async () => {
    const old = makeValue(100_000, 4);
    await client.put('old', old);
    const value = makeValue(3 * MIB, 5);
    const broken = new Error('the disk is gone');
    async function* failing(): AsyncGenerator<Buffer> {
      yield* pieces(value, [400_000]);
      throw broken;
    }
    for (const sender of [client, inline]) {
      const failed = await rejection(sender.putStream('old', failing(), { length: 4 * MIB }));
      assert.deepEqual([failed.code, failed.outcome, failed.cause], ['ERR_FABRICKV_SOURCE', 'not-applied', broken]);
      assert.match(failed.message, /the disk is gone/);
      for (const [length, pattern] of [
        [value.length + 1, /ended after 3145728 of the 3145729 bytes/],
        [value.length - 1, /more than the 3145727 bytes/],
        [10, /more than the 10 bytes/],
      ] as const) {
        const readable = Readable.from(pieces(value, [400_000]));
        const error = await rejection(sender.putStream('old', readable, { length }));
        assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_INVALID_ARGUMENT', 'not-applied']);
        assert.match(error.message, pattern);
        await waitFor(() => readable.destroyed, { what: 'the source to be destroyed' });
      }
      const words = await rejection(sender.putStream('old', Readable.from(['text']) as AsyncIterable<never>));
      assert.match(words.message, /gave a string/);
      await assertStored('old', old);
    }
  });

  test('an endless source ends with the longest value that the server takes', async () => {
    const block = makeValue(MIB, 6);
    let closed = false;
    async function* endless(): AsyncGenerator<Buffer> {
      try {
        for (;;) {
          await Promise.resolve();
          yield block;
        }
      } finally {
        closed = true;
      }
    }
    const error = await rejection(client.putStream('endless', endless(), { timeoutMs: 60_000 }));
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_VALUE_TOO_LARGE', 'not-applied']);
    await waitFor(() => closed, { what: 'the generator to be closed' });
    const announced = await rejection(client.putStream('endless', endless(), { length: 201 * MIB }));
    assert.equal(announced.code, 'ERR_FABRICKV_VALUE_TOO_LARGE');
    assert.equal(await client.exists('endless'), false);
    const inlineError = await rejection(inline.putStream('endless', endless()));
    assert.equal(inlineError.code, 'ERR_FABRICKV_INVALID_ARGUMENT');
    assert.match(inlineError.message, /needs its length given/);
  });

  test('an abort ends it while the source says nothing, for which it waits beyond its time', async () => {
    for (const sender of [client, inline]) {
      for (const first of [0, 3 * MIB]) {
        const readable = new Readable({ read: () => undefined });
        if (first > 0) readable.push(makeValue(first, 8));
        const controller = new AbortController();
        const pending = rejection(sender.putStream('silent', readable, { length: 4 * MIB, signal: controller.signal }));
        await waitFor(() => readable.readableLength === 0, { what: 'the beginning to be read' });
        controller.abort();
        assert.equal((await pending).code, 'ERR_FABRICKV_CANCELLED');
        assert.equal(readable.destroyed, true);
      }
      assert.equal(await client.exists('silent'), false);
      const value = makeValue(3 * MIB, 8);
      const slow = async function* (): AsyncGenerator<Buffer> {
        for await (const piece of pieces(value, [MIB])) {
          await sleep(700);
          yield piece;
        }
      };
      const known = sender === client ? {} : { length: value.length };
      await sender.putStream('silent', slow(), { ...known, timeoutMs: 500 });
      await assertStored('silent', value);
      assert.equal(await client.delete('silent'), true);
    }
  });

  test('a lost connection ends a stream that cannot be begun anew, and not one that can', async () => {
    await using proxy = await TcpProxy.start(server.addr);
    await using own = await KvClient.connect({ serverAddr: proxy.addr, provider: 'tcp', receiveMemory: 16 * MIB });
    const value = makeValue(24 * MIB, 9);
    let begun = 0;
    function interrupted(): AsyncGenerator<Buffer> {
      begun += 1;
      const first = begun === 1;
      return (async function* (): AsyncGenerator<Buffer> {
        let given = 0;
        for await (const piece of pieces(value, [MIB])) {
          if (first && given === 12 * MIB) {
            proxy.cut();
            await waitFor(() => own.connection.state !== 'open', { what: 'the loss' });
          }
          yield piece;
          given += piece.length;
        }
      })();
    }
    const stored = await own.putStream('interrupted', interrupted);
    assert.deepEqual([begun, stored.length, stored.crc32c], [2, value.length, crc32cOf(value)]);
    await assertStored('interrupted', value);
    begun = 0;
    const error = await rejection(own.putStream('interrupted', interrupted()));
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_CONNECTION_LOST', 'not-applied']);
    assert.match(error.message, /function/);
    await assertStored('interrupted', value);
  });

  test('afterwards nothing is left of it', async () => {
    for (const key of ['stream', 'readable', 'web', 'function', 'unchecked', 'old', 'interrupted'])
      await client.delete(key);
    await inline.close();
    const counters = await countersWhen(async () => (await client.ping()).counters, isQuiet, {
      what: 'windows and quarantine to drain',
    });
    assert.deepEqual([counters['keys'], counters['memoryUsedBytes']], [0, 0]);
    assert.equal(client.counters().freeBytes, 16 * MIB);
  });
});
