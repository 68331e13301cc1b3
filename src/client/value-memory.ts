/**
 * Memory for one whole value that is read in ranges, over as many sessions as that takes: a block of the receive pool, memory
 * of its own, or a region of the caller's.
 */

import { type Loan, type Mapping, mapMemory } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { DataPlane, IntroducedMemory } from './data-plane.js';
import type { Gated, OperationGate } from './operation-gate.js';
import type { Block, LentBytes, ReceivePool } from './receive-pool.js';
import type { UserRegion } from './region.js';
import type { Session } from './session.js';

/** A place for a value, from the start of its reading until nothing can land in it any more. */
export abstract class ValueMemory {
  abstract readonly mapping: Mapping;
  /** Where it begins in {@link mapping}. */
  abstract readonly mappingOffset: number;
  /** Bytes. */
  abstract readonly length: number;
  /** Its owner, and each request that was given up and may still be written for. */
  #holders = 1;
  #whenQuiet: (() => void) | undefined;

  /** The memory as the session's server knows it; it is introduced when a session first needs it. */
  abstract introduceTo(session: Session, dataPlane: DataPlane): IntroducedMemory | Promise<IntroducedMemory>;

  /** A write may land in it until the returned function is called. */
  quarantine(): () => void {
    this.#holders += 1;
    return () => this.#letGo();
  }

  /** Calls back once no write that was given up can land in it, at once if that is so now. */
  whenQuiet(callback: () => void): void {
    if (this.#holders === 1) callback();
    else this.#whenQuiet = callback;
  }

  /** Whether a write that was given up may still land in it. */
  get quarantined(): boolean {
    return this.#holders > 1;
  }

  /** Its owner wants nothing of it any more. To be called once. */
  free(): void {
    this.#whenQuiet = undefined;
    if (this.quarantined) this.onQuarantine();
    this.#letGo();
  }

  /** Nothing can land in it, and its owner is gone. */
  protected abstract onFree(): void;

  /** Its owner is gone, but something may still land in it. */
  protected onQuarantine(): void {
    // Nothing to do but to wait, for most.
  }

  #letGo(): void {
    this.#holders -= 1;
    if (this.#holders === 0) {
      this.onFree();
    } else if (this.#holders === 1) {
      const whenQuiet = this.#whenQuiet;
      this.#whenQuiet = undefined;
      whenQuiet?.();
    }
  }
}

/** Memory whose bytes can become the caller's. */
export abstract class LendableMemory extends ValueMemory {
  /** Whether {@link lend} may be called; otherwise the value is to be copied. */
  abstract canLend(length: number): boolean;

  /** Hands the first `length` bytes to the caller, instead of {@link free}. */
  abstract lend(length: number): LentBytes;
}

/** A block of the receive pool. */
export class PoolMemory extends LendableMemory {
  readonly #pool: ReceivePool;
  readonly #block: Block;

  constructor(pool: ReceivePool, block: Block) {
    super();
    this.#pool = pool;
    this.#block = block;
  }

  get mapping(): Mapping {
    return this.#pool.mapping;
  }

  get mappingOffset(): number {
    return this.#block.offset;
  }

  get length(): number {
    return this.#block.length;
  }

  override introduceTo({ receiveMemory }: Session): IntroducedMemory {
    if (receiveMemory === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink without a data plane');
    return receiveMemory;
  }

  override canLend(length: number): boolean {
    if (this.quarantined) return false;
    this.#pool.shrink(this.#block, length);
    return this.#pool.canLend(this.#block);
  }

  override lend(): LentBytes {
    return this.#pool.lend(this.#block);
  }

  protected override onFree(): void {
    this.#pool.free(this.#block);
  }

  protected override onQuarantine(): void {
    this.#pool.quarantine(this.#block);
  }
}

/** Memory of one GET's own, for a value that the pool cannot hold. */
export class OwnMemory extends LendableMemory {
  readonly mappingOffset = 0;
  #introduced: { readonly dataPlane: DataPlane; readonly memory: Promise<IntroducedMemory> } | undefined;

  constructor(
    readonly mapping: Mapping,
    private readonly onGone: () => void,
  ) {
    super();
  }

  get length(): number {
    return this.mapping.sizeBytes;
  }

  override introduceTo(_session: Session, dataPlane: DataPlane): Promise<IntroducedMemory> {
    if (this.#introduced?.dataPlane === dataPlane) return this.#introduced.memory;
    const memory = dataPlane.introduce(this.mapping);
    this.#introduced = { dataPlane, memory };
    return memory;
  }

  override canLend(): boolean {
    return !this.quarantined;
  }

  override lend(length: number): LentBytes {
    // The mapping lives as long as the loan, whoever closes it.
    const loan: Loan = this.mapping.lend({ offset: 0, length, onReturned: nothing });
    void this.#dispose();
    return { bytes: Buffer.from(loan.arrayBuffer), release: () => loan.release() };
  }

  protected override onFree(): void {
    void this.#dispose();
  }

  /** Takes the memory back from the server, and gives it up. Never rejects. */
  async #dispose(): Promise<void> {
    const introduced = this.#introduced;
    if (introduced !== undefined) {
      // An introduction that failed has left nothing behind.
      const [memory] = await Promise.allSettled([introduced.memory]);
      if (memory.status === 'fulfilled') await introduced.dataPlane.withdraw(memory.value);
    }
    this.mapping.close();
    this.onGone();
  }
}

/** A region of the caller's, which whoever makes this holds as a sink until `onQuiet`. */
export class RegionMemory extends ValueMemory {
  readonly mappingOffset = 0;

  constructor(
    private readonly region: UserRegion,
    private readonly onQuiet: () => void,
  ) {
    super();
  }

  get mapping(): Mapping {
    return this.region.mapping;
  }

  get length(): number {
    return this.region.sizeBytes;
  }

  override introduceTo(_session: Session, dataPlane: DataPlane): Promise<IntroducedMemory> {
    return this.region.introduceTo(dataPlane);
  }

  protected override onFree(): void {
    this.onQuiet();
  }
}

/** What {@link mapOwnMemory} needs. */
export interface OwnMemoryOptions {
  readonly length: number;
  /** How many may exist at a time. */
  readonly gate: OperationGate;
  readonly onMemory: (memory: OwnMemory) => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Maps memory for one value, when its turn has come.
 *
 * @returns ends the waiting for a turn; memory that is being made still comes
 * @throws ERR_FABRICKV_RESOURCE_EXHAUSTED when too many wait
 */
export function mapOwnMemory({ length, gate, onMemory, onError }: OwnMemoryOptions): () => void {
  let admitted = false;
  const map = async (): Promise<void> => {
    let mapping: Mapping;
    try {
      mapping = await mapMemory({ sizeBytes: length, prefault: false });
    } catch (error) {
      gate.leave(gated);
      onError(error);
      return;
    }
    onMemory(new OwnMemory(mapping, () => gate.leave(gated)));
  };
  const gated: Gated = {
    admit: () => {
      admitted = true;
      void map();
    },
  };
  gate.enter(gated);
  return () => {
    if (!admitted) gate.leave(gated);
  };
}

// Apart from `lend`: a closure keeps all that its function has, and a loan that is kept is never collected.
function nothing(): void {
  // The mapping frees itself.
}
