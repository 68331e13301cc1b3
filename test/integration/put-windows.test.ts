import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { crc32c, mapMemory, openRail, remoteAddress, remoteKey } from '../../src/fabric/index.js';
import { KvClient } from '../../src/index.js';
import type { WindowOffer__Output } from '../../src/protocol/generated/fabrickv/v1/WindowOffer.js';
import { toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { Child } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { countersWhen } from '../support/counters.js';
import { makeValue, randomFrom, testSeed } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';
import { WireClient, type WireSession } from '../unit/support/session-client.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const EVERYTHING = { low: -1, high: -1, unsigned: true };

/** A client of the wire protocol with a rail of its own, and one value's bytes to write. */
async function openWire(addr: string, bytes: Buffer) {
  const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
  const mapping = await mapMemory({ sizeBytes: bytes.length, prefault: true });
  mapping.writeSync(0, bytes);
  const wire = new WireClient(addr);
  const { address, addressFormat: format } = rail.info;
  const session = await wire.connect({ providers: [{ name: 'tcp', rails: [{ address, format }] }] });
  const [server] = (await session.welcome()).rails;
  assert.ok(server !== undefined);
  const peer = await rail.insertPeer(server.address);
  return {
    session,
    /** Writes the first `length` bytes; resolves with the code of the failure, or undefined. */
    write(offer: WindowOffer__Output, offset: number, length = bytes.length): Promise<string | undefined> {
      const [key] = offer.rails;
      assert.ok(key !== undefined);
      const region = rail.defineRemote({
        peer,
        address: remoteAddress(toBigInt(key.address)),
        key: remoteKey(toBigInt(key.rkey)),
        length: toSafeInteger(offer.length, 'length'),
      });
      return new Promise((resolve) => {
        rail.write({
          peer,
          segments: [{ mappingId: mapping.id, localOffset: 0, remoteRegionId: region, remoteOffset: offset, length }],
          onDone: (error) => resolve(error?.code),
        });
      });
    },
    async [Symbol.asyncDispose]() {
      wire[Symbol.dispose]();
      await rail.close();
      mapping.close();
    },
  };
}

type Wire = Awaited<ReturnType<typeof openWire>>;

/** Puts a value by a grant. */
async function putOpen({ session, write }: Wire, operationId: number, bytes: Buffer): Promise<void> {
  const { grant, failure } = await session.call(operationId, {
    putOpen: { key: Buffer.from('key'), length: bytes.length, path: 'RDMA' },
  });
  const [extent] = grant?.extents ?? [];
  assert.ok(extent !== undefined, failure?.message);
  const offer = await session.find('its window', ({ windowOffer }) =>
    windowOffer?.windowId === extent.windowId ? windowOffer : undefined,
  );
  assert.equal(await write(offer, toSafeInteger(extent.windowOffset, 'offset')), undefined);
  session.send({ operationId, putCommit: { crc32c: crc32c(bytes) } });
  await session.find('its result', (message) =>
    toSafeInteger(message.operationId, 'id') === operationId ? message.result?.put : undefined,
  );
}

function sessionWindow(session: WireSession, not = 0): Promise<WindowOffer__Output> {
  return session.find('a session window', ({ windowOffer }) =>
    windowOffer?.sessionWindow === true && windowOffer.windowId !== not ? windowOffer : undefined,
  );
}

describe('session windows, by the wire protocol over a real rail', () => {
  const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7) % 251));
  const putWritten = (windowId: number, windowOffset: number, key = 'key') => ({
    putWritten: { key: Buffer.from(key), windowId, windowOffset, length: bytes.length, crc32c: crc32c(bytes) },
  });

  async function got(session: WireSession, operationId: number, key = 'key'): Promise<Buffer> {
    const { get } = await session.call(operationId, { get: { key: Buffer.from(key), inlineMax: EVERYTHING as never } });
    assert.equal(get?.found, true);
    return session.data(operationId);
  }

  test('a value written there is stored by one message, and read back', async () => {
    await using server = await startServer({ args: ['--memory', '128MiB'] });
    await using wire = await openWire(server.addr, bytes);
    const { session } = wire;
    await putOpen(wire, 1, bytes);
    const window = await sessionWindow(session);
    assert.equal(await wire.write(window, 0), undefined);
    assert.equal((await session.call(2, putWritten(window.windowId, 0))).put?.path, 'RDMA');
    assert.deepEqual(await got(session, 3), bytes);
    assert.equal((await session.counters())['putsIntoSessionWindows'], 1);
  });

  test('a range claimed twice is refused, closes the windows, and harms nothing', async () => {
    await using server = await startServer({ args: ['--memory', '128MiB'] });
    await using wire = await openWire(server.addr, bytes);
    const { session } = wire;
    await putOpen(wire, 1, bytes);
    const window = await sessionWindow(session);
    await wire.write(window, 0);
    await session.call(2, putWritten(window.windowId, 0));
    assert.equal(
      (await session.call(3, putWritten(window.windowId, 0, 'other'))).failure?.code,
      'ERR_FABRICKV_PROTOCOL',
    );
    assert.notEqual(await wire.write(window, 0, 100), undefined, 'the window is closed');
    assert.equal(
      (await session.call(4, putWritten(window.windowId, 640_000))).failure?.code,
      'ERR_FABRICKV_GRANT_ENDED',
    );
    assert.deepEqual(await got(session, 5), bytes);
    assert.equal((await session.call(6, { exists: { key: Buffer.from('other') } })).exists?.exists, false);
    // The session goes on, with other windows.
    await waitFor(async () => (await wire.write(window, 0, 1)) !== undefined, { what: 'the end of the connection' });
    await putOpen(wire, 7, bytes);
    const next = await sessionWindow(session, window.windowId);
    assert.equal(await wire.write(next, 0), undefined);
    assert.ok((await session.call(8, putWritten(next.windowId, 0))).put);
    assert.equal((await session.counters())['hostileSigns'], 1);
  });

  test('an unused one is taken back, and its memory is free', async () => {
    await using server = await startServer({ args: ['--memory', '128MiB'] });
    await using wire = await openWire(server.addr, bytes);
    const { session } = wire;
    await putOpen(wire, 1, bytes);
    const window = await sessionWindow(session);
    await session.find('its end', ({ windowRevoke }) =>
      windowRevoke?.windowId === window.windowId ? true : undefined,
    );
    await session.call(2, { delete: { key: Buffer.from('key') } });
    const counters = await waitFor(
      async () => {
        const now = await session.counters();
        return now['memoryFreeBytes'] === now['memoryTotalBytes'] ? now : undefined;
      },
      { what: 'all of the memory' },
    );
    assert.equal(counters['windowsOpen'], 0);
    assert.notEqual(await wire.write(window, 0, 100), undefined);
    assert.equal((await session.call(3, putWritten(window.windowId, 0))).failure?.code, 'ERR_FABRICKV_GRANT_ENDED');
  });
});

