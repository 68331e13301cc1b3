/**
 * `client.get`: a value into memory of the client's, which becomes the caller's.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { DataPlane } from './data-plane.js';
import { checkBufferLength, GetOperationBase, type SinkTaker } from './get-operation.js';
import { SYNC_BYTES_MAX } from './limits.js';
import type { ClientCore } from './operation.js';
import type { CallSettings } from './options.js';
import type { Session } from './session.js';
import { type LendableSink, makeOwnSink, PoolSink } from './sinks.js';
import { type KvValue, ReceivedValue, type ValueInfo } from './value.js';

/** Reads one value. */
export class GetOperation extends GetOperationBase<KvValue, LendableSink> {
  #assembled = Buffer.alloc(0);

  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'get', key, call);
  }

  protected override acquireSink(
    session: Session,
    length: number | undefined,
    inlineMax: number,
    taker: SinkTaker<LendableSink>,
  ): () => void {
    const { take } = taker;
    if (inlineMax === Number.POSITIVE_INFINITY) {
      take(undefined);
      return nothing;
    }
    const { dataPlane, receiveMemory } = session;
    const { pool, counters, sizes } = this.core;
    if (dataPlane === undefined || receiveMemory === undefined || pool === undefined) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink without a data plane');
    }
    const known = length ?? (this.key && sizes.lookup(this.call.namespace, this.key));
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
    let stopOwn = nothing;
    const stopWaiting = pool.allocate(known, (block) => {
      if (block !== undefined) take(new PoolSink(pool, block, receiveMemory, counters));
      else this.guard(() => (stopOwn = this.#makeOwn(dataPlane, known, taker)));
    });
    return () => {
      stopWaiting();
      stopOwn();
    };
  }

  protected override sinkTooSmall(session: Session, length: number): void {
    checkBufferLength(length);
    this.ask(session, length, length > (session.dataPlane?.regionBytesMax ?? 0));
  }

  protected override receivedRdma(info: ValueInfo, sink: LendableSink): void {
    if (!sink.canLend(info.length)) {
      void this.guardAsync(() => this.#copyOut(info, sink));
    } else if (this.call.verify && info.length > SYNC_BYTES_MAX) {
      void this.guardAsync(() => this.#verifyThenLend(info, sink));
    } else {
      const value = this.#lend(info, sink);
      if (this.call.verify) this.#check(value);
      this.#done(value);
    }
  }

  protected override receivedWhole(info: ValueInfo, bytes: Buffer): void {
    // A view of the frame that it came in: a copy, unless it is most of the frame, so that a small value does not
    // keep a large frame in memory.
    const whole = bytes.length * 2 > bytes.buffer.byteLength;
    if (!whole) this.core.counters.bytesCopied += bytes.length;
    this.succeed(new ReceivedValue(whole ? bytes : Buffer.from(bytes), info));
  }

  protected override beginAssembly(totalBytes: number): void {
    checkBufferLength(totalBytes);
    this.#assembled = allocate(totalBytes);
  }

  protected override storePiece(offset: number, bytes: Buffer): void {
    bytes.copy(this.#assembled, offset);
  }

  protected override receivedAssembled(info: ValueInfo): void {
    this.#done(new ReceivedValue(this.#assembled, info));
  }

  #makeOwn(dataPlane: DataPlane, length: number, { take, refuse }: SinkTaker<LendableSink>): () => void {
    return makeOwnSink({
      length,
      dataPlane,
      counters: this.core.counters,
      gate: this.core.ownMemoryGate,
      onSink: take,
      onError: refuse,
    });
  }

  async #copyOut(info: ValueInfo, sink: LendableSink): Promise<void> {
    const { length } = info;
    const { mapping, mappingOffset: offset } = sink;
    let bytes: Buffer;
    try {
      if (length <= SYNC_BYTES_MAX) {
        bytes = mapping.readSync(offset, length);
        if (this.call.verify) this.checkCrc(info, crc32c(bytes));
      } else {
        bytes = allocate(length);
        const crc = await mapping.copyOut({ offset, target: bytes });
        if (this.call.verify) this.checkCrc(info, crc);
      }
    } finally {
      sink.free();
    }
    this.core.counters.bytesCopied += length;
    this.core.counters.resultsCopied += 1;
    this.#done(new ReceivedValue(bytes, info));
  }

  async #verifyThenLend(info: ValueInfo, sink: LendableSink): Promise<void> {
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

  #lend(info: ValueInfo, sink: LendableSink): KvValue {
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

/** @throws ERR_FABRICKV_MEMORY */
function allocate(length: number): Buffer<ArrayBuffer> {
  try {
    return Buffer.allocUnsafeSlow(length);
  } catch (error) {
    throw new FabricKvError('ERR_FABRICKV_MEMORY', `no memory for a value of ${length} bytes`, { cause: error });
  }
}

function nothing(): void {
  // There is nothing to end.
}
