import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { FabricError } from '../../src/fabric/errors.js';
import type { PeerId, RemoteRegionId, TransferId } from '../../src/fabric/ids.js';
import { PeerPath, PeerPaths } from '../../src/fabric/paths.js';
import type { Rail, WriteOptions, WriteSegment } from '../../src/fabric/rail.js';
import { type StripedSegment, StripedWrite } from '../../src/fabric/striped-write.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** Records what is posted to it; the test decides how each write ends. */
class RecordingRail {
  state: 'open' | 'closed' = 'open';
  readonly writes: { segments: readonly WriteSegment[]; onDone: (error?: FabricError) => void; id: number }[] = [];
  readonly cancelled: number[] = [];
  readonly pings: ((error?: FabricError) => void)[] = [];
  disconnects = 0;
  landedBytes = 0;
  /** Of all peers. */
  bytesWritten = 0;

  write({ segments, onDone }: WriteOptions): TransferId {
    assert(!(segments instanceof Float64Array));
    const id = this.writes.length + 1;
    this.writes.push({ segments, onDone, id });
    return id as TransferId;
  }

  pingPeer({ onDone }: { onDone: (error?: FabricError) => void }): TransferId {
    this.pings.push(onDone);
    return 0 as TransferId;
  }

  stats(): { bytesWritten: number } {
    return { bytesWritten: this.bytesWritten };
  }

  bytesCompleted(): number {
    return this.landedBytes;
  }

  cancel(id: TransferId): void {
    this.cancelled.push(id);
  }

  disconnectPeer(): Promise<void> {
    this.disconnects += 1;
    for (const { onDone } of this.writes.splice(0)) onDone(failure('ECANCELED'));
    return Promise.resolve();
  }
}

function failure(text: string, landedBytes = 0): FabricError {
  return new FabricError({ code: 'TRANSFER_FAILED', call: 'fi_writemsg', text, landedBytes });
}

function pathsOver(rails: readonly RecordingRail[], stallMs = 10_000): PeerPaths {
  const paths = new PeerPaths({ probeRegion: () => 1 as RemoteRegionId, stallMs });
  for (const [index, rail] of rails.entries()) {
    paths.set(new PeerPath(index, rail as unknown as Rail, index as PeerId));
  }
  return paths;
}

const remote = { on: (path: PeerPath) => (100 + path.index) as RemoteRegionId };

/** Extents of a value, scattered in the source, one after the other in the sink. */
function extents(...lengths: number[]): StripedSegment[] {
  let remoteOffset = 0;
  return lengths.map((length, i) => {
    const segment = { mappingId: 1, localOffset: i * 64 * MIB, remote, remoteOffset, length };
    remoteOffset += length;
    return segment;
  });
}

/** What the posted segments make of the value: sink offset → source offset, checked to cover it exactly once. */
function assertCovers(posted: readonly WriteSegment[], value: readonly StripedSegment[]): void {
  const sorted = [...posted].sort((a, b) => a.remoteOffset - b.remoteOffset);
  let at = 0;
  for (const segment of sorted) {
    assert.equal(segment.remoteOffset, at, 'no gap and no overlap');
    const extent = value.find((one) => at >= one.remoteOffset && at < one.remoteOffset + one.length);
    assert(extent !== undefined);
    assert.equal(segment.localOffset, extent.localOffset + at - extent.remoteOffset);
    at += segment.length;
  }
  assert.equal(
    at,
    value.reduce((sum, { length }) => sum + length, 0),
  );
}

function begin(paths: PeerPaths, segments: readonly StripedSegment[]) {
  const outcomes: (FabricError | undefined)[] = [];
  const retries: FabricError[] = [];
  const write = new StripedWrite({
    paths,
    segments,
    onDone: (error) => outcomes.push(error),
    onRetry: (error) => retries.push(error),
  });
  write.start();
  assert.equal(outcomes.length, 0);
  return { write, outcomes, retries };
}

async function until(condition: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + 5000;
  while (!condition()) {
    assert(performance.now() < deadlineMs, 'the condition did not come true');
    await turn();
  }
}

