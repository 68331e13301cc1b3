import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import type { Mapping } from '../../src/fabric/index.js';
import { ServerCounters } from '../../src/server/counters.js';
import { ServerRail } from '../../src/server/server-rail.js';
import { Arena } from '../../src/server/store/arena.js';
import { WriteWindow } from '../../src/server/windows.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryRail, turn } from './support/memory-rail.js';

const KIB = 1024;
const logger = pino({ level: 'silent' });

function bench(rails = 1) {
  const memoryRails = Array.from({ length: rails }, () => new MemoryRail());
  const serverRails = memoryRails.map((rail, i) => new ServerRail(rail.rail, i, rails, logger));
  const arena = new Arena({ sizeBytes: 64 * KIB, segmentBytes: 64 * KIB, segments: [Buffer.alloc(64 * KIB)] }, KIB);
  const counters = new ServerCounters();
  const [rail] = memoryRails;
  const [serverRail] = serverRails;
  assert.ok(rail !== undefined && serverRail !== undefined);
  return {
    rail,
    serverRail,
    memoryRails,
    arena,
    counters,
    window(): WriteWindow {
      const [range] = arena.reserve(KIB) ?? [];
      assert.ok(range !== undefined);
      // The mapping is only handed on.
      return new WriteWindow(1, 'grants', range, {
        rails: serverRails,
        mapping: {} as Mapping,
        arena,
        counters,
        logger,
      });
    },
  };
}

