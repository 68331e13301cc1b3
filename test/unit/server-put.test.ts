import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { crc32c } from '../../src/fabric/index.js';
import { EXTENT_BYTES_MAX } from '../../src/protocol/limits.js';
import { OperationGate } from '../../src/server/operation-gate.js';
import { waitFor } from '../support/wait-for.js';
import { turn } from './support/memory-rail.js';
import { KEY, MIB, PutBench } from './support/put-bench.js';

/** Three windows. */
const LENGTH = 2 * EXTENT_BYTES_MAX + 1000;
const VALUE = Buffer.alloc(LENGTH, 'fabric');
const COMMIT = { putCommit: { crc32c: crc32c(VALUE) } };

function gate(): { readonly promise: Promise<void>; readonly open: () => void } {
  let open: () => void = () => undefined;
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

describe('a PUT by RDMA', () => {
  test('is granted windows of at most 16 MiB, verified, published, and its windows closed', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    const grant = await session.open(1, LENGTH);
    assert.deepEqual(
      grant.extents?.map(({ length }) => Number(length)),
      [EXTENT_BYTES_MAX, EXTENT_BYTES_MAX, 1000],
    );
    await waitFor(() => session.said.filter((what) => what === '0:windowOffer').length === 3, { what: 'the windows' });
    bench.walk();
    session.fill(grant, VALUE);
    assert.equal(bench.stored(), undefined);
    session.say(1, COMMIT);
    assert.equal((await session.result(1)).put?.path, 'RDMA');
    assert.equal(bench.stored()?.length, LENGTH);
    assert.ok(bench.isWhole());
    assert.equal(session.said.filter((what) => what === '0:windowRevoke').length, 3, 'and the client is told');
    bench.walk();
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('is granted as soon as its first window is open; the others follow while the client writes', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    bench.held = true;
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
    await turn();
    await bench.rail.next();
    assert.deepEqual(session.said, ['0:windowOffer', '1:grant']);
    assert.equal(session.results(1)[0]?.grant?.extents?.length, 3);
    await bench.rail.next();
    await bench.rail.next();
    assert.deepEqual(session.said.slice(2), ['0:windowOffer', '0:windowOffer']);
    bench.held = false;
    await session.end();
    await bench.checkEmpty();
  });

  test('whose later window cannot be opened fails, and frees what it had', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    bench.held = true;
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
    await turn();
    await bench.rail.next();
    bench.rail.failing.add('register');
    await bench.rail.next();
    assert.deepEqual([session.lastFailure, session.failures[0]?.outcome], ['ERR_FABRICKV_DATA_PLANE', 'not-applied']);
    bench.held = false;
    await bench.drain();
    await session.end();
    await bench.checkEmpty();
  });

  test('that was applied on another session meanwhile has that result, and is not applied again', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    bench.history.begin(5n, 1);
    session.say(1, COMMIT);
    await turn();
    assert.equal(session.said.includes('1:put'), false);
    bench.history.settle(5n, 1, { put: { version: 7, path: 'RDMA' } });
    assert.ok(session.said.includes('1:put'));
    assert.equal(bench.stored(), undefined);
    assert.equal(bench.counters.replayedResults, 1);
    await session.end();
    await bench.checkEmpty();
  });

  test('whose bytes are others is thrown away, and closes every window of its session', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    const other = bench.session(6n);
    await session.open(1, LENGTH);
    await session.open(2, 1000);
    await other.open(1, 1000);
    session.say(1, { putCommit: { crc32c: 1 } });
    const { failure } = await session.result(1);
    assert.equal(failure?.code, 'ERR_FABRICKV_CHECKSUM');
    assert.equal(session.failures[0]?.outcome, 'not-applied');
    assert.equal((await session.result(2)).failure?.code, 'ERR_FABRICKV_GRANT_ENDED');
    assert.equal(bench.stored(), undefined);
    assert.equal(bench.counters.hostileSigns, 1);
    assert.equal(other.failures.length, 0, 'nobody else is concerned');
    await Promise.all([session.end(), other.end()]);
    await bench.checkEmpty();
  });

  test('that is committed before its windows are open is refused: it would publish what others left there', async () => {
    await using bench = await PutBench.open();
    for (const body of [{ withoutCrc: true }, { crc32c: 1 }]) {
      const session = bench.session();
      bench.held = true;
      session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
      await turn();
      await bench.rail.next();
      assert.deepEqual(session.said, ['0:windowOffer', '1:grant']);
      session.say(1, { putCommit: body });
      await turn();
      assert.equal(session.lastFailure, 'ERR_FABRICKV_PROTOCOL');
      assert.equal(session.failures[0]?.outcome, 'not-applied');
      assert.equal(bench.stored(), undefined);
      bench.held = false;
      await bench.drain();
      await session.end();
    }
    await bench.checkEmpty();
  });

  test('whose windows are all closed at once is told of each once', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    await session.open(1, LENGTH);
    await waitFor(() => session.said.filter((what) => what === '0:windowOffer').length === 3, { what: 'the windows' });
    session.windows.sealAll('a test');
    assert.equal(session.said.filter((what) => what === '0:windowRevoke').length, 3);
  });

  test('whose window cannot be opened on one rail has it closed on the other before the session is over', async () => {
    await using bench = await PutBench.open({ rails: 2 });
    const session = bench.session();
    bench.memoryRails[1]?.failing.add('register');
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
    bench.rail.refusals.set('deregister', { code: 'BUSY' });
    await session.result(1);
    let ended = false;
    const ending = session.end().then(() => {
      ended = true;
    });
    await turn();
    assert.deepEqual([ended, bench.rail.regions.size], [false, 1]);
    bench.rail.refusals.clear();
    await ending;
    assert.equal(bench.rail.regions.size, 0);
    await bench.checkEmpty();
  });

  test('without a CRC is stored unverified', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, 1000), VALUE.subarray(0, 1000));
    session.say(1, { putCommit: { withoutCrc: true } });
    assert.ok((await session.result(1)).put);
    assert.equal(bench.stored()?.crc32c, undefined);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('that will have no CRC is not checked as the client writes', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA', withoutCrc: true } });
    session.fill(await session.grant(1), VALUE);
    session.say(1, { putProgress: { bytesWritten: EXTENT_BYTES_MAX } });
    session.say(1, { putCommit: { withoutCrc: true } });
    assert.ok((await session.result(1)).put);
    assert.equal(bench.crcBytes, 0);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('is checked as the client writes: the commit has only the rest to read', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    const grant = await session.open(1, LENGTH);
    session.fill(grant, VALUE);
    session.say(1, { putProgress: { bytesWritten: EXTENT_BYTES_MAX + 5 } });
    session.say(1, { putProgress: { bytesWritten: 3 } });
    const { crc } = session.running.get(1) as unknown as { crc: { checkedBytes: number } };
    await waitFor(() => crc.checkedBytes === EXTENT_BYTES_MAX + 5, { what: 'the check so far' });
    session.say(1, COMMIT);
    assert.ok((await session.result(1)).put);
    assert.ok(bench.isWhole());
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('whose progress is beyond its grant fails', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    await session.open(1, 1000);
    session.say(1, { putProgress: { bytesWritten: 1001 } });
    assert.equal(session.lastFailure, 'ERR_FABRICKV_PROTOCOL');
    await session.end();
    await bench.checkEmpty();
  });

  test('takes a second commit, Data, progress or an abort while it is verified for nothing', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    const { promise, open } = gate();
    bench.crcGate = promise;
    session.say(1, COMMIT);
    session.say(1, COMMIT);
    session.say(1, { putCommit: { crc32c: 9 } });
    session.say(1, { data: { offset: 0, bytes: Buffer.alloc(10) } });
    session.say(1, { putProgress: { bytesWritten: 2 * LENGTH } });
    session.say(1, { putMore: { length: 5 } });
    session.say(1, { putAbort: {} });
    await turn();
    assert.deepEqual(session.failures, []);
    open();
    await session.result(1);
    assert.deepEqual(
      session.said.filter((what) => what.startsWith('1:')),
      ['1:grant', '1:put'],
    );
    assert.ok(bench.isWhole());
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('whose windows are closed while it is verified is carried through', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    const { promise, open } = gate();
    bench.crcGate = promise;
    session.say(1, COMMIT);
    session.windows.sealAll('a test');
    await turn();
    open();
    assert.ok((await session.result(1)).put);
    assert.ok(bench.isWhole());
    bench.walk();
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('whose windows are closed before its commit is told, and its commit then finds nothing', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    session.windows.sealAll('a test');
    assert.equal(session.lastFailure, 'ERR_FABRICKV_GRANT_ENDED');
    session.say(1, COMMIT);
    assert.deepEqual(
      session.failures.map(({ code, outcome }) => [code, outcome]),
      Array(2).fill(['ERR_FABRICKV_GRANT_ENDED', 'not-applied']),
    );
    await session.end();
    await bench.checkEmpty();
  });

  test('cancelled while it is verified is carried through, and told Quiesced afterwards', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    session.say(1, COMMIT);
    session.say(1, { cancel: {} });
    assert.equal(session.said.includes('1:quiesced'), false);
    await waitFor(() => session.said.includes('1:quiesced'), { what: 'Quiesced' });
    assert.deepEqual(
      session.said.filter((what) => what.startsWith('1:')),
      ['1:grant', '1:put', '1:quiesced'],
    );
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('that is being committed on a session that ends is stored, and known to the next session', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.fill(await session.open(1, LENGTH), VALUE);
    const { promise, open } = gate();
    bench.crcGate = promise;
    session.say(1, COMMIT);
    const next = bench.session();
    const ended = session.end();
    await turn();
    assert.equal(bench.rail.regions.size, 0, 'its windows are closed meanwhile');
    next.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
    assert.deepEqual(next.said, []);
    open();
    await ended;
    assert.equal((await next.result(1)).put?.path, 'RDMA');
    assert.equal(bench.counters.replayedResults, 1);
    assert.ok(bench.isWhole());
    bench.store.remove(0, KEY);
    await next.end();
    await bench.checkEmpty();
  });

  test('gives everything back when it is stopped, at every step of its opening', async () => {
    // In its own turn (-1); then three registrations are awaited, one after the other; with the first it is granted.
    for (let steps = -1; steps <= 4; steps++) {
      for (const cause of ['session-ended', 'cancelled'] as const) {
        await using bench = await PutBench.open();
        const session = bench.session();
        bench.held = true;
        session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA' } });
        if (steps >= 0) await turn();
        for (let i = 0; i < steps; i++) await bench.rail.next();
        assert.equal(session.said.includes('1:grant'), steps >= 1, `${steps}`);
        // In its own turn what was taken has not reached it.
        if (steps >= 0) bench.walk();
        if (cause === 'cancelled') {
          session.say(1, { cancel: {} });
          assert.equal(session.running.size, 0);
          if (steps >= 0) bench.walk();
        }
        const ended = session.end();
        for (let i = 0; i < 8; i++) {
          await bench.rail.next();
          bench.walk();
        }
        bench.held = false;
        await ended;
        assert.equal(session.said.filter((what) => what === '1:quiesced').length, cause === 'cancelled' ? 1 : 0);
        await bench.checkEmpty();
      }
    }
  });

  test('has its time anew whenever it goes on', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA', deadlineMs: 1000 } });
    await waitFor(() => session.results(1).length === 1, { what: 'the grant' });
    for (let bytesWritten = 1; bytesWritten <= 4; bytesWritten++) {
      await sleep(400);
      session.say(1, { putProgress: { bytesWritten } });
    }
    assert.equal(session.failures.length, 0);
    await waitFor(() => session.failures.length > 0, { what: 'the deadline' });
    assert.equal(session.lastFailure, 'ERR_FABRICKV_DEADLINE');
    await session.end();
    await bench.checkEmpty();
  });

  test('that is not written in its time is taken back', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, length: LENGTH, path: 'RDMA', deadlineMs: 20 } });
    await waitFor(() => session.failures.length > 0, { what: 'the deadline' });
    assert.deepEqual([session.lastFailure, session.failures[0]?.stage], ['ERR_FABRICKV_DEADLINE', 'put.granted']);
    await session.end();
    await bench.checkEmpty();
  });

  test('gets memory that is in quarantine, once it is proved', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    // Two fit beside each other: the third needs what the first one had.
    for (const id of [1, 2, 3]) assert.ok((await session.put(id, VALUE)).put);
    assert.deepEqual(session.failures, []);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('that would not fit into all that could be had makes no proof, and takes nobody`s windows', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    await session.put(1, VALUE);
    const grant = await session.open(2, 2 * MIB);
    const before = bench.rail.log.length;
    session.say(3, { putOpen: { key: KEY, length: 60 * MIB, path: 'RDMA' } });
    assert.equal((await session.result(3)).failure?.code, 'ERR_FABRICKV_CAPACITY');
    assert.equal(bench.rail.log.length, before);
    session.fill(grant, VALUE);
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('that waits for its turn and is cancelled never starts; past the limit it is refused', async () => {
    await using bench = await PutBench.open({ gate: new OperationGate(1, 1) });
    const session = bench.session();
    await session.open(1, 1000);
    session.say(2, { putOpen: { key: KEY, length: 1000, path: 'RDMA' } });
    session.say(3, { putOpen: { key: KEY, length: 1000, path: 'RDMA' } });
    assert.match(session.failures[0]?.message ?? '', /--max-waiting/);
    session.say(2, { cancel: {} });
    assert.ok(session.said.includes('2:quiesced'));
    await session.end();
    await bench.checkEmpty();
  });
});

