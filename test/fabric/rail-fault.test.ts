import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FabricError, type FabricErrorCode } from '../../src/fabric/index.js';
import { freeze } from '../support/freeze.js';
import { deferred, Pair, until } from './support/peer-process.js';

const MIB = 2 ** 20;

const hasCode =
  (...codes: FabricErrorCode[]) =>
  (error: unknown): boolean =>
    error instanceof FabricError && codes.includes(error.code);

/** Starts a large write and returns when part of it has arrived. */
async function reachTheMiddle(pair: Pair, sizeBytes: number): Promise<ReturnType<Pair['start']>> {
  await pair.write(0, 4096);
  const started = pair.start(0, sizeBytes);
  await until('some of it has arrived', () => pair.rail.bytesCompleted(started.transfer) > 0);
  return started;
}

test('a killed peer fails its writes soon', async () => {
  await using pair = await Pair.open(256 * MIB);
  const { done } = await reachTheMiddle(pair, 256 * MIB);
  pair.target.child.kill('SIGKILL');
  const before = Date.now();
  await assert.rejects(done, hasCode('TRANSFER_FAILED'));
  assert.ok(Date.now() - before < 5000);
});

test('a frozen peer: cancel stops posting, removePeer ends what is in flight', async () => {
  await using pair = await Pair.open(256 * MIB);
  const { transfer, done } = await reachTheMiddle(pair, 256 * MIB);
  pair.target.child.kill('SIGSTOP');
  let bytes = -1;
  let since = Date.now();
  // What the sockets hold drains away, and on a busy machine not at once.
  await until('nothing moves any more', () => {
    const now = pair.rail.bytesCompleted(transfer);
    if (now !== bytes) since = Date.now();
    bytes = now;
    return Date.now() - since > 300;
  });
  assert.ok(pair.rail.chunksInFlight(transfer) > 0);
  let settled = false;
  done.catch(() => {
    settled = true;
  });
  pair.rail.cancel(transfer);
  pair.rail.cancel(transfer);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(settled, false);
  const before = Date.now();
  await pair.rail.removePeer(pair.peer);
  assert.ok(Date.now() - before < 5000);
  assert.equal(settled, true);
  await assert.rejects(done, hasCode('CANCELLED'));
  assert.equal(pair.rail.chunksInFlight(transfer), 0);
  assert.equal(pair.rail.stats().peers, 0);
  pair.target.child.kill('SIGCONT');
});

test('a target that revokes its region and proves keeps its memory', async () => {
  await using pair = await Pair.open(64 * MIB, { chunkBytes: 64 * MIB });
  await pair.write(0, 64 * MIB);
  const { done } = pair.start(0, 64 * MIB);
  await pair.target.ask({ kind: 'revokeAndFill', byte: 0xee });
  await done.catch(() => undefined);
  await assert.rejects(pair.write(0, 64 * MIB), hasCode('TRANSFER_FAILED'));
  assert.equal(await pair.target.ask({ kind: 'countOther', byte: 0xee }), 0);
});

test('disconnectPeer ends what is in flight, says how much has landed, and the peer stays', async () => {
  await using pair = await Pair.open(256 * MIB);
  const { transfer, done } = await reachTheMiddle(pair, 256 * MIB);
  pair.target.child.kill('SIGSTOP');
  await pair.rail.disconnectPeer(pair.peer);
  let landed = -1;
  await assert.rejects(done, (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'TRANSFER_FAILED');
    assert.equal(error.errnoName, 'ECANCELED');
    landed = error.landedBytes;
    return true;
  });
  assert.equal(pair.rail.chunksInFlight(transfer), 0);
  assert.ok(landed > 0 && landed < 256 * MIB, `${landed} bytes`);
  assert.equal(pair.rail.stats().peersDisconnected, 1);
  pair.target.child.kill('SIGCONT');
  assert.equal(
    await pair.target.ask({ kind: 'crc', offset: 0, length: landed }),
    await pair.mapping.crc32c({ offset: 0, length: landed }),
  );
  await pair.write(landed, 256 * MIB - landed);
  assert.equal(
    await pair.target.ask({ kind: 'crc', offset: 0, length: 256 * MIB }),
    await pair.mapping.crc32c({ offset: 0, length: 256 * MIB }),
  );
  await assert.rejects(pair.rail.disconnectPeer(77), hasCode('INVALID_ARGUMENT'));
});

