/**
 * A PUT that comes in pieces: written by the client into windows, or sent as Data. Either way it is assembled in
 * extents that nobody can read, verified, and published in one step.
 */

import { crc32c, FabricError } from '../fabric/index.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { GrantExtent } from '../protocol/generated/fabrickv/v1/GrantExtent.js';
import type { PutCommit__Output } from '../protocol/generated/fabrickv/v1/PutCommit.js';
import { EXTENT_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace } from '../protocol/stages.js';
import { toSafeInteger } from '../protocol/wire.js';
import { allocateExtents, checkLength, refuseOptions } from './mutations.js';
import type { ActiveOperation, OperationHost, StopCause } from './operation.js';
import { checksumError, publishPut, replayPut } from './publish-put.js';
import { RunningCrc } from './running-crc.js';
import type { GrantUser, SessionWindows } from './session-windows.js';
import type { Extent } from './store/arena.js';
import { alignedLength } from './store/extent-allocator.js';
import { WriteWindow } from './windows.js';

/**
 * `opening`: waiting for the gate, for memory, for the first window. `granted`: the client writes. `committing`: verified
 * and published whatever becomes of the session. `ended`.
 */
type PutState = 'opening' | 'granted' | 'committing' | 'ended';

const TRANSITIONS: Readonly<Record<PutState, readonly PutState[]>> = {
  opening: ['granted', 'ended'],
  granted: ['committing', 'ended'],
  committing: ['ended'],
  ended: [],
};

/** What PutOpen asked for. */
export interface PutRequest {
  readonly namespace: number;
  readonly key: Buffer;
  /** 0 when it is streamed. */
  readonly length: number;
  readonly path: 'INLINE' | 'RDMA';
  /** The length comes with the commit. */
  readonly streamed: boolean;
  /** Nothing is to be checked while it comes. */
  readonly withoutCrc: boolean;
  readonly timeoutMs: number;
}

/** PutMores of one PUT that wait for their room. */
const MORE_WAITING_MAX = 16;

/** One PUT, from PutOpen to its result. */
export class PutOperation implements ActiveOperation, GrantUser {
  readonly dependsOn: WriteWindow[] = [];
  private state: PutState = 'opening';
  private extents: readonly Extent[] = [];
  private grantedBytes = 0;
  private readonly deadlineTimer: NodeJS.Timeout;
  private deadlineAtMs: number;
  private entered = false;
  private readonly onTurn = (): void => {
    this.entered = true;
    void this.open();
  };
  /** Cancelled while it was being committed: the client is told when that has ended. */
  private cancelled = false;
  private receivedBytes = 0;
  /** By RDMA, as far as the client has said it. */
  private landedBytes = 0;
  private inlineCrc = 0;
  private readonly crc: RunningCrc;
  /** Grants of PutMore, one after the other; never rejects. */
  private more: Promise<void> = Promise.resolve();
  private moreWaiting = 0;

  constructor(
    private readonly host: OperationHost,
    private readonly operationId: number,
    readonly trace: OperationTrace,
    private readonly request: PutRequest,
  ) {
    const { dataPlane, store } = host.context;
    this.crc = new RunningCrc(dataPlane.mapping, store.arena);
    trace.bytes = request.length;
    this.deadlineAtMs = performance.now() + request.timeoutMs;
    this.deadlineTimer = setTimeout(() => this.onDeadline(), request.timeoutMs);
  }

  /** Starts it, or leaves it waiting for its turn. @throws ERR_FABRICKV_RESOURCE_EXHAUSTED */
  start(): void {
    if (this.host.gate.enter(this.onTurn)) return;
    this.end();
    throw new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', this.host.gate.refusal, { outcome: 'not-applied' });
  }

  /** A piece of an inline value. */
  onData(data: Data__Output): void {
    // What was on its way when the operation ended, or follows its commit, is of no interest.
    if (this.state === 'committing' || this.state === 'ended') return;
    const offset = toSafeInteger(data.offset, 'Data.offset');
    const fits = this.request.path === 'INLINE' && this.state === 'granted' && offset === this.receivedBytes;
    if (!fits || offset + data.bytes.length > this.request.length) {
      this.fail(protocolError(`Data at ${offset} is not the next piece of this PUT`));
      return;
    }
    this.renew();
    this.host.context.store.arena.write(this.extents, offset, data.bytes);
    this.inlineCrc = crc32c(data.bytes, this.inlineCrc);
    this.receivedBytes += data.bytes.length;
  }

  /** The client has sent so far, and is there still. What was written by RDMA can be checked while it writes on. */
  onProgress(bytesWritten: number): void {
    // What was on its way when the operation ended, or follows its commit, is of no interest.
    if (this.state === 'committing' || this.state === 'ended') return;
    const inline = this.request.path === 'INLINE';
    const bytesMax = inline ? this.receivedBytes : this.grantedBytes;
    if (bytesWritten > bytesMax) {
      const what = inline ? `after Data of ${bytesMax}` : `in a grant of ${bytesMax}`;
      this.fail(protocolError(`PutProgress of ${bytesWritten} bytes ${what}`));
      return;
    }
    this.renew();
    this.landedBytes = Math.max(this.landedBytes, bytesWritten);
    if (!inline && !this.request.withoutCrc) this.crc.advance(bytesWritten);
  }

