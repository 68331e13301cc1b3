/**
 * Where one request of a GET may be written: a block of the receive pool, or a region of the caller's.
 */

import type { Mapping } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Counters } from './counters.js';
import type { IntroducedMemory } from './data-plane.js';
import type { Block, LentBytes, ReceivePool } from './receive-pool.js';
import { StateMachine, type Transitions } from './state-machine.js';

/**
 * - `named`: a request names it; the server may write into it.
 * - `received`: the server is done with it, and the value is in it.
 * - `quarantined`: its operation was given up, but a write may still land in it.
 * - `gone`: given back, or handed to the caller.
 */
type SinkState = 'named' | 'received' | 'quarantined' | 'gone';

const TRANSITIONS: Transitions<SinkState> = {
  named: ['received', 'quarantined', 'gone'],
  received: ['gone'],
  quarantined: ['gone'],
  gone: [],
};

/** A sink, from the request that names it until its memory is somebody else's. */
export abstract class Sink {
  readonly #machine = new StateMachine<SinkState>('sink', 'named', TRANSITIONS);

  constructor(
    readonly regionId: number,
    /** In the region. */
    readonly offset: number,
    readonly length: number,
    private readonly counters: Counters,
  ) {}

  /** The server has said that the value is in it. */
  receive(): void {
    this.#machine.to('received');
  }

  /** Its operation is given up while the server may write into it; {@link free} ends that. */
  quarantine(): void {
    this.#machine.to('quarantined');
    this.counters.quarantinedBytes += this.length;
    this.onQuarantine();
  }

  /** Nothing is written into it any more, and nobody wants what is in it. */
  free(): void {
    this.leave();
    this.onFree();
  }

  /** It changes hands: what it was is over. */
  protected leave(): void {
    if (this.#machine.state === 'quarantined') this.counters.quarantinedBytes -= this.length;
    this.#machine.to('gone');
  }

  protected abstract onFree(): void;

  protected onQuarantine(): void {
    // Nothing to do but to wait, for most.
  }
}

/** A block of the receive pool, whose bytes can become the caller's. */
export class PoolSink extends Sink {
  readonly #pool: ReceivePool;
  readonly #block: Block;

  constructor(pool: ReceivePool, block: Block, introduced: IntroducedMemory, counters: Counters) {
    const { regionId, offset } = introduced.place(block.offset);
    super(regionId, offset, block.length, counters);
    this.#pool = pool;
    this.#block = block;
  }

  get mapping(): Mapping {
    return this.#pool.mapping;
  }

  /** Where it begins in {@link mapping}. */
  get mappingOffset(): number {
    return this.#block.offset;
  }

  /** Whether {@link lend} may be called; otherwise the value is to be copied. */
  canLend(length: number): boolean {
    this.#pool.shrink(this.#block, length);
    return this.#pool.canLend(this.#block);
  }

  /** Hands the first `length` bytes to the caller. */
  lend(length: number): LentBytes {
    this.#pool.shrink(this.#block, length);
    const lent = this.#pool.lend(this.#block);
    this.leave();
    return lent;
  }

  protected override onQuarantine(): void {
    this.#pool.quarantine(this.#block);
  }

  protected override onFree(): void {
    this.#pool.free(this.#block);
  }
}

/** A region of the caller's, for one request of a getInto. */
export class RegionSink extends Sink {
  constructor(
    introduced: IntroducedMemory,
    counters: Counters,
    private readonly onQuiet: () => void,
  ) {
    const [range] = introduced.ranges;
    if (range === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a region without memory');
    super(range.regionId, 0, range.length, counters);
  }

  protected override onFree(): void {
    this.onQuiet();
  }
}
