/**
 * What `get` and `getInto` have in common: the request, the sink in it, and what becomes of the sink.
 */

import { constants } from 'node:buffer';
import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { GetResult__Output } from '../protocol/generated/fabrickv/v1/GetResult.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import { fromThreshold, toSafeInteger, toVersion } from '../protocol/wire.js';
import { toClientError } from './fabric-errors.js';
import { Operation, type ProgressDetails, unexpectedResult } from './operation.js';
import type { Session } from './session.js';
import type { Sink } from './sinks.js';
import { checksumError, type ValueInfo } from './value.js';

/** What a search for a sink ends with; either does nothing but free the sink when the attempt is over. */
export interface SinkTaker<S extends Sink> {
  /** Gets a sink, or undefined when the request has to do without. */
  take(sink: S | undefined): void;
  /** There is none, and the operation fails. */
  refuse(error: unknown): void;
}

/** An inline value that comes as Data. */
interface Assembly {
  readonly totalBytes: number;
  receivedBytes: number;
  crc: number;
}

/** A GET in one of its forms. */
export abstract class GetOperationBase<T, S extends Sink> extends Operation<T | undefined> {
  #sink: S | undefined;
  /** Whether the server has a request of this operation. */
  #asked = false;
  #attempt = 0;
  #lengthWasKnown = false;
  /** Quiesced is still to come for the operation's id. */
  #isQuiescing = false;
  #stopAcquiring: (() => void) | undefined;
  #assembly: Assembly | undefined;

  /**
   * Finds a sink, at once or later, or says when the request may be sent without one.
   *
   * @param length of the value, if the server has said it
   * @param inlineMax what comes inline whatever the sink; infinite when the request is to have none
   * @returns ends the search
   */
  protected abstract acquireSink(
    session: Session,
    length: number | undefined,
    inlineMax: number,
    taker: SinkTaker<S>,
  ): () => void;

  /** Whether a request for a value of unknown length is to have no sink. */
  protected asksWithoutSink(_inlineMax: number): boolean {
    return false;
  }

  /** The server says that the sink was too small; the sink is freed. */
  protected abstract sinkTooSmall(session: Session, length: number): void;

  /** The value is in the sink. */
  protected abstract receivedRdma(info: ValueInfo, sink: S): void;

  /** The value came in one message. */
  protected abstract receivedWhole(info: ValueInfo, bytes: Buffer): void;

  /** The value comes in pieces: a first one is about to be stored. */
  protected abstract beginAssembly(totalBytes: number): void;

  /** Stores a piece. */
  protected abstract storePiece(offset: number, bytes: Buffer): void;

  /** All pieces are stored. */
  protected abstract receivedAssembled(info: ValueInfo): void;

