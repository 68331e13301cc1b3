import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import type { Fabric } from '../../src/fabric/index.js';
import { ServerCounters } from '../../src/server/counters.js';
import { PeerTable } from '../../src/server/peer-table.js';
import { RailReplacement } from '../../src/server/rail-replacement.js';
import { ServerRail } from '../../src/server/server-rail.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryRail, turn } from './support/memory-rail.js';
import { PutBench } from './support/put-bench.js';

const logger = pino({ level: 'silent' });

test('what is opened on a fresh endpoint before the client knows of it is closed before it is told', async () => {
  await using bench = await PutBench.open();
  const session = bench.session();
  const [serverRail] = bench.rails;
  assert.ok(serverRail !== undefined);
  const fresh = new MemoryRail();
  const table = new PeerTable(bench.rails, 1, logger);
  await table.acquire([Buffer.from('client')]);
  const replacement = new RailReplacement({
    fabric: { replaceRail: () => Promise.resolve(fresh.rail) } as unknown as Fabric,
    registerArena: () => Promise.resolve(),
    windows: new Set([session.windows]),
    counters: bench.counters,
    logger,
    drainMs: 1,
  });
  await session.open(1, 1000);
  assert.ok(replacement.request(table, serverRail, 'a test'));
  assert.equal(replacement.request(table, serverRail, 'a test'), false, 'once a minute');
  // The peers move, one by one; meanwhile a client begins its PUT anew.
  fresh.held = true;
  await waitFor(() => fresh.waiting[0] === 'insertPeer', { what: 'the move', intervalMs: 2 });
  fresh.held = false;
  const grant = await session.open(2, 1000);
  const offered = grant.extents?.[0]?.windowId;
  assert.equal(fresh.regions.size, 1);
  await fresh.next();
  await waitFor(() => session.said.includes('0:railChanged'), { what: 'the announcement', intervalMs: 2 });
  const told = session.sent.flatMap(({ windowRevoke, railChanged }) => {
    if (windowRevoke) return [`revoked ${String(windowRevoke.windowId)}`];
    return railChanged ? [`generation ${String(railChanged.generation)}`] : [];
  });
  assert.deepEqual(told.slice(-2), [`revoked ${String(offered)}`, 'generation 2']);
  assert.equal((await session.result(2)).failure?.code, 'ERR_FABRICKV_GRANT_ENDED');
  // What is granted from now on is another window.
  const next = await session.open(3, 1000);
  assert.notEqual(next.extents?.[0]?.windowId, offered);
  await waitFor(() => bench.rail.state === 'closed', { what: 'the end of the old one', intervalMs: 2 });
  await replacement.stop();
  await session.end();
});

test('what a rail has done is counted on when it is replaced; what it holds is not', async () => {
  const [first, second] = [new MemoryRail(), new MemoryRail()];
  const serverRail = new ServerRail(first.rail, 0, 1, logger);
  const none = { writesPosted: 0, writesCompleted: 0, writesFailed: 0, bytesWritten: 0, registrations: 0 };
  first.counted = { ...none, proofs: 7, peersDisconnected: 0, connectionsEnded: 0 };
  second.counted = { ...none, proofs: 1, peersDisconnected: 2, connectionsEnded: 0 };
  first.peers.add(1);
  const closed = serverRail.replace(second.rail);
  second.peers.add(1);
  assert.deepEqual([serverRail.stats().proofs, serverRail.stats().peers], [8, 2], 'both are there');
  serverRail.retire(first.rail);
  await first.close();
  closed();
  serverRail.retire(first.rail);
  first.counted = {};
  const { proofs, peersDisconnected, peers } = serverRail.stats();
  assert.deepEqual([proofs, peersDisconnected, peers], [8, 2, 1]);
});

test('an endpoint that cannot read the arena is closed, and tried again from where it stands', async () => {
  const [first, second, third] = [new MemoryRail(), new MemoryRail(), new MemoryRail()];
  const serverRail = new ServerRail(first.rail, 0, 1, logger);
  const replaced: unknown[] = [];
  const replacement = new RailReplacement({
    fabric: {
      replaceRail: (rail: unknown) => {
        replaced.push(rail);
        return Promise.resolve(replaced.length === 1 ? second.rail : third.rail);
      },
    } as unknown as Fabric,
    registerArena: (rail) => (rail === second.rail ? Promise.reject(new Error('a test')) : Promise.resolve()),
    windows: new Set(),
    counters: new ServerCounters(),
    logger,
    drainMs: 1,
  });
  const table = new PeerTable([serverRail], 1, logger);
  const { lastMs } = replacement as unknown as { lastMs: Map<ServerRail, number> };
  assert.ok(replacement.request(table, serverRail, 'a test'));
  await waitFor(() => second.state === 'closed', { what: 'the failure', intervalMs: 2 });
  await turn();
  assert.equal(serverRail.rail, first.rail);
  lastMs.clear();
  assert.ok(replacement.request(table, serverRail, 'a test'));
  await waitFor(() => serverRail.rail === third.rail, { what: 'the other', intervalMs: 2 });
  assert.deepEqual(replaced, [first.rail, second.rail]);
  await replacement.stop();
});
