import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '../../src/fabric/index.js';
import { alignedLength } from '../../src/server/store/extent-allocator.js';
import { turn } from './support/memory-rail.js';
import { type BenchSession, MIB, PutBench } from './support/put-bench.js';
import { SEED } from './support/seed.js';

/** A small generator of numbers in [0, 1), the same for the same seed (mulberry32). */
function numbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const KEYS = Array.from({ length: 6 }, (_, i) => Buffer.from(`key ${i}`));

test('whatever clients do, in whatever order the rails answer: the numbers add up, and no memory that a client can write to is anybody else`s', async () => {
  process.stdout.write(`FABRICKV_TEST_SEED=${SEED}\n`);
  const random = numbers(SEED);
  const pick = <Item>(items: readonly Item[]): Item => {
    const item = items[Math.floor(random() * items.length)];
    assert.ok(item !== undefined);
    return item;
  };
  const bytes = Buffer.alloc(6 * MIB, 'model');
  await using bench = await PutBench.open({ arenaBytes: 24 * MIB, rails: 2 });
  let clients = 0n;
  let operationIds = 0;
  /** The end of the last value in each session window. */
  const ends = new Map<number, number>();
  const active = (): BenchSession[] => bench.sessions.filter(({ ended }) => !ended);
  const lengthOf = (): number => Math.ceil(random() ** 3 * 6 * MIB) + 1;

  const steps: readonly ((session: BenchSession) => void)[] = [
    (session) => session.say(++operationIds, { putOpen: { key: pick(KEYS), length: lengthOf(), path: 'RDMA' } }),
    (session) => session.say(++operationIds, { putOpen: { key: pick(KEYS), length: lengthOf(), path: 'RDMA' } }),
    (session) => session.say(++operationIds, { putOpen: { key: pick(KEYS), path: 'RDMA', streamed: true } }),
    (session) => session.say(pickOperation(session), { putMore: { length: lengthOf() } }),
    (session) => session.say(pickOperation(session), { putProgress: { bytesWritten: Math.floor(random() * MIB) } }),
    (session) => commit(session, random() < 0.9),
    (session) => commit(session, true),
    (session) => session.say(pickOperation(session), { putAbort: {} }),
    (session) => session.say(pickOperation(session), { cancel: {} }),
    (session) => writeToSessionWindow(session),
    (session) => writeToSessionWindow(session),
    (session) => writeToSessionWindow(session),
    (session) => writeToSessionWindow(session, random() < 0.3),
    (session) => {
      for (const { windowRevoke } of session.sent)
        if (windowRevoke) session.windows.onEnded(Number(windowRevoke.windowId));
    },
    () => void bench.store.remove(0, pick(KEYS)),
    () => void bench.store.remove(0, pick(KEYS)),
    (session) => session.windows.sweep(performance.now() + (random() < 0.5 ? 0 : 5000)),
    (session) => {
      if (random() < 0.3) session.end().catch(assert.ifError);
    },
    () => {
      bench.held = random() < 0.5;
    },
    () => void pick(bench.memoryRails).next(),
    () => void pick(bench.memoryRails).next(),
    () => void bench.drain(),
  ];

  function pickOperation(session: BenchSession): number {
    const ids = [...session.running.keys()];
    return ids.length === 0 ? operationIds + 1 : pick(ids);
  }

  function commit(session: BenchSession, honest: boolean): void {
    const id = pickOperation(session);
    const grants = session.results(id).flatMap(({ grant }) => (grant ? [grant] : []));
    if (grants.length === 0) return;
    let length = 0;
    for (const grant of grants) {
      for (const { windowId, windowOffset, length: extentBytes } of grant.extents ?? []) {
        session.write(
          Number(windowId),
          Number(windowOffset),
          bytes.subarray(length % MIB, (length % MIB) + Number(extentBytes)),
        );
        length += Number(extentBytes);
      }
    }
    // What a streamed PUT holds is told by its CRC here; the others' is computed from what really landed.
    const operation = session.running.get(id) as unknown as { extents?: readonly { offset: number; length: number }[] };
    let crc = 0;
    for (const extent of operation.extents ?? []) crc = crc32c(bench.store.arena.view(extent), crc);
    session.say(id, { putCommit: { length, crc32c: honest ? crc : crc + 1 } });
  }

  function writeToSessionWindow(session: BenchSession, hostile = false): void {
    const window = session.sessionWindow;
    if (window === undefined) return;
    const length = Math.ceil(random() * 200_000);
    const end = ends.get(window.id) ?? 0;
    const offset = hostile ? Math.floor(random() * end) : end + (random() < 0.2 ? 640 : 0);
    if (!hostile && offset + length > window.length) return;
    session.write(window.id, offset, bytes.subarray(0, length));
    if (!hostile) ends.set(window.id, offset + alignedLength(length));
    session.say(++operationIds, {
      putWritten: {
        key: pick(KEYS),
        windowId: window.id,
        windowOffset: offset,
        length,
        crc32c: crc32c(bytes.subarray(0, length)),
      },
    });
  }

  for (let i = 0; i < 3000; i++) {
    while (active().length < 3) bench.session(++clients);
    pick(steps)(pick(active()));
    if (random() < 0.7) await turn();
    else continue;
    bench.walk();
    for (const value of bench.values()) assert.ok(value.length > 0 || value.extents.length === 0);
  }
  const { putsRdma, putsIntoSessionWindows, hostileSigns, windowsOpened } = bench.counters;
  assert.ok(putsRdma > 20 && putsIntoSessionWindows > 5 && hostileSigns > 2 && windowsOpened > 50, 'much was done');
  bench.held = false;
  await bench.drain();
  await Promise.all(
    bench.sessions.map(async (session) => {
      const ended = session.end();
      await bench.drain();
      await ended;
    }),
  );
  for (const key of KEYS) bench.store.remove(0, key);
  await bench.checkEmpty();
});
