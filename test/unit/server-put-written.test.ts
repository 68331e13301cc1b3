import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc32c, FabricError } from '../../src/fabric/index.js';
import type { PutWritten } from '../../src/protocol/generated/fabrickv/v1/PutWritten.js';
import { fromBigInt } from '../../src/protocol/wire.js';
import { OperationGate } from '../../src/server/operation-gate.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryPeer } from './support/memory-peer.js';
import { turn } from './support/memory-rail.js';
import { type BenchSession, KEY, MIB, PutBench } from './support/put-bench.js';

/** Long enough to be checked on a worker. */
const BYTES = Buffer.alloc(300_001, 'fabric');

function written(
  windowId: number,
  windowOffset: number,
  bytes = BYTES,
  more: Partial<PutWritten> = {},
): { putWritten: PutWritten } {
  return { putWritten: { key: KEY, windowId, windowOffset, length: bytes.length, crc32c: crc32c(bytes), ...more } };
}

/** A session that has a session window, and the bytes of one value in it. */
async function warmSession(bench: PutBench): Promise<{ session: BenchSession; id: number; length: number }> {
  const session = bench.session();
  const window = await session.warm();
  assert.ok(session.write(window.id, 0, BYTES));
  return { session, ...window };
}

describe('the session window', () => {
  test('is offered after the first PUT by RDMA, and takes values without a grant', async () => {
    await using bench = await PutBench.open();
    const { session, id, length } = await warmSession(bench);
    assert.equal(length, Math.floor((80 * MIB) / 64 / 64) * 64);
    session.say(2, written(id, 0));
    assert.equal((await session.result(2)).put?.path, 'RDMA');
    assert.ok(bench.isWhole());
    bench.walk();
    // With a gap, and without a CRC.
    session.write(id, 400_000, BYTES);
    session.say(3, written(id, 400_000, BYTES, { withoutCrc: true, crc32c: 0 }));
    assert.ok((await session.result(3)).put);
    assert.equal(bench.stored()?.crc32c, undefined);
    bench.walk();
    assert.equal(bench.counters.putsIntoSessionWindows, 2);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('is offered to a client that is connected to just before', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    const peer = new MemoryPeer();
    Object.assign(session, { peer: peer.peer });
    await session.warm();
    assert.equal(peer.pings, 2, 'for the grant, and for the session window');
    session.windows.sealAll('a test');
    await session.put(2, BYTES);
    assert.equal(peer.pings, 4);
  });

  test('is not offered while too many before it wait for their proofs', async () => {
    await using bench = await PutBench.open();
    const { session } = await warmSession(bench);
    let offered = 1;
    bench.rail.refusals.set('prove', { code: 'TRANSFER_FAILED' });
    for (let i = 2; i < 40; i++) {
      session.windows.sealAll('a test');
      await turn();
      session.windows.offerSessionWindows(BYTES.length);
      await turn();
      if (session.sessionWindow !== undefined) offered += 1;
    }
    assert.equal(offered, 16);
    bench.rail.refusals.clear();
    await waitFor(() => bench.store.arena.usage.quarantinedBytes === 0, { what: 'the proofs' });
    session.windows.offerSessionWindows(BYTES.length);
    await waitFor(() => session.sessionWindow, { what: 'another one' });
  });

  test('counts as long as its memory region is not closed', async () => {
    await using bench = await PutBench.open();
    const { session } = await warmSession(bench);
    for (let i = 0; i < 10; i++) {
      bench.held = true;
      session.windows.sealAll('a test');
      bench.held = false;
      session.windows.offerSessionWindows(BYTES.length);
      await turn();
    }
    assert.equal(bench.rail.regions.size, 6 + 1, 'that of the first grant is the seventh');
    await bench.drain();
  });

  test('is not offered when memory is short', async () => {
    await using bench = await PutBench.open({ arenaBytes: 4 * MIB });
    const session = bench.session();
    assert.ok((await session.put(1, Buffer.alloc(2.5 * MIB))).put);
    await turn();
    assert.equal(session.sessionWindow, undefined);
    assert.equal(bench.store.arena.usage.reservedBytes, 0);
  });

  test('is followed by the next one when it is three quarters full, and goes when that is used', async () => {
    await using bench = await PutBench.open();
    const { session, id, length } = await warmSession(bench);
    const piece = Math.ceil(length / 5 / 64) * 64;
    const bytes = Buffer.alloc(piece, 7);
    for (let i = 0; i < 4; i++) {
      assert.equal(session.sessionWindow?.id, id);
      session.write(id, i * piece, bytes);
      session.say(2 + i, written(id, i * piece, bytes));
      assert.ok((await session.result(2 + i)).put);
    }
    const next = await waitFor(() => (session.sessionWindow?.id === id ? undefined : session.sessionWindow), {
      what: 'the next window',
    });
    session.write(next.id, 0, bytes);
    session.say(10, written(next.id, 0, bytes));
    assert.ok((await session.result(10)).put);
    assert.ok(session.sent.some(({ windowRevoke }) => windowRevoke?.windowId === id));
    // What was written before the revocation was read is taken still.
    const late = Buffer.alloc(64, 9);
    assert.ok(session.write(id, 4 * piece, late));
    session.say(11, written(id, 4 * piece, late));
    assert.ok((await session.result(11)).put);
    session.say(0, {});
    session.windows.onEnded(id);
    await turn();
    assert.equal(session.write(id, 4 * piece + 64, late), false, 'it is closed');
    session.say(12, written(id, 4 * piece + 64, late));
    assert.equal(session.lastFailure, 'ERR_FABRICKV_GRANT_ENDED');
    assert.equal(bench.counters.hostileSigns, 0);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('is followed by two when a value takes most of one, so that the next such value finds one', async () => {
    await using bench = await PutBench.open();
    const { session, id, length } = await warmSession(bench);
    const open = (): number => session.allWindows().length;
    const before = open();
    const most = Buffer.alloc(length, 5);
    session.write(id, 0, most);
    session.say(2, written(id, 0, most));
    assert.ok((await session.result(2)).put);
    await waitFor(() => open() === before + 2, { what: 'two more' });
    // The client has nothing to add to a full one.
    session.windows.onEnded(id);
    assert.equal(session.write(id, 0, Buffer.alloc(1)), false);
    await waitFor(() => open() === before + 1, { what: 'the closing' });
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('is followed by the next one when a value does not fit into the rest', async () => {
    await using bench = await PutBench.open();
    const { session, id, length } = await warmSession(bench);
    const most = Buffer.alloc(length / 2 + 64);
    session.write(id, 0, most);
    session.say(2, written(id, 0, most));
    await session.result(2);
    assert.ok((await session.put(3, most)).put);
    await waitFor(() => session.sessionWindow?.id !== id, { what: 'the next window' });
  });

  test('that was not used for a while is taken back, with time for what is being written', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    session.windows.sweep(performance.now());
    assert.equal(session.sessionWindow?.id, id);
    session.windows.sweep(performance.now() + 2000);
    assert.equal(session.sessionWindow, undefined);
    session.say(2, written(id, 0));
    assert.ok((await session.result(2)).put, 'the revocation had not been read');
    // It never says that it has ended its writes.
    await waitFor(() => !session.write(id, 300_032, Buffer.alloc(1)), { what: 'the closing' });
    session.say(3, written(id, 300_032));
    assert.equal(session.lastFailure, 'ERR_FABRICKV_GRANT_ENDED');
    assert.deepEqual([session.failures[0]?.outcome, session.failures[0]?.retryable], ['not-applied', true]);
    await waitFor(() => session.sessionWindow, { what: 'another one' });
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  const hostile: Readonly<Record<string, (id: number, length: number) => ReturnType<typeof written>>> = {
    'a range twice': (id) => written(id, 0),
    'a range that overlaps the last value': (id) => written(id, 299_968),
    'a range before the last value': (id) => written(id, 64, Buffer.alloc(64)),
    'an offset that is no multiple of 64': (id) => written(id, 300_033, Buffer.alloc(64)),
    'a range beyond the end': (id, length) => written(id, length - 64, Buffer.alloc(65)),
    'an end beyond every number': (id) => ({
      putWritten: { key: KEY, windowId: id, windowOffset: 2 ** 52, length: 64 },
    }),
    'no bytes': (id) => written(id, 300_032, Buffer.alloc(0)),
  };
  for (const [what, body] of Object.entries(hostile)) {
    test(`of which ${what} is claimed closes, with all others of the session`, async () => {
      await using bench = await PutBench.open();
      const { session, id, length } = await warmSession(bench);
      session.say(2, written(id, 0));
      await session.result(2);
      await session.open(3, 1000);
      session.say(4, body(id, length));
      assert.equal((await session.result(4)).failure?.code, 'ERR_FABRICKV_PROTOCOL');
      assert.equal(session.lastFailure, 'ERR_FABRICKV_PROTOCOL');
      assert.equal((await session.result(3)).failure?.code, 'ERR_FABRICKV_GRANT_ENDED');
      await turn();
      assert.equal(bench.rail.regions.size, 0);
      assert.equal(bench.counters.hostileSigns, 1);
      assert.ok(bench.isWhole(), 'what was stored is there');
      bench.walk();
      bench.store.remove(0, KEY);
      await session.end();
      await bench.checkEmpty();
    });
  }

  test('of another session is none of this one`s, and a grant`s window is no session window', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    const other = bench.session(6n);
    other.say(1, written(id, 0));
    assert.equal(other.lastFailure, 'ERR_FABRICKV_GRANT_ENDED');
    const { extents } = await other.open(2, 1000);
    other.say(3, written(Number(extents?.[0]?.windowId), 0));
    assert.deepEqual(
      new Set(other.failures.map(({ code }) => code)),
      new Set(['ERR_FABRICKV_GRANT_ENDED', 'ERR_FABRICKV_PROTOCOL']),
    );
    assert.equal(session.failures.length, 0);
    assert.equal(bench.stored(), undefined);
  });

  test('with other bytes than the CRC is of: nothing is stored, and all windows are closed', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    session.say(2, written(id, 0, BYTES, { crc32c: 1 }));
    assert.equal((await session.result(2)).failure?.code, 'ERR_FABRICKV_CHECKSUM');
    assert.equal(session.failures[0]?.outcome, 'not-applied');
    assert.equal(bench.stored(), undefined);
    await turn();
    assert.deepEqual([bench.rail.regions.size, bench.counters.hostileSigns], [0, 1]);
    await session.end();
    await bench.checkEmpty();
  });

  test('to which the client writes on after its PUT holds only what that client wrote (I2)', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    session.say(2, written(id, 0));
    await session.result(2);
    assert.ok(bench.isWhole());
    session.write(id, 0, Buffer.from('spoiled'));
    assert.equal(bench.isWhole(), false, 'the CRC tells');
    // Freed, it is nobody's before the proof; and then out of the client's reach.
    bench.store.remove(0, KEY);
    bench.walk();
    session.windows.sealAll('a test');
    await waitFor(() => bench.store.arena.usage.quarantinedBytes === 0, { what: 'the proof' });
    assert.equal(session.write(id, 0, Buffer.from('again')), false);
    bench.walk();
  });
});

describe('PutWritten', () => {
  test('again under the same id has the first result, whichever session asks, and is applied once', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    let open: () => void = () => undefined;
    bench.crcGate = new Promise((resolve) => {
      open = resolve;
    });
    session.say(2, written(id, 0));
    session.say(2, written(id, 0));
    const next = bench.session();
    const ended = session.end();
    next.say(2, written(id, 0));
    next.say(2, { putOpen: { key: KEY, length: BYTES.length, path: 'RDMA' } });
    assert.deepEqual(next.said, []);
    open();
    await ended;
    await waitFor(() => next.results(2).length === 2, { what: 'the results' });
    const version = fromBigInt(bench.stored()?.version ?? 0n);
    for (const { put } of next.results(2)) assert.deepEqual(put?.version, version);
    next.say(2, written(id, 0));
    assert.equal(next.results(2).length, 3);
    assert.equal(bench.counters.putsRdma, 2, 'the first one, and this');
    assert.equal(bench.counters.hostileSigns, 0);
    bench.store.remove(0, KEY);
    await next.end();
    await bench.checkEmpty();
  });

  test('that failed is not known: a PutOpen under the same id begins anew', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    session.say(2, written(id + 1000, 0));
    assert.equal(session.lastFailure, 'ERR_FABRICKV_GRANT_ENDED');
    session.fill(await session.open(2, BYTES.length), BYTES);
    session.say(2, { putCommit: { crc32c: crc32c(BYTES) } });
    await waitFor(() => session.results(2).some(({ put }) => put), { what: 'the result' });
  });

  test('whose window is closed while it is verified is carried through', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    let open: () => void = () => undefined;
    bench.crcGate = new Promise((resolve) => {
      open = resolve;
    });
    session.say(2, written(id, 0));
    session.windows.sealAll('a test');
    await waitFor(() => bench.rail.unproven.size === 0 && bench.rail.regions.size === 0, { what: 'the proof' });
    bench.walk();
    open();
    assert.ok((await session.result(2)).put);
    assert.ok(bench.isWhole());
    bench.walk();
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('that cannot be verified for a reason of the fabric fails with that', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    bench.crcGate = Promise.reject(new FabricError({ code: 'RAIL_CLOSED', call: 'crc32c', text: 'a test' }));
    bench.crcGate.catch(() => undefined);
    session.say(2, written(id, 0));
    assert.equal((await session.result(2)).failure?.code, 'ERR_FABRICKV_DATA_PLANE');
  });

  test('waits for its turn, and is stopped there by a cancellation, its time, or the end of the session', async () => {
    await using bench = await PutBench.open({ gate: new OperationGate(1, 3) });
    const { session, id } = await warmSession(bench);
    await session.open(9, 1000);
    for (const [i, deadlineMs] of [0, 20, 0].entries()) {
      session.say(2 + i, written(id, i * 64, Buffer.alloc(64), { deadlineMs }));
    }
    session.say(8, written(id, 640, Buffer.alloc(64)));
    assert.match(session.failures[0]?.message ?? '', /--max-waiting/);
    session.say(2, { cancel: {} });
    assert.ok(session.said.includes('2:quiesced'));
    assert.equal((await session.result(3)).failure?.code, 'ERR_FABRICKV_DEADLINE');
    bench.walk();
    await session.end();
    assert.deepEqual(bench.values(), []);
    // None of them is known: each may be done again.
    for (const operationId of [2, 3, 4, 8])
      assert.equal(
        bench.history.find(5n, operationId, () => undefined),
        false,
      );
    await bench.checkEmpty();
  });

  test('in a session without a data plane, without an id, or of a bad key fails alone', async () => {
    await using bench = await PutBench.open();
    const { session, id } = await warmSession(bench);
    session.say(0, written(id, 0));
    session.say(3, written(id, 0, BYTES, { key: Buffer.alloc(0) }));
    session.say(4, written(id, 0, BYTES, { options: { ttlMs: 5 } }));
    session.say(5, written(id, 0, BYTES, { length: 81 * MIB }));
    Object.assign(session, { windows: undefined });
    session.say(6, written(id, 0));
    assert.deepEqual(
      session.failures.map(({ code }) => code),
      [
        'ERR_FABRICKV_PROTOCOL',
        'ERR_FABRICKV_INVALID_KEY',
        'ERR_FABRICKV_UNIMPLEMENTED',
        'ERR_FABRICKV_VALUE_TOO_LARGE',
        'ERR_FABRICKV_DATA_PLANE',
      ],
    );
    assert.equal(bench.counters.hostileSigns, 0);
    bench.sessions.splice(0);
  });
});
