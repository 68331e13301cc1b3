/**
 * A value that came whole, in one message, and for which there is no memory at once.
 */

import { FabricKvError } from '../protocol/errors.js';
import { allocateExtents } from './mutations.js';
import type { OperationGate } from './operation-gate.js';
import type { ServerContext } from './server-context.js';
import type { Extent } from './store/arena.js';

/** `waiting` for the gate, `allocating`: for memory, `ended`. */
type WaitState = 'waiting' | 'allocating' | 'ended';

/** Arguments of {@link MemoryWait}. */
export interface MemoryWaitOptions {
  readonly context: ServerContext;
  /** What bounds how many wait. */
  readonly gate: OperationGate;
  readonly length: number;
  readonly timeoutMs: number;
  /** Called once, or {@link onFailed} is, or neither after {@link MemoryWait.end}. The extents are the callee's. */
  readonly onMemory: (extents: readonly Extent[]) => void;
  /** ERR_FABRICKV_CAPACITY, ERR_FABRICKV_DEADLINE, ERR_FABRICKV_RESOURCE_EXHAUSTED. */
  readonly onFailed: (error: unknown) => void;
}

/** A wait for memory: in a bounded queue, and for a limited time. */
export class MemoryWait {
  private state: WaitState = 'waiting';
  private entered = false;
  private timer: NodeJS.Timeout | undefined;
  private readonly onTurn = (): void => {
    this.entered = true;
    this.state = 'allocating';
    void this.allocate();
  };

  constructor(private readonly options: MemoryWaitOptions) {}

  /** Begins it. It may fail in this call. */
  start(): void {
    const { gate, timeoutMs } = this.options;
    const late = (): FabricKvError =>
      new FabricKvError('ERR_FABRICKV_DEADLINE', `there was no memory within ${timeoutMs} ms`);
    this.timer = setTimeout(() => this.fail(late()), timeoutMs);
    if (gate.enter(this.onTurn)) return;
    this.fail(new FabricKvError('ERR_FABRICKV_RESOURCE_EXHAUSTED', gate.refusal));
  }

  /** Nobody wants it any more. Idempotent. */
  end(): void {
    if (this.state === 'ended') return;
    this.state = 'ended';
    clearTimeout(this.timer);
    if (this.entered) this.options.gate.leave();
    else this.options.gate.withdraw(this.onTurn);
  }

  private async allocate(): Promise<void> {
    const { context, length, onMemory } = this.options;
    let extents: readonly Extent[];
    try {
      extents = await allocateExtents(context, length, () => !this.isOver());
    } catch (error) {
      this.fail(error);
      return;
    }
    if (this.isOver()) {
      context.store.arena.release(extents);
      return;
    }
    this.end();
    onMemory(extents);
  }

  private fail(error: unknown): void {
    if (this.isOver()) return;
    this.end();
    this.options.onFailed(error);
  }

  private isOver(): boolean {
    return this.state === 'ended';
  }
}
