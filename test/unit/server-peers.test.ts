import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { remoteAddress, remoteKey } from '../../src/fabric/index.js';
import { PeerTable } from '../../src/server/peer-table.js';
import type { Peer, PeerRegion, RegionKey } from '../../src/server/peers.js';
import { ServerRail } from '../../src/server/server-rail.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryRail, turn } from './support/memory-rail.js';

const KIB = 1024;
const logger = pino({ level: 'silent' });

function addresses(count: number): Buffer[] {
  return Array.from({ length: count }, (_, i) => Buffer.from(`client rail ${i}`));
}

/** Key 10 + i on client rail i. */
function keys(count: number): RegionKey[] {
  return Array.from({ length: count }, (_, i) => ({ address: remoteAddress(5n), key: remoteKey(10n + BigInt(i)) }));
}

interface Bench {
  readonly rails: readonly MemoryRail[];
  readonly serverRails: readonly ServerRail[];
  readonly table: PeerTable;
  readonly peer: Peer;
  region(): PeerRegion;
}

async function bench(rails = 1, clientRails = 1): Promise<Bench> {
  const memoryRails = Array.from({ length: rails }, () => new MemoryRail());
  const serverRails = memoryRails.map((rail, i) => new ServerRail(rail.rail, i, rails, logger));
  const table = new PeerTable(serverRails, 1, logger);
  const peer = await table.acquire(addresses(clientRails));
  return {
    rails: memoryRails,
    serverRails,
    table,
    peer,
    region: () => peer.addRegion(keys(clientRails), 1024 * KIB),
  };
}

function segment(
  region: PeerRegion,
  length = 10,
): { localOffset: number; region: PeerRegion; remoteOffset: number; length: number } {
  return { localOffset: 0, region, remoteOffset: 0, length };
}

function first<Item>(items: readonly Item[]): Item {
  const [item] = items;
  assert.ok(item !== undefined);
  return item;
}

describe('the rails of both sides', () => {
  /** Server rails, client rails, and per server rail the client rails that it has in its vector. */
  const layouts: readonly [number, number, number[][]][] = [
    [1, 1, [[0]]],
    [2, 2, [[0], [1]]],
    // Server rail j writes to client rail j mod n.
    [4, 2, [[0], [1], [0], [1]]],
    // Client rail i writes to server rail i mod n: what comes from there must be a connection of ours.
    [
      2,
      4,
      [
        [0, 2],
        [1, 3],
      ],
    ],
    [2, 3, [[0, 2], [1]]],
    [3, 2, [[0], [1], [0]]],
  ];
  for (const [server, client, expected] of layouts) {
    test(`${server} of the server and ${client} of the client are paired, and connected early`, async () => {
      const { rails, peer, table, region } = await bench(server, client);
      region();
      assert.deepEqual(
        rails.map(({ remotes }) => [...remotes.values()].map(({ key }) => Number(key) - 10)),
        expected,
      );
      assert.deepEqual(
        rails.map(({ pings }) => pings.length),
        expected.map(({ length }) => length),
      );
      region();
      assert.equal(first(rails).pings.length, expected[0]?.length, 'once is enough');
      await table.release(peer);
      assert.deepEqual(
        rails.map((rail) => rail.peers.size + rail.remotes.size),
        expected.map(() => 0),
      );
    });
  }

  test('a long write goes over all of them, a short one over one', async () => {
    const { rails, peer, region } = await bench(2, 2);
    const target = region();
    let done = 0;
    peer.beginWrite({ segments: [segment(target, 1024 * KIB)], onDone: () => (done += 1) });
    assert.deepEqual(
      rails.map(({ writes }) => writes.length),
      [1, 1],
    );
    for (const rail of rails) rail.complete(rail.writes[0]);
    await turn();
    peer.beginWrite({ segments: [segment(target)], onDone: () => (done += 1) });
    assert.equal(first(rails).writes.length + (rails[1]?.writes.length ?? 0), 1);
    for (const rail of rails) for (const write of [...rail.writes]) rail.complete(write);
    await turn();
    assert.equal(done, 2);
  });

  test('what fails on one goes on over the other', async () => {
    const { rails, peer, region } = await bench(2, 2);
    const ends: unknown[] = [];
    let retries = 0;
    peer.beginWrite({
      segments: [segment(region(), 1024 * KIB)],
      onDone: (error) => ends.push(error),
      onRetry: () => (retries += 1),
    });
    const [one, other] = rails;
    assert.ok(one !== undefined && other !== undefined);
    one.complete(one.writes[0], 'TRANSFER_FAILED');
    await waitFor(() => other.writes.length === 2, { what: 'the rest on the other rail', intervalMs: 2 });
    while (other.writes.length > 0) other.complete(other.writes[0]);
    await turn();
    assert.deepEqual([ends, retries], [[undefined], 1]);
  });

  test('a rail that was down at the start has its path when it is back', async () => {
    const dead = new MemoryRail();
    dead.state = 'failed';
    const alive = new MemoryRail();
    const serverRails = [dead, alive].map((rail, i) => new ServerRail(rail.rail, i, 2, logger));
    const table = new PeerTable(serverRails, 1, logger);
    const peer = await table.acquire(addresses(2));
    const region = peer.addRegion(keys(2), 1024 * KIB);
    peer.beginWrite({ segments: [segment(region, 1024 * KIB)], onDone: () => undefined });
    assert.deepEqual([dead.writes.length, alive.writes.length], [0, 1]);
    const fresh = new MemoryRail();
    first(serverRails).replace(fresh.rail);
    await table.moved(first(serverRails));
    peer.beginWrite({ segments: [segment(region, 1024 * KIB)], onDone: () => undefined });
    assert.deepEqual([fresh.writes.length, alive.writes.length], [1, 2]);
    await table.release(peer);
  });

  test('a rail that is replaced takes the peers and their regions along', async () => {
    const { rails, serverRails, table, peer, region } = await bench();
    const kept = region();
    const ended = region();
    const ends: (string | undefined)[] = [];
    peer.beginWrite({ segments: [segment(kept)], onDone: (error) => ends.push(error?.code) });
    const fresh = new MemoryRail();
    const oldIsClosed = first(serverRails).replace(fresh.rail);
    peer.removeRegions([ended]);
    await table.moved(first(serverRails));
    assert.deepEqual([fresh.peers.size, fresh.remotes.size, fresh.pings.length], [1, 1, 1]);
    await first(rails).close();
    oldIsClosed();
    // What was in flight on the old one goes on.
    await waitFor(() => fresh.writes.length === 1, { what: 'the write on the new rail', intervalMs: 2 });
    fresh.complete(fresh.writes[0]);
    await turn();
    assert.deepEqual(ends, [undefined]);
    await table.release(peer);
    assert.equal(fresh.peers.size + fresh.remotes.size, 0);
  });
});

