import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import type { LogRecord } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen } from '../support/counters.js';
import { crc32cOf, makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const KIB = 1024;
const MIB = 1024 * KIB;

describe('PUTs into the session window, with the server in another process', () => {
  let server: TestServer;

  before(async () => {
    server = await startServer({ args: ['--memory', '256MiB'] });
  });
  after(() => server?.[Symbol.asyncDispose]());

  /** A client that has been offered a session window: the first PUT of a session asks for a grant. */
  async function connect(): Promise<KvClient> {
    const client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 32 * MIB });
    await untilWindow(client);
    return client;
  }

  /** Puts until one goes into a session window, which may have been taken back for want of use. */
  async function untilWindow(of: KvClient): Promise<void> {
    const before = of.counters().putsInWindow;
    await waitFor(
      async () => {
        await of.put('warm-up', makeValue(64 * KIB, 1), { inlineThreshold: 0 });
        return of.counters().putsInWindow > before;
      },
      { what: 'a PUT into the session window' },
    );
  }

  test('a PUT from a region costs one write, one message and no copy', async () => {
    await using own = await connect();
    for (const length of [64 * KIB, 256 * KIB, MIB]) {
      const region = await own.allocate(length);
      const value = makeValue(length, length);
      value.copy(region.buffer);
      await untilWindow(own);
      const before = own.counters();
      const name = `from a region of ${length}`;
      const isIts = ({ op, key }: LogRecord): boolean => op === 'put' && String(key).includes(name);
      const stored = await own.put(name, region, { inlineThreshold: 0 });
      const after = own.counters();
      assert.deepEqual([stored.path, stored.length, stored.crc32c], ['rdma', length, crc32cOf(value)]);
      assert.deepEqual(
        [
          after.putsInWindow - before.putsInWindow,
          after.writesPosted - before.writesPosted,
          after.bytesCopied - before.bytesCopied,
          after.registrations - before.registrations,
        ],
        [1, 1, 0, 0],
      );
      await server.waitForRecord((record) => isIts(record) && record.stage === 'put.done');
      const stages = server.records.filter(isIts).map(({ stage }) => stage);
      assert.equal(stages[0], 'put.received');
      assert.ok(!stages.includes('put.granted'), `it asked for a grant: ${stages.join(', ')}`);
      const got = await own.get(name, { inlineThreshold: 0, verify: true });
      assert.ok(got?.bytes.equals(value));
      got?.release();
      await region.release();
    }
  });

  test('many at a time, of all sizes, many windows long: each one is what was put', async () => {
    await using own = await connect();
    const sizes = [64 * KIB, 64 * KIB + 1, 100_001, 300 * KIB, MIB, MIB - 63];
    const before = own.counters();
    for (let round = 0; round < 4; round++) {
      const values = Array.from({ length: 24 }, (_, i) => makeValue(sizes[i % sizes.length] ?? 1, round * 100 + i));
      await Promise.all(values.map((value, i) => own.put(`many-${i}`, value, { inlineThreshold: 0 })));
      await Promise.all(
        values.map(async (value, i) => {
          const got = await own.get(`many-${i}`, { verify: true });
          assert.ok(got?.bytes.equals(value), `value ${i} of round ${round}`);
          got?.release();
        }),
      );
    }
    assert.ok(own.counters().putsInWindow - before.putsInWindow > 20, 'hardly any PUT went into a session window');
    const { hostileSigns } = (await own.ping()).counters;
    assert.equal(hostileSigns, 0);
  });

  test('an idle window is taken back; the next PUT asks for a grant, and gets a window again', async () => {
    await using own = await connect();
    await countersWhen(
      async () => (await own.ping()).counters,
      ({ windowsOpen }) => windowsOpen === 0,
      {
        what: 'the idle windows to be closed',
      },
    );
    const before = own.counters().putsInWindow;
    await own.put('after a pause', makeValue(MIB, 3), { inlineThreshold: 0 });
    assert.equal(own.counters().putsInWindow, before);
    await untilWindow(own);
  });

  test('without a checksum none is computed, and the value says so', async () => {
    await using own = await connect();
    const value = makeValue(700_001, 4);
    const stored = await own.put('unchecked', value, { checksum: false, inlineThreshold: 0 });
    assert.equal(stored.crc32c, undefined);
    const got = await own.get('unchecked', { verify: true });
    assert.equal(got?.crc32c, undefined);
    assert.ok(got?.bytes.equals(value));
    got?.release();
  });

  test('PUTs that are given up leave gaps, and nothing of them is ever seen', async () => {
    await using own = await connect();
    const value = makeValue(MIB, 5);
    await own.put('contested', value, { inlineThreshold: 0 });
    await untilWindow(own);
    const settled = await Promise.allSettled(
      Array.from({ length: 16 }, (_, i) => {
        const controller = new AbortController();
        const pending = own.put(i % 2 === 0 ? 'contested' : `whole-${i}`, makeValue(MIB, 10 + i), {
          inlineThreshold: 0,
          signal: controller.signal,
        });
        if (i % 2 === 0) setImmediate(() => controller.abort());
        return pending;
      }),
    );
    for (const [i, result] of settled.entries()) if (i % 2 === 1) assert.equal(result.status, 'fulfilled');
    for (let i = 1; i < 16; i += 2) {
      const got = await own.get(`whole-${i}`, { verify: true });
      assert.ok(got?.bytes.equals(makeValue(MIB, 10 + i)));
      got?.release();
    }
    const got = await own.get('contested', { verify: true });
    const candidates = [value, ...Array.from({ length: 8 }, (_, i) => makeValue(MIB, 10 + 2 * i))];
    assert.ok(candidates.some((candidate) => got?.bytes.equals(candidate)));
    got?.release();
  });
});
