import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { type Mapping, remoteAddress, remoteKey } from '../../src/fabric/index.js';
import { ServerCounters } from '../../src/server/counters.js';
import { type Peer, PeerTable } from '../../src/server/peers.js';
import { Arena, type Extent } from '../../src/server/store/arena.js';
import { WriteWindow } from '../../src/server/windows.js';
import { MemoryRail, turn } from './support/memory-rail.js';

const ADDRESS = Buffer.from('peer');
const KIB = 1024;

interface Bench {
  readonly rail: MemoryRail;
  readonly table: PeerTable;
  readonly peer: Peer;
  readonly arena: Arena;
  readonly counters: ServerCounters;
  /** An extent of 1 KiB, open to the peer. */
  window(): Promise<{ readonly window: WriteWindow; readonly extent: Extent }>;
}

async function bench(): Promise<Bench> {
  const rail = new MemoryRail();
  const counters = new ServerCounters();
  const logger = pino({ level: 'silent' });
  const table = new PeerTable(rail.rail, 1, counters, logger);
  const arena = new Arena({ sizeBytes: 64 * KIB, segmentBytes: 64 * KIB, segments: [Buffer.alloc(64 * KIB)] }, KIB);
  const peer = await table.acquire(ADDRESS);
  return {
    rail,
    table,
    peer,
    arena,
    counters,
    async window() {
      const [extent] = arena.allocate(KIB) ?? [];
      assert.ok(extent !== undefined);
      // The mapping is only handed on.
      const window = await WriteWindow.open(1, extent, {} as Mapping, peer, counters, logger);
      return { window, extent };
    },
  };
}

describe('a write window', () => {
  test('protects its extent until it is closed and its peer was removed afterwards', async () => {
    const { rail, peer, arena, counters, window: open } = await bench();
    const { window, extent } = await open();
    assert.deepEqual([counters.windowsOpened, counters.windowsOpen], [1, 1]);
    rail.held = true;
    arena.release([extent]);
    assert.equal(arena.usage.quarantinedBytes, KIB);
    const sealed = window.seal();
    assert.equal(window.seal() instanceof Promise, true, 'twice is once');
    assert.deepEqual(rail.waiting, ['deregister']);
    assert.equal(peer.sealedWindows, 0);
    await rail.next();
    await sealed;
    assert.deepEqual([peer.sealedWindows, peer.proofWanted, window.proven], [1, true, false]);
    const recycled = peer.recycle();
    await turn();
    assert.deepEqual(rail.waiting, ['removePeer']);
    assert.equal(peer.present, false);
    assert.equal(arena.usage.quarantinedBytes, KIB);
    await rail.next();
    assert.equal(window.proven, true);
    assert.equal(arena.usage.freeBytes, 64 * KIB);
    await rail.next();
    await recycled;
    assert.equal(peer.present, true);
    assert.deepEqual([counters.windowsOpen, counters.peersRecycled], [0, 1]);
  });

  test('that is sealed during a recycling is proved by the next one only', async () => {
    const { rail, peer, window: open } = await bench();
    const early = await open();
    const late = await open();
    await early.window.seal();
    rail.held = true;
    const recycled = peer.recycle();
    await turn();
    assert.deepEqual(rail.waiting, ['removePeer']);
    rail.held = false;
    await late.window.seal();
    await rail.next();
    await recycled;
    assert.deepEqual([early.window.proven, late.window.proven], [true, false]);
    await peer.recycle();
    assert.equal(late.window.proven, true);
  });

  test('whose registration fails frees its extent at once', async () => {
    const { rail, peer, arena, window: open } = await bench();
    rail.failing.add('register');
    await assert.rejects(open());
    const [extent] = arena.allocate(KIB) ?? [];
    assert.ok(extent);
    rail.failing.clear();
    await peer.remove();
    assert.deepEqual([...rail.peers], [], 'and keeps nobody waiting');
  });

  test('whose registration cannot be closed keeps its extent, and keeps nobody waiting', async () => {
    const { rail, table, peer, arena, window: open } = await bench();
    const { window, extent } = await open();
    arena.release([extent]);
    rail.failing.add('deregister');
    await window.seal();
    assert.equal(window.proven, false);
    await table.reclaim();
    await table.release(peer);
    assert.deepEqual([...rail.peers], []);
    assert.deepEqual([window.proven, arena.usage.quarantinedBytes], [false, KIB]);
  });

  test('is proved by its closing where that is a proof', async () => {
    const { rail, window: open } = await bench();
    Object.assign(rail.info, { quiescence: 'close-region' });
    const { window } = await open();
    await window.seal();
    assert.equal(window.proven, true);
  });
});