describe('a path to a rail that was replaced', () => {
  test('is not used before the regions are known there', async () => {
    const { rails, serverRails, table, peer, region } = await bench(1, 2);
    const target = region();
    const ends: (string | undefined)[] = [];
    const fresh = new MemoryRail();
    const old = first(rails);
    first(serverRails).replace(fresh.rail);
    // The address of the path is inserted, and the one beside it is not yet.
    fresh.held = true;
    const moved = table.moved(first(serverRails));
    await turn();
    peer.beginWrite({ segments: [segment(target)], onDone: (error) => ends.push(error?.code) });
    await turn();
    assert.deepEqual([ends, old.writes.length], [[], 1], 'the old one is still there');
    old.complete(old.writes[0]);
    await turn();
    assert.deepEqual(ends.splice(0), [undefined]);
    await fresh.next();
    assert.deepEqual([fresh.peers.size, fresh.waiting.length], [1, 1]);
    peer.beginWrite({ segments: [segment(target)], onDone: (error) => ends.push(error?.code) });
    await turn();
    assert.deepEqual(ends, []);
    assert.deepEqual([old.writes.length, fresh.writes.length], [0, 1]);
    fresh.held = false;
    await fresh.next();
    await moved;
  });
});

describe('a write to a peer', () => {
  test('that is cancelled is over when it has come back', async () => {
    const { rails, peer, region } = await bench();
    const ends: (string | undefined)[] = [];
    const write = peer.beginWrite({ segments: [segment(region())], onDone: (error) => ends.push(error?.code) });
    write.cancel();
    write.cancel();
    assert.equal(first(rails).cancelled.length, 1);
    assert.deepEqual(ends, []);
    first(rails).complete(first(rails).writes[0], 'CANCELLED');
    await turn();
    assert.deepEqual(ends, ['CANCELLED']);
    assert.equal(write.landedBytes, 0);
  });

  test('that is cancelled while its peer is frozen comes back by the end of the connection', async () => {
    const { rails, peer, region } = await bench();
    const ends: (string | undefined)[] = [];
    peer.beginWrite({ segments: [segment(region())], onDone: (error) => ends.push(error?.code) }).cancel();
    await waitFor(() => ends.length > 0, { what: 'the end' });
    assert.deepEqual(first(rails).log.slice(-1), ['disconnectPeer']);
    assert.equal(first(rails).peers.size, 1, 'it is still a peer');
  });

  test('into a region that has ended is refused, by its end', async () => {
    const { peer, region } = await bench();
    const ended = region();
    peer.removeRegions([ended]);
    peer.removeRegions([ended]);
    const code = await new Promise((resolve) =>
      peer.beginWrite({ segments: [segment(ended)], onDone: (error) => resolve(error?.code) }),
    );
    assert.equal(code, 'INVALID_ARGUMENT');
  });

  test('uses its regions until it is over', async () => {
    const { rails, peer, region } = await bench();
    const target = region();
    await target.unused();
    for (let i = 0; i < 2; i++) peer.beginWrite({ segments: [segment(target)], onDone: () => undefined });
    let unused = false;
    const waiting = target.unused().then(() => {
      unused = true;
    });
    first(rails).complete(first(rails).writes[0]);
    await turn();
    assert.equal(unused, false);
    first(rails).complete(first(rails).writes[0]);
    await waiting;
  });

  test('a region that a rail`s table has no room for leaves nothing there, and is reached when there is room', async () => {
    const { rails, peer, region } = await bench(2, 2);
    rails[1]?.failing.add('defineRemote');
    const refused = region();
    assert.equal(first(rails).remotes.size, 0);
    assert.equal(peer.reaches(refused), false);
    rails[1]?.failing.clear();
    assert.equal(peer.reaches(refused), true);
    assert.deepEqual(
      rails.map(({ remotes }) => remotes.size),
      [1, 1],
    );
    peer.removeRegions([refused]);
    assert.equal(peer.reaches(refused), false, 'it has ended');
    assert.equal(first(rails).remotes.size, 0);
  });

  test('a client with many rails has each region once in a rail`s table, and one beside for the pings of each other rail', async () => {
    const { rails, peer, table, region } = await bench(1, 64);
    const regions = Array.from({ length: 10 }, region);
    assert.equal(first(rails).remotes.size, 10 + 63);
    assert.equal(first(rails).pings.length, 64);
    await turn();
    // The one that is pinged goes: another takes its place.
    peer.removeRegions(regions.slice(0, 1));
    assert.equal(first(rails).remotes.size, 9 + 63);
    peer.ping();
    assert.equal(first(rails).pings.length, 128);
    peer.removeRegions(regions);
    assert.equal(first(rails).remotes.size, 0);
    peer.ping();
    assert.equal(first(rails).pings.length, 128, 'there is nothing to ping with');
    await table.release(peer);
  });

  test('is pinged again, but not while the last ping is under way', async () => {
    const { rails, peer, region } = await bench();
    region();
    peer.ping();
    assert.equal(first(rails).pings.length, 1);
    await turn();
    peer.ping();
    assert.equal(first(rails).pings.length, 2);
  });

  test('that does not come back when its connection is ended asks for another endpoint', async () => {
    const { rails, serverRails, peer, region } = await bench();
    first(rails).refusals.set('disconnectPeer', { code: 'TRANSFER_FAILED', errno: constants.errno.ETIMEDOUT });
    peer.beginWrite({ segments: [segment(region())], onDone: () => undefined }).cancel();
    await waitFor(() => first(serverRails).isStuck, { what: 'the report' });
    const fresh = new MemoryRail();
    first(serverRails).replace(fresh.rail);
    assert.equal(first(serverRails).isStuck, false);
    first(serverRails).reportStuck(first(rails).rail);
    assert.equal(first(serverRails).isStuck, false, 'that one is not there any more');
    first(rails).complete(first(rails).writes[0], 'RAIL_CLOSED');
  });
});

