import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { crc32cOf, makeValue, randomFrom, testSeed } from '../support/values.js';

const KIB = 1024;
const MIB = 1024 * KIB;

describe('the SDK, with its server in another process', () => {
  let server: TestServer;
  let client: KvClient;

  before(async () => {
    server = await startServer({ args: ['--memory', '512MiB', '--log-level', 'info'] });
    client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 64 * MIB });
  });
  after(async () => {
    await client?.close();
    await server?.[Symbol.asyncDispose]();
  });

  test('the connection says what it is', () => {
    const { state, provider, inlineOnlyReason, serverAddr, reconnects } = client.connection;
    assert.deepEqual(
      { state, provider, inlineOnlyReason, serverAddr, reconnects },
      { state: 'open', provider: 'tcp', inlineOnlyReason: undefined, serverAddr: server.addr, reconnects: 0 },
    );
  });

  test('put and get of every type of value and key', async () => {
    const text = 'Grüße';
    await client.put('text', text);
    assert.equal((await client.get('text'))?.bytes.toString('utf8'), text);
    const key = Uint8Array.of(0, 255, 10, 0);
    await client.put(key, new Uint8Array([1, 2, 3]));
    assert.deepEqual([...((await client.get(key))?.bytes ?? [])], [1, 2, 3]);
    await client.put('empty', new Uint8Array());
    const empty = await client.get('empty', { inlineThreshold: 0 });
    assert.deepEqual([empty?.length, empty?.path, empty?.crc32c], [0, 'inline', 0]);
    assert.equal(await client.get('never stored'), undefined);
    assert.equal(await client.stat('never stored'), undefined);
    assert.equal(await client.exists('never stored'), false);
    assert.equal(await client.delete('never stored'), false);
  });

  test('a namespace is a world of its own', async () => {
    await client.put('key', 'zero');
    await client.put('key', 'seven', { namespace: 7 });
    assert.equal((await client.get('key'))?.bytes.toString(), 'zero');
    assert.equal((await client.get('key', { namespace: 7 }))?.bytes.toString(), 'seven');
    assert.equal(await client.delete('key'), true);
    assert.equal(await client.exists('key'), false);
    assert.equal(await client.exists('key', { namespace: 7 }), true);
  });

  test('put(region) and getInto move a value without a copy', async () => {
    const length = 24 * MIB + 13;
    const value = makeValue(length, 42);
    const source = await client.allocate(length);
    value.copy(source.buffer);
    const target = await client.allocate(length + 100);
    target.buffer.fill(0xaa);
    const before = client.counters();
    const stored = await client.put('zero-copy', source);
    const info = await client.getInto('zero-copy', target, { verify: true });
    const after = client.counters();
    assert.equal(after.bytesCopied - before.bytesCopied, 0);
    assert.equal(after.putsRdma - before.putsRdma, 1);
    assert.equal(after.getsRdma - before.getsRdma, 1);
    assert.deepEqual(info, { length, version: stored.version, crc32c: crc32cOf(value), path: 'rdma' });
    assert.ok(target.buffer.subarray(0, length).equals(value));
    assert.ok(
      target.buffer.subarray(length).every((byte) => byte === 0xaa),
      'bytes after the value were written',
    );

    const part = await client.put('part', { region: source, length: 5 * MIB });
    assert.deepEqual([part.length, part.path, part.crc32c], [5 * MIB, 'rdma', crc32cOf(value.subarray(0, 5 * MIB))]);
    await Promise.all([source.release(), target.release()]);
  });

  test('a region that is too small, busy or released says so, and is not written to', async () => {
    const length = 2 * MIB;
    await client.put('two', makeValue(length, 2));
    const small = await client.allocate(length - 1);
    small.buffer.fill(0x55);
    await assert.rejects(client.getInto('two', small), (error: unknown) => {
      assert.ok(error instanceof FabricKvError);
      assert.equal(error.code, 'ERR_FABRICKV_SINK_TOO_SMALL');
      assert.equal(error.details['length'], String(length));
      return true;
    });
    assert.ok(small.buffer.every((byte) => byte === 0x55));
    const region = await client.allocate(length);
    const [first, second] = await Promise.allSettled([client.getInto('two', region), client.getInto('two', region)]);
    assert.equal(first.status, 'fulfilled');
    assert.ok(second.status === 'rejected');
    assert.equal((second.reason as FabricKvError).code, 'ERR_FABRICKV_REGION_BUSY');
    assert.equal(await client.getInto('never stored', region), undefined);
    await region.release();
    await assert.rejects(client.getInto('two', region), { code: 'ERR_FABRICKV_INVALID_ARGUMENT' });
    await small.release();
  });

  test('results are views of receive memory, each its own, until they are released', async () => {
    const length = 4 * MIB;
    const values = [1, 2, 3].map((seed) => makeValue(length, seed));
    for (const [index, value] of values.entries()) await client.put(`lent-${index}`, value);
    const idle = client.counters();
    const results = await Promise.all(values.map((_, index) => client.get(`lent-${index}`, { verify: true })));
    const lent = client.counters();
    assert.equal(lent.bytesCopied - idle.bytesCopied, 0);
    assert.ok(lent.lentBytes - idle.lentBytes >= 3 * length);
    const buffers = new Set(results.map((result) => result?.bytes.buffer));
    assert.equal(buffers.size, 3);
    for (const [index, result] of results.entries()) {
      assert.ok(result !== undefined);
      assert.equal(result.path, 'rdma');
      const expected = values[index];
      assert.ok(expected !== undefined && result.bytes.equals(expected));
    }
    for (const result of results) {
      result?.release();
      assert.equal(result?.bytes.length, 0, 'release() detaches');
      result?.release();
    }
    assert.equal(client.counters().lentBytes, idle.lentBytes);
  });

  test('results beyond the receive memory are copied out and counted; nothing waits for a release', async () => {
    const length = 8 * MIB;
    const value = makeValue(length, 9);
    await client.put('many', value);
    const before = client.counters();
    const held = [];
    for (let count = 0; count < 12; count++) held.push(await client.get('many'));
    const after = client.counters();
    assert.ok(after.resultsCopied > before.resultsCopied, 'more than the receive memory was handed out without a copy');
    for (const result of held) assert.ok(result?.bytes.equals(value));
    for (const result of held) result?.release();
  });

  test('a value larger than the receive memory gets memory of its own', async () => {
    const length = 96 * MIB + 1;
    const value = makeValue(length, 11);
    const stored = await client.put('larger than the pool', value);
    assert.equal(stored.path, 'rdma');
    const got = await client.get('larger than the pool', { verify: true });
    assert.equal(got?.path, 'rdma');
    assert.ok(got.bytes.equals(value));
    got?.release();
    assert.equal(await client.delete('larger than the pool'), true);
  });

  test('many operations of mixed sizes at a time, by several clients, every value checked', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    await using other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 32 * MIB });
    await using inlineOnly = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    const clients = [client, other, inlineOnly];
    const sizes = [0, 1, 100, 4 * KIB, 16 * KIB + 1, 64 * KIB, 64 * KIB + 1, 300 * KIB, MIB + 7, 3 * MIB];
    const pick = <Item>(items: readonly Item[]): Item => items[Math.floor(random() * items.length)] as Item;
    const plan = Array.from({ length: 150 }, (_, index) => ({
      key: `mixed-${index}`,
      length: pick(sizes),
      writer: pick(clients),
      reader: pick(clients),
      threshold: pick([0, undefined, Number.POSITIVE_INFINITY]),
    }));
    await Promise.all(
      plan.map(async ({ key, length, writer, reader, threshold }, index) => {
        const value = makeValue(length, index + 1);
        // A client without a data plane takes what cannot go by RDMA inline, whatever the threshold.
        const options = threshold === undefined ? {} : { inlineThreshold: threshold };
        const stored = await writer.put(key, value, options);
        assert.equal(stored.crc32c, crc32cOf(value));
        const got = await reader.get(key, { ...options, verify: true });
        assert.ok(got !== undefined, key);
        assert.equal(got.version, stored.version);
        assert.ok(got.bytes.equals(value), `${key} of ${length} bytes by ${got.path}`);
        const isInline = reader === inlineOnly || length === 0 || threshold === Number.POSITIVE_INFINITY;
        if (threshold !== undefined) assert.equal(got.path, isInline ? 'inline' : 'rdma');
        got?.release();
        assert.equal((await reader.stat(key))?.version, stored.version);
        assert.equal(await writer.delete(key), true);
        assert.equal(await reader.get(key), undefined);
      }),
    );
  });

  test('afterwards the server holds what is stored, and nothing else', async () => {
    for (const key of ['text', 'empty', 'zero-copy', 'part', 'two', 'lent-0', 'lent-1', 'lent-2', 'many']) {
      assert.equal(await client.delete(key), true, key);
    }
    await client.delete(Uint8Array.of(0, 255, 10, 0));
    await client.delete('key', { namespace: 7 });
    const counters = await countersWhen(async () => (await client.ping()).counters, isQuiet, {
      what: 'the quarantine to drain and the other sessions to end',
    });
    assert.deepEqual(
      {
        keys: counters['keys'],
        valueBytes: counters['valueBytes'],
        memoryUsedBytes: counters['memoryUsedBytes'],
        windowsOpen: counters['windowsOpen'],
        operationsInFlight: counters['operationsInFlight'],
        sessions: counters['sessions'],
      },
      { keys: 0, valueBytes: 0, memoryUsedBytes: 0, windowsOpen: 0, operationsInFlight: 0, sessions: 1 },
    );
    assert.equal(counters['memoryFreeBytes'], counters['memoryTotalBytes']);
    assert.equal(client.counters().quarantinedBytes, 0);
  });
});
