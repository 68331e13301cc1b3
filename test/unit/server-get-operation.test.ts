import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { remoteAddress, remoteKey } from '../../src/fabric/index.js';
import type { FabricKvError } from '../../src/protocol/errors.js';
import type { DataSource } from '../../src/protocol/frame-writer.js';
import type { GetResult } from '../../src/protocol/generated/fabrickv/v1/GetResult.js';
import type { ServerMessage } from '../../src/protocol/generated/fabrickv/v1/ServerMessage.js';
import { DATA_BYTES_MAX } from '../../src/protocol/limits.js';
import { OperationTrace } from '../../src/protocol/stages.js';
import { ServerCounters } from '../../src/server/counters.js';
import { type GetRequest, getResult, InlineGet, RdmaGet } from '../../src/server/get-operation.js';
import { type Lease, LeaseTable } from '../../src/server/leases.js';
import type { OperationHost } from '../../src/server/operation.js';
import { OperationGate } from '../../src/server/operation-gate.js';
import { PeerRegion } from '../../src/server/peers.js';
import type { ServerContext } from '../../src/server/server-context.js';
import { Arena } from '../../src/server/store/arena.js';
import { Store, type StoredValue } from '../../src/server/store/store.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryPeer } from './support/memory-peer.js';

const KEY = Buffer.from('key');
const ARENA_BYTES = 1024 * 1024;
const EXTENT_BYTES = 64 * 1024;
const SINK_OFFSET = 4096;
const logger = pino({ level: 'silent' });

interface Asked {
  readonly offset?: number;
  readonly length?: number;
  readonly lease?: Lease;
  readonly holds?: boolean;
  readonly timeoutMs?: number;
}

/** One session's part of a server, with a peer whose writes end when the test says so. */
class Bench implements OperationHost {
  readonly clientId = 5n;
  readonly windows = undefined;
  readonly sent: string[] = [];
  readonly results: GetResult[] = [];
  readonly failures: FabricKvError[] = [];
  readonly sinkBusy: boolean[] = [];
  readonly running = new Map<number, RdmaGet | InlineGet>();
  readonly counters = new ServerCounters();
  readonly memory = new MemoryPeer();
  readonly sources: DataSource<ServerMessage>[] = [];
  readonly store: Store;
  readonly leases = new LeaseTable({ supersededBytesMax: ARENA_BYTES, counters: this.counters });
  readonly context: ServerContext;
  readonly regions = new Map([[3, new PeerRegion([{ address: remoteAddress(0n), key: remoteKey(1n) }], ARENA_BYTES)]]);

  constructor(readonly gate = new OperationGate(8, 8)) {
    const bytes = Buffer.from(Array.from({ length: ARENA_BYTES }, (_, i) => (i * 7 + (i >> 8)) % 256));
    const memory = { sizeBytes: ARENA_BYTES, segmentBytes: ARENA_BYTES, segments: [bytes] };
    this.store = new Store(new Arena(memory, EXTENT_BYTES));
    const parts: Partial<ServerContext> = { store: this.store, counters: this.counters, logger };
    this.context = parts as ServerContext;
  }

  get peer() {
    return this.memory.peer;
  }

  region(regionId: number): PeerRegion | undefined {
    return this.regions.get(regionId);
  }

  trace(_op: 'get', operationId: number): OperationTrace {
    return new OperationTrace(
      { side: 'server', requestIdPrefix: 'client', logger, formatKey: String, peer: '', provider: 'tcp' },
      'get',
      operationId,
      KEY,
      'get.received',
    );
  }

  send(operationId: number, message: Parameters<OperationHost['send']>[1]): void {
    const { result } = message;
    this.sent.push(`${operationId}:${Object.keys(result ?? message)[0]}`);
    if (result?.get) this.results.push(result.get);
  }

  sendData(source: DataSource<ServerMessage>): void {
    this.sources.push(source);
  }

  fail(operationId: number, error: FabricKvError, sinkBusy = false): void {
    this.sent.push(`${operationId}:failure`);
    this.failures.push(error);
    this.sinkBusy.push(sinkBusy);
  }

  finished(operationId: number): void {
    this.running.delete(operationId);
  }

  stored(length = 1000): StoredValue {
    const extents = this.store.arena.allocate(length);
    assert.ok(extents !== undefined);
    return this.store.publish({ namespace: 0, key: KEY, extents, length, crc32c: 7 });
  }

