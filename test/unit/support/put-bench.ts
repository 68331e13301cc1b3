import assert from 'node:assert/strict';
import { pino } from 'pino';
import { crc32c, type Mapping, mapMemory, type Rail } from '../../../src/fabric/index.js';
import { decodeClientFrame, encodeClientFrame } from '../../../src/protocol/codec.js';
import { FabricKvError } from '../../../src/protocol/errors.js';
import type { ClientMessage } from '../../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import type { PutGrant } from '../../../src/protocol/generated/fabrickv/v1/PutGrant.js';
import type { Result } from '../../../src/protocol/generated/fabrickv/v1/Result.js';
import type { ServerMessage } from '../../../src/protocol/generated/fabrickv/v1/ServerMessage.js';
import { EXTENT_BYTES_MAX } from '../../../src/protocol/limits.js';
import { type OperationKind, OperationTrace, type Stage } from '../../../src/protocol/stages.js';
import { ServerCounters } from '../../../src/server/counters.js';
import type { LeaseTable } from '../../../src/server/leases.js';
import { MutationHistory } from '../../../src/server/mutation-history.js';
import type { ActiveOperation, OperationTable } from '../../../src/server/operation.js';
import { OperationGate } from '../../../src/server/operation-gate.js';
import type { ServerContext } from '../../../src/server/server-context.js';
import { ServerRail } from '../../../src/server/server-rail.js';
import { handleOperation } from '../../../src/server/session-operations.js';
import { SessionWindows } from '../../../src/server/session-windows.js';
import { Arena, type Extent } from '../../../src/server/store/arena.js';
import { alignedLength, type ExtentAllocator, type Range } from '../../../src/server/store/extent-allocator.js';
import { Store, type StoredValue } from '../../../src/server/store/store.js';
import { waitFor } from '../../support/wait-for.js';
import { MemoryRail, turn } from './memory-rail.js';

export const MIB = 1024 * 1024;
export const KEY = Buffer.from('key');
const logger = pino({ level: 'silent' });

/** Options of {@link PutBench.open}. */
export interface BenchOptions {
  readonly arenaBytes?: number;
  readonly rails?: number;
  readonly gate?: OperationGate;
}

/** A server's memory, store and rails; the order of the rails' commands is the test's, the arena and the CRC are real. */
export class PutBench implements AsyncDisposable {
  readonly counters = new ServerCounters();
  readonly history = new MutationHistory();
  readonly context: ServerContext;
  readonly store: Store;
  readonly sessions: BenchSession[] = [];
  /** Set to make the check of a long value's CRC wait. */
  crcGate: Promise<void> = Promise.resolve();
  /** How much was given to other threads to check. */
  crcBytes = 0;
  private windowIds = 0;

  private constructor(
    readonly mapping: Mapping,
    readonly memoryRails: readonly MemoryRail[],
    readonly rails: readonly ServerRail[],
    arenaBytes: number,
    private readonly gate: OperationGate | undefined,
  ) {
    const memory = { sizeBytes: arenaBytes, segmentBytes: arenaBytes, segments: [mapping.buffer(0, arenaBytes)] };
    this.store = new Store(new Arena(memory, EXTENT_BYTES_MAX));
    const checked: Pick<Mapping, 'crc32c'> = {
      crc32c: async (options) => {
        this.crcBytes += options.length;
        await this.crcGate;
        return mapping.crc32c(options);
      },
    };
    const parts: Partial<ServerContext> = {
      store: this.store,
      history: this.history,
      counters: this.counters,
      settings: { maxValueBytes: arenaBytes } as ServerContext['settings'],
      stopping: undefined,
      logger,
    };
    this.context = {
      ...parts,
      dataPlane: {
        mapping: checked,
        nextWindowId: () => ++this.windowIds,
        reclaim: async (yieldWindows: boolean) => {
          if (yieldWindows) await Promise.all(this.sessions.map(({ windows }) => windows.yieldMemory()));
          await Promise.all(this.rails.map((rail) => rail.hurry()));
          await turn();
        },
      },
    } as unknown as ServerContext;
  }