describe('the table of peers', () => {
  test('a set of addresses has one peer, however many use it, and none when nobody does', async () => {
    const { rails, table, peer } = await bench();
    const [second, third] = await Promise.all([table.acquire(addresses(1)), table.acquire(addresses(1))]);
    assert.equal(second, peer);
    assert.equal(third, peer);
    const other = await table.acquire(addresses(2));
    assert.notEqual(other, peer);
    await table.release(other);
    for (let i = 0; i < 3; i++) {
      assert.equal(first(rails).peers.size, 1);
      await table.release(peer);
    }
    assert.equal(first(rails).peers.size, 0);
  });

  test('an address that a rail is too busy to remove is removed later', async () => {
    const { rails, table, peer } = await bench();
    first(rails).refusals.set('removePeer', { code: 'BUSY' });
    const released = table.release(peer);
    await waitFor(() => first(rails).log.filter((name) => name === 'removePeer').length > 1, {
      what: 'the second try',
      intervalMs: 2,
    });
    assert.equal(first(rails).peers.size, 1);
    first(rails).refusals.clear();
    await released;
    assert.equal(first(rails).peers.size, 0);
  });

  test('an address whose removal takes too long asks for another endpoint', async () => {
    const { rails, serverRails, table, peer } = await bench();
    first(rails).refusals.set('removePeer', { code: 'TRANSFER_FAILED', errno: constants.errno.ETIMEDOUT });
    await table.release(peer);
    assert.equal(first(serverRails).isStuck, true);
  });

  test('whoever is being inserted while a rail is replaced is on the fresh one', async () => {
    const { rails, serverRails, table, peer } = await bench(2, 2);
    await table.release(peer);
    const [replaced, other] = rails;
    assert.ok(replaced !== undefined && other !== undefined);
    other.held = true;
    const acquiring = table.acquire(addresses(2));
    await turn();
    assert.deepEqual(other.waiting, ['insertPeer']);
    const fresh = new MemoryRail();
    first(serverRails).replace(fresh.rail);
    await table.moved(first(serverRails));
    other.held = false;
    fresh.held = true;
    await other.next();
    assert.deepEqual(fresh.waiting, ['insertPeer']);
    // One that comes meanwhile, and goes, does not take it along.
    const passing = table.acquire(addresses(2)).then((acquired) => table.release(acquired));
    await turn();
    fresh.held = false;
    await fresh.next();
    const acquired = await acquiring;
    await passing;
    assert.deepEqual([fresh.peers.size, acquired.references], [1, 1]);
    const region = acquired.addRegion(keys(2), 1024 * KIB);
    acquired.beginWrite({ segments: [segment(region, 1024 * KIB)], onDone: () => undefined });
    assert.deepEqual([fresh.writes.length, other.writes.length, replaced.writes.length], [1, 1, 0]);
    await table.moved(first(serverRails));
    assert.equal(fresh.peers.size, 1, 'it is there already');
  });

  test('whoever is being inserted on an endpoint that closes is on the one that follows it', async () => {
    const { rails, serverRails, table, peer } = await bench();
    await table.release(peer);
    first(rails).held = true;
    const acquiring = table.acquire(addresses(1));
    await turn();
    const fresh = new MemoryRail();
    first(serverRails).replace(fresh.rail);
    await table.moved(first(serverRails));
    await first(rails).close();
    await first(rails).next();
    await acquiring;
    assert.equal(fresh.peers.size, 1);
  });

  test('addresses that are cut in other places are others', async () => {
    const { table } = await bench();
    const one = await table.acquire([Buffer.from('ab'), Buffer.from('c')]);
    const other = await table.acquire([Buffer.from('a'), Buffer.from('bc')]);
    assert.notEqual(one, other);
  });

  test('whoever comes while the last one goes has a peer that is there', async () => {
    const { rails, table, peer } = await bench();
    const acquiring = table.acquire(addresses(1));
    await table.release(peer);
    const acquired = await acquiring;
    assert.equal(first(rails).peers.size, 1);
    first(rails).held = true;
    const releasing = table.release(acquired);
    const again = table.acquire(addresses(1));
    await turn();
    assert.deepEqual(first(rails).waiting, ['removePeer'], 'an address that is being removed is waited for');
    first(rails).held = false;
    await first(rails).next();
    await releasing;
    assert.equal((await again).references, 1);
    assert.equal(first(rails).peers.size, 1);
  });

  test('a client of which one address cannot be inserted is no peer, and leaves nothing', async () => {
    const { rails, table, peer } = await bench(2, 2);
    rails[1]?.failing.add('insertPeer');
    await assert.rejects(table.acquire(addresses(4)));
    assert.deepEqual(
      rails.map(({ peers }) => peers.size),
      [1, 1],
    );
    rails[1]?.failing.clear();
    assert.equal((await table.acquire(addresses(4))).references, 1);
    await table.release(peer);
  });
});