  request(value: StoredValue, { offset = 0, length = value.length - offset, ...asked }: Asked = {}): GetRequest {
    return {
      value,
      range: { offset, length },
      lease: asked.lease,
      holds: asked.holds ?? false,
      timeoutMs: 60_000,
      ...asked,
    };
  }

  get(value: StoredValue, operationId = 1, asked: Asked = {}): RdmaGet {
    const region = this.regions.get(3);
    assert.ok(region !== undefined);
    const sink = { regionId: 3, region, offset: SINK_OFFSET };
    const trace = this.trace('get', operationId);
    return this.run(new RdmaGet(this, operationId, trace, this.request(value, asked), this.peer, sink), operationId);
  }

  getInline(value: StoredValue, operationId = 1, asked: Asked = {}): InlineGet {
    return this.run(
      new InlineGet(this, operationId, this.trace('get', operationId), this.request(value, asked)),
      operationId,
    );
  }

  private run<Get extends RdmaGet | InlineGet>(operation: Get, operationId: number): Get {
    this.running.set(operationId, operation);
    operation.start();
    return operation;
  }

  /** The value goes, and with it the last of what is held. */
  checkEmpty(): void {
    this.store.remove(0, KEY);
    this.leases.close();
    assert.deepEqual(
      {
        used: this.store.arena.usage.usedBytes,
        held: this.store.heldBytes,
        active: this.gate.active,
        waiting: this.gate.waiting,
        running: this.running.size,
        writes: this.memory.writes.length,
      },
      { used: 0, held: 0, active: 0, waiting: 0, running: 0, writes: 0 },
    );
  }
}