  static async open({ arenaBytes = 80 * MIB, rails = 1, gate }: BenchOptions = {}): Promise<PutBench> {
    const mapping = await mapMemory({ sizeBytes: arenaBytes, prefault: false });
    const memoryRails = Array.from({ length: rails }, () => new MemoryRail());
    const serverRails = memoryRails.map((rail, i) => new ServerRail(rail.rail as Rail, i, rails, logger));
    return new PutBench(mapping, memoryRails, serverRails, arenaBytes, gate);
  }

  /** The first rail. */
  get rail(): MemoryRail {
    const [rail] = this.memoryRails;
    assert.ok(rail !== undefined);
    return rail;
  }

  set held(held: boolean) {
    for (const rail of this.memoryRails) rail.held = held;
  }

  session(clientId = 5n): BenchSession {
    const session = new BenchSession(this, clientId, this.gate ?? new OperationGate(64, 64));
    this.sessions.push(session);
    return session;
  }

  /** The value under a key. */
  stored(key = KEY): StoredValue | undefined {
    return this.store.lookup(0, key);
  }

  /** Whether the bytes that are stored are the ones that the stored CRC is of. */
  isWhole(key = KEY): boolean {
    const value = this.stored(key);
    if (value === undefined) return false;
    let crc = 0;
    for (const extent of value.extents) crc = crc32c(this.store.arena.view(extent), crc);
    return value.crc32c === undefined || value.crc32c === crc;
  }

  /** Answers commands of the rails until none waits. */
  async drain(): Promise<void> {
    for (let i = 0; i < 1000 && this.memoryRails.some(({ waiting }) => waiting.length > 0); i++) {
      for (const rail of this.memoryRails) await rail.next();
    }
  }

  /**
   * Walks over everything that holds memory, and compares it with what the arena says (I9); and over what a client could
   * write to, or could be writing to still, and looks that nothing of that is free or somebody else's (I2, I3).
   */
  walk(): void {
    const { arena } = this.store;
    const held: { extent: Range; by: unknown }[] = [];
    for (const value of this.values()) for (const extent of value.extents) held.push({ extent, by: extent.barrier });
    for (const session of this.sessions) {
      for (const operation of session.running.values()) {
        const { extents } = operation as unknown as { extents: readonly Extent[] };
        for (const extent of extents) held.push({ extent, by: extent.barrier });
      }
    }
    const windows = this.sessions.flatMap((session) => session.allWindows());
    const used = held.reduce((sum, { extent }) => sum + alignedLength(extent.length), 0);
    const reserved = windows.reduce((sum, window) => sum + window.unclaimedBytes, 0);
    const free = freeRanges(arena);
    const { usedBytes, reservedBytes, freeBytes, quarantinedBytes, totalBytes } = arena.usage;
    const freeSum = free.reduce((sum, { length }) => sum + length, 0);
    assert.deepEqual(
      { usedBytes, reservedBytes, freeBytes },
      { usedBytes: used, reservedBytes: reserved, freeBytes: freeSum },
    );
    assert.equal(usedBytes + reservedBytes + freeBytes + quarantinedBytes, totalBytes);
    const by = arena.quarantinedBy();
    assert.equal(by.open + by.proving + by.unprovable, quarantinedBytes);
    const inOrder = [...held.map(({ extent }) => extent), ...free].sort((a, b) => a.offset - b.offset);
    for (const [i, range] of inOrder.entries()) {
      const next = inOrder[i + 1];
      if (next !== undefined)
        assert.ok(range.offset + alignedLength(range.length) <= next.offset, 'held or free twice');
    }
    for (const rail of this.memoryRails) {
      for (const writable of [...rail.regions.values(), ...rail.unproven]) {
        for (const range of free) assert.ok(!overlaps(range, writable), 'memory that a client can write to is free');
        for (const { extent, by: barrier } of held) {
          if (overlaps(extent, writable))
            assert.ok(barrier !== undefined, 'a client can write to what it was not granted');
        }
      }
    }
  }

