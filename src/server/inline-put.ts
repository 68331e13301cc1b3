/**
 * A PUT of one message that waits for memory: the rest of the arena may be in quarantine, or in windows.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { OperationTrace } from '../protocol/stages.js';
import { attempt } from './attempt.js';
import { MemoryWait } from './memory-wait.js';
import type { ActiveOperation, OperationTable, StopCause } from './operation.js';
import type { Extent } from './store/arena.js';

/** What is to be done when there is memory, and for how long it is waited for. */
export interface InlinePutRequest {
  readonly length: number;
  readonly timeoutMs: number;
  /** Publishes the value, and sends the result. */
  readonly store: (extents: readonly Extent[]) => void;
}

/** One such PUT; the history must not know it before. */
export class InlinePut implements ActiveOperation {
  private readonly wait: MemoryWait;
  private ended = false;

  constructor(
    private readonly host: OperationTable,
    private readonly operationId: number,
    readonly trace: OperationTrace,
    { length, timeoutMs, store }: InlinePutRequest,
  ) {
    this.wait = new MemoryWait({
      context: host.context,
      gate: host.gate,
      length,
      timeoutMs,
      onMemory: (extents) => this.finish(() => store(extents)),
      onFailed: (error) =>
        this.finish(() => {
          throw error;
        }),
    });
  }

  /** Begins to wait. */
  start(): void {
    this.host.started(this.operationId, this);
    this.host.context.history.begin(this.host.clientId, this.operationId);
    this.wait.start();
  }

  stop(cause: StopCause): void {
    if (this.ended) return;
    this.trace.fail('put.failed', new FabricKvError('ERR_FABRICKV_CANCELLED'));
    this.host.context.counters.putsAborted += 1;
    this.wait.end();
    this.end();
    if (cause.kind === 'cancelled') this.host.send(this.operationId, { quiesced: {} });
  }

  private finish(work: () => void): void {
    attempt(this.host, this.operationId, this.trace, work);
    this.end();
  }

  private end(): void {
    this.ended = true;
    this.host.finished(this.operationId);
    // Whoever asked for the same meanwhile may do it now, unless it was published: then its result is known already.
    this.host.context.history.settle(this.host.clientId, this.operationId, undefined);
  }
}
