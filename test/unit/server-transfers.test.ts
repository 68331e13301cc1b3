import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { crc32c, type Mapping, mapMemory, remoteAddress, remoteKey } from '../../src/fabric/index.js';
import type { FabricKvError } from '../../src/protocol/errors.js';
import type { PutCommit__Output } from '../../src/protocol/generated/fabrickv/v1/PutCommit.js';
import { DATA_BYTES_MAX, EXTENT_BYTES_MAX } from '../../src/protocol/limits.js';
import { OperationTrace } from '../../src/protocol/stages.js';
import { fromBigInt } from '../../src/protocol/wire.js';
import { ServerCounters } from '../../src/server/counters.js';
import { RdmaGet } from '../../src/server/get-operation.js';
import { MutationHistory } from '../../src/server/mutation-history.js';
import type { OperationHost } from '../../src/server/operation.js';
import { OperationGate } from '../../src/server/operation-gate.js';
import { type Peer, PeerTable } from '../../src/server/peers.js';
import { PutOperation } from '../../src/server/put-operation.js';
import type { ServerContext } from '../../src/server/server-context.js';
import { Arena } from '../../src/server/store/arena.js';
import { Store, type StoredValue } from '../../src/server/store/store.js';
import { waitFor } from '../support/wait-for.js';
import { MemoryRail, turn } from './support/memory-rail.js';

const KEY = Buffer.from('key');
const ARENA_BYTES = 80 * 1024 * 1024;
/** Three extents. */
const LENGTH = 2 * EXTENT_BYTES_MAX + 1000;
const logger = pino({ level: 'silent' });

/** One session's part of a server, on a rail whose order the test decides; the arena and the CRC are real. */
class Bench implements OperationHost {
  readonly clientId = 5n;
  readonly sent: string[] = [];
  readonly failures: FabricKvError[] = [];
  readonly sinkBusy: boolean[] = [];
  readonly running = new Map<number, PutOperation | RdmaGet>();
  readonly history = new MutationHistory();
  readonly counters = new ServerCounters();
  readonly context: ServerContext;
  readonly store: Store;
  readonly table: PeerTable;
  /** Set to make the check of a CRC wait. */
  crcGate: Promise<void> = Promise.resolve();
  private windows = 0;

  private constructor(
    readonly rail: MemoryRail,
    readonly mapping: Mapping,
    table: PeerTable,
    readonly peer: Peer,
    readonly gate: OperationGate,
  ) {
    this.table = table;
    const memory = { sizeBytes: ARENA_BYTES, segmentBytes: ARENA_BYTES, segments: [mapping.buffer(0, ARENA_BYTES)] };
    this.store = new Store(new Arena(memory, EXTENT_BYTES_MAX));
    const checked: Pick<Mapping, 'crc32c'> = {
      crc32c: async (options) => {
        await this.crcGate;
        return mapping.crc32c(options);
      },
    };
    const parts: Partial<ServerContext> = {
      store: this.store,
      history: this.history,
      counters: this.counters,
      logger,
    };
    this.context = {
      ...parts,
      dataPlane: { mapping: checked, reclaim: () => table.reclaim() },
    } as unknown as ServerContext;
  }

  static async open(gate = new OperationGate(8, 8)): Promise<Bench> {
    const rail = new MemoryRail();
    const mapping = await mapMemory({ sizeBytes: ARENA_BYTES, prefault: false });
    const table = new PeerTable(rail.rail, mapping.id, new ServerCounters(), logger);
    return new Bench(rail, mapping, table, await table.acquire(Buffer.from('peer')), gate);
  }

  region(): undefined {
    return undefined;
  }

  trace(op: 'put' | 'get', operationId: number): OperationTrace {
    return new OperationTrace(
      { side: 'server', logger, formatKey: String, peer: '', provider: 'tcp' },
      op,
      () => String(operationId),
      KEY,
      `${op}.received`,
    );
  }

  send(operationId: number, message: Parameters<OperationHost['send']>[1]): void {
    const what = message.result === undefined ? Object.keys(message)[0] : Object.keys(message.result ?? {})[0];
    this.sent.push(`${operationId}:${what}`);
  }