test('pingPeer answers, and a proof leaves the connection that it made alone', async () => {
  await using pair = await Pair.open(MIB);
  const ping = (remoteRegionId = pair.remote): Promise<void> => {
    const { promise, settle } = deferred();
    pair.rail.pingPeer({ peer: pair.peer, remoteRegionId, onDone: settle });
    return promise;
  };
  await ping();
  await Promise.all([pair.rail.prove(), pair.rail.prove(), ping()]);
  const { proofs, peersDisconnected, connectionsEnded, writesFailed } = pair.rail.stats();
  assert.ok(proofs > 0);
  assert.deepEqual([peersDisconnected, connectionsEnded, writesFailed], [0, 0, 0]);
  assert.throws(() => ping(77), hasCode('INVALID_ARGUMENT'));
  await freeze(pair.target.child);
  await pair.rail.prove();
  assert.equal(pair.rail.stats().peersDisconnected, 1);
  pair.target.child.kill('SIGCONT');
  await ping();
});

test('prove refuses where only closing the rail proves anything', async () => {
  await using pair = await Pair.open(MIB, { forceQuiescence: 'close-endpoint' });
  assert.equal(pair.rail.info.quiescence, 'close-endpoint');
  await pair.write(0, MIB);
  await assert.rejects(pair.rail.prove(), hasCode('UNPROVABLE'));
  await pair.rail.disconnectPeer(pair.peer);
  await pair.write(0, MIB);
});

test('past the limit of what may be pending: BUSY, and all of it settles', async () => {
  await using pair = await Pair.open(MIB);
  await pair.write(0, 4096);
  pair.target.child.kill('SIGSTOP');
  const outcomes: Promise<void>[] = [];
  assert.throws(() => {
    for (;;) outcomes.push(pair.start(0, MIB).done);
  }, hasCode('BUSY'));
  assert.ok(outcomes.length > 7000 && outcomes.length <= 7168, `${outcomes.length} were pending`);
  // What ends something, or proves it, still finds room.
  for (let i = 0; i < 100; i++) outcomes.push(pair.rail.prove());
  const settling = Promise.allSettled(outcomes);
  await pair.rail.close();
  const settled = await settling;
  for (const outcome of settled) {
    if (outcome.status === 'rejected') assert.ok(hasCode('RAIL_CLOSED')(outcome.reason));
  }
  pair.target.child.kill('SIGCONT');
});

test('closing settles what is pending with RAIL_CLOSED, and then everything is refused so', async () => {
  await using pair = await Pair.open(128 * MIB);
  const { done } = await reachTheMiddle(pair, 128 * MIB);
  const { mapping, rail, peer } = pair;
  const registering = rail.register({ mapping, offset: 0, length: MIB, access: 'remote-write' });
  const registered = registering.then(
    () => true,
    (error: unknown) => hasCode('RAIL_CLOSED')(error),
  );
  await Promise.all([rail.close(), rail.close()]);
  await assert.rejects(done, hasCode('RAIL_CLOSED'));
  assert.equal(await registered, true);
  assert.equal(rail.state, 'closed');
  await assert.rejects(rail.insertPeer(Buffer.alloc(16)), hasCode('RAIL_CLOSED'));
  await assert.rejects(rail.removePeer(peer), hasCode('RAIL_CLOSED'));
  assert.throws(() => pair.start(0, 1), hasCode('RAIL_CLOSED'));
});

test('the mapping may be closed while a write from it is running', async () => {
  await using pair = await Pair.open(64 * MIB);
  await pair.write(0, 4096);
  const { promise, settle } = deferred();
  const { mapping, remote } = pair;
  pair.rail.write({
    peer: pair.peer,
    segments: [{ mappingId: mapping.id, localOffset: 0, remoteRegionId: remote, remoteOffset: 0, length: 64 * MIB }],
    onDone: settle,
  });
  const expected = await mapping.crc32c({ offset: 0, length: 64 * MIB });
  mapping.close();
  await promise;
  assert.equal(await pair.target.ask({ kind: 'crc', offset: 0, length: 64 * MIB }), expected);
});
