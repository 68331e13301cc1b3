/**
 * `client.get`: a value into memory of the client's, which becomes the caller's.
 */

import { crc32c } from '../fabric/index.js';
import { OWN_BYTES_MAX } from '../protocol/codec.js';
import { FabricKvError } from '../protocol/errors.js';
import { toClientError } from './fabric-errors.js';
import { checkBufferLength, GetOperationBase, type SinkTaker } from './get-operation.js';
import { RANGED_BYTES_MIN, SYNC_BYTES_MAX } from './limits.js';
import type { ClientCore, ProgressDetails } from './operation.js';
import type { CallSettings } from './options.js';
import { allocateBytes } from './piece.js';
import { RangedRead } from './ranged-read.js';
import type { Session } from './session.js';
import { PoolSink } from './sinks.js';
import { type KvValue, ReceivedValue, type ValueInfo } from './value.js';
import { type LendableMemory, mapOwnMemory, PoolMemory } from './value-memory.js';

/** Reads one value. */
export class GetOperation extends GetOperationBase<KvValue, PoolSink> {
  #assembled = Buffer.alloc(0);
  /** Of a value that is read in ranges. */
  #ranged: { readonly read: RangedRead; readonly memory: LendableMemory } | undefined;
  #stopWaiting: (() => void) | undefined;

  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'get', key, call);
  }

  protected override attempt(session: Session): void {
    const known = this.key && this.core.sizes.lookup(this.call.namespace, this.key);
    if (known !== undefined && known > RANGED_BYTES_MIN && session.receiveMemory !== undefined) this.#readRanges(known);
    else this.ask(session, known);
  }

  protected override asksWithoutSink(inlineMax: number): boolean {
    return inlineMax === Number.POSITIVE_INFINITY || this.core.sizes.guess() <= inlineMax;
  }

  protected override acquireSink(
    session: Session,
    known: number | undefined,
    inlineMax: number,
    { take }: SinkTaker<PoolSink>,
  ): () => void {
    if (inlineMax === Number.POSITIVE_INFINITY) {
      take(undefined);
      return nothing;
    }
    const { dataPlane, receiveMemory } = session;
    const { pool, counters, sizes } = this.core;
    if (dataPlane === undefined || receiveMemory === undefined || pool === undefined) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink without a data plane');
    }
    if (known === undefined) {
      const guess = sizes.guess();
      const block = guess > inlineMax ? pool.tryGuess(guess) : undefined;
      take(block && new PoolSink(pool, block, receiveMemory, counters));
      return nothing;
    }
    if (known <= inlineMax || known > dataPlane.regionBytesMax) {
      take(undefined);
      return nothing;
    }
    return pool.allocate(known, (block) => {
      if (block !== undefined) take(new PoolSink(pool, block, receiveMemory, counters));
      else this.guard(() => this.#readRanges(known));
    });
  }

  protected override sinkTooSmall(session: Session, length: number): void {
    if (length > RANGED_BYTES_MIN) this.#readRanges(length);
    else this.ask(session, length, length > (session.dataPlane?.regionBytesMax ?? 0));
  }

  protected override progressDetails(): ProgressDetails {
    const progress = this.#ranged?.read.progress;
    if (progress === undefined) return super.progressDetails();
    return { bytesDone: String(progress.bytesDone), bytesTotal: String(progress.bytesTotal) };
  }

  protected override release(): void {
    super.release();
    this.#stopWaiting?.();
    this.#endRanges()?.free();
  }

  protected override receivedRdma(info: ValueInfo, sink: PoolSink): void {
    if (!sink.canLend(info.length)) {
      void this.guardAsync(() => this.#copyOut(info, sink, this.call.verify));
    } else if (this.call.verify && info.length > SYNC_BYTES_MAX) {
      void this.guardAsync(() => this.#verifyThenLend(info, sink));
    } else {
      const value = this.#lend(info, sink);
      if (this.call.verify) this.#check(value);
      this.#done(value);
    }
  }

  protected override receivedWhole(info: ValueInfo, bytes: Buffer): void {
    const isOwn = bytes.length <= OWN_BYTES_MAX;
    // Otherwise a view of the frame that it came in: a copy, unless it is most of the frame, so that it does not keep a
    // large one in memory.
    const isMost = bytes.length * 2 > bytes.buffer.byteLength;
    if (isOwn || !isMost) this.core.counters.bytesCopied += bytes.length;
    this.succeed(new ReceivedValue(isOwn || isMost ? bytes : Buffer.from(bytes), info));
  }

  protected override beginAssembly(totalBytes: number): void {
    checkBufferLength(totalBytes);
    this.#assembled = allocateBytes(totalBytes);
  }

  protected override storePiece(offset: number, bytes: Buffer): void {
    bytes.copy(this.#assembled, offset);
  }

  protected override receivedAssembled(info: ValueInfo): void {
    this.#done(new ReceivedValue(this.#assembled, info));
  }

  /** Reads a value that is large, or that the pool has no room for, in ranges, over as many sessions as it takes, into memory for all of it. */
  #readRanges(length: number): void {
    checkBufferLength(length);
    this.leaveSession();
    const { pool, ownMemoryGate: gate } = this.core;
    const onMemory = (memory: LendableMemory): void => this.#readInto(memory);
    const onError = (error: unknown): void => this.fail(toClientError(error));
    let stopOwn = nothing;
    const mapOwn = (): void => {
      stopOwn = mapOwnMemory({ length, gate, onMemory, onError });
    };
    let stopPool = nothing;
    this.#stopWaiting = () => {
      stopPool();
      stopOwn();
    };
    if (pool === undefined) {
      mapOwn();
      return;
    }
    stopPool = pool.allocate(length, (block) => {
      if (block !== undefined) onMemory(new PoolMemory(pool, block));
      else this.guard(mapOwn);
    });
  }

  #readInto(memory: LendableMemory): void {
    this.#stopWaiting = undefined;
    if (this.settled) {
      memory.free();
      return;
    }
    const { core, key, call, trace } = this;
    const read = new RangedRead({
      core,
      key: key ?? Buffer.alloc(0),
      call,
      memory,
      trace,
      firstOperationId: this.settledOperationId(),
      deadlineMs: () => this.deadlineMs,
      events: {
        onDone: (info) => void this.guardAsync(() => this.#receivedRanges(info)),
        onAbsent: () => {
          if (key !== undefined) core.sizes.forget(call.namespace, key);
          this.succeed(undefined);
        },
        onTooLong: (longer) => {
          if (key !== undefined) core.sizes.remember(call.namespace, key, longer);
          this.#readAnew();
        },
        onFailed: (error) => {
          // No version was promised to anybody yet: then it is the new one.
          if (error.code === 'ERR_FABRICKV_VERSION_CHANGED') this.#readAnew();
          else this.fail(error);
        },
        onProgress: (done, total) => {
          if (done < total) this.reportProgress(done, total);
        },
      },
    });
    this.#ranged = { read, memory };
    read.start();
  }

  #readAnew(): void {
    this.#endRanges()?.free();
    this.core.counters.retries += 1;
    this.core.connection.whenOpen(this);
  }

  /** Stops what is under way; the memory is the caller's to free. */
  #endRanges(): LendableMemory | undefined {
    const ranged = this.#ranged;
    this.#ranged = undefined;
    ranged?.read.stop();
    return ranged?.memory;
  }

  async #receivedRanges(info: ValueInfo): Promise<void> {
    const memory = this.#endRanges();
    if (memory === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a value without memory');
    const { length } = info;
    this.countReceived(info);
    if (length > SYNC_BYTES_MAX && memory.canLend(length)) {
      const lent = memory.lend(length);
      this.#done(new ReceivedValue(lent.bytes, info, lent.release));
      return;
    }
    await this.#copyOut(info, memory, false);
  }

  /** Copies a value out of the memory that it was received in, which is given back. */
  async #copyOut(info: ValueInfo, from: PoolSink | LendableMemory, verify: boolean): Promise<void> {
    const { length } = info;
    const { mapping, mappingOffset: offset } = from;
    let bytes: Buffer;
    try {
      if (length <= SYNC_BYTES_MAX) {
        bytes = length === 0 ? Buffer.alloc(0) : mapping.readSync(offset, length);
        if (verify) this.checkCrc(info, crc32c(bytes));
      } else {
        bytes = allocateBytes(length);
        const crc = await mapping.copyOut({ offset, target: bytes });
        if (verify) this.checkCrc(info, crc);
      }
    } finally {
      from.free();
    }
    this.core.counters.bytesCopied += length;
    this.core.counters.resultsCopied += 1;
    this.#done(new ReceivedValue(bytes, info));
  }

  async #verifyThenLend(info: ValueInfo, sink: PoolSink): Promise<void> {
    try {
      this.checkCrc(info, await sink.mapping.crc32c({ offset: sink.mappingOffset, length: info.length }));
    } catch (error) {
      sink.free();
      throw error;
    }
    if (this.settled) {
      sink.free();
      return;
    }
    this.#done(this.#lend(info, sink));
  }

  #lend(info: ValueInfo, sink: PoolSink): KvValue {
    try {
      const lent = sink.lend(info.length);
      return new ReceivedValue(lent.bytes, info, lent.release);
    } catch (error) {
      sink.free();
      throw error;
    }
  }

  #check(value: KvValue): void {
    try {
      this.checkCrc(value, crc32c(value.bytes));
    } catch (error) {
      value.release();
      throw error;
    }
  }

  #done(value: KvValue): void {
    this.reportProgress(value.length, value.length);
    this.succeed(value);
  }
}

function nothing(): void {
  // There is nothing to end.
}