  /** Nothing is held but what the store has. */
  async checkEmpty(): Promise<void> {
    const proven = async (): Promise<boolean> => {
      await this.drain();
      return this.store.arena.usage.quarantinedBytes === 0;
    };
    await waitFor(proven, { what: 'the proofs', intervalMs: 5 });
    this.walk();
    const { usedBytes, quarantinedBytes, reservedBytes } = this.store.arena.usage;
    const regions = this.memoryRails.reduce((sum, rail) => sum + rail.regions.size, 0);
    assert.deepEqual(
      { usedBytes, quarantinedBytes, reservedBytes, regions, windowsOpen: this.counters.windowsOpen },
      { usedBytes: 0, quarantinedBytes: 0, reservedBytes: 0, regions: 0, windowsOpen: 0 },
    );
    for (const { gate } of this.sessions) assert.deepEqual([gate.active, gate.waiting], [0, 0]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.held = false;
    await this.drain();
    await Promise.all(this.sessions.map((session) => session.end()));
    this.mapping.close();
  }

  values(): StoredValue[] {
    const { namespaces } = this.store as unknown as { namespaces: Map<number, Map<string, StoredValue>> };
    return [...namespaces.values()].flatMap((index) => [...index.values()]);
  }
}

interface WindowView {
  readonly id: number;
  readonly range: Range;
  readonly unclaimedBytes: number;
}

/** One session's part of it, and the client on its other end. */
export class BenchSession implements OperationTable {
  readonly sent: ServerMessage[] = [];
  readonly failures: FabricKvError[] = [];
  readonly running = new Map<number, ActiveOperation>();
  readonly windows: SessionWindows;
  readonly leases = undefined as unknown as LeaseTable;
  readonly peer = undefined;
  readonly context: ServerContext;
  ended = false;
  private ending: Promise<void> | undefined;

  constructor(
    private readonly bench: PutBench,
    readonly clientId: bigint,
    readonly gate: OperationGate,
  ) {
    this.context = bench.context;
    this.windows = new SessionWindows(this, bench.rails);
  }

  region(): undefined {
    return undefined;
  }

  operation(operationId: number): ActiveOperation | undefined {
    return this.running.get(operationId);
  }

  started(operationId: number, operation: ActiveOperation): void {
    this.running.set(operationId, operation);
  }

  finished(operationId: number): void {
    this.running.delete(operationId);
  }

  timeoutMs(deadlineMs: number): number {
    return deadlineMs === 0 ? 60_000 : deadlineMs;
  }

  trace(op: OperationKind, operationId: number, key: Uint8Array | undefined, first: Stage): OperationTrace {
    const context = {
      side: 'server',
      requestIdPrefix: 'client',
      logger,
      formatKey: String,
      peer: '',
      provider: 'tcp',
    } as const;
    return new OperationTrace(context, op, operationId, key, first);
  }

  send(operationId: number, message: Omit<ServerMessage, 'operationId'>): void {
    if (!this.ended) this.sent.push({ operationId, ...message });
  }

  sendData(): void {
    throw new Error('no Data here');
  }

  fail(operationId: number, error: FabricKvError): void {
    assert.notEqual(error.code, 'ERR_FABRICKV_INTERNAL', error.message);
    this.failures.push(error);
    this.send(operationId, { result: { failure: { code: error.code } } });
  }

  /** The client says something. */
  say(operationId: number, body: Omit<ClientMessage, 'operationId'>): void {
    const messages = decodeClientFrame(encodeClientFrame([{ operationId, ...body }]));
    if (messages instanceof FabricKvError) throw messages;
    for (const message of messages) handleOperation(this, operationId, message);
  }

  /** What was sent, in short: `1:grant`, `0:windowOffer`. */
  get said(): string[] {
    return this.sent.map(
      ({ operationId, ...body }) => `${String(operationId)}:${Object.keys(body.result ?? body)[0] ?? ''}`,
    );
  }

  results(operationId: number): Result[] {
    return this.sent.flatMap((message) =>
      message.operationId === operationId && message.result ? [message.result] : [],
    );
  }

  /** The last code of a failure. */
  get lastFailure(): string | undefined {
    return this.failures.at(-1)?.code;
  }

  async result(operationId: number): Promise<Result> {
    const result = await waitFor(() => this.results(operationId).find(({ grant }) => !grant), {
      what: `the result of ${operationId}`,
      intervalMs: 2,
    });
    return result;
  }

  /** Opens a PUT by RDMA, and waits for its grant. */
  async open(operationId: number, length: number, key = KEY): Promise<PutGrant> {
    this.say(operationId, { putOpen: { key, length, path: 'RDMA' } });
    return this.grant(operationId);
  }

