/**
 * A value in pieces, in order, in constant memory: what a stream of it reads from. Each piece is one range; a few are asked for
 * ahead of the consumer.
 */

import { combineCrc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { OPERATION_TIMEOUT_MS_MAX } from '../protocol/limits.js';
import type { OperationTrace } from '../protocol/stages.js';
import { toClientError } from './fabric-errors.js';
import { RANGES_IN_FLIGHT_MAX } from './limits.js';
import type { ClientCore } from './operation.js';
import type { OperationDescription, PendingOperation } from './operations.js';
import type { CallSettings } from './options.js';
import { allocateBytes, crcOf, Entry, type Piece, pieceBytesOf } from './piece.js';
import { type RangeOwner, RangeReader, rangesByRdma } from './range-reader.js';
import type { Landed, Range, RangePlace, ValueFacts } from './range-request.js';
import type { Block, ReceivePool } from './receive-pool.js';
import type { Session } from './session.js';
import { checksumError, type ValuePath } from './value.js';

/** Told of the first answer; one of them, once. */
export interface PieceSourceEvents {
  onValue(facts: ValueFacts): void;
  onAbsent(): void;
  /** Before or after the value is known. Nothing more comes. */
  onFailed(error: FabricKvError): void;
}

/** Options of {@link PieceSource}. */
export interface PieceSourceOptions {
  readonly core: ClientCore;
  readonly key: Buffer;
  readonly call: CallSettings;
  readonly trace: OperationTrace;
  readonly requestId: string;
  readonly firstOperationId: number;
  readonly events: PieceSourceEvents;
}

/** Supplies the pieces of one value. */
export class PieceSource implements RangeOwner, PendingOperation {
  operationPlace = -1;
  readonly #options: PieceSourceOptions;
  readonly #reader: RangeReader;
  readonly #pieceBytes: number;
  /** From the first that the consumer has not taken. */
  readonly #entries: Entry[] = [];
  #facts: ValueFacts | undefined;
  #path: ValuePath = 'inline';
  /** Where the next new entry begins. */
  #nextOffset = 0;
  /** Taken by the consumer, and not released. */
  #held = 0;
  #takenBytes = 0;
  #crc = 0;
  #stopWaiting: (() => void) | undefined;
  #taker:
    | { readonly resolve: (piece: Piece | undefined) => void; readonly reject: (error: unknown) => void }
    | undefined;
  #error: FabricKvError | undefined;
  #copiesAll = false;
  /** Whether a piece had to come inline because the pool was full. */
  #wasRefused = false;
  #over = false;
  /** The consumer has everything. */
  #done = false;
  #onAbort: (() => void) | undefined;

  constructor(options: PieceSourceOptions) {
    this.#options = options;
    const { core, key, call, trace, firstOperationId } = options;
    this.#pieceBytes = pieceBytesOf(core.pool);
    this.#reader = new RangeReader({
      core,
      key,
      namespace: call.namespace,
      owner: this,
      trace,
      firstOperationId,
      inlineThreshold: call.inlineThreshold,
      check: true,
      // Those in flight share the way: each may take as long as all of them.
      deadlineMs: () => Math.min(Math.ceil(call.timeoutMs) * RANGES_IN_FLIGHT_MAX, OPERATION_TIMEOUT_MS_MAX),
      stallMs: call.timeoutMs,
    });
  }

  get path(): ValuePath {
    return this.#path;
  }

  /** The consumer will {@link Piece.keep} them all: those to come are copied out as soon as they are here. */
  copyAll(): void {
    this.#copiesAll = true;
  }

  /** Asks for the first piece, and for more as the consumer takes them. */
  start(): void {
    this.#reader.pump();
  }

  /** From now on it is its own operation: it is listed, ends with the client, and with the caller's signal. */
  detach(): void {
    const { core, call } = this.#options;
    const { signal } = call;
    core.operations.add(this);
    if (signal === undefined) return;
    this.#onAbort = () => this.fail(new FabricKvError('ERR_FABRICKV_CANCELLED', undefined, { cause: signal.reason }));
    if (signal.aborted) this.#onAbort();
    else signal.addEventListener('abort', this.#onAbort, { once: true });
  }

  /**
   * The next piece; undefined after the last. The last one comes only when the CRC of the whole is right. One call at a time.
   *
   * @throws what ended the source, ERR_FABRICKV_CHECKSUM
   */
  take(): Promise<Piece | undefined> {
    return new Promise((resolve, reject) => {
      this.#taker = { resolve, reject };
      this.#serve();
      if (this.#taker !== undefined) this.#reader.waitBegins();
    });
  }

  /** The consumer wants no more. Idempotent. */
  stop(): void {
    if (this.#over) return;
    const { core, call } = this.#options;
    this.#over = true;
    this.#stopWaiting?.();
    this.#stopWaiting = undefined;
    this.#reader.stop();
    core.operations.delete(this);
    if (this.#onAbort !== undefined) call.signal?.removeEventListener('abort', this.#onAbort);
    // What is being checked is freed when that is done.
    for (const entry of this.#entries.splice(0)) if (entry.state !== 'checking') this.#freeEntry(entry);
    this.#serve();
  }

  describe(): OperationDescription {
    const { core, key, trace, requestId } = this.#options;
    return {
      op: 'get',
      key: core.trace.formatKey(key),
      requestId,
      stage: trace.stage,
      stageAgeMs: performance.now() - trace.stageSinceMs,
    };
  }

  fail(error: FabricKvError): void {
    this.onFailed(error);
  }

  get wantsMore(): boolean {
    return this.#entries.some(({ state }) => state === 'missing') || this.#mayBegin;
  }

  get isWaiting(): boolean {
    return this.#taker !== undefined && this.#entries[0]?.state !== 'checking';
  }

  next(session: Session): Range | undefined {
    const entry = this.#entries.find(({ state }) => state === 'missing') ?? this.#newEntry();
    if (entry === undefined) return undefined;
    const { core, call } = this.#options;
    const wantsRdma = core.pool !== undefined && rangesByRdma(session, call, this.#facts?.length);
    if (wantsRdma && !entry.refused && entry.block === undefined) this.#findBlock(entry);
    if (wantsRdma && !entry.refused && entry.block === undefined) return undefined;
    entry.isInline = !wantsRdma || entry.block === undefined;
    entry.state = 'asked';
    return { offset: entry.offset, length: entry.length, place: this.#placeOf(entry, session) };
  }

  onValue(facts: ValueFacts): void {
    const { trace, events } = this.#options;
    this.#facts = facts;
    trace.bytes = facts.length;
    events.onValue(facts);
  }

  onAbsent(): void {
    this.stop();
    this.#options.events.onAbsent();
  }

  onLanded({ offset }: Range, { length, path, crc }: Landed): void {
    const entry = this.#entryAt(offset);
    if (entry === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a range landed that nobody asked for');
    if (path === 'rdma') this.#path = 'rdma';
    entry.length = length;
    entry.state = 'checking';
    if (this.#isAllHere) this.#reader.stop();
    void this.#receive(entry, crc);
  }

  onMissing({ offset }: Range): void {
    const entry = this.#entryAt(offset);
    if (entry !== undefined) entry.state = 'missing';
  }

  onFailed(error: FabricKvError): void {
    if (this.#over) return;
    const { core, events, trace, requestId } = this.#options;
    core.counters.operationsFailed += this.#facts === undefined ? 0 : 1;
    const complete = error.with({
      stage: trace.stage,
      requestId,
      peer: core.settings.serverAddr,
      details: this.#progressDetails(),
    });
    this.#error = complete;
    this.stop();
    if (this.#facts !== undefined) trace.fail('get.failed', complete);
    events.onFailed(complete);
  }

  #progressDetails(): Readonly<Record<string, string>> {
    const facts = this.#facts;
    return facts === undefined ? {} : { bytesDone: String(this.#takenBytes), bytesTotal: String(facts.length) };
  }

  /** Whether a piece further on may be begun: a few are, those with the consumer included. */
  get #mayBegin(): boolean {
    const end = this.#facts?.length ?? 1;
    return this.#nextOffset < end && this.#entries.length + this.#held < RANGES_IN_FLIGHT_MAX;
  }

  get #isAllHere(): boolean {
    const isHere = ({ state }: Entry): boolean => state === 'checking' || state === 'ready';
    return this.#facts !== undefined && this.#nextOffset >= this.#facts.length && this.#entries.every(isHere);
  }

  #entryAt(offset: number): Entry | undefined {
    return this.#entries.find((entry) => entry.offset === offset);
  }

  #newEntry(): Entry | undefined {
    if (!this.#mayBegin) return undefined;
    const left = (this.#facts?.length ?? Number.POSITIVE_INFINITY) - this.#nextOffset;
    const entry = new Entry(this.#nextOffset, Math.min(this.#pieceBytes, left));
    this.#nextOffset += entry.length;
    this.#entries.push(entry);
    return entry;
  }

  /**
   * A block for a piece, if there is one now. The piece that the consumer waits for waits for its turn; one ahead of that
   * takes what is to spare. Only blocks in transit are waited for, which end with the network: never one that a consumer
   * holds.
   */
  #findBlock(entry: Entry): void {
    const { pool } = this.#options.core;
    if (pool === undefined) return;
    const isNeeded = entry === this.#entries[0] && (this.#taker !== undefined || this.#held === 0);
    if (!isNeeded) {
      entry.block = pool.tryGuess(entry.length);
      return;
    }
    entry.state = 'waiting';
    let answered = false;
    const stop = pool.allocate(entry.length, (block) => {
      answered = true;
      this.#stopWaiting = undefined;
      entry.block = block;
      // Callers hold it all, and nobody waits for those: then the piece comes inline.
      entry.refused = block === undefined;
      this.#wasRefused ||= entry.refused;
      entry.state = 'missing';
      this.#reader.pump();
    });
    if (!answered) this.#stopWaiting = stop;
  }

  #placeOf(entry: Entry, { receiveMemory }: Session): RangePlace {
    const { pool, counters } = this.#options.core;
    const { block, isInline } = entry;
    if (isInline || receiveMemory === undefined || pool === undefined || block === undefined) {
      return {
        sink: undefined,
        store: (offset, bytes, rangeBytes) => {
          if (entry.plain?.length !== rangeBytes) entry.plain = allocateBytes(rangeBytes);
          bytes.copy(entry.plain, offset);
        },
        quarantine: () => () => undefined,
      };
    }
    return {
      sink: receiveMemory.place(block.offset),
      store: (offset, bytes) => pool.mapping.writeSync(block.offset + offset, bytes),
      quarantine: () => {
        entry.block = undefined;
        pool.quarantine(block);
        counters.quarantinedBytes += block.length;
        return () => {
          counters.quarantinedBytes -= block.length;
          pool.free(block);
        };
      },
    };
  }

  /** Takes a piece out of the way of others: from here on it holds up nobody who waits for memory. */
  async #receive(entry: Entry, crc: number | undefined): Promise<void> {
    try {
      const { core } = this.#options;
      const { block, isInline } = entry;
      if (block !== undefined && core.pool !== undefined) {
        entry.block = undefined;
        if (isInline || entry.length === 0) core.pool.free(block);
        else entry.crc = await this.#takeOut(entry, block, core.pool);
      }
      if (crc !== undefined) entry.crc = crc;
    } catch (error) {
      this.onFailed(toClientError(error));
    }
    if (this.#over) {
      this.#freeEntry(entry);
      return;
    }
    entry.state = 'ready';
    this.#serve();
  }

  /** Lends a block to the consumer, or copies it out while too much of the pool is lent. Resolves with the CRC. */
  async #takeOut(entry: Entry, block: Block, pool: ReceivePool): Promise<number> {
    const { counters } = this.#options.core;
    const { length } = entry;
    const { offset } = block;
    pool.shrink(block, length);
    if (!this.#copiesAll && pool.canLend(block)) {
      entry.lent = pool.lend(block);
      entry.lentOffset = offset;
      return crcOf(pool.mapping, offset, entry.lent.bytes);
    }
    try {
      entry.plain = allocateBytes(length);
      const crc = await pool.mapping.copyOut({ offset, target: entry.plain });
      counters.bytesCopied += length;
      if (!this.#copiesAll) counters.resultsCopied += 1;
      return crc;
    } finally {
      pool.free(block);
    }
  }

  #freeEntry(entry: Entry): void {
    const { block, lent } = entry;
    entry.block = undefined;
    entry.lent = undefined;
    entry.plain = undefined;
    lent?.release();
    if (block !== undefined) this.#options.core.pool?.free(block);
  }

  /** Answers the taker, if there is one and there is something to say. */
  #serve(): void {
    const facts = this.#facts;
    const taker = this.#taker;
    if (taker === undefined) return;
    if (this.#error !== undefined) {
      this.#taker = undefined;
      taker.reject(this.#error);
      return;
    }
    const [head] = this.#entries;
    if (facts?.length === 0 && head?.state === 'ready') this.#complete(facts);
    if (this.#done) {
      this.#taker = undefined;
      taker.resolve(undefined);
      return;
    }
    if (this.#over) {
      // Its consumer must not take what has come for the whole.
      this.#taker = undefined;
      taker.reject(new FabricKvError('ERR_FABRICKV_CANCELLED', 'the stream was destroyed'));
      return;
    }
    if (facts === undefined || head?.state !== 'ready') return;
    this.#entries.shift();
    this.#takenBytes += head.length;
    this.#crc = combineCrc32c(this.#crc, head.crc, head.length);
    if (this.#takenBytes === facts.length) {
      const wrong = checksumError({ ...facts, path: this.#path }, this.#crc);
      if (wrong !== undefined) {
        this.#freeEntry(head);
        this.onFailed(wrong);
        return;
      }
    }
    this.#taker = undefined;
    taker.resolve(this.#pieceOf(head));
    const { onProgress } = this.#options.call;
    const done = this.#takenBytes;
    if (onProgress !== undefined) queueMicrotask(() => onProgress(done, facts.length));
    if (done === facts.length) this.#complete(facts);
  }

  #pieceOf(entry: Entry): Piece {
    const { pool, counters } = this.#options.core;
    this.#held += 1;
    let released = false;
    const release = (): void => {
      if (released) return;
      released = true;
      this.#held -= 1;
      this.#freeEntry(entry);
      if (!this.#over) this.#reader.pump();
    };
    const keep = async (): Promise<Buffer> => {
      try {
        if (entry.plain !== undefined || pool === undefined) return entry.bytes;
        const target = allocateBytes(entry.length);
        await pool.mapping.copyOut({ offset: entry.lentOffset, target });
        counters.bytesCopied += entry.length;
        return target;
      } finally {
        release();
      }
    };
    return { bytes: entry.bytes, release, keep };
  }

  /** The consumer has it all. */
  #complete({ length }: ValueFacts): void {
    const { core, key, call, trace } = this.#options;
    if (this.#path === 'rdma') core.counters.getsRdma += 1;
    else core.counters.getsInline += 1;
    if (this.#path === 'rdma' || this.#wasRefused) core.sizes.remember(call.namespace, key, length);
    else core.sizes.sawInline(call.namespace, key, true);
    trace.finish('get.done');
    this.#done = true;
    this.stop();
  }
}
