import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type ClientCounters,
  FabricKvError,
  KvClient,
  type KvClientOptions,
  type ValueStream,
} from '../../src/index.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { memoryLog } from '../support/memory-log.js';
import { FULL } from '../support/mode.js';
import { TcpProxy } from '../support/tcp-proxy.js';
import { crc32cOf, valueBlocks } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
/** Far more than the receive memory, and no multiple of anything. */
const LENGTH = FULL ? 5 * GIB + 7 : 300 * MIB + 7;
const RECEIVE_MEMORY = 32 * MIB;
/** What a client needs beside its receive memory: buffers of the garbage collector's, gRPC, a piece that was copied. */
const RSS_SLACK = 160 * MIB;
const TIMEOUT_MS = FULL ? 300_000 : 60_000;

/** What has arrived, as it should be: compared block by block, so that nothing large is kept. */
class Comparison {
  bytes = 0;
  #expected: Buffer = Buffer.alloc(0);
  readonly #blocks: Generator<Buffer>;

  constructor(length: number, seed: number) {
    this.#blocks = valueBlocks(length, seed);
  }

  add(piece: Uint8Array): void {
    for (let at = 0; at < piece.length; ) {
      if (this.#expected.length === 0) this.#expected = this.#blocks.next().value as Buffer;
      const length = Math.min(this.#expected.length, piece.length - at);
      const same = this.#expected.subarray(0, length).equals(piece.subarray(at, at + length));
      assert.ok(same, `other bytes at ${this.bytes}`);
      this.#expected = this.#expected.subarray(length);
      this.bytes += length;
      at += length;
    }
  }
}

describe('reading in ranges, with the server in another process', () => {
  let server: TestServer;
  let writer: KvClient;
  let crc = 0;

  before(async () => {
    server = await startServer({ args: ['--memory', FULL ? '11GiB' : '1GiB', '--log-level', 'info'] });
    writer = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: TIMEOUT_MS });
    await store('large', LENGTH, 1);
    for (const block of valueBlocks(LENGTH, 1)) crc = crc32cOf(block, crc);
  });
  after(async () => {
    await writer?.close();
    await server?.[Symbol.asyncDispose]();
  });

  async function store(key: string, length: number, seed: number): Promise<void> {
    const region = await writer.allocate(length);
    let at = 0;
    for (const block of valueBlocks(length, seed)) {
      block.copy(region.view(at, block.length));
      at += block.length;
    }
    await writer.put(key, region);
    await region.release();
  }

  const connect = (options: KvClientOptions = {}): Promise<KvClient> =>
    KvClient.connect({
      serverAddr: server.addr,
      provider: 'tcp',
      receiveMemory: RECEIVE_MEMORY,
      timeoutMs: TIMEOUT_MS,
      ...options,
    });

  async function open(
    client: KvClient,
    key: string,
    options?: Parameters<KvClient['getStream']>[1],
  ): Promise<ValueStream> {
    const stream = await client.getStream(key, options);
    assert.ok(stream !== undefined);
    return stream;
  }

  const bytesRead = async (): Promise<number> => {
    const counters = (await writer.ping()).counters;
    return (counters['bytesReadRdma'] ?? 0) + (counters['bytesReadInline'] ?? 0);
  };

  /** Nothing of any read is left, here or there. */
  async function assertNothingHeld(client: KvClient, lentBytes = 0): Promise<void> {
    const isDone = ({ quarantinedBytes }: ClientCounters): boolean => quarantinedBytes === 0;
    await waitFor(() => isDone(client.counters()), { what: "the client's quarantine to drain" });
    const { freeBytes, lentBytes: lent } = client.counters();
    assert.deepEqual([lent, freeBytes], [lentBytes, RECEIVE_MEMORY - lentBytes]);
    assert.deepEqual(client.operations(), []);
    await countersWhen(
      async () => (await client.ping()).counters,
      (counters) => counters['leases'] === 0 && isQuiet(counters, counters['sessions'] ?? 0),
      { what: 'the leases to end' },
    );
  }

  for (const way of ['pieces', 'Readable'] as const) {
    test(`a value of many times the receive memory, as ${way}, in constant memory`, async (t) => {
      await using client = await connect();
      const bytesBefore = await bytesRead();
      const stream = await open(client, 'large');
      assert.deepEqual([stream.length, stream.crc32c, stream.path], [LENGTH, crc, 'rdma']);
      const seen = new Comparison(LENGTH, 1);
      const rssBefore = process.memoryUsage.rss();
      let rssMost = 0;
      for await (const piece of way === 'pieces' ? stream.pieces() : stream) {
        seen.add(piece as Buffer);
        rssMost = Math.max(rssMost, process.memoryUsage.rss());
      }
      assert.equal(seen.bytes, LENGTH);
      const grown = rssMost - rssBefore;
      t.diagnostic(`RSS grew by ${Math.round(grown / MIB)} MiB; ${client.counters().resultsCopied} pieces were copied`);
      assert.ok(grown < RECEIVE_MEMORY + RSS_SLACK, `RSS grew by ${Math.round(grown / MIB)} MiB`);
      assert.equal((await bytesRead()) - bytesBefore, LENGTH, 'every byte once');
      const { getsRdma, bytesCopied } = client.counters();
      assert.equal(getsRdma, 1);
      if (way === 'pieces') assert.equal(bytesCopied, 0);
      await assertNothingHeld(client);
    });
  }

  test('a piece is detached when the next one is asked for', async () => {
    await using client = await connect();
    const kept: Buffer[] = [];
    for await (const piece of (await open(client, 'large')).pieces()) {
      assert.ok(kept.every(({ length }) => length === 0));
      kept.push(piece);
      if (kept.length === 5) break;
    }
    assert.ok(kept.every(({ length }) => length === 0));
    await assertNothingHeld(client);
  });

  test('overwriting and deleting change nothing for a stream that has begun, however slow it is', async () => {
    await using client = await connect();
    for (const change of ['overwrite', 'delete'] as const) {
      const length = 100 * MIB + 3;
      await store('changing', length, 20);
      const stream = await open(client, 'changing');
      const seen = new Comparison(length, 20);
      let pieces = 0;
      for await (const piece of stream.pieces()) {
        seen.add(piece);
        pieces += 1;
        if (pieces !== 2) continue;
        if (change === 'overwrite') await store('changing', 50 * MIB, 21);
        else assert.equal(await writer.delete('changing'), true);
        await sleep(20);
      }
      assert.equal(seen.bytes, length, change);
    }
    assert.equal(await client.getStream('changing'), undefined);
    await assertNothingHeld(client);
  });

  const leaseSkip = FULL ? false : 'waits for longer than a lease lasts: FABRICKV_TEST_FULL=1';
  test('a consumer may pause for longer than an unused lease lasts', { skip: leaseSkip }, async () => {
    await using client = await connect();
    const length = 100 * MIB + 3;
    await store('paused', length, 25);
    const seen = new Comparison(length, 25);
    for await (const piece of (await open(client, 'paused')).pieces()) {
      if (seen.bytes === 0) {
        await store('paused', MIB, 26);
        await sleep(45_000);
      }
      seen.add(piece);
    }
    assert.equal(seen.bytes, length);
    await writer.delete('paused');
    await assertNothingHeld(client);
  });

  test('streams, results and PUTs side by side in little memory: all of them end', async () => {
    await using client = await connect();
    const length = 40 * MIB + 1;
    await store('many', length, 30);
    const paused = await open(client, 'many');
    // Results that nobody gives back take three quarters of the memory; what comes then is copied, and waits for none of them.
    await store('held', 3 * MIB, 31);
    const results = [];
    for (let count = 0; count < 10; count++) results.push(await client.get('held'));
    const { resultsCopied } = client.counters();
    const read = async (): Promise<void> => {
      const seen = new Comparison(length, 30);
      for await (const piece of (await open(client, 'many')).pieces()) seen.add(piece);
      assert.equal(seen.bytes, length);
    };
    const put = async (index: number): Promise<void> => {
      await client.put(`beside-${index}`, Buffer.alloc(3 * MIB, index));
      assert.equal((await client.get(`beside-${index}`, { verify: true }))?.length, 3 * MIB);
      await client.delete(`beside-${index}`);
    };
    await Promise.all([...Array.from({ length: 12 }, read), ...Array.from({ length: 8 }, (_, index) => put(index))]);
    const seen = new Comparison(length, 30);
    for await (const piece of paused.pieces()) seen.add(piece);
    assert.equal(seen.bytes, length);
    assert.ok(client.counters().resultsCopied > resultsCopied, 'no piece had to be copied');
    for (const result of results) result?.release();
    await Promise.all([writer.delete('many'), writer.delete('held')]);
    await assertNothingHeld(client);
  });

  test('destroyed at any point, it leaves nothing behind', async () => {
    await using client = await connect();
    await store('after', 3 * MIB, 50);
    for (let round = 0; round < 12; round++) {
      const stream = await open(client, 'large');
      let pieces = 0;
      for await (const _piece of stream.pieces()) {
        pieces += 1;
        if (pieces > round % 6) break;
      }
      const other = await open(client, 'large');
      other.resume();
      await sleep(round);
      other.destroy();
      // Memory that is used again at once: what is late would land in it.
      const next = await client.get('after', { verify: true });
      assert.equal(next?.length, 3 * MIB);
      next?.release();
    }
    await writer.delete('after');
    await assertNothingHeld(client);
  });

  test('inline-only too, and what is small', async () => {
    await using client = await connect({ provider: 'none' });
    const stream = await open(client, 'large');
    assert.equal(stream.path, 'inline');
    const seen = new Comparison(LENGTH, 1);
    for await (const piece of stream.pieces()) {
      seen.add(piece);
      if (seen.bytes > 40 * MIB) break;
    }
    await writer.put('small', 'x');
    for (const from of [client, writer]) {
      const small = await open(from, 'small');
      assert.equal(small.path, 'inline');
      for await (const piece of small.pieces()) assert.equal(piece.toString(), 'x');
      assert.equal(await from.getStream('never stored'), undefined);
    }
  });

  test('what was put without a checksum says so, and is not verified', async () => {
    const value = Buffer.alloc(MIB, 'n');
    assert.equal((await writer.put('unchecked', value, { checksum: false })).crc32c, undefined);
    assert.equal((await writer.stat('unchecked'))?.crc32c, undefined);
    await using client = await connect();
    const got = await client.get('unchecked', { verify: true });
    assert.equal(got?.crc32c, undefined);
    assert.ok(got?.bytes.equals(value));
    got?.release();
    const stream = await open(client, 'unchecked');
    assert.equal(stream.crc32c, undefined);
    for await (const piece of stream.pieces()) assert.ok(piece.equals(value.subarray(0, piece.length)));
    for (const command of [
      ['get', 'unchecked', '--out', '/dev/null'],
      ['stat', 'unchecked'],
    ]) {
      const told = await server.client([...command, '--json']);
      assert.equal((told.json() as Record<string, unknown>)['crc32c'], null, told.stderr);
    }
    const told = await server.client(['get', 'unchecked', '--out', '/dev/null']);
    assert.match(told.text, /without a CRC-32C: not verified/);
    await writer.delete('unchecked');
  });

  /** Cuts the control plane once, when a range beyond the first third is asked for. */
  async function withCut(
    run: (client: KvClient, cuts: () => number) => Promise<void>,
    onCut: (proxy: TcpProxy) => Promise<void> = async () => undefined,
    atOffset = LENGTH / 3,
  ): Promise<void> {
    await using proxy = await TcpProxy.start(server.addr);
    let cuts = 0;
    const { logger } = memoryLog(({ stage, ...fields }) => {
      if (cuts > 0 || stage !== 'get.request.sent' || Number(fields['rangeOffset'] ?? 0) < atOffset) return;
      cuts += 1;
      proxy.refuse(true);
      proxy.cut();
      void onCut(proxy).then(() => proxy.refuse(false));
    });
    await using client = await connect({ serverAddr: proxy.addr, logger });
    await run(client, () => cuts);
  }

  test('a session that is cut in the middle is made good: the same version, and nothing is fetched twice', async () => {
    await withCut(async (client, cuts) => {
      const landed = new Map<number, number>();
      const bytesBefore = await bytesRead();
      const stream = await open(client, 'large');
      const seen = new Comparison(LENGTH, 1);
      for await (const piece of stream.pieces()) {
        landed.set(seen.bytes, piece.length);
        seen.add(piece);
      }
      assert.deepEqual([seen.bytes, cuts(), client.connection.reconnects], [LENGTH, 1, 1]);
      assert.equal(
        [...landed.values()].reduce((sum, length) => sum + length, 0),
        LENGTH,
      );
      // What was in flight at the cut may have been written before the server knew: a few pieces, and no more.
      const extra = (await bytesRead()) - bytesBefore - LENGTH;
      const pieceBytes = Math.max(...landed.values());
      assert.ok(extra >= 0 && extra <= 4 * pieceBytes, `${extra} bytes were fetched twice`);
      await assertNothingHeld(client);
    });
  });

  test('get and getInto of a large value go on as well', {
    skip: FULL && 'the value is longer than a Buffer',
  }, async () => {
    for (const way of ['get', 'getInto'] as const) {
      await withCut(async (client, cuts) => {
        const bytesBefore = await bytesRead();
        const seen = new Comparison(LENGTH, 1);
        if (way === 'get') {
          const value = await client.get('large', { verify: true });
          assert.equal(value?.path, 'rdma');
          seen.add(value?.bytes ?? Buffer.alloc(0));
          value?.release();
        } else {
          const region = await client.allocate(LENGTH);
          const info = await client.getInto('large', region, { verify: true });
          assert.deepEqual([info?.path, info?.crc32c], ['rdma', crc]);
          seen.add(region.buffer);
          await region.release();
        }
        assert.deepEqual([seen.bytes, cuts(), client.connection.reconnects], [LENGTH, 1, 1], way);
        const extra = (await bytesRead()) - bytesBefore - LENGTH;
        assert.ok(extra >= 0 && extra <= 4 * 8 * MIB, `${way}: ${extra} bytes were fetched twice`);
        await assertNothingHeld(client);
      });
    }
  });

  test('when the version is gone after the cut, a stream says so, and get takes the new one', async () => {
    const length = 150 * MIB;
    await store('replaced', length, 40);
    const replace = (): Promise<void> => store('replaced', 70 * MIB + 1, 41);
    await withCut(
      async (client, cuts) => {
        const stream = await open(client, 'replaced');
        await assert.rejects(
          async () => {
            for await (const _piece of stream.pieces()) {
              // To its end, which does not come.
            }
          },
          (error: unknown) => error instanceof FabricKvError && error.code === 'ERR_FABRICKV_VERSION_CHANGED',
        );
        assert.equal(cuts(), 1);
        await assertNothingHeld(client);
      },
      replace,
      length / 3,
    );
    await store('replaced', length, 40);
    await withCut(
      async (client, cuts) => {
        const value = await client.get('replaced', { verify: true });
        assert.deepEqual([value?.length, cuts()], [70 * MIB + 1, 1]);
        new Comparison(70 * MIB + 1, 41).add(value?.bytes ?? Buffer.alloc(0));
        value?.release();
        await assertNothingHeld(client);
      },
      replace,
      length / 3,
    );
    await writer.delete('replaced');
  });
});