test('A write over one rail is one transfer with the segments as they are', async () => {
  const rail = new RecordingRail();
  const value = extents(16 * MIB, 3 * MIB + 5);
  const { write, outcomes } = begin(pathsOver([rail]), value);
  assert.deepEqual(
    rail.writes[0]?.segments.map(({ length }) => length),
    [16 * MIB, 3 * MIB + 5],
  );
  rail.writes[0]?.onDone();
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0], undefined);
  assert.equal(write.landedBytes, 19 * MIB + 5);
});

for (const lengths of [
  [256 * KIB],
  [300_001],
  [MIB, 1, 7 * MIB + 13],
  [16 * MIB, 16 * MIB, 9 * MIB + 1],
  [40 * MIB + 64],
]) {
  for (const rails of [2, 3, 5]) {
    test(`${lengths.join(' + ')} bytes over ${rails} rails: every byte once, remainder included`, async () => {
      const all = Array.from({ length: rails }, () => new RecordingRail());
      const value = extents(...lengths);
      const { outcomes } = begin(pathsOver(all), value);
      assertCovers(
        all.flatMap((rail) => rail.writes.flatMap(({ segments }) => segments)),
        value,
      );
      for (const [index, rail] of all.entries()) {
        for (const { segments } of rail.writes) {
          for (const { remoteRegionId } of segments) assert.equal(remoteRegionId, 100 + index);
        }
      }
      for (const { writes } of all) for (const { onDone } of writes) onDone();
      await until(() => outcomes.length === 1);
      assert.equal(outcomes[0], undefined);
    });
  }
}

test('A short write takes one rail, and the next one another', () => {
  const rails = [new RecordingRail(), new RecordingRail()];
  const paths = pathsOver(rails);
  for (let i = 0; i < 4; i++) begin(paths, extents(128 * KIB));
  assert.deepEqual(
    rails.map(({ writes }) => writes.length),
    [2, 2],
  );
});

test('What failed goes on where it stopped, on the rail that is left', async () => {
  const [good, bad] = [new RecordingRail(), new RecordingRail()];
  const paths = pathsOver([good, bad]);
  const value = extents(20 * MIB + 3);
  const { outcomes, retries } = begin(paths, value);
  const lost = bad.writes[0];
  assert(lost !== undefined);
  lost.onDone(failure('ECONNRESET', 5 * MIB));
  await until(() => good.writes.length === 2);
  const landed: WriteSegment[] = [];
  let left = 5 * MIB;
  for (const segment of lost.segments) {
    const length = Math.min(left, segment.length);
    if (length > 0) landed.push({ ...segment, length });
    left -= length;
  }
  assertCovers([...landed, ...good.writes.flatMap(({ segments }) => segments)], value);
  for (const { onDone } of good.writes) onDone();
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0], undefined);
  assert.equal(retries.length, 1);
  assert.deepEqual(
    paths.usable().map(({ index }) => index),
    [0],
  );
});

test('A rail that was taken out is probed until it is back', async () => {
  const [good, bad] = [new RecordingRail(), new RecordingRail()];
  const paths = pathsOver([good, bad]);
  begin(paths, extents(MIB));
  bad.writes[0]?.onDone(failure('ECONNRESET'));
  await until(() => bad.pings.length === 1);
  bad.pings[0]?.(failure('ECONNREFUSED'));
  await until(() => bad.pings.length === 2);
  assert.equal(paths.usable().length, 1);
  bad.pings[1]?.();
  assert.equal(paths.usable().length, 2);
  paths.close();
});

test('With one rail a write is tried again there, and fails after five times without progress', async () => {
  const rail = new RecordingRail();
  const { outcomes, retries } = begin(pathsOver([rail]), extents(MIB));
  for (let i = 1; i <= 5; i++) {
    await until(() => rail.writes.length === i);
    rail.writes[i - 1]?.onDone(failure('ENOTCONN'));
  }
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0]?.text, 'ENOTCONN');
  assert.equal(retries.length, 4);
});

test('Progress starts the count of failures again', async () => {
  const rail = new RecordingRail();
  const { outcomes } = begin(pathsOver([rail]), extents(10 * MIB));
  for (let i = 1; i <= 9; i++) {
    await until(() => rail.writes.length === i);
    assert.equal(rail.writes[i - 1]?.segments[0]?.remoteOffset, (i - 1) * MIB);
    rail.writes[i - 1]?.onDone(failure('ECANCELED', MIB));
  }
  await until(() => rail.writes.length === 10);
  rail.writes[9]?.onDone();
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0], undefined);
});