describe('a GET by RDMA', () => {
  test('is done when its write has completed, and keeps its version until then', () => {
    const bench = new Bench();
    const value = bench.stored();
    bench.get(value);
    bench.store.remove(0, KEY);
    assert.equal(bench.store.arena.usage.usedBytes, 1024);
    bench.memory.writes[0]?.retry();
    bench.memory.writes[0]?.done();
    assert.deepEqual(bench.sent, ['1:get']);
    const { getsRdma, bytesReadRdma, rangesRead, transfers, transferRetries } = bench.counters;
    assert.deepEqual([getsRdma, bytesReadRdma, rangesRead, transfers, transferRetries], [1, 1000, 0, 1, 1]);
    bench.checkEmpty();
  });

  test('of a part writes that part of each extent to the start of the sink, and says what it was', () => {
    const bench = new Bench();
    const length = 3 * EXTENT_BYTES + 100;
    const value = bench.stored(length);
    const { extents } = value;
    const starts = extents.map((_, i) => i * EXTENT_BYTES);
    for (const [offset, bytes] of [
      [0, length],
      [0, 1],
      [length - 1, 1],
      [10, EXTENT_BYTES],
      [EXTENT_BYTES - 1, 2],
      [EXTENT_BYTES, EXTENT_BYTES],
      [EXTENT_BYTES + 5, 2 * EXTENT_BYTES],
      [3 * EXTENT_BYTES, 100],
    ] as const) {
      bench.get(value, 1, { offset, length: bytes });
      const [write] = bench.memory.writes;
      assert.ok(write !== undefined);
      let at = offset;
      let remoteOffset = SINK_OFFSET;
      for (const segment of write.segments) {
        const index = starts.findLastIndex((start) => start <= at);
        const within = at - (starts[index] ?? 0);
        assert.equal(segment.localOffset, (extents[index]?.offset ?? 0) + within);
        assert.equal(segment.remoteOffset, remoteOffset);
        assert.ok(segment.length > 0 && within + segment.length <= (extents[index]?.length ?? 0));
        at += segment.length;
        remoteOffset += segment.length;
      }
      assert.equal(at, offset + bytes);
      write.done();
      const result = bench.results.at(-1);
      assert.deepEqual(
        [result?.length, result?.rangeOffset ?? 0, result?.rangeLength, result?.crc32c, result?.leaseId],
        [length, offset, bytes, 7, undefined],
      );
    }
    assert.equal(bench.counters.rangesRead, 7);
    bench.checkEmpty();
  });

  test('that is cancelled is Quiesced when its write has come back, not before', () => {
    const bench = new Bench();
    const get = bench.get(bench.stored());
    const [write] = bench.memory.writes;
    get.stop({ kind: 'cancelled' });
    get.stop({ kind: 'cancelled' });
    assert.equal(write?.cancels, 1);
    assert.deepEqual(bench.sent, []);
    write.done('CANCELLED');
    assert.deepEqual(bench.sent, ['1:quiesced']);
    bench.checkEmpty();
  });

  test('past its deadline fails with a sink that is busy, and says when it is not', async () => {
    const bench = new Bench();
    const get = bench.get(bench.stored(), 1, { timeoutMs: 10 });
    const [write] = bench.memory.writes;
    assert.ok(write !== undefined);
    write.landedBytes = 512;
    await waitFor(() => bench.failures.length > 0, { what: 'the deadline' });
    assert.deepEqual(bench.sinkBusy, [true]);
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_DEADLINE');
    assert.equal(bench.failures[0].stage, 'get.write.submitted');
    assert.match(bench.failures[0].message, /after 512 of 1000 bytes/);
    assert.equal(write.cancels, 1);
    // The client may cancel what has failed: there is one Quiesced all the same.
    get.stop({ kind: 'cancelled' });
    write.done();
    assert.deepEqual(bench.sent, ['1:failure', '1:quiesced']);
    bench.checkEmpty();
  });

  test('that cannot be written fails, with a sink that is free', () => {
    const bench = new Bench();
    bench.get(bench.stored());
    bench.memory.writes[0]?.done('TRANSFER_FAILED');
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_DATA_PLANE');
    assert.deepEqual([bench.sent, bench.sinkBusy], [['1:failure'], [false]]);
    bench.checkEmpty();
  });

  test('whose session ends in the middle keeps its pin until its write has come back', () => {
    const bench = new Bench();
    const get = bench.get(bench.stored());
    const [write] = bench.memory.writes;
    bench.store.remove(0, KEY);
    get.stop({ kind: 'session-ended' });
    assert.equal(bench.store.arena.usage.usedBytes, 1024);
    write?.done('CANCELLED');
    assert.deepEqual(bench.sent, [], 'nobody listens');
    bench.checkEmpty();
  });

  test('into a region that the rails have no room for fails as the data plane does, so that it can go inline', () => {
    const bench = new Bench();
    bench.memory.reachable = false;
    bench.get(bench.stored());
    assert.deepEqual(
      bench.failures.map(({ code }) => code),
      ['ERR_FABRICKV_DATA_PLANE'],
    );
    assert.deepEqual(bench.sinkBusy, [false]);
    bench.checkEmpty();
  });

  test('whose region ends while it waits for its turn fails', () => {
    const bench = new Bench(new OperationGate(1, 1));
    const value = bench.stored();
    bench.get(value, 1);
    bench.get(value, 2);
    bench.regions.delete(3);
    bench.memory.writes[0]?.done();
    assert.deepEqual(bench.sent, ['1:get', '2:failure']);
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_INVALID_ARGUMENT');
    bench.checkEmpty();
  });

  test('of thousands that wait when there is a defect, each fails', () => {
    const bench = new Bench(new OperationGate(1, 10_000));
    const value = bench.stored(DATA_BYTES_MAX + 1);
    bench.get(value, 1);
    for (let id = 2; id <= 10_001; id++) bench.get(value, id);
    bench.memory.broken = new Error('a defect');
    bench.memory.writes[0]?.done('RAIL_CLOSED');
    assert.equal(bench.failures.length, 10_001);
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_DATA_PLANE');
    assert.ok(bench.failures.slice(1).every(({ code }) => code === 'ERR_FABRICKV_INTERNAL'));
    bench.checkEmpty();
  });

  test('that waits for its turn and is stopped never starts', () => {
    const bench = new Bench(new OperationGate(1, 1));
    const value = bench.stored();
    bench.get(value, 1);
    bench.get(value, 2).stop({ kind: 'cancelled' });
    assert.deepEqual(bench.sent, ['2:quiesced']);
    assert.throws(() => {
      bench.get(value, 3);
      bench.get(value, 4);
    }, /--max-waiting/);
    bench.memory.writes[0]?.done();
    assert.equal(bench.memory.writes.length, 1);
    bench.memory.writes[0]?.done();
    assert.deepEqual(bench.sent, ['2:quiesced', '1:get', '3:get']);
    bench.checkEmpty();
  });
});