  sendData(): void {
    throw new Error('no Data here');
  }

  fail(operationId: number, error: FabricKvError, sinkBusy = false): void {
    this.sent.push(`${operationId}:failure`);
    this.failures.push(error);
    this.sinkBusy.push(sinkBusy);
  }

  nextWindowId(): number {
    this.windows += 1;
    return this.windows;
  }

  finished(operationId: number): void {
    this.running.delete(operationId);
  }

  put(operationId = 1, timeoutMs = 60_000, length = LENGTH): PutOperation {
    const operation = new PutOperation(this, operationId, this.trace('put', operationId), {
      namespace: 0,
      key: KEY,
      length,
      path: 'RDMA',
      timeoutMs,
    });
    this.running.set(operationId, operation);
    operation.start();
    return operation;
  }

  /** A PUT that has its grant, into which a client has written. */
  async granted(operationId = 1): Promise<{ readonly put: PutOperation; readonly commit: PutCommit__Output }> {
    const put = this.put(operationId);
    await waitFor(() => this.sent.includes(`${operationId}:grant`), { what: 'the grant' });
    return { put, commit: { crc32c: crc32c(Buffer.alloc(LENGTH)), options: null } };
  }

  get(value: StoredValue, operationId = 1, timeoutMs = 60_000): RdmaGet {
    const region = this.peer.addRegion(remoteAddress(0n), remoteKey(1n), value.length);
    const operation = new RdmaGet(this, operationId, this.trace('get', operationId), value, timeoutMs, this.peer, {
      region,
      offset: 0,
    });
    this.running.set(operationId, operation);
    operation.start();
    return operation;
  }

  stored(length = 1000): StoredValue {
    const extents = this.store.arena.allocate(length);
    assert.ok(extents !== undefined);
    return this.store.publish({ namespace: 0, key: KEY, extents, length, crc32c: 0 });
  }

  get used(): number {
    return this.store.arena.usage.usedBytes;
  }

  /** The session ends and everything that it held comes back. */
  async endSession(): Promise<void> {
    for (const operation of [...this.running.values()]) operation.stop({ kind: 'session-ended' });
    const released = this.table.release(this.peer);
    for (let i = 0; i < 50 && this.rail.waiting.length > 0; i++) await this.rail.next();
    this.rail.held = false;
    await released;
    await waitFor(() => this.running.size === 0, { what: 'the end of the operations' });
  }

  /** Nothing is held but what the store has. */
  async checkEmpty(): Promise<void> {
    await turn();
    const { usedBytes, quarantinedBytes } = this.store.arena.usage;
    assert.deepEqual(
      {
        usedBytes,
        quarantinedBytes,
        active: this.gate.active,
        waiting: this.gate.waiting,
        peers: this.rail.peers.size,
        regions: this.rail.regions.size,
        windowsOpen: this.counters.windowsOpen,
      },
      { usedBytes: 0, quarantinedBytes: 0, active: 0, waiting: 0, peers: 0, regions: 0, windowsOpen: 0 },
    );
    this.mapping.close();
  }
}

