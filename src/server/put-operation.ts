/**
 * A PUT that comes in pieces: written by the client into windows, or sent as Data. Either way it is assembled in
 * extents that nobody can read, verified, and published in one step.
 */

import { crc32c, FabricError } from '../fabric/index.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { PutCommit__Output } from '../protocol/generated/fabrickv/v1/PutCommit.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt, toSafeInteger } from '../protocol/wire.js';
import { allocateExtents, refuseOptions, remember } from './mutations.js';
import type { ActiveOperation, OperationHost, StopCause } from './operation.js';
import type { Extent } from './store/arena.js';
import { WriteWindow } from './windows.js';

/**
 * `opening`: waiting for the gate, for memory, for windows. `granted`: the client writes. `committing`: verified and
 * published whatever becomes of the session. `ended`.
 */
type PutState = 'opening' | 'granted' | 'committing' | 'ended';

/** What PutOpen asked for. */
export interface PutRequest {
  readonly namespace: number;
  readonly key: Buffer;
  readonly length: number;
  readonly path: 'INLINE' | 'RDMA';
  readonly timeoutMs: number;
}

/** One PUT, from PutOpen to its result. */
export class PutOperation implements ActiveOperation {
  private state: PutState = 'opening';
  private extents: readonly Extent[] = [];
  private readonly windows: WriteWindow[] = [];
  private readonly deadlineTimer: NodeJS.Timeout;
  private readonly deadlineAtMs: number;
  private entered = false;
  private readonly onTurn = (): void => {
    this.entered = true;
    void this.open();
  };
  /** Cancelled while it was being committed: the client is told when that has ended. */
  private cancelled = false;
  private receivedBytes = 0;
  private crc = 0;

  constructor(
    private readonly host: OperationHost,
    private readonly operationId: number,
    readonly trace: OperationTrace,
    private readonly request: PutRequest,
  ) {
    trace.bytes = request.length;
    this.deadlineAtMs = performance.now() + request.timeoutMs;
    this.deadlineTimer = setTimeout(() => this.onDeadline(), request.timeoutMs);
  }

  /** Starts it, or leaves it waiting for its turn. @throws ERR_FABRICKV_RESOURCE_EXHAUSTED */
  start(): void {
    if (this.host.gate.enter(this.onTurn)) return;
    this.end();
    throw new FabricKvError(
      'ERR_FABRICKV_RESOURCE_EXHAUSTED',
      `the session has ${this.host.gate.waitingMax} transfers waiting (--max-waiting)`,
      { outcome: 'not-applied' },
    );
  }

  /** A piece of an inline value. */
  onData(data: Data__Output): void {
    // What was on its way when the operation ended, or follows its commit, is of no interest.
    if (this.state === 'committing' || this.state === 'ended') return;
    const offset = toSafeInteger(data.offset, 'Data.offset');
    const fits = this.request.path === 'INLINE' && this.state === 'granted' && offset === this.receivedBytes;
    if (!fits || offset + data.bytes.length > this.request.length) {
      this.fail(new FabricKvError('ERR_FABRICKV_PROTOCOL', `Data at ${offset} is not the next piece of this PUT`));
      return;
    }
    this.host.context.store.arena.write(this.extents, offset, data.bytes);
    this.crc = crc32c(data.bytes, this.crc);
    this.receivedBytes += data.bytes.length;
  }

  onCommit(commit: PutCommit__Output): void {
    // The result of the first one is on its way.
    if (this.state === 'committing') return;
    if (this.state !== 'granted') {
      this.fail(new FabricKvError('ERR_FABRICKV_PROTOCOL', 'PutCommit before the grant'));
      return;
    }
    this.trace.mark('put.commit.received');
    this.state = 'committing';
    // The client may have lost an earlier session in the middle of the same PUT's commit there.
    const known = this.host.context.history.find(this.host.clientId, this.operationId, (result) => {
      if (result === undefined) void this.commit(commit);
      else this.replay(result);
    });
    if (!known) void this.commit(commit);
  }

  /** The client gives it up and has no write in flight. */
  onAbort(): void {
    if (this.state === 'committing' || this.state === 'ended') return;
    this.trace.fail('put.failed', new FabricKvError('ERR_FABRICKV_CANCELLED'));
    this.host.context.counters.putsAborted += 1;
    this.end();
  }

  stop(cause: StopCause): void {
    // A commit is carried through: the client may ask for its result on another session.
    if (this.state === 'ended') return;
    if (cause.kind === 'cancelled') this.cancelled = true;
    this.onAbort();
  }

