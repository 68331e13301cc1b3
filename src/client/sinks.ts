/**
 * Where a GET may be written: a block of the receive pool, memory of its own, or a region of the caller's.
 */

import { type Mapping, mapMemory } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Counters } from './counters.js';
import type { DataPlane, IntroducedMemory } from './data-plane.js';
import type { Gated, OperationGate } from './operation-gate.js';
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

/** A sink whose bytes can become the caller's. */
export abstract class LendableSink extends Sink {
  abstract readonly mapping: Mapping;
  /** Where it begins in {@link mapping}. */
  abstract readonly mappingOffset: number;

  /** Whether {@link lend} may be called; otherwise the value is to be copied. */
  abstract canLend(length: number): boolean;

  /** Hands the first `length` bytes to the caller. */
  abstract lend(length: number): LentBytes;
}

/** A block of the receive pool. */
export class PoolSink extends LendableSink {
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

  get mappingOffset(): number {
    return this.#block.offset;
  }

  override canLend(length: number): boolean {
    this.#pool.shrink(this.#block, length);
    return this.#pool.canLend(this.#block);
  }

  override lend(length: number): LentBytes {
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

/** Memory of one GET's own, for a value that the pool cannot hold. */
export class OwnSink extends LendableSink {
  readonly mappingOffset = 0;

  constructor(
    readonly mapping: Mapping,
    introduced: IntroducedMemory,
    counters: Counters,
    private readonly dispose: () => void,
  ) {
    super(introduced.place(0).regionId, 0, mapping.sizeBytes, counters);
  }

  override canLend(): boolean {
    return true;
  }

  override lend(length: number): LentBytes {
    // The mapping lives as long as the loan, whoever closes it.
    const loan = this.mapping.lend({ offset: 0, length, token: 0, onReturned: () => undefined });
    this.leave();
    this.dispose();
    return { bytes: Buffer.from(loan.arrayBuffer), release: () => loan.release() };
  }

  protected override onFree(): void {
    this.dispose();
  }
}

/** What {@link makeOwnSink} needs. */
export interface OwnSinkOptions {
  readonly length: number;
  readonly dataPlane: DataPlane;
  readonly counters: Counters;
  /** How many may exist at a time. */
  readonly gate: OperationGate;
  readonly onSink: (sink: OwnSink) => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Maps and registers memory for one value, when its turn has come.
 *
 * @returns ends the waiting for a turn; a sink that is being made still comes
 * @throws ERR_FABRICKV_RESOURCE_EXHAUSTED when too many wait
 */
export function makeOwnSink({ length, dataPlane, counters, gate, onSink, onError }: OwnSinkOptions): () => void {
  async function make(): Promise<void> {
    let mapping: Mapping | undefined;
    try {
      mapping = await mapMemory({ sizeBytes: length, prefault: false });
      const memory = await dataPlane.introduce(mapping);
      const made = mapping;
      const dispose = async (): Promise<void> => {
        await dataPlane.withdraw(memory);
        made.close();
        gate.leave(gated);
      };
      onSink(new OwnSink(mapping, memory, counters, () => void dispose()));
    } catch (error) {
      mapping?.close();
      gate.leave(gated);
      onError(error);
    }
  }
  let admitted = false;
  const gated: Gated = {
    admit: () => {
      admitted = true;
      void make();
    },
  };
  gate.enter(gated);
  return () => {
    if (!admitted) gate.leave(gated);
  };
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
