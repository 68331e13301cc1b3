/**
 * A GET that moves a value too large for one message: by RDMA write into the client's sink, or as Data.
 */

import { FabricError } from '../fabric/index.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import type { ServerMessage } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt } from '../protocol/wire.js';
import type { ActiveOperation, OperationHost, StopCause } from './operation.js';
import type { Peer, PeerRegion, PeerWriteSegment } from './peers.js';
import type { StoredValue } from './store/store.js';

/** A transfer that fails is begun again this often: an honest one is cut off when its peer is recycled. */
const ATTEMPTS_MAX = 4;
const RETRY_DELAY_MS = 25;

/** A transfer that was cancelled is given this long until its peer is recycled, which ends it. */
const CANCEL_GRACE_MS = 250;

/** Where the client wants the bytes. */
export interface ResolvedSink {
  readonly region: PeerRegion;
  readonly offset: number;
}

/** `waiting` for the gate, `moving` bytes, `stopping` until none of our writes is in flight, `ended`. */
type GetState = 'waiting' | 'moving' | 'stopping' | 'ended';

/** The part that both ways share: the pin on the value, the deadline, the gate. */
abstract class GetOperation implements ActiveOperation {
  protected state: GetState = 'waiting';
  private deadlineTimer: NodeJS.Timeout | undefined;
  private entered = false;
  private readonly onTurn = (): void => {
    this.entered = true;
    this.state = 'moving';
    this.move();
  };
  private cause: StopCause | { readonly kind: 'failed' } | undefined;

  constructor(
    protected readonly host: OperationHost,
    protected readonly operationId: number,
    readonly trace: OperationTrace,
    protected readonly value: StoredValue,
    private readonly timeoutMs: number,
  ) {
    value.retain();
    trace.bytes = value.length;
  }

  /** Starts it, or leaves it waiting for its turn. @throws ERR_FABRICKV_RESOURCE_EXHAUSTED */
  start(): void {
    this.deadlineTimer = setTimeout(() => this.onDeadline(), this.timeoutMs);
    if (this.host.gate.enter(this.onTurn)) return;
    this.end();
    throw new FabricKvError(
      'ERR_FABRICKV_RESOURCE_EXHAUSTED',
      `the session has ${this.host.gate.waitingMax} transfers waiting (--max-waiting)`,
    );
  }

  stop(cause: StopCause): void {
    if (this.state === 'ended') return;
    // A client that cancels after the deadline still gets one Quiesced, and a session that ends gets none.
    if (this.cause === undefined || cause.kind === 'session-ended') this.cause = cause;
    this.beginStopping();
  }

  /** Begins to move the bytes. */
  protected abstract move(): void;

  /** Whether a write of ours may be in flight. */
  protected abstract get busy(): boolean;

  /** Stops moving bytes; {@link quiesced} follows when none is in flight any more. */
  protected abstract halt(): void;

  /** The value has arrived whole. */
  protected complete(path: 'RDMA' | 'INLINE'): void {
    const { value, host } = this;
    host.send(this.operationId, {
      result: {
        get: {
          found: true,
          length: value.length,
          version: fromBigInt(value.version),
          crc32c: value.crc32c,
          path,
        },
      },
    });
    if (path === 'RDMA') {
      host.context.counters.getsRdma += 1;
      host.context.counters.bytesReadRdma += value.length;
    } else {
      host.context.counters.getsInline += 1;
      host.context.counters.bytesReadInline += value.length;
    }
    this.trace.finish('get.done', { path: path === 'RDMA' ? 'rdma' : 'inline' });
    this.end();
  }

  /** The operation has failed. The client hears of it now, and of its sink when no write is in flight. */
  protected fail(error: FabricKvError): void {
    if (this.state === 'stopping' || this.state === 'ended') return;
    this.cause = { kind: 'failed' };
    const failed = error.with({ stage: this.trace.stage });
    this.trace.fail('get.failed', failed);
    this.host.fail(this.operationId, failed, this.busy);
    this.host.context.counters.failures += 1;
    if (this.busy) this.beginStopping();
    else this.end();
  }

  /** No write of ours is in flight, and none will be. */
  protected quiesced(): void {
    if (this.state !== 'stopping') return;
    if (this.cause?.kind === 'cancelled') {
      this.trace.fail('get.failed', new FabricKvError('ERR_FABRICKV_CANCELLED'));
    }
    if (this.cause?.kind !== 'session-ended') this.host.send(this.operationId, { quiesced: {} });
    this.end();
  }

