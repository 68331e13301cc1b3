import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { acquireFabric } from '../../src/client/shared-fabric.js';
import type { Rail } from '../../src/fabric/index.js';
import { KvClient, type KvClientOptions } from '../../src/index.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { makeValue } from '../support/values.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const BOTH = ['127.0.0.1', '127.0.0.2'];

describe('several rails, with the server in another process', () => {
  let server: TestServer;

  before(async () => {
    server = await startServer({
      args: ['--memory', '256MiB', '--log-level', 'info', ...BOTH.flatMap((address) => ['--fabric-addr', address])],
    });
  });
  after(() => server?.[Symbol.asyncDispose]());

  const connect = (options: KvClientOptions): Promise<KvClient> =>
    KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 32 * MIB, ...options });

  for (const [what, options] of [
    ['two rails of the client', { fabricAddr: BOTH }],
    ['one', { fabricAddr: '127.0.0.1' }],
    ['one, chosen by number', { fabricAddr: BOTH, rails: 1 }],
    ['one, chosen by name', { fabricAddr: BOTH, rails: ['127.0.0.2'] }],
    ['two on chosen CPUs, with a spin of its own', { fabricAddr: BOTH, cpus: [0], spinUs: 20 }],
  ] as const) {
    test(`values of every size, by every way of sending, with ${what}`, async () => {
      await using client = await connect(options);
      for (const length of [64 * KIB, 256 * KIB, 256 * KIB + 1, MIB + 13, 9 * MIB + 5, 33 * MIB]) {
        const value = makeValue(length, length);
        const region = await client.allocate(length);
        value.copy(region.buffer);
        const before = client.counters();
        await client.put('region', region, { inlineThreshold: 0 });
        assert.equal(client.counters().bytesCopied, before.bytesCopied);
        await client.put('bytes', value, { inlineThreshold: 0 });
        await client.putStream('stream', new Blob([value]).stream(), { inlineThreshold: 0 });
        region.buffer.fill(0);
        for (const key of ['region', 'bytes', 'stream']) {
          const info = await client.getInto(key, region, { verify: true, inlineThreshold: 0 });
          assert.equal(info?.path, 'rdma');
          assert.ok(region.buffer.equals(value), `${key} of ${length} bytes`);
        }
        await region.release();
      }
    });
  }

  /** The rails of the clients of this process with both addresses, and an end of this use of them. */
  async function sharedRails(): Promise<{ rails: readonly Rail[]; release: () => Promise<void> }> {
    const lease = await acquireFabric({
      choice: 'tcp',
      sourceAddresses: BOTH,
      rails: 'auto',
      spinUs: 'auto',
      cpus: [],
      environment: {},
    });
    const rails = lease.fabric.providers[0]?.rails ?? [];
    assert.equal(rails.length, 2);
    return { rails, release: () => lease.release(() => undefined) };
  }

  test('a large value goes over both rails, in equal parts', async () => {
    const { rails, release } = await sharedRails();
    await using client = await connect({ fabricAddr: BOTH });
    const length = 32 * MIB;
    const region = await client.allocate(length);
    const before = rails.map((rail) => rail.stats().bytesWritten);
    await client.put('striped', region);
    const written = rails.map((rail, i) => rail.stats().bytesWritten - (before[i] ?? 0));
    assert.deepEqual(written, [length / 2, length / 2]);
    await client.delete('striped');
    await release();
  });

  test('a rail that ends in the middle of PUTs is done without; the next session does not have it', async () => {
    const { rails, release } = await sharedRails();
    await using client = await connect({ fabricAddr: BOTH });
    const length = 24 * MIB;
    const value = makeValue(length, 77);
    const region = await client.allocate(length);
    value.copy(region.buffer);
    const puts = Array.from({ length: 4 }, (_, i) => client.put(`survives-${i}`, region));
    await rails[1]?.close();
    await Promise.all(puts);
    await client.put('survives-4', value);
    const target = await client.allocate(length);
    for (let i = 0; i < 5; i++) {
      target.buffer.fill(0);
      const info = await client.getInto(`survives-${i}`, target, { verify: true });
      assert.equal(info?.path, 'rdma');
      assert.ok(target.buffer.equals(value));
      assert.equal(await client.delete(`survives-${i}`), true);
    }
    // A session that begins now has the other rail only, and needs no retry.
    await using next = await connect({ fabricAddr: BOTH });
    await next.put('next', value);
    const info = await next.get('next', { verify: true });
    assert.ok(info?.bytes.equals(value));
    info?.release();
    assert.equal(next.counters().retries, 0);
    assert.equal(await next.delete('next'), true);
    await release();
  });

  test('a name that is no rail is refused with what there is', async () => {
    await assert.rejects(connect({ rails: ['no-such-rail'] }), (error: unknown) => {
      assert.ok(error instanceof Error);
      assert.match(error.message, /no-such-rail/);
      return true;
    });
  });

  test('afterwards nothing is left of it', async () => {
    await using client = await connect({ fabricAddr: BOTH });
    for (const key of ['region', 'bytes', 'stream']) assert.equal(await client.delete(key), true);
    const counters = await countersWhen(async () => (await client.ping()).counters, isQuiet, {
      what: 'windows and quarantine to drain',
    });
    assert.deepEqual([counters['keys'], counters['memoryUsedBytes'], counters['hostileSigns']], [0, 0, 0]);
  });
});