describe('the removal of a peer', () => {
  test('that comes with the closing of its windows proves them only when it is done', async () => {
    const { rail, table, peer, arena, window: open } = await bench();
    const { window, extent } = await open();
    rail.held = true;
    // The end of a session: windows are sealed, extents freed, the peer released, in one turn.
    void window.seal();
    arena.release([extent]);
    const released = table.release(peer);
    await turn();
    assert.deepEqual(rail.waiting, ['deregister'], 'a removal before that would prove nothing');
    await rail.next();
    assert.deepEqual(rail.waiting, ['removePeer']);
    assert.equal(arena.usage.quarantinedBytes, KIB, 'closed, but the peer may still be writing');
    await rail.next();
    await released;
    assert.equal(arena.usage.quarantinedBytes, 0);
  });

  test('waits for a window that stays open longer than its session', async () => {
    const { rail, table, peer, arena, window: open } = await bench();
    const { window, extent } = await open();
    const released = table.release(peer);
    await turn();
    assert.deepEqual([...rail.peers].length, 1);
    arena.release([extent]);
    await window.seal();
    await released;
    assert.deepEqual([rail.peers.size, rail.regions.size, arena.usage.quarantinedBytes], [0, 0, 0]);
  });

  test('after recyclings that were asked for leaves nothing in the address vector', async () => {
    for (const order of ['before', 'between', 'after'] as const) {
      const { rail, table, peer } = await bench();
      rail.held = true;
      const work: Promise<unknown>[] = [];
      if (order !== 'after') work.push(peer.recycle());
      await turn();
      if (order === 'between') work.push(peer.recycle());
      work.push(table.release(peer));
      work.push(peer.recycle());
      for (let i = 0; i < 10; i++) await rail.next();
      await Promise.all(work);
      assert.equal(rail.peers.size, 0, order);
      assert.equal(peer.present, false);
    }
  });

  test('that fails proves nothing, then or later', async () => {
    const { rail, table, peer, arena, window: open } = await bench();
    const { window, extent } = await open();
    arena.release([extent]);
    await window.seal();
    rail.failing.add('removePeer');
    await peer.recycle();
    assert.deepEqual([peer.present, await peer.settled(), window.proven], [false, false, false]);
    rail.failing.clear();
    await peer.recycle();
    await table.reclaim();
    await table.release(peer);
    assert.deepEqual([window.proven, arena.usage.quarantinedBytes], [false, KIB]);
  });
});

describe('a recycling', () => {
  test('is shared by all who ask before it begins, and repeated for who asks later', async () => {
    const { rail, peer, counters } = await bench();
    await Promise.all([peer.recycle(), peer.recycle(), peer.recycle()]);
    assert.equal(counters.peersRecycled, 1);
    rail.held = true;
    const first = peer.recycle();
    await turn();
    const second = peer.recycle();
    const third = peer.recycle();
    assert.equal(second, third);
    for (let i = 0; i < 4; i++) await rail.next();
    await Promise.all([first, second]);
    assert.equal(counters.peersRecycled, 3);
  });

  test('keeps the regions of the peer under their own addresses and keys', async () => {
    const { rail, peer } = await bench();
    const kept = peer.addRegion(remoteAddress(5n), remoteKey(7n), 100);
    const ended = peer.addRegion(remoteAddress(5n), remoteKey(8n), 100);
    const before = kept.id;
    rail.held = true;
    const recycled = peer.recycle();
    await turn();
    assert.equal(rail.remotes.size, 0);
    peer.removeRegion(ended);
    const fresh = peer.addRegion(remoteAddress(5n), remoteKey(9n), 100);
    assert.equal(fresh.id, undefined);
    await rail.next();
    await rail.next();
    await recycled;
    assert.notEqual(kept.id, before);
    assert.deepEqual(
      [...rail.remotes.values()].map(({ key }) => key),
      [7n, 9n],
    );
    assert.equal(ended.id, undefined);
  });

  test('waits a moment for writes in flight, and cuts the rest off', async () => {
    const { rail, peer } = await bench();
    const region = peer.addRegion(remoteAddress(0n), remoteKey(1n), 100);
    const ends: (string | undefined)[] = [];
    const write = (): number =>
      peer.write([{ localOffset: 0, region, remoteOffset: 0, length: 10 }], (error) => ends.push(error?.code));
    write();
    write();
    const recycled = peer.recycle();
    await turn();
    assert.deepEqual(rail.log, ['insertPeer'], 'not yet');
    rail.complete(rail.writes[0]);
    // The other one never ends by itself.
    await recycled;
    assert.deepEqual(ends, [undefined, 'CANCELLED']);
    assert.equal(peer.present, true);
  });

  test('after which the address cannot be inserted is tried again by the next write', async () => {
    const { rail, peer } = await bench();
    rail.failing.add('insertPeer');
    await peer.recycle();
    assert.equal(await peer.settled(), false);
    rail.failing.clear();
    assert.equal(await peer.settled(), true);
    assert.equal(rail.peers.size, 1);
  });

  test('is waited for', async () => {
    const { rail, peer } = await bench();
    rail.held = true;
    const recycled = peer.recycle();
    await turn();
    let settled: boolean | undefined;
    void peer.settled().then((present) => {
      settled = present;
    });
    await rail.next();
    assert.equal(settled, undefined);
    await rail.next();
    await recycled;
    await turn();
    assert.equal(settled, true);
  });

  test('that cannot introduce a region again leaves the others', async () => {
    const { rail, peer } = await bench();
    const region = peer.addRegion(remoteAddress(0n), remoteKey(1n), 100);
    rail.failing.add('defineRemote');
    await peer.recycle();
    assert.equal(peer.present, true);
    assert.throws(() => peer.write([{ localOffset: 0, region, remoteOffset: 0, length: 1 }], () => undefined), {
      code: 'ERR_FABRICKV_DATA_PLANE',
    });
  });
});