describe('a write window', () => {
  test('protects its memory until it is closed on every rail and every rail has proved', async () => {
    const { memoryRails, arena, counters, window: make } = bench(2);
    const window = make();
    assert.equal(await window.open(), true);
    assert.deepEqual([counters.windowsOpened, counters.windowsOpen, window.keys.length], [1, 1, 2]);
    const extent = window.claim(500);
    assert.ok(extent);
    assert.deepEqual([arena.usage.usedBytes, arena.usage.reservedBytes], [512, 512]);
    for (const rail of memoryRails) rail.held = true;
    arena.release([extent]);
    assert.deepEqual(arena.quarantinedBy(), { open: 512, proving: 0, unprovable: 0 });
    const sealed = window.seal();
    assert.equal(window.seal(), sealed, 'twice is once');
    assert.deepEqual([arena.usage.reservedBytes, arena.usage.quarantinedBytes], [0, KIB], 'what was left waits too');
    assert.equal(window.claim(1), undefined);
    for (const rail of memoryRails) await rail.next();
    await sealed;
    assert.deepEqual(arena.quarantinedBy(), { open: 0, proving: KIB, unprovable: 0 });
    const [first, second] = memoryRails;
    await waitFor(() => first?.waiting[0] === 'prove' && second?.waiting[0] === 'prove', { what: 'the rounds' });
    await first?.next();
    assert.equal(window.proven, false, 'one rail is not all');
    await second?.next();
    await turn();
    assert.equal(window.proven, true);
    assert.deepEqual([arena.usage.freeBytes, counters.windowsOpen], [64 * KIB, 0]);
  });

  test('that is sealed while it is registered is closed as soon as it is', async () => {
    const { rail, arena, window: make } = bench();
    const window = make();
    rail.held = true;
    const opening = window.open();
    const sealed = window.seal();
    await turn();
    assert.deepEqual(rail.waiting, ['register']);
    assert.equal(arena.usage.reservedBytes, KIB, 'it is about to be writable');
    rail.held = false;
    await rail.next();
    assert.equal(await opening, false);
    await sealed;
    await waitFor(() => arena.usage.freeBytes === 64 * KIB, { what: 'the proof', intervalMs: 2 });
    assert.deepEqual(rail.log, ['register', 'deregister', 'prove']);
  });

  test('that was never registered needs no proof', async () => {
    const { rail, arena, window: make } = bench();
    const window = make();
    await window.seal();
    assert.equal(await window.open(), false);
    await turn();
    assert.equal(arena.usage.freeBytes, 64 * KIB);
    assert.deepEqual(rail.log, []);
  });

  test('that one of two rails does not register is closed on the other', async () => {
    const { memoryRails, arena, counters, window: make } = bench(2);
    memoryRails[1]?.failing.add('register');
    const window = make();
    await assert.rejects(window.open(), { code: 'TRANSFER_FAILED' });
    await waitFor(() => arena.usage.freeBytes === 64 * KIB, { what: 'the proof', intervalMs: 2 });
    assert.deepEqual([memoryRails[0]?.regions.size, counters.windowsOpen], [0, 0]);
  });

  test('is open on the rails that work; on none, not at all', async () => {
    const { memoryRails, arena, window: make } = bench(2);
    const [first, second] = memoryRails;
    assert.ok(first !== undefined && second !== undefined);
    first.state = 'failed';
    const window = make();
    assert.equal(await window.open(), true);
    assert.deepEqual(
      window.keys.map(({ key }) => key === 0n),
      [true, false],
    );
    await window.seal();
    second.state = 'closed';
    await assert.rejects(make().open(), { code: 'RAIL_CLOSED' });
    assert.equal(arena.usage.reservedBytes, 0);
  });

  test('whose registration cannot be closed keeps its memory until the endpoint is', async () => {
    const { rail, serverRail, arena, window: make } = bench();
    const window = make();
    await window.open();
    rail.failing.add('deregister');
    await window.seal();
    await serverRail.hurry();
    await turn();
    assert.deepEqual(arena.quarantinedBy(), { open: 0, proving: 0, unprovable: KIB });
    assert.equal(serverRail.holdsUnprovable, true);
    serverRail.closed();
    await turn();
    assert.equal(arena.usage.freeBytes, 64 * KIB);
  });

  test('whose registration a rail is too busy to close is closed later', async () => {
    const { rail, serverRail, arena, window: make } = bench();
    const window = make();
    await window.open();
    rail.refusals.set('deregister', { code: 'BUSY' });
    let closed = false;
    void window.seal().then(() => {
      closed = true;
    });
    await waitFor(() => rail.log.filter((name) => name === 'deregister').length > 1, {
      what: 'the second try',
      intervalMs: 2,
    });
    assert.deepEqual([closed, rail.regions.size, serverRail.holdsUnprovable], [false, 1, false]);
    rail.refusals.clear();
    await waitFor(() => window.proven, { what: 'the proof', intervalMs: 2 });
    assert.deepEqual([rail.regions.size, arena.usage.freeBytes], [0, 64 * KIB]);
  });

  test('of a rail that is closing is proved when that has closed, also where its own closing is the proof', async () => {
    const { rail, serverRail, window: make } = bench();
    Object.assign(rail.info, { quiescence: 'close-region' });
    const window = make();
    await window.open();
    rail.refusals.set('deregister', { code: 'RAIL_CLOSED' });
    await window.seal();
    await turn();
    assert.equal(window.proven, false);
    serverRail.closed();
    await turn();
    assert.equal(window.proven, true);
  });

  test('is proved by its closing where that is a proof, and by the end of the endpoint where nothing else is', async () => {
    const closed = bench();
    Object.assign(closed.rail.info, { quiescence: 'close-region' });
    const easy = closed.window();
    await easy.open();
    await easy.seal();
    await turn();
    assert.equal(easy.proven, true);
    assert.deepEqual(closed.rail.log, ['register', 'deregister']);

    const hard = bench();
    Object.assign(hard.rail.info, { quiescence: 'close-endpoint' });
    const window = hard.window();
    await window.open();
    await window.seal();
    assert.deepEqual(hard.arena.quarantinedBy(), { open: 0, proving: 0, unprovable: KIB });
    const oldIsClosed = hard.serverRail.replace(new MemoryRail().rail);
    await turn();
    assert.equal(window.proven, false, 'the old endpoint is still there');
    oldIsClosed();
    await turn();
    assert.equal(window.proven, true);
  });

  test('tells whoever depends on it that it closes', async () => {
    const { window: make } = bench();
    const window = make();
    await window.open();
    const told: string[] = [];
    const left = { dependsOn: [], onWindowClosed: () => void told.push('left') };
    window.enter({ dependsOn: [], onWindowClosed: () => void told.push('user') });
    window.enter(left);
    assert.equal(window.inUse, true);
    window.leave(left);
    await window.seal();
    assert.deepEqual(told, ['user']);
  });
});

