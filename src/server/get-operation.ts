/**
 * A GET that moves a value, or a part of it, too large for one message: by RDMA write into the client's sink, or as Data.
 */

import { FabricError } from '../fabric/index.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import type { GetResult } from '../protocol/generated/fabrickv/v1/GetResult.js';
import type { ServerMessage } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt } from '../protocol/wire.js';
import type { ServerCounters } from './counters.js';
import type { Lease } from './leases.js';
import type { ActiveOperation, OperationHost, StopCause } from './operation.js';
import type { Peer, PeerRegion, PeerWrite, PeerWriteSegment } from './peers.js';
import type { Range } from './store/extent-allocator.js';
import type { StoredValue } from './store/store.js';

/** What is read, and under what. */
export interface GetRequest {
  readonly value: StoredValue;
  /** Within the value. */
  readonly range: Range;
  /** The lease that the request named or asked for. */
  readonly lease: Lease | undefined;
  /** Whether the lease was taken for this request. Then nobody knows of it before the result. */
  readonly holds: boolean;
  readonly timeoutMs: number;
}

/** The result of a GET that has read its range, without the bytes. */
export function getResult({ value, range, lease }: GetRequest, path: 'RDMA' | 'INLINE'): GetResult {
  const result: GetResult = {
    found: true,
    length: value.length,
    version: fromBigInt(value.version),
    crc32c: value.crc32c ?? 0,
    path,
    rangeLength: range.length,
  };
  // What has its default is not sent: there are small values for which it counts.
  if (range.offset !== 0) result.rangeOffset = range.offset;
  if (lease !== undefined) result.leaseId = fromBigInt(lease.id);
  if (value.crc32c === undefined) result.withoutCrc = true;
  return result;
}

/** Counts what a request has read. A value that is read by ranges is one GET: those under its lease are parts of it. */
export function countGet(
  counters: ServerCounters,
  { value, range, lease, holds }: GetRequest,
  path: 'RDMA' | 'INLINE',
): void {
  const gets = lease === undefined || holds ? 1 : 0;
  if (range.length !== value.length) counters.rangesRead += 1;
  if (path === 'RDMA') {
    counters.getsRdma += gets;
    counters.bytesReadRdma += range.length;
  } else {
    counters.getsInline += gets;
    counters.bytesReadInline += range.length;
  }
}

/** Where the client wants the bytes. */
export interface ResolvedSink {
  readonly regionId: number;
  readonly region: PeerRegion;
  readonly offset: number;
}

/** `waiting` for the gate, `moving` bytes, `stopping` until none of our writes is in flight, `ended`. */
type GetState = 'waiting' | 'moving' | 'stopping' | 'ended';

/** The part that both ways share: the pin on the value, the lease, the deadline, the gate. */
abstract class GetOperation implements ActiveOperation {
  protected state: GetState = 'waiting';
  private deadlineTimer: NodeJS.Timeout | undefined;
  private entered = false;
  private completed = false;
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
    protected readonly request: GetRequest,
  ) {
    // A lease may end while its range is read.
    request.value.retain();
    request.lease?.enter();
    trace.bytes = request.range.length;
  }

  /** Starts it, or leaves it waiting for its turn. @throws ERR_FABRICKV_RESOURCE_EXHAUSTED */
  start(): void {
    this.deadlineTimer = setTimeout(() => this.onDeadline(), this.request.timeoutMs);
    if (this.host.gate.enter(this.onTurn)) return;
    this.end();
    throw new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', this.host.gate.refusal);
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

  /** Bytes of the range that have been moved. */
  protected abstract get landedBytes(): number;

  /** Stops moving bytes; {@link quiesced} follows when none is in flight any more. */
  protected abstract halt(): void;

  /** The range has arrived whole. */
  protected complete(path: 'RDMA' | 'INLINE'): void {
    const { request, host } = this;
    host.send(this.operationId, { result: { get: getResult(request, path) } });
    countGet(host.context.counters, request, path);
    this.completed = true;
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
        `GET did not end within ${this.request.timeoutMs} ms (at ${this.trace.stage}, after ${this.landedBytes} of ${this.request.range.length} bytes)`,
      ),
    );
  }

  private end(): void {
    if (this.state === 'ended') return;
    this.state = 'ended';
    clearTimeout(this.deadlineTimer);
    const { value, lease, holds } = this.request;
    value.release();
    lease?.leave();
    if (holds && !this.completed) lease?.end();
    if (this.entered) this.host.gate.leave();
    else this.host.gate.withdraw(this.onTurn);
    this.host.finished(this.operationId);
  }
}