  private async open(): Promise<void> {
    const { host, request } = this;
    try {
      this.extents = await allocateExtents(host.context, request.length, () => this.state === 'opening');
      if (this.isEnded()) {
        host.context.store.arena.release(this.extents);
        return;
      }
      this.trace.mark('put.allocated', { extents: this.extents.length });
      if (request.path === 'RDMA') await this.openWindows();
      if (this.isEnded()) return;
      this.state = 'granted';
      host.send(
        this.operationId,
        {
          result: {
            grant: {
              extents: this.windows.map(({ id, extent }) => ({ windowId: id, windowOffset: 0, length: extent.length })),
              expiresInMs: Math.max(1, Math.round(this.deadlineAtMs - performance.now())),
            },
          },
        },
        16 * this.windows.length,
      );
      this.trace.mark('put.granted');
    } catch (error) {
      this.fail(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  private async openWindows(): Promise<void> {
    const { host } = this;
    const { context, peer } = host;
    if (peer === undefined) throw new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the session has no data plane');
    for (const extent of this.extents) {
      const id = host.nextWindowId();
      const window = await WriteWindow.open(
        id,
        extent,
        context.dataPlane.mapping,
        peer,
        context.counters,
        context.logger,
      );
      this.windows.push(window);
      if (this.isEnded()) {
        // It was given up meanwhile: this window came too late for end() to seal it.
        void window.seal();
        return;
      }
      const { address, key } = window.remote;
      host.send(0, {
        windowOffer: {
          windowId: id,
          length: extent.length,
          rails: [{ address: fromBigInt(address), rkey: fromBigInt(key) }],
        },
      });
    }
  }

  private async commit(commit: PutCommit__Output): Promise<void> {
    const { host, request, operationId } = this;
    const { context } = host;
    context.history.begin(host.clientId, operationId);
    let result: Result | undefined;
    try {
      refuseOptions(commit.options);
      const crc = request.path === 'RDMA' ? await this.crcOfExtents() : this.inlineCrc();
      if (crc !== commit.crc32c) {
        throw new FabricKvError(
          'ERR_FABRICKV_CHECKSUM',
          `CRC-32C of the ${request.length} bytes that arrived is ${hex32(crc)}, announced was ${hex32(commit.crc32c)}`,
        );
      }
      if (this.state !== 'committing') throw new Error(`a PUT that is ${this.state} is published`);
      this.trace.mark('put.verified');
      const value = context.store.publish({ ...request, extents: this.extents, crc32c: crc });
      this.extents = [];
      this.trace.mark('put.published');
      result = { put: { version: fromBigInt(value.version), path: request.path } };
      this.count();
      remember(context, host.clientId, operationId, result);
      host.send(operationId, { result });
      this.trace.finish('put.done', { path: request.path === 'RDMA' ? 'rdma' : 'inline' });
      this.end();
    } catch (error) {
      context.history.settle(host.clientId, operationId, undefined);
      this.fail(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  /** The mutation was applied on another session: that result is this one's too. */
  private replay(result: Result): void {
    this.host.context.counters.replayedResults += 1;
    this.host.send(this.operationId, { result });
    this.trace.finish('put.done', { replayed: true });
    this.end();
  }

  private async crcOfExtents(): Promise<number> {
    let crc = 0;
    for (const { offset, length } of this.extents) {
      crc = await this.host.context.dataPlane.mapping.crc32c({ offset, length, seed: crc });
    }
    return crc;
  }

  private inlineCrc(): number {
    if (this.receivedBytes !== this.request.length) {
      throw new FabricKvError(
        'ERR_FABRICKV_PROTOCOL',
        `PutCommit after ${this.receivedBytes} of ${this.request.length} bytes`,
      );
    }
    return this.crc;
  }

  private count(): void {
    const { counters } = this.host.context;
    if (this.request.path === 'RDMA') {
      counters.putsRdma += 1;
      counters.bytesWrittenRdma += this.request.length;
    } else {
      counters.putsInline += 1;
      counters.bytesWrittenInline += this.request.length;
    }
  }

  private onDeadline(): void {
    if (this.state === 'committing') return;
    this.fail(
      new FabricKvError(
        'ERR_FABRICKV_DEADLINE',
        `PUT did not end within ${this.request.timeoutMs} ms (at ${this.trace.stage})`,
      ),
    );
  }

  private fail(error: FabricKvError): void {
    if (this.state === 'ended') return;
    const failed = error.with({ stage: this.trace.stage, outcome: 'not-applied' });
    this.trace.fail('put.failed', failed);
    this.host.context.counters.failures += 1;
    this.host.fail(this.operationId, failed);
    this.end();
  }

  private isEnded(): boolean {
    return this.state === 'ended';
  }

  private end(): void {
    this.state = 'ended';
    clearTimeout(this.deadlineTimer);
    for (const window of this.windows) {
      this.host.send(0, { windowRevoke: { windowId: window.id, reason: 'the PUT has ended' } });
      void window.seal();
    }
    // Extents that are not published go back; each waits for the proof of its window.
    this.host.context.store.arena.release(this.extents);
    this.extents = [];
    if (this.entered) this.host.gate.leave();
    else this.host.gate.withdraw(this.onTurn);
    if (this.cancelled) this.host.send(this.operationId, { quiesced: {} });
    this.host.finished(this.operationId);
  }
}

function hex32(value: number): string {
  return value.toString(16).padStart(8, '0');
}