  /** Sends a request, with a sink if one is to be had; in a session that takes no more requests, waits for the next one. */
  protected ask(session: Session, length: number | undefined, everythingInline = false): void {
    if (session.state !== 'open') {
      this.waitForSession();
      return;
    }
    const inlineMax =
      everythingInline || session.receiveMemory === undefined
        ? Number.POSITIVE_INFINITY
        : (this.call.inlineThreshold ?? session.greeting.getInlineThreshold);
    this.#attempt += 1;
    this.#lengthWasKnown = length !== undefined;
    if (length === undefined && this.asksWithoutSink(inlineMax)) {
      this.#send(session, undefined, inlineMax);
      return;
    }
    const attempt = this.#attempt;
    const isStale = (): boolean => this.settled || attempt !== this.#attempt || this.session !== session;
    let taken = false;
    const stop = this.acquireSink(session, length, inlineMax, {
      take: (sink) => {
        if (isStale()) {
          sink?.free();
          return;
        }
        taken = true;
        this.#stopAcquiring = undefined;
        if (session.state === 'open') {
          this.guard(() => this.#send(session, sink, inlineMax));
        } else {
          sink?.free();
          this.waitForSession();
        }
      },
      refuse: (error) => {
        if (!isStale()) this.fail(toClientError(error));
      },
    });
    if (!taken) this.#stopAcquiring = stop;
  }

  protected override succeeded(result: Result__Output): void {
    const { session } = this;
    this.trace.mark('get.response.received');
    this.finishRequest();
    this.#asked = false;
    if (session === undefined) return;
    if (result.sinkTooSmall) {
      const length = toSafeInteger(result.sinkTooSmall.length, 'length');
      this.core.counters.sinksTooSmall += 1;
      this.#takeSink()?.free();
      if (this.key !== undefined) this.core.sizes.remember(this.call.namespace, this.key, length);
      this.sinkTooSmall(session, length);
    } else if (result.get) {
      // What is left to do needs no session: its end is no reason to ask again.
      this.leaveSession();
      this.#received(result.get);
    } else {
      throw unexpectedResult('Get', result.outcome);
    }
  }

  protected override dataArrived(data: Data__Output): void {
    const totalBytes = toSafeInteger(data.totalLength, 'total_length');
    if (this.#assembly === undefined) {
      this.beginAssembly(totalBytes);
      this.#assembly = { totalBytes, receivedBytes: 0, crc: 0 };
      this.trace.bytes = totalBytes;
    }
    const assembly = this.#assembly;
    const offset = toSafeInteger(data.offset, 'offset');
    const end = offset + data.bytes.length;
    if (totalBytes !== assembly.totalBytes || offset !== assembly.receivedBytes || end > totalBytes) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `Data at ${offset} where ${assembly.receivedBytes} was due`);
    }
    this.storePiece(offset, data.bytes);
    this.core.counters.bytesCopied += data.bytes.length;
    if (this.call.verify) assembly.crc = crc32c(data.bytes, assembly.crc);
    assembly.receivedBytes = end;
    this.reportProgress(end, totalBytes);
  }

  protected override failed(error: FabricKvError, sinkBusy: boolean): void {
    this.#asked = false;
    const sink = this.#takeSink();
    if (sink !== undefined && sinkBusy && this.session !== undefined) this.#quarantine(sink, this.session);
    else sink?.free();
    this.#assembly = undefined;
    this.retryOrFail(error);
  }

  protected override sessionLost(session: Session): void {
    this.#endAttempt(session);
  }

  protected override release(): void {
    this.#endAttempt(this.session);
  }

  protected override progressDetails(): ProgressDetails {
    const assembly = this.#assembly;
    if (assembly === undefined) return {};
    return { bytesDone: String(assembly.receivedBytes), bytesTotal: String(assembly.totalBytes) };
  }

  /** @throws ERR_FABRICKV_CHECKSUM when `actual` is not what the server announced, if it announced any */
  protected checkCrc(info: ValueInfo, actual: number): void {
    const wrong = checksumError(info, actual);
    if (wrong !== undefined) throw wrong;
  }

  /** A value has arrived: counts it, and remembers its length for the next time. */
  protected countReceived({ path, length }: ValueInfo): void {
    const { core, key, call } = this;
    if (path === 'rdma') {
      if (key !== undefined) core.sizes.remember(call.namespace, key, length);
      core.counters.getsRdma += 1;
    } else {
      if (key !== undefined) core.sizes.sawInline(call.namespace, key, this.#lengthWasKnown);
      core.counters.getsInline += 1;
    }
  }

  /** The id for a request that follows: another one if the server still has something to say about the last. */
  protected settledOperationId(): number {
    if (this.#isQuiescing) this.renewOperationId();
    this.#isQuiescing = false;
    return this.operationId;
  }

  #send(session: Session, sink: S | undefined, inlineMax: number): void {
    this.settledOperationId();
    this.#sink = sink;
    this.#assembly = undefined;
    if (sink !== undefined) {
      this.trace.mark('get.buffer.allocated', { sinkBytes: sink.length });
      this.trace.mark('get.location.created', { regionId: sink.regionId, offset: sink.offset });
    }
    this.begin(session, {
      get: {
        key: this.key ?? '',
        namespace: this.call.namespace,
        deadlineMs: this.deadlineMs,
        inlineMax: fromThreshold(inlineMax),
        sink: sink === undefined ? null : { regionId: sink.regionId, offset: sink.offset, length: sink.length },
      },
    });
    this.#asked = true;
    this.trace.mark('get.request.sent');
  }

  #received(result: GetResult__Output): void {
    const { call, key, core } = this;
    const sink = this.#takeSink();
    if (!result.found) {
      sink?.free();
      if (key !== undefined) core.sizes.forget(call.namespace, key);
      this.succeed(undefined);
      return;
    }
    const path = result.path === 'RDMA' ? 'rdma' : 'inline';
    const length = toSafeInteger(result.length, 'length');
    const crc = result.withoutCrc ? undefined : result.crc32c;
    const info: ValueInfo = { length, version: toVersion(result.version), crc32c: crc, path };
    this.trace.bytes = length;
    if (path === 'rdma') {
      if (sink === undefined || length > sink.length || length === 0) {
        sink?.free();
        throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'the server wrote a value for which it had no sink');
      }
      this.countReceived(info);
      sink.receive();
      this.receivedRdma(info, sink);
      return;
    }
    sink?.free();
    this.countReceived(info);
    this.#receivedInline(info, result.value);
  }

  #receivedInline(info: ValueInfo, value: Buffer): void {
    const assembly = this.#assembly;
    const received = assembly?.receivedBytes ?? value.length;
    if (received !== info.length) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `a value of ${info.length} bytes came with ${received}`);
    }
    if (this.call.verify) this.checkCrc(info, assembly?.crc ?? crc32c(value));
    if (assembly === undefined) this.receivedWhole(info, value);
    else this.receivedAssembled(info);
  }

  #takeSink(): S | undefined {
    const sink = this.#sink;
    this.#sink = undefined;
    return sink;
  }

  /** The operation leaves the session, by its own end or the session's. */
  #endAttempt(session: Session | undefined): void {
    this.#attempt += 1;
    this.#stopAcquiring?.();
    this.#stopAcquiring = undefined;
    this.#assembly = undefined;
    const sink = this.#takeSink();
    if (!this.#asked || session === undefined) {
      sink?.free();
      return;
    }
    this.#asked = false;
    if (sink !== undefined) this.#quarantine(sink, session);
    if (session.state === 'ended') return;
    this.core.counters.cancels += 1;
    session.cancel(this.operationId);
  }

  /** Holds the sink until the server's Quiesced for the current request, or the proof at the session's end. */
  #quarantine(sink: S, session: Session): void {
    this.#isQuiescing = true;
    sink.quarantine();
    // A line in the log, and no stage of the operation: its error names the one at which it stopped.
    const { stage, stageSinceMs } = this.trace;
    this.trace.mark('get.quarantined', { sinkBytes: sink.length });
    this.trace.stage = stage;
    this.trace.stageSinceMs = stageSinceMs;
    session.awaitQuiesced(this.operationId, () => sink.free());
  }
}

/** @throws ERR_FABRICKV_TOO_LARGE_FOR_BUFFER when no Buffer can hold so much */
export function checkBufferLength(length: number): void {
  if (length <= constants.MAX_LENGTH) return;
  throw new FabricKvError(
    'ERR_FABRICKV_TOO_LARGE_FOR_BUFFER',
    `the value has ${length} bytes; a Buffer has at most ${constants.MAX_LENGTH} on this Node.js`,
    { details: { length: String(length) } },
  );
}