describe('a lease that a GET has taken', () => {
  test('is told in its result, and outlives it', () => {
    const bench = new Bench();
    const value = bench.stored();
    const lease = bench.leases.open(value);
    bench.get(value, 1, { lease, holds: true, length: 10 });
    bench.memory.writes[0]?.done();
    assert.notEqual(bench.results[0]?.leaseId, undefined);
    assert.equal(bench.leases.find(lease.id), lease);
    bench.get(value, 2, { lease, offset: 10 });
    bench.memory.writes[0]?.done();
    const { getsRdma, rangesRead, bytesReadRdma, transfers } = bench.counters;
    assert.deepEqual([getsRdma, rangesRead, bytesReadRdma, transfers], [1, 2, 1000, 2], 'it is one GET');
    bench.checkEmpty();
  });

  test('ends when the GET fails, is cancelled, or is refused: nobody knows of it', () => {
    const bench = new Bench(new OperationGate(1, 0));
    const value = bench.stored();
    const take = (operationId: number): RdmaGet =>
      bench.get(value, operationId, { lease: bench.leases.open(value), holds: true });
    take(1);
    bench.memory.writes[0]?.done('TRANSFER_FAILED');
    assert.equal(bench.leases.count, 0);
    take(2).stop({ kind: 'cancelled' });
    assert.throws(() => take(3), /--max-waiting/);
    bench.running.delete(3);
    bench.memory.writes[0]?.done('CANCELLED');
    assert.equal(bench.leases.count, 0);
    bench.checkEmpty();
  });
});

describe('a lease under which a GET reads', () => {
  test('does not run out while the write is in flight, and stays when the GET fails or is cancelled', (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] });
    let nowMs = 0;
    const bench = new Bench();
    const leases = new LeaseTable({ supersededBytesMax: 0, counters: bench.counters, nowMs: () => nowMs });
    const value = bench.stored();
    const lease = leases.open(value);
    const quiet = leases.open(value);
    const cancelled = bench.get(value, 1, { lease, timeoutMs: 3_600_000 });
    nowMs += 60_000;
    t.mock.timers.tick(60_000);
    assert.throws(() => leases.find(quiet.id), { code: 'ERR_FABRICKV_LEASE_EXPIRED' });
    cancelled.stop({ kind: 'cancelled' });
    bench.memory.writes[0]?.done('CANCELLED');
    bench.get(value, 2, { lease });
    bench.memory.writes[0]?.done('TRANSFER_FAILED');
    assert.equal(leases.find(lease.id), lease);
    nowMs += 60_000;
    t.mock.timers.tick(60_000);
    assert.equal(leases.count, 0, 'its time began anew when the last one was over');
    leases.close();
    bench.checkEmpty();
  });

  test('may end meanwhile: the bytes stay until they are written', () => {
    const bench = new Bench();
    const value = bench.stored();
    const lease = bench.leases.open(value);
    bench.get(value, 1, { lease });
    bench.store.remove(0, KEY);
    lease.end();
    assert.equal(bench.store.arena.usage.usedBytes, 1024);
    bench.memory.writes[0]?.done();
    assert.deepEqual(bench.sent, ['1:get']);
    bench.checkEmpty();
  });
});

test('a GET as Data sends its range only, with offsets in the value', async () => {
  const bench = new Bench();
  const value = bench.stored(3 * EXTENT_BYTES);
  const offset = EXTENT_BYTES - 10;
  const length = DATA_BYTES_MAX + 100;
  bench.getInline(value, 1, { offset, length });
  const pieces: Buffer[] = [];
  let at = offset;
  for (;;) {
    const piece = bench.sources[0]?.next();
    if (piece === undefined) break;
    const { data } = piece.message;
    assert.deepEqual([data?.offset, data?.totalLength], [at, value.length]);
    assert.ok(Buffer.isBuffer(data?.bytes) && data.bytes.length <= DATA_BYTES_MAX);
    pieces.push(data.bytes);
    assert.ok(data.bytes.length > 0);
    at += data.bytes.length;
  }
  await Promise.resolve();
  assert.ok(Buffer.concat(pieces).equals(bench.store.arena.copy(value.extents, offset, length)));
  assert.equal(bench.results[0]?.rangeLength, length);
  assert.deepEqual(
    [bench.counters.getsInline, bench.counters.bytesReadInline, bench.counters.rangesRead],
    [1, length, 1],
  );
  bench.checkEmpty();
});

test('a value that was stored without a CRC says so', () => {
  const bench = new Bench();
  const value = bench.store.publish({ namespace: 0, key: KEY, extents: [], length: 0, crc32c: undefined });
  const { crc32c, withoutCrc } = getResult(bench.request(value), 'INLINE');
  assert.deepEqual([crc32c, withoutCrc], [0, true]);
  assert.equal(getResult(bench.request(bench.stored(1)), 'INLINE').withoutCrc, undefined);
  bench.checkEmpty();
});