describe('a streamed PUT', () => {
  const pieces = [EXTENT_BYTES_MAX, 5 * MIB, 70_000, 3 * MIB];

  test('is given room bit by bit, and its length with the commit', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
    assert.equal((await session.grant(1)).extents?.length, 0);
    let at = 0;
    for (const [i, length] of pieces.entries()) {
      session.say(1, { putMore: { length } });
      const grant = await session.grant(1, i + 1);
      session.fill(grant, VALUE.subarray(at, at + length));
      at += length;
      session.say(1, { putProgress: { bytesWritten: i < 3 ? at : at - length } });
      bench.walk();
    }
    const length = at - 2 * MIB;
    session.say(1, { putCommit: { length, crc32c: crc32c(VALUE.subarray(0, length)) } });
    assert.ok((await session.result(1)).put);
    assert.equal(bench.stored()?.length, length);
    assert.ok(bench.isWhole());
    bench.walk();
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  test('of no bytes is stored', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
    await session.grant(1);
    session.say(1, { putMore: { length: MIB } });
    await session.grant(1, 1);
    session.say(1, { putCommit: { length: 0, crc32c: 0 } });
    assert.ok((await session.result(1)).put);
    assert.equal(bench.stored()?.length, 0);
    bench.walk();
    bench.store.remove(0, KEY);
    await session.end();
    await bench.checkEmpty();
  });

  const refused: Readonly<
    Record<string, { say: Parameters<ReturnType<PutBench['session']>['say']>[1]; code: string }>
  > = {
    'more than 16 MiB at a time': { say: { putMore: { length: EXTENT_BYTES_MAX + 1 } }, code: 'ERR_FABRICKV_PROTOCOL' },
    'nothing more': { say: { putMore: { length: 0 } }, code: 'ERR_FABRICKV_PROTOCOL' },
    'a commit of more than it was granted': { say: { putCommit: { length: MIB + 1 } }, code: 'ERR_FABRICKV_PROTOCOL' },
    'a commit of less than it has written': { say: { putCommit: { length: 9 } }, code: 'ERR_FABRICKV_PROTOCOL' },
  };
  for (const [what, { say, code }] of Object.entries(refused)) {
    test(`that asks for ${what} fails`, async () => {
      await using bench = await PutBench.open();
      const session = bench.session();
      session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
      await session.grant(1);
      session.say(1, { putMore: { length: MIB } });
      await session.grant(1, 1);
      session.say(1, { putProgress: { bytesWritten: 10 } });
      session.say(1, say);
      assert.equal((await session.result(1)).failure?.code, code);
      await session.end();
      await bench.checkEmpty();
    });
  }

  test('that grows beyond the longest value, or beyond the arena, fails with what it has in hand', async () => {
    await using bench = await PutBench.open({ arenaBytes: 40 * MIB });
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
    await session.grant(1);
    for (let i = 0; i < 3; i++) session.say(1, { putMore: { length: EXTENT_BYTES_MAX } });
    assert.equal((await session.result(1)).failure?.code, 'ERR_FABRICKV_VALUE_TOO_LARGE');
    bench.walk();
    await session.end();
    await bench.checkEmpty();
  });

  test('keeps its room as long as it says so, however little there is to say, and no longer', async () => {
    await using bench = await PutBench.open({ gate: new OperationGate(2, 1) });
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true, deadlineMs: 1000 } });
    await session.grant(1);
    session.say(1, { putMore: { length: MIB } });
    await session.grant(1, 1);
    session.say(2, { putOpen: { key: KEY, path: 'INLINE', length: 1000, deadlineMs: 1000 } });
    await session.grant(2);
    session.say(2, { data: { offset: 0, bytes: Buffer.alloc(10) } });
    // It waits for its turn.
    session.say(3, { putOpen: { key: KEY, path: 'RDMA', streamed: true, deadlineMs: 1000 } });
    for (let i = 0; i < 4; i++) {
      await sleep(400);
      session.say(1, { putProgress: { bytesWritten: 0 } });
      session.say(2, { putProgress: { bytesWritten: 10 } });
      session.say(3, { putProgress: { bytesWritten: 0 } });
    }
    assert.deepEqual(session.failures, []);
    assert.ok(bench.store.arena.usage.usedBytes >= MIB + 1000);
    session.say(1, { putAbort: {} });
    await session.grant(3);
    await waitFor(() => session.failures.length === 2, { what: 'the deadlines of the others' });
    assert.deepEqual(
      session.failures.map(({ code, outcome }) => [code, outcome]),
      Array(2).fill(['ERR_FABRICKV_DEADLINE', 'not-applied']),
    );
    // What was on its way changes nothing.
    session.say(2, { putProgress: { bytesWritten: 1000 } });
    session.say(3, { putProgress: { bytesWritten: 0 } });
    assert.equal(session.failures.length, 2);
    await bench.checkEmpty();
    await session.end();
  });

  test('that says that it has written something before it has room fails', async () => {
    await using bench = await PutBench.open({ gate: new OperationGate(1, 1) });
    const session = bench.session();
    await session.open(1, 1000);
    session.say(2, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
    session.say(2, { putProgress: { bytesWritten: 1 } });
    assert.equal(session.lastFailure, 'ERR_FABRICKV_PROTOCOL');
    await session.end();
    await bench.checkEmpty();
  });

  test('that is cancelled while it waits for room gives that back too', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'RDMA', streamed: true } });
    await session.grant(1);
    bench.held = true;
    session.say(1, { putMore: { length: EXTENT_BYTES_MAX } });
    session.say(1, { putMore: { length: EXTENT_BYTES_MAX } });
    await turn();
    session.say(1, { cancel: {} });
    bench.walk();
    await bench.drain();
    bench.held = false;
    await session.end();
    await bench.checkEmpty();
  });

  test('is refused inline, and with a length', async () => {
    await using bench = await PutBench.open();
    const session = bench.session();
    session.say(1, { putOpen: { key: KEY, path: 'INLINE', streamed: true } });
    session.say(2, { putOpen: { key: KEY, path: 'RDMA', streamed: true, length: 5 } });
    assert.deepEqual(
      session.failures.map(({ code }) => code),
      Array(2).fill('ERR_FABRICKV_PROTOCOL'),
    );
    await session.end();
    await bench.checkEmpty();
  });
});
