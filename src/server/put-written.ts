/**
 * A PUT of one message: the client has written the value into its session window, whole.
 */

import { FabricError } from '../fabric/index.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import type { OperationTrace } from '../protocol/stages.js';
import type { ActiveOperation, OperationHost, StopCause } from './operation.js';
import { checksumError, publishPut } from './publish-put.js';
import { crcOfExtents } from './running-crc.js';
import type { SessionWindows } from './session-windows.js';
import type { Extent } from './store/arena.js';
import type { WindowUser, WriteWindow } from './windows.js';

/** What PutWritten says. */
export interface WrittenValue {
  readonly namespace: number;
  readonly key: Buffer;
  readonly windowId: number;
  readonly windowOffset: number;
  readonly length: number;
  /** Undefined when the client has computed none. */
  readonly crc32c: number | undefined;
  readonly timeoutMs: number;
}

/**
 * `new`. `waiting` for the gate. `committing`: verified and published whatever becomes of the session or the window.
 * `ended`.
 */
type WrittenState = 'new' | 'waiting' | 'committing' | 'ended';

const TRANSITIONS: Readonly<Record<WrittenState, readonly WrittenState[]>> = {
  new: ['waiting', 'committing', 'ended'],
  waiting: ['committing', 'ended'],
  committing: ['ended'],
  ended: [],
};

/** One PUT, from PutWritten to its result. */
export class WrittenPut implements ActiveOperation, WindowUser {
  readonly dependsOn: WriteWindow[] = [];
  private state: WrittenState = 'new';
  private extents: readonly Extent[] = [];
  private deadlineTimer: NodeJS.Timeout | undefined;
  private entered = false;
  private cancelled = false;
  private readonly onTurn = (): void => {
    this.entered = true;
    this.become('committing');
    // While the value is checked, the next window is opened.
    this.windows.offerSessionWindows(this.written.length);
    void this.commit();
  };

  constructor(
    private readonly host: OperationHost,
    private readonly windows: SessionWindows,
    private readonly operationId: number,
    readonly trace: OperationTrace,
    private readonly written: WrittenValue,
  ) {
    trace.bytes = written.length;
  }

  /**
   * Takes the range, and begins; the history must not know the operation.
   *
   * @throws ERR_FABRICKV_GRANT_ENDED, ERR_FABRICKV_PROTOCOL, ERR_FABRICKV_RESOURCE_EXHAUSTED: then it is over
   */
  start(): void {
    const { host, written, operationId } = this;
    try {
      this.extents = [this.windows.takeWritten(written.windowId, written.windowOffset, written.length, this)];
    } catch (error) {
      this.become('ended');
      host.finished(operationId);
      throw error;
    }
    this.trace.mark('put.commit.received');
    host.context.history.begin(host.clientId, operationId);
    if (!host.gate.enter(this.onTurn)) {
      host.context.history.settle(host.clientId, operationId, undefined);
      this.end();
      throw new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', host.gate.refusal, { outcome: 'not-applied' });
    }
    if (this.state !== 'new') return;
    this.become('waiting');
    this.deadlineTimer = setTimeout(
      () => this.fail(new FabricKvError('ERR_FABRICKV_DEADLINE', `PUT did not begin within ${written.timeoutMs} ms`)),
      written.timeoutMs,
    );
  }

  /** What was written before the window closed is there. */
  onWindowClosed(): void {
    // The range stays this PUT's: its memory is not free before the window's proof, nor before it is released.
  }

  stop(cause: StopCause): void {
    if (this.state === 'ended') return;
    if (cause.kind === 'cancelled') this.cancelled = true;
    // A commit is carried through: the client may ask for its result on another session.
    if (this.state === 'waiting') this.fail(new FabricKvError('ERR_FABRICKV_CANCELLED'), cause);
  }

  private async commit(): Promise<void> {
    const { host, operationId, written, extents } = this;
    const { context } = host;
    try {
      const announced = written.crc32c;
      if (announced !== undefined) {
        const crc = await crcOfExtents(context.dataPlane.mapping, context.store.arena, extents);
        if (crc !== announced) {
          this.windows.hostile('the bytes of a PutWritten are not those that its CRC is of');
          throw checksumError(written.length, crc, announced);
        }
      }
      this.trace.mark('put.verified');
      const { namespace, key, length } = written;
      // The extents are the store's from now on.
      this.extents = [];
      publishPut(host, operationId, this.trace, { namespace, key, extents, length, crc32c: announced, path: 'RDMA' });
      context.counters.putsIntoSessionWindows += 1;
      this.end();
    } catch (error) {
      this.fail(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  /** @param cause when somebody wants it to stop: nobody is told of a failure then */
  private fail(error: FabricKvError, cause?: StopCause): void {
    if (this.state === 'ended') return;
    const { host, operationId } = this;
    const failed = error.with({ stage: this.trace.stage, outcome: 'not-applied' });
    this.trace.fail('put.failed', failed);
    host.context.history.settle(host.clientId, operationId, undefined);
    if (cause === undefined) {
      host.context.counters.failures += 1;
      host.fail(operationId, failed);
    } else {
      host.context.counters.putsAborted += 1;
    }
    this.end();
  }

  private end(): void {
    this.become('ended');
    clearTimeout(this.deadlineTimer);
    this.windows.release(this);
    // What is not published goes back, when the proof of its window is there.
    this.host.context.store.arena.release(this.extents);
    this.extents = [];
    if (this.entered) this.host.gate.leave();
    else this.host.gate.withdraw(this.onTurn);
    if (this.cancelled) this.host.send(this.operationId, { quiesced: {} });
    this.host.finished(this.operationId);
  }

  private become(next: WrittenState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a PutWritten goes from ${this.state} to ${next}`);
    this.state = next;
  }
}