test('Cancelling tells the rails, and ends when nothing is in flight', async () => {
  const rails = [new RecordingRail(), new RecordingRail()];
  const { write, outcomes } = begin(pathsOver(rails), extents(8 * MIB));
  write.cancel();
  assert.deepEqual(
    rails.map(({ cancelled }) => cancelled.length),
    [1, 1],
  );
  rails[0]?.writes[0]?.onDone(failure('cancelled'));
  await turn();
  assert.equal(outcomes.length, 0);
  rails[1]?.writes[0]?.onDone();
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0]?.code, 'CANCELLED');
});

test('An error that no second try mends ends the write at once', async () => {
  const rail = new RecordingRail();
  const { outcomes } = begin(pathsOver([rail]), extents(MIB));
  rail.writes[0]?.onDone(new FabricError({ code: 'RAIL_CLOSED', call: 'write', text: 'the rail is closed' }));
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0]?.code, 'RAIL_CLOSED');
});

test('A rail on which nothing completes is cut, and its part goes on elsewhere', async () => {
  const [good, frozen] = [new RecordingRail(), new RecordingRail()];
  const { outcomes } = begin(pathsOver([good, frozen], 100), extents(8 * MIB));
  good.writes[0]?.onDone();
  await until(() => frozen.disconnects === 1 && good.writes.length === 2);
  good.writes[1]?.onDone();
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0], undefined);
});

test('A rail on which something completes is not cut', async () => {
  const rail = new RecordingRail();
  const { outcomes } = begin(pathsOver([rail], 300), extents(8 * MIB));
  const beganMs = performance.now();
  await until(() => {
    rail.landedBytes += 1;
    return performance.now() - beganMs > 1000;
  });
  assert.equal(rail.disconnects, 0);
  rail.writes[0]?.onDone();
  await until(() => outcomes.length === 1);
});

test('A rail that is busy with others is given more time', async () => {
  const rail = new RecordingRail();
  const { outcomes } = begin(pathsOver([rail], 300), extents(8 * MIB));
  const beganMs = performance.now();
  await until(() => {
    rail.bytesWritten += 1;
    return rail.disconnects === 1;
  });
  assert.ok(performance.now() - beganMs > 1000, 'it was cut as if the rail were idle');
  await until(() => rail.writes.length === 1);
  rail.writes[0]?.onDone();
  await until(() => outcomes.length === 1);
});

test('Memory that is not known on one rail is written over the others', () => {
  const rails = [new RecordingRail(), new RecordingRail()];
  const half = { on: (path: PeerPath) => (path.index === 1 ? (7 as RemoteRegionId) : undefined) };
  begin(pathsOver(rails), [{ mappingId: 1, localOffset: 0, remote: half, remoteOffset: 0, length: 8 * MIB }]);
  assert.deepEqual(
    rails.map(({ writes }) => writes.length),
    [0, 1],
  );
});

test('A share that cannot be posted for good keeps the others from being posted', async () => {
  const rails = [new RecordingRail(), new RecordingRail(), new RecordingRail()];
  const [, bad] = rails;
  assert(bad !== undefined);
  bad.write = () => {
    throw new FabricError({ code: 'INVALID_ARGUMENT', call: 'write', text: 'no' });
  };
  const { outcomes } = begin(pathsOver(rails), extents(24 * MIB));
  assert.deepEqual(
    rails.map(({ writes }) => writes.length),
    [1, 0, 0],
  );
  rails[0]?.writes[0]?.onDone(failure('cancelled'));
  await until(() => outcomes.length === 1);
  assert.equal(outcomes[0]?.code, 'INVALID_ARGUMENT');
});

test('A rail that is just being closed is done without', () => {
  const rails = [new RecordingRail(), new RecordingRail()];
  const closing = {
    on: (path: PeerPath) => {
      if (path.index === 0) throw new FabricError({ code: 'RAIL_CLOSED', call: 'rail', text: 'the rail is closed' });
      return 7 as RemoteRegionId;
    },
  };
  begin(pathsOver(rails), [{ mappingId: 1, localOffset: 0, remote: closing, remoteOffset: 0, length: 8 * MIB }]);
  assert.deepEqual(
    rails.map(({ writes }) => writes.length),
    [0, 1],
  );
});