  /** A streamed PUT wants more room. */
  onMore(length: number): void {
    // What was on its way when the operation ended, or follows its commit, is of no interest.
    if (this.state === 'committing' || this.state === 'ended') return;
    const valid = this.request.streamed && this.state === 'granted' && length > 0 && length <= EXTENT_BYTES_MAX;
    if (!valid) {
      this.fail(protocolError(`PutMore of ${length} bytes; it is for a streamed PUT that is open, up to 16 MiB`));
      return;
    }
    if (this.moreWaiting >= MORE_WAITING_MAX) {
      this.fail(new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', `over ${MORE_WAITING_MAX} PutMore at a time`));
      return;
    }
    this.renew();
    this.moreWaiting += 1;
    this.more = this.more.then(() => this.grantMore(length));
  }

  onCommit(commit: PutCommit__Output): void {
    // The result of the first one is on its way.
    if (this.state === 'committing') return;
    if (this.state !== 'granted') {
      this.fail(protocolError('PutCommit before the grant'));
      return;
    }
    const length = this.request.streamed ? toSafeInteger(commit.length, 'PutCommit.length') : this.request.length;
    if (length > this.grantedBytes || (this.request.streamed && length < this.landedBytes)) {
      this.fail(protocolError(`PutCommit of ${length} bytes, of ${this.grantedBytes} granted`));
      return;
    }
    const crowd = this.host.context.history.crowd(this.host.clientId, this.operationId);
    if (crowd !== undefined) {
      this.fail(crowd);
      return;
    }
    this.trace.bytes = length;
    this.trace.mark('put.commit.received');
    this.become('committing');
    // The client may have lost an earlier session in the middle of the same PUT's commit there.
    const known = this.host.context.history.find(this.host.clientId, this.operationId, (result) => {
      if (result === undefined) {
        void this.commit(commit, length);
        return;
      }
      replayPut(this.host, this.operationId, this.trace, result);
      this.end();
    });
    if (!known) void this.commit(commit, length);
  }

  /** The client gives it up and has no write in flight. */
  onAbort(): void {
    if (this.state === 'committing' || this.state === 'ended') return;
    this.trace.fail('put.failed', new FabricKvError('ERR_FABRICKV_CANCELLED'));
    this.host.context.counters.putsAborted += 1;
    this.end();
  }

  onWindowClosed(): void {
    // What a commit checks has landed before; a window that closes changes nothing for it.
    if (this.state === 'committing') return;
    this.fail(new FabricKvError('ERR_FABRICKV_GRANT_ENDED', 'the window of this PUT was taken back'));
  }

  onWindowFailed(error: unknown): void {
    if (this.state === 'opening' || this.state === 'granted') this.fail(error);
  }

  stop(cause: StopCause): void {
    // A commit is carried through: the client may ask for its result on another session.
    if (this.state === 'ended') return;
    if (cause.kind === 'cancelled') this.cancelled = true;
    this.onAbort();
  }

  private async open(): Promise<void> {
    const { request } = this;
    try {
      if (request.path === 'INLINE') {
        const extents = await allocateExtents(this.host.context, request.length, () => this.state === 'opening');
        if (!this.keep(extents, 'opening')) return;
        this.grantedBytes = request.length;
        this.trace.mark('put.allocated', { extents: extents.length });
        this.sendGrant([]);
      } else if (request.length === 0) {
        // It is streamed, or has no bytes.
        if (this.windows === undefined) throw noDataPlane();
        this.trace.mark('put.allocated', { extents: 0 });
        this.sendGrant([]);
      } else {
        const places = await this.grant(request.length, 'opening');
        if (places !== undefined) this.sendGrant(places);
      }
    } catch (error) {
      this.fail(error);
    }
  }

  private async grantMore(length: number): Promise<void> {
    this.moreWaiting -= 1;
    if (this.state !== 'granted') return;
    try {
      checkLength(this.host.context, this.grantedBytes + length);
      const places = await this.grant(length, 'granted');
      if (places !== undefined) this.sendGrant(places);
    } catch (error) {
      if (this.state === 'granted') this.fail(error);
    }
  }

  /** @returns where the client may write; undefined when the PUT has gone on to another state meanwhile */
  private async grant(length: number, during: PutState): Promise<readonly GrantExtent[] | undefined> {
    const { windows } = this;
    if (windows === undefined) throw noDataPlane();
    const { extents, places, opened } = await windows.grant(length, this, () => this.state === during);
    if (!this.keep(extents, during)) {
      opened.catch(() => undefined);
      return undefined;
    }
    if (during === 'opening') this.trace.mark('put.allocated', { extents: extents.length });
    await opened;
    if (this.state !== during) return undefined;
    this.grantedBytes += length;
    this.crc.add(extents);
    return places;
  }

  /** Takes extents for this PUT, unless it is past that. */
  private keep(extents: readonly Extent[], during: PutState): boolean {
    if (this.state === during) {
      this.extents = [...this.extents, ...extents];
      return true;
    }
    this.host.context.store.arena.release(extents);
    if (this.state === 'ended') this.windows?.release(this);
    return false;
  }

  private sendGrant(places: readonly GrantExtent[]): void {
    const first = this.state === 'opening';
    if (first) this.become('granted');
    this.host.send(this.operationId, {
      result: {
        grant: {
          extents: [...places],
          expiresInMs: Math.max(1, Math.round(this.deadlineAtMs - performance.now())),
        },
      },
    });
    if (first) this.trace.mark('put.granted');
  }

  private async commit(commit: PutCommit__Output, length: number): Promise<void> {
    const { host, request, operationId } = this;
    const { context } = host;
    context.history.begin(host.clientId, operationId);
    try {
      refuseOptions(commit.options);
      // Room that was granted before the commit and not sent is nobody's.
      await this.more;
      this.trim(length);
      const crc = await this.verify(commit, length);
      if (this.state !== 'committing') throw new Error(`a PUT that is ${this.state} is published`);
      this.trace.mark('put.verified');
      const { namespace, key, path } = request;
      const { extents } = this;
      // They are the store's from now on.
      this.extents = [];
      publishPut(host, operationId, this.trace, { namespace, key, extents, length, crc32c: crc, path });
      this.end();
      if (path === 'RDMA') this.windows?.offerSessionWindows(length);
    } catch (error) {
      context.history.settle(host.clientId, operationId, undefined);
      this.fail(error);
    }
  }

  /** @returns the CRC to store @throws ERR_FABRICKV_CHECKSUM, ERR_FABRICKV_PROTOCOL */
  private async verify(commit: PutCommit__Output, length: number): Promise<number | undefined> {
    const inline = this.request.path === 'INLINE';
    if (inline && this.receivedBytes !== length) {
      throw protocolError(`PutCommit after ${this.receivedBytes} of ${length} bytes`);
    }
    // Whoever commits there has written nothing: what lies there is somebody else's.
    if (this.extents.some(({ barrier }) => barrier instanceof WriteWindow && !barrier.wasOpened)) {
      throw protocolError('PutCommit of bytes in a window that was not offered');
    }
    if (commit.withoutCrc) return undefined;
    const crc = inline ? this.inlineCrc : await this.crc.finish(length);
    if (crc === commit.crc32c) return crc;
    if (!inline) this.windows?.hostile('the bytes of a PUT are not those that its CRC is of');
    throw checksumError(length, crc, commit.crc32c);
  }

  /** Gives back what was granted beyond the value. */
  private trim(length: number): void {
    const kept: Extent[] = [];
    let left = length;
    for (const extent of this.extents) {
      const take = Math.min(left, extent.length);
      left -= take;
      if (take > 0) kept.push(take === extent.length ? extent : { ...extent, length: take });
      const from = alignedLength(take);
      const rest = alignedLength(extent.length) - from;
      if (rest > 0) {
        this.host.context.store.arena.release([{ ...extent, offset: extent.offset + from, length: rest }]);
      }
    }
    this.extents = kept;
  }

  /** The client goes on: its time begins anew. It watches over the whole itself, if there is a limit to that. */
  private renew(): void {
    this.deadlineAtMs = performance.now() + this.request.timeoutMs;
    this.deadlineTimer.refresh();
  }

  private onDeadline(): void {
    if (this.state === 'committing') return;
    this.fail(
      new FabricKvError(
        'ERR_FABRICKV_DEADLINE',
        `PUT did not end within ${this.request.timeoutMs} ms (at ${this.trace.stage})`,
      ),
      true,
    );
  }

  private fail(reason: unknown, expired = false): void {
    if (this.state === 'ended') return;
    const error = reason instanceof FabricError ? fromFabricError(reason) : toFabricKvError(reason);
    const failed = error.with({ stage: this.trace.stage, outcome: 'not-applied' });
    this.trace.fail('put.failed', failed);
    this.host.context.counters.failures += 1;
    this.host.fail(this.operationId, failed);
    this.end(expired);
  }

  private get windows(): SessionWindows | undefined {
    return this.host.windows;
  }

  private end(expired = false): void {
    this.become('ended');
    clearTimeout(this.deadlineTimer);
    this.crc.stop();
    this.windows?.release(this, expired);
    // Extents that are not published go back; each waits for the proof of its window.
    this.host.context.store.arena.release(this.extents);
    this.extents = [];
    if (this.entered) this.host.gate.leave();
    else this.host.gate.withdraw(this.onTurn);
    if (this.cancelled) this.host.send(this.operationId, { quiesced: {} });
    this.host.finished(this.operationId);
  }

  private become(next: PutState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a PUT goes from ${this.state} to ${next}`);
    this.state = next;
  }
}

function protocolError(message: string): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_PROTOCOL', message);
}

function noDataPlane(): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the session has no data plane');
}