describe('a PUT by RDMA', () => {
  test('that was applied on another session meanwhile has that result, and is not applied again', async () => {
    const bench = await Bench.open();
    const { put, commit } = await bench.granted();
    bench.history.begin(5n, 1);
    put.onCommit(commit);
    await turn();
    assert.equal(bench.sent.includes('1:put'), false);
    bench.history.settle(5n, 1, { put: { version: 7, path: 'RDMA' } });
    assert.ok(bench.sent.includes('1:put'));
    assert.equal(bench.store.lookup(0, KEY), undefined);
    assert.equal(bench.counters.replayedResults, 1);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('is granted extents in windows of at most 16 MiB, verified, published, and its windows closed', async () => {
    const bench = await Bench.open();
    const { put, commit } = await bench.granted();
    assert.deepEqual(bench.sent, ['0:windowOffer', '0:windowOffer', '0:windowOffer', '1:grant']);
    assert.equal(bench.store.lookup(0, KEY), undefined);
    put.onCommit(commit);
    await waitFor(() => bench.sent.includes('1:put'), { what: 'the result' });
    assert.equal(bench.store.lookup(0, KEY)?.length, LENGTH);
    await turn();
    assert.equal(bench.rail.regions.size, 0);
    assert.equal(bench.sent.filter((message) => message === '0:windowRevoke').length, 3, 'and the client is told');
    bench.store.remove(0, KEY);
    assert.ok(bench.store.arena.usage.quarantinedBytes >= LENGTH, 'the client has not been shown to have stopped');
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('whose bytes are others is thrown away', async () => {
    const bench = await Bench.open();
    const { put } = await bench.granted();
    put.onCommit({ crc32c: 1, options: null });
    await waitFor(() => bench.failures.length > 0, { what: 'the failure' });
    assert.deepEqual([bench.failures[0]?.code, bench.failures[0]?.outcome], ['ERR_FABRICKV_CHECKSUM', 'not-applied']);
    assert.equal(bench.store.lookup(0, KEY), undefined);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('takes a second commit, Data or an abort while it is verified for nothing', async () => {
    const bench = await Bench.open();
    const { put, commit } = await bench.granted();
    let open: () => void = () => undefined;
    bench.crcGate = new Promise((resolve) => {
      open = resolve;
    });
    put.onCommit(commit);
    put.onCommit(commit);
    put.onCommit({ crc32c: 9, options: null });
    put.onData({ offset: fromBigInt(0n), bytes: Buffer.alloc(10), totalLength: fromBigInt(0n) });
    put.onAbort();
    await turn();
    assert.deepEqual(bench.failures, []);
    open();
    await waitFor(() => bench.sent.includes('1:put'), { what: 'the result' });
    assert.deepEqual(
      bench.sent.filter((message) => message.startsWith('1:')),
      ['1:grant', '1:put'],
    );
    const value = bench.store.lookup(0, KEY);
    assert.equal(
      value?.extents.reduce((sum, extent) => sum + extent.length, 0),
      LENGTH,
    );
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('cancelled while it is verified is carried through, and told Quiesced afterwards', async () => {
    const bench = await Bench.open();
    const { put, commit } = await bench.granted();
    put.onCommit(commit);
    put.stop({ kind: 'cancelled' });
    assert.equal(bench.sent.includes('1:quiesced'), false);
    await waitFor(() => bench.sent.includes('1:quiesced'), { what: 'Quiesced' });
    assert.deepEqual(
      bench.sent.filter((message) => message.startsWith('1:')),
      ['1:grant', '1:put', '1:quiesced'],
    );
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('that is being committed on a session that ends is stored, and known to the next session', async () => {
    const bench = await Bench.open();
    const { put, commit } = await bench.granted();
    let open: () => void = () => undefined;
    bench.crcGate = new Promise((resolve) => {
      open = resolve;
    });
    put.onCommit(commit);
    const results: unknown[] = [];
    assert.ok(bench.history.find(5n, 1, (result) => results.push(result?.put?.path)));
    const ended = bench.endSession();
    await turn();
    assert.equal(bench.rail.peers.size, 1, 'its windows are open: a removal would prove nothing');
    open();
    await ended;
    assert.deepEqual(results, ['RDMA']);
    assert.equal(bench.store.lookup(0, KEY)?.length, LENGTH);
    bench.store.remove(0, KEY);
    await bench.checkEmpty();
  });

  test('gives everything back when the session ends, at every step of its opening', async () => {
    // In its own turn (-1); then three registrations are awaited, one after the other; a step more and it is granted.
    for (let steps = -1; steps <= 4; steps++) {
      for (const cause of ['session-ended', 'cancelled'] as const) {
        const bench = await Bench.open();
        bench.rail.held = true;
        const put = bench.put();
        if (steps >= 0) await turn();
        for (let i = 0; i < steps; i++) await bench.rail.next();
        assert.equal(bench.sent.includes('1:grant'), steps >= 3, `${steps}`);
        if (cause === 'cancelled') put.stop({ kind: 'cancelled' });
        assert.equal(bench.running.size, cause === 'cancelled' ? 0 : 1);
        await bench.endSession();
        assert.equal(bench.sent.filter((message) => message === '1:quiesced').length, cause === 'cancelled' ? 1 : 0);
        await bench.checkEmpty();
      }
    }
  });

  test('fails when a window cannot be registered, and frees what it had', async () => {
    const bench = await Bench.open();
    bench.rail.held = true;
    bench.put();
    await turn();
    await bench.rail.next();
    bench.rail.failing.add('register');
    await bench.rail.next();
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_DATA_PLANE');
    assert.equal(bench.failures[0].outcome, 'not-applied');
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('that is not written in its time is taken back', async () => {
    const bench = await Bench.open();
    bench.put(1, 20);
    await waitFor(() => bench.failures.length > 0, { what: 'the deadline' });
    assert.deepEqual([bench.failures[0]?.code, bench.failures[0]?.stage], ['ERR_FABRICKV_DEADLINE', 'put.granted']);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('gets memory that is in quarantine, once it is proved', async () => {
    const bench = await Bench.open();
    // Two fit beside each other: the third needs what the first one had.
    for (const id of [1, 2, 3]) {
      const { put, commit } = await bench.granted(id);
      put.onCommit(commit);
      await waitFor(() => bench.sent.includes(`${id}:put`), { what: 'the result' });
    }
    assert.deepEqual(bench.failures, []);
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });
});

test('a PUT that would not fit into all of the quarantined memory either disturbs no peer', async () => {
  const bench = await Bench.open();
  const { put, commit } = await bench.granted();
  put.onCommit(commit);
  await waitFor(() => bench.sent.includes('1:put'), { what: 'the result' });
  bench.store.remove(0, KEY);
  // What stays free is less than a PUT takes; with the quarantined memory of the first one it fits once, not twice.
  bench.stored(ARENA_BYTES - LENGTH - 1024 * 1024);
  await bench.granted(2);
  const recycled = bench.rail.log.filter((name) => name === 'removePeer').length;
  assert.equal(recycled, 1);
  bench.put(3);
  await waitFor(() => bench.failures.length > 0, { what: 'the failure' });
  assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_CAPACITY');
  bench.running.get(2)?.stop({ kind: 'cancelled' });
  await turn();
  // A whole PUT is in quarantine now, and more than that is asked for.
  const before = bench.rail.log.length;
  bench.put(4, 60_000, 2 * LENGTH);
  await waitFor(() => bench.failures.length > 1, { what: 'the failure' });
  assert.equal(bench.rail.log.length, before);
  bench.store.remove(0, KEY);
  await bench.endSession();
  await bench.checkEmpty();
});

describe('a GET by RDMA', () => {
  test('is done when its write has completed, and keeps its version until then', async () => {
    const bench = await Bench.open();
    const value = bench.stored();
    bench.get(value);
    bench.store.remove(0, KEY);
    assert.equal(bench.used, 1024);
    bench.rail.complete(bench.rail.writes[0]);
    assert.deepEqual(bench.sent, ['1:get']);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('that is cancelled is Quiesced when its write has come back, not before', async () => {
    const bench = await Bench.open();
    const get = bench.get(bench.stored());
    get.stop({ kind: 'cancelled' });
    get.stop({ kind: 'cancelled' });
    assert.deepEqual(bench.rail.cancelled.length, 1);
    assert.deepEqual(bench.sent, []);
    bench.rail.complete(bench.rail.writes[0], 'CANCELLED');
    assert.deepEqual(bench.sent, ['1:quiesced']);
    assert.equal(bench.running.size, 0);
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('whose write to a frozen peer never comes back is Quiesced by recycling the peer', async () => {
    const bench = await Bench.open();
    const get = bench.get(bench.stored());
    get.stop({ kind: 'cancelled' });
    await waitFor(() => bench.sent.includes('1:quiesced'), { what: 'Quiesced' });
    assert.ok(bench.rail.log.includes('removePeer'));
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('past its deadline fails with a sink that is busy, and says when it is not', async () => {
    const bench = await Bench.open();
    const get = bench.get(bench.stored(), 1, 10);
    await waitFor(() => bench.failures.length > 0, { what: 'the deadline' });
    assert.deepEqual(bench.sinkBusy, [true]);
    assert.equal(bench.failures[0]?.stage, 'get.write.submitted');
    // The client may cancel what has failed: there is one Quiesced all the same.
    get.stop({ kind: 'cancelled' });
    bench.rail.complete(bench.rail.writes[0]);
    assert.deepEqual(bench.sent, ['1:failure', '1:quiesced']);
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('that is cut off is tried again, and fails when that happens too often', async () => {
    const bench = await Bench.open();
    const value = bench.stored();
    bench.get(value);
    for (let attempt = 1; attempt <= 4; attempt++) {
      await waitFor(() => bench.rail.writes.length === 1, { what: `attempt ${attempt}` });
      bench.rail.complete(bench.rail.writes[0], 'CANCELLED');
    }
    assert.equal(bench.failures[0]?.code, 'ERR_FABRICKV_DATA_PLANE');
    assert.deepEqual(bench.sinkBusy, [false]);
    assert.equal(bench.counters.transferRetries, 3);
    bench.get(value, 2);
    bench.rail.complete(bench.rail.writes[0], 'TRANSFER_FAILED');
    await waitFor(() => bench.rail.writes.length === 1, { what: 'the second attempt' });
    bench.rail.complete(bench.rail.writes[0]);
    assert.equal(bench.sent.at(-1), '2:get');
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('waits for a peer that is being recycled', async () => {
    const bench = await Bench.open();
    bench.rail.held = true;
    const recycled = bench.peer.recycle();
    await turn();
    bench.get(bench.stored());
    assert.equal(bench.rail.writes.length, 0);
    await bench.rail.next();
    await bench.rail.next();
    await recycled;
    await turn();
    bench.rail.complete(bench.rail.writes[0]);
    assert.deepEqual(bench.sent, ['1:get']);
    bench.rail.held = false;
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('whose session ends in the middle keeps its pin until its write has come back', async () => {
    const bench = await Bench.open();
    const get = bench.get(bench.stored());
    bench.store.remove(0, KEY);
    get.stop({ kind: 'session-ended' });
    assert.equal(bench.used, 1024);
    await bench.endSession();
    assert.deepEqual(bench.sent, [], 'nobody listens');
    await bench.checkEmpty();
  });

  test('of thousands that wait when the rail fails, each fails', async () => {
    const bench = await Bench.open(new OperationGate(1, 10_000));
    const value = bench.stored(DATA_BYTES_MAX + 1);
    bench.get(value, 1);
    for (let id = 2; id <= 10_001; id++) bench.get(value, id);
    bench.rail.failing.add('write');
    bench.rail.complete(bench.rail.writes[0], 'RAIL_CLOSED');
    assert.equal(bench.failures.length, 10_001);
    assert.ok(bench.failures.every(({ code }) => code === 'ERR_FABRICKV_DATA_PLANE'));
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });

  test('that waits for its turn and is stopped never starts', async () => {
    const bench = await Bench.open(new OperationGate(1, 1));
    const value = bench.stored();
    bench.get(value, 1);
    bench.get(value, 2).stop({ kind: 'cancelled' });
    assert.deepEqual(bench.sent, ['2:quiesced']);
    assert.throws(() => {
      bench.get(value, 3);
      bench.get(value, 4);
    }, /--max-waiting/);
    bench.rail.complete(bench.rail.writes[0]);
    assert.equal(bench.rail.writes.length, 1);
    bench.rail.complete(bench.rail.writes[0]);
    assert.deepEqual(bench.sent, ['2:quiesced', '1:get', '3:get']);
    bench.store.remove(0, KEY);
    await bench.endSession();
    await bench.checkEmpty();
  });
});