/** Writes the range into the client's sink. */
export class RdmaGet extends GetOperation {
  private write: PeerWrite | undefined;

  constructor(
    host: OperationHost,
    operationId: number,
    trace: OperationTrace,
    request: GetRequest,
    private readonly peer: Peer,
    private readonly sink: ResolvedSink,
  ) {
    super(host, operationId, trace, request);
  }

  protected get busy(): boolean {
    return this.write !== undefined;
  }

  protected override get landedBytes(): number {
    return this.write?.landedBytes ?? 0;
  }

  protected move(): void {
    const { host, sink, trace } = this;
    // It may have waited for its turn.
    if (host.region(sink.regionId) !== sink.region) {
      this.fail(new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the region of the sink has ended'));
      return;
    }
    if (!this.peer.reaches(sink.region)) {
      this.fail(
        new FabricKvError(
          'ERR_FABRICKV_DATA_PLANE',
          "no rail is open, or the rails' tables have no room for the region",
        ),
      );
      return;
    }
    const { counters } = host.context;
    try {
      const segments = this.segments();
      trace.mark('get.transfer.created', { segments: segments.length });
      this.write = this.peer.beginWrite({
        segments,
        onDone: (error) => this.onWritten(error),
        onRetry: () => {
          counters.transferRetries += 1;
        },
      });
      counters.transfers += 1;
      trace.mark('get.write.submitted');
    } catch (error) {
      // Others wait for their turn behind this one: a defect here must not be theirs.
      this.fail(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  protected halt(): void {
    this.write?.cancel();
  }

  private segments(): PeerWriteSegment[] {
    const { region } = this.sink;
    let remoteOffset = this.sink.offset;
    return rangeOfExtents(this.request).map(({ offset, length }) => {
      const segment = { localOffset: offset, region, remoteOffset, length };
      remoteOffset += length;
      return segment;
    });
  }

  private onWritten(error: FabricError | undefined): void {
    this.write = undefined;
    if (this.state === 'stopping') {
      this.quiesced();
    } else if (error === undefined) {
      this.trace.mark('get.write.completed');
      this.complete('RDMA');
    } else {
      this.fail(fromFabricError(error));
    }
  }
}

/** The pieces of the arena that hold a range, in the order of its bytes. */
function rangeOfExtents({ value, range }: GetRequest): Range[] {
  const pieces: Range[] = [];
  let skip = range.offset;
  let left = range.length;
  for (const { offset, length } of value.extents) {
    if (left === 0) break;
    const skipped = Math.min(skip, length);
    const taken = Math.min(left, length - skipped);
    skip -= skipped;
    left -= taken;
    if (taken > 0) pieces.push({ offset: offset + skipped, length: taken });
  }
  if (left > 0) throw new Error('a range ends beyond its value');
  return pieces;
}

/** Sends the range as Data, however long it is. */
export class InlineGet extends GetOperation {
  private sentBytes = 0;

  protected get busy(): boolean {
    return false;
  }

  protected override get landedBytes(): number {
    return this.sentBytes;
  }

  protected move(): void {
    this.trace.mark('get.transfer.created', { path: 'inline' });
    this.host.sendData({ next: () => this.next() });
  }

  protected halt(): void {
    // Nothing is in flight: the next piece is not sent, because the state is not `moving` any more.
  }

  private next(): { message: ServerMessage; sizeBytes: number } | undefined {
    const { value, range } = this.request;
    // It is asked once more after the last piece, and the end of that turn may come later.
    if (this.state !== 'moving' || this.sentBytes === range.length) return undefined;
    const offset = range.offset + this.sentBytes;
    const most = Math.min(DATA_BYTES_MAX, range.length - this.sentBytes);
    const bytes = this.host.context.store.arena.read(value.extents, offset, most);
    this.sentBytes += bytes.length;
    // The result goes into the frame after this one.
    if (this.sentBytes === range.length) queueMicrotask(() => this.state === 'moving' && this.complete('INLINE'));
    const message = { operationId: this.operationId, data: { offset, bytes, totalLength: value.length } };
    return { message, sizeBytes: bytes.length };
  }
}