  private beginStopping(): void {
    if (this.state === 'stopping') return;
    this.state = 'stopping';
    if (this.busy) this.halt();
    else this.quiesced();
  }

  private onDeadline(): void {
    this.fail(
      new FabricKvError(
        'ERR_FABRICKV_DEADLINE',
        `GET did not end within ${this.timeoutMs} ms (at ${this.trace.stage})`,
      ),
    );
  }

  private end(): void {
    if (this.state === 'ended') return;
    this.state = 'ended';
    clearTimeout(this.deadlineTimer);
    this.value.release();
    if (this.entered) this.host.gate.leave();
    else this.host.gate.withdraw(this.onTurn);
    this.host.finished(this.operationId);
  }
}

/** Writes the value into the client's sink. */
export class RdmaGet extends GetOperation {
  private attempts = 0;
  private transfer: number | undefined;
  private retryTimer: NodeJS.Timeout | undefined;
  private haltTimer: NodeJS.Timeout | undefined;

  constructor(
    host: OperationHost,
    operationId: number,
    trace: OperationTrace,
    value: StoredValue,
    timeoutMs: number,
    private readonly peer: Peer,
    private readonly sink: ResolvedSink,
  ) {
    super(host, operationId, trace, value, timeoutMs);
  }

  protected get busy(): boolean {
    return this.transfer !== undefined;
  }

  protected move(): void {
    if (this.state !== 'moving') return;
    if (!this.peer.present) {
      void this.peer.settled().then((present) => {
        if (present) this.move();
        else
          this.fail(new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the client is no peer of the data plane any more'));
      });
      return;
    }
    this.attempts += 1;
    try {
      const segments = this.segments();
      this.trace.mark('get.transfer.created', { segments: segments.length });
      this.transfer = this.peer.write(segments, (error) => this.onWritten(error));
      this.trace.mark('get.write.submitted', { attempt: this.attempts });
    } catch (error) {
      this.fail(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  protected halt(): void {
    if (this.transfer === undefined) return;
    this.peer.rail.cancel(this.transfer);
    // A frozen or unreachable peer never completes what is in flight; recycling it does.
    this.haltTimer = setTimeout(() => void this.peer.recycle(), CANCEL_GRACE_MS);
  }

  private segments(): PeerWriteSegment[] {
    let remoteOffset = this.sink.offset;
    return this.value.extents.map(({ offset, length }) => {
      const segment = { localOffset: offset, region: this.sink.region, remoteOffset, length };
      remoteOffset += length;
      return segment;
    });
  }

  private onWritten(error: FabricError | undefined): void {
    this.transfer = undefined;
    clearTimeout(this.haltTimer);
    if (this.state === 'stopping') {
      this.quiesced();
    } else if (error === undefined) {
      this.trace.mark('get.write.completed');
      this.complete('RDMA');
    } else if (this.attempts < ATTEMPTS_MAX && error.code !== 'RAIL_CLOSED') {
      this.host.context.counters.transferRetries += 1;
      clearTimeout(this.retryTimer);
      this.retryTimer = setTimeout(() => this.move(), RETRY_DELAY_MS * this.attempts);
    } else {
      this.fail(fromFabricError(error));
    }
  }
}

/** Sends the value as Data, however long it is. */
export class InlineGet extends GetOperation {
  private sentBytes = 0;

  protected get busy(): boolean {
    return false;
  }

  protected move(): void {
    this.trace.mark('get.transfer.created', { path: 'inline' });
    this.host.sendData({ next: () => this.next() });
  }

  protected halt(): void {
    // Nothing is in flight: the next piece is not sent, because the state is not `moving` any more.
  }

  private next(): { message: ServerMessage; sizeBytes: number } | undefined {
    if (this.state !== 'moving') return undefined;
    const offset = this.sentBytes;
    const bytes = this.host.context.store.arena.read(this.value.extents, offset, DATA_BYTES_MAX);
    this.sentBytes += bytes.length;
    // The result goes into the frame after this one.
    if (this.sentBytes === this.value.length) queueMicrotask(() => this.state === 'moving' && this.complete('INLINE'));
    const message = { operationId: this.operationId, data: { offset, bytes, totalLength: this.value.length } };
    return { message, sizeBytes: bytes.length };
  }
}