test('an arena full of half-used windows still takes values, and gives all of it back', async () => {
  const random = randomFrom(testSeed());
  await using server = await startServer({ args: ['--memory', '96MiB'] });
  const clients = await Promise.all(
    Array.from({ length: 6 }, () =>
      KvClient.connect({ serverAddr: server.addr, provider: 'tcp', receiveMemory: 32 * MIB }),
    ),
  );
  // Values as large as the arena bears, overwritten, by clients that each leave windows half used.
  for (let round = 0; round < 12; round++) {
    await Promise.all(
      clients.map(async (client, i) => {
        for (const size of [200 * KIB, 70 * KIB + 1, 6 * MIB + 5]) {
          const value = makeValue(Math.ceil(size * (0.5 + random() / 2)), 1000 * i + round);
          await client.put(`key ${i} ${size}`, value);
          const read = await client.get(`key ${i} ${size}`, { verify: true });
          assert.ok(read !== undefined && value.equals(read.bytes));
          read.release();
        }
      }),
    );
  }
  await Promise.all(
    clients.map(async (client, i) => {
      for (const size of [200 * KIB, 70 * KIB + 1, 6 * MIB + 5]) await client.delete(`key ${i} ${size}`);
      await client.close();
    }),
  );
  const watcher = new WireClient(server.addr);
  const session = await watcher.connect();
  await countersWhen(
    () => session.counters(),
    (now) => now['memoryFreeBytes'] === now['memoryTotalBytes'] && now['windowsOpen'] === 0,
    { what: 'all of the memory' },
  );
  watcher[Symbol.dispose]();
});

test('where only the end of an endpoint proves anything, the rail is opened anew at the bound, and clients go on', async () => {
  const script = fileURLToPath(new URL('../support/unprovable-server.js', import.meta.url));
  let addr = '';
  await using _ = new Child(process.execPath, {
    args: [script, String(128 * MIB), String(24 * MIB)],
    onStdout: (chunk) => {
      addr += chunk.toString().trim();
    },
  });
  await waitFor(() => addr !== '', { what: 'the server' });
  const client = await KvClient.connect({ serverAddr: addr, provider: 'tcp' });
  let puts = 0;
  // Each overwritten value stays in quarantine, until the bound is passed.
  const replaced = async (): Promise<boolean> => {
    const value = makeValue(8 * MIB, puts++);
    await client.put('key', value);
    const read = await client.get('key', { verify: true });
    assert.ok(read !== undefined && value.equals(read.bytes));
    read.release();
    return ((await client.ping()).counters['railsReplaced'] ?? 0) > 0;
  };
  await waitFor(replaced, { what: 'another endpoint', intervalMs: 50, timeoutMs: 20_000 });
  // The old endpoint's end has freed what waited for it.
  const freed = async (): Promise<boolean> => {
    const { counters } = await client.ping();
    return (counters['quarantinedUnprovableBytes'] ?? Number.NaN) < 24 * MIB;
  };
  await waitFor(freed, { what: 'the memory' });
  const value = makeValue(8 * MIB, 777);
  await client.put('key', value);
  const read = await client.get('key', { verify: true });
  assert.deepEqual([read?.path, read?.bytes.equals(value)], ['rdma', true]);
  await client.close();
});