describe('rounds of proof', () => {
  async function sealed(b: ReturnType<typeof bench>): Promise<WriteWindow> {
    const window = b.window();
    await window.open();
    await window.seal();
    return window;
  }

  test('are shared; what is closed while one runs is proved by the next', async () => {
    const b = bench();
    const early = [await sealed(b), await sealed(b), await sealed(b)];
    b.rail.held = true;
    const hurried = b.serverRail.hurry();
    assert.deepEqual(b.rail.waiting, ['prove']);
    b.rail.held = false;
    const late = await sealed(b);
    b.rail.held = true;
    await b.rail.next();
    assert.deepEqual(
      [...early, late].map(({ proven }) => proven),
      [true, true, true, false],
    );
    await waitFor(() => b.rail.waiting.length === 1, { what: 'the next round', intervalMs: 2 });
    await b.rail.next();
    await hurried;
    await turn();
    assert.equal(late.proven, true);
    assert.equal(b.rail.log.filter((name) => name === 'prove').length, 2);
  });

  test('begin by themselves', async () => {
    const b = bench();
    const window = await sealed(b);
    await waitFor(() => window.proven, { what: 'the proof', intervalMs: 2 });
  });

  test('that fail prove nothing, do not keep anybody waiting, and are tried again', async () => {
    const b = bench();
    b.rail.failing.add('prove');
    const window = await sealed(b);
    await b.serverRail.hurry();
    await turn();
    assert.deepEqual([window.proven, b.arena.usage.quarantinedBytes], [false, KIB]);
    b.rail.failing.clear();
    await waitFor(() => window.proven, { what: 'the second round' });
  });

  test('that prove nothing for now are tried again, and hold nothing until the end of the endpoint', async () => {
    const b = bench();
    b.rail.refusals.set('prove', { code: 'UNPROVABLE' });
    const window = await sealed(b);
    await b.serverRail.hurry();
    await turn();
    assert.deepEqual(b.arena.quarantinedBy(), { open: 0, proving: KIB, unprovable: 0 });
    assert.equal(b.serverRail.holdsUnprovable, false);
    b.rail.refusals.clear();
    await b.serverRail.hurry();
    await turn();
    assert.equal(window.proven, true);
  });

  test('are waited for by all who hurry, also by those who come while one runs', async () => {
    const b = bench();
    await sealed(b);
    b.rail.held = true;
    const first = b.serverRail.hurry();
    b.rail.held = false;
    const late = await sealed(b);
    b.rail.held = true;
    const seen: boolean[] = [];
    const waiting = [1, 2].map(async () => {
      await b.serverRail.hurry();
      await turn();
      seen.push(late.proven);
    });
    await b.rail.next();
    await first;
    await turn();
    assert.deepEqual(seen, []);
    await b.rail.next();
    await Promise.all(waiting);
    assert.deepEqual(seen, [true, true]);
  });

  test('of a rail that fails wait for its end', async () => {
    const b = bench();
    const window = await sealed(b);
    b.rail.state = 'failed';
    await b.serverRail.hurry();
    await turn();
    assert.equal(window.proven, false);
    b.serverRail.closed();
    b.serverRail.closed();
    await turn();
    assert.equal(window.proven, true);
    await b.serverRail.hurry();
  });
});