  async grant(operationId: number, index = 0): Promise<PutGrant> {
    return waitFor(() => this.results(operationId).flatMap(({ grant }) => (grant ? [grant] : []))[index], {
      what: `the grant of ${operationId}`,
      intervalMs: 2,
    });
  }

  /** Writes into a grant as an honest client does. */
  fill({ extents = [] }: PutGrant, bytes: Buffer): void {
    let at = 0;
    for (const { windowId, windowOffset, length } of extents) {
      this.write(Number(windowId), Number(windowOffset), bytes.subarray(at, at + Number(length)));
      at += Number(length);
    }
  }

  /** Writes to a window, as far as the rail would let it. */
  write(windowId: number, offset: number, bytes: Buffer): boolean {
    const window = this.ranges.get(windowId);
    if (window === undefined) return false;
    const range = { offset: window.offset + offset, length: bytes.length };
    const open = [...this.bench.rail.regions.values()].some((region) => contains(region, range));
    if (open) this.bench.mapping.writeSync(range.offset, bytes);
    return open;
  }

  /** The last session window that was offered and not taken back. */
  get sessionWindow(): { readonly id: number; readonly length: number } | undefined {
    const revoked = new Set(this.sent.map(({ windowRevoke }) => windowRevoke?.windowId));
    for (const { windowOffer } of [...this.sent].reverse()) {
      if (windowOffer?.sessionWindow === true && !revoked.has(windowOffer.windowId)) {
        return { id: Number(windowOffer.windowId), length: Number(windowOffer.length) };
      }
    }
    return undefined;
  }

  /** A first PUT, so that a session window is offered; its value is deleted. */
  async warm(operationId = 1): Promise<{ readonly id: number; readonly length: number }> {
    await this.put(operationId, Buffer.alloc(100_000, 1), Buffer.from('warm'));
    const window = await waitFor(() => this.sessionWindow, { what: 'a session window', intervalMs: 2 });
    this.bench.store.remove(0, Buffer.from('warm'));
    return window;
  }

  /** A whole PUT by a grant. */
  async put(operationId: number, bytes: Buffer, key = KEY): Promise<Result> {
    this.fill(await this.open(operationId, bytes.length, key), bytes);
    this.say(operationId, { putCommit: { crc32c: crc32c(bytes) } });
    return this.result(operationId);
  }

  /** Everything of {@link SessionWindows} that is not closed. */
  allWindows(): WindowView[] {
    const { windows, closing } = this.windows as unknown as {
      windows: Map<number, InnerWindow>;
      closing: Map<InnerWindow, unknown>;
    };
    return [...windows.values(), ...closing.keys()].map(({ id, range, claimedEnd, gaps, state }) => ({
      id,
      range,
      // What was not claimed goes back with the closing.
      unclaimedBytes: ['closing', 'sealed', 'proven'].includes(state)
        ? 0
        : alignedLength(range.length) - claimedEnd + gaps.reduce((sum, gap) => sum + gap.length, 0),
    }));
  }

  /** The session ends. Resolves when its windows are closed and its operations over. */
  end(): Promise<void> {
    this.ending ??= this.endNow();
    return this.ending;
  }

  private async endNow(): Promise<void> {
    this.rememberRanges();
    this.ended = true;
    for (const operation of [...this.running.values()]) operation.stop({ kind: 'session-ended' });
    await this.windows.end();
    await waitFor(() => this.running.size === 0, { what: 'the end of the operations', intervalMs: 2 });
  }

  /** Where each window lay, also when it is gone. */
  private readonly known = new Map<number, Range>();

  private get ranges(): ReadonlyMap<number, Range> {
    this.rememberRanges();
    return this.known;
  }

  private rememberRanges(): void {
    for (const { id, range } of this.allWindows()) this.known.set(id, range);
  }
}

interface InnerWindow {
  readonly id: number;
  readonly range: Range;
  readonly claimedEnd: number;
  readonly gaps: readonly Range[];
  readonly state: string;
}

function freeRanges(arena: Arena): Range[] {
  const { allocator } = arena as unknown as { allocator: ExtentAllocator };
  return allocator.ranges;
}

function overlaps(a: Range, b: Range): boolean {
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

function contains(outer: Range, inner: Range): boolean {
  return inner.offset >= outer.offset && inner.offset + inner.length <= outer.offset + outer.length;
}