describe('regions', () => {
  test('one that has ended cannot be written to', async () => {
    const { peer } = await bench();
    const region = peer.addRegion(remoteAddress(0n), remoteKey(1n), 100);
    peer.removeRegion(region);
    peer.removeRegion(region);
    assert.throws(() => peer.write([{ localOffset: 0, region, remoteOffset: 0, length: 1 }], () => undefined), {
      code: 'ERR_FABRICKV_INVALID_ARGUMENT',
    });
  });

  test('one is unused when its last write has come back', async () => {
    const { rail, peer } = await bench();
    const region = peer.addRegion(remoteAddress(0n), remoteKey(1n), 100);
    await region.unused();
    peer.write([{ localOffset: 0, region, remoteOffset: 0, length: 1 }], () => undefined);
    peer.write([{ localOffset: 0, region, remoteOffset: 0, length: 1 }], () => undefined);
    let unused = false;
    const waiting = region.unused().then(() => {
      unused = true;
    });
    rail.complete(rail.writes[0], 'TRANSFER_FAILED');
    await turn();
    assert.equal(unused, false);
    rail.complete(rail.writes[0]);
    await waiting;
  });
});

describe('the table of peers', () => {
  test('an address has one peer, however many use it, and none when nobody does', async () => {
    const { rail, table, peer } = await bench();
    const [second, third] = await Promise.all([table.acquire(ADDRESS), table.acquire(ADDRESS)]);
    assert.equal(second, peer);
    assert.equal(third, peer);
    for (let i = 0; i < 3; i++) {
      assert.equal(rail.peers.size, 1);
      await table.release(peer);
    }
    assert.equal(rail.peers.size, 0);
    assert.deepEqual([...table.all()], []);
  });

  test('whoever comes while the last one goes has a peer that is there', async () => {
    const { rail, table, peer } = await bench();
    const acquiring = table.acquire(ADDRESS);
    const releasing = table.release(peer);
    const acquired = await acquiring;
    await releasing;
    assert.equal(acquired.present, true);
    assert.equal(rail.peers.size, 1);
    await table.release(acquired);
    const leaving = table.acquire(ADDRESS);
    assert.equal((await leaving).present, true);
  });

  test('two who come at once while it is inserted share it; one that cannot be inserted is nobody`s', async () => {
    const rail = new MemoryRail();
    const table = new PeerTable(rail.rail, 1, new ServerCounters(), pino({ level: 'silent' }));
    rail.held = true;
    const both = Promise.all([table.acquire(ADDRESS), table.acquire(ADDRESS)]);
    await turn();
    await rail.next();
    const [one, two] = await both;
    assert.equal(one, two);
    assert.equal(one.references, 2);
    rail.held = false;
    rail.failing.add('insertPeer');
    await assert.rejects(table.acquire(Buffer.from('other')));
    rail.failing.clear();
    assert.equal((await table.acquire(Buffer.from('other'))).references, 1);
  });

  test('reclaim waits for closings and removals under way, and leaves alone what nobody waits for', async () => {
    const { rail, table, peer, arena, counters, window: open } = await bench();
    const unwanted = await open();
    await unwanted.window.seal();
    await table.reclaim();
    assert.equal(counters.peersRecycled, 0, 'its value is still stored');
    const { window, extent } = await open();
    rail.held = true;
    void window.seal();
    arena.release([extent]);
    let reclaimed = false;
    const reclaiming = table.reclaim().then(() => {
      reclaimed = true;
    });
    for (let i = 0; i < 2; i++) {
      assert.equal(reclaimed, false);
      await rail.next();
    }
    assert.equal(arena.usage.quarantinedBytes, 0);
    await rail.next();
    await reclaiming;

    const last = await (async () => {
      rail.held = false;
      const opened = await open();
      rail.held = true;
      return opened;
    })();
    arena.release([last.extent]);
    void last.window.seal();
    const releasing = table.release(peer);
    const waiting = table.reclaim().then(() => arena.usage.quarantinedBytes);
    await rail.next();
    await rail.next();
    await releasing;
    assert.equal(await waiting, 0, 'its memory is there when it resolves');
  });
});
