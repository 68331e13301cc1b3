/**
 * The client's registered memory: sinks of GETs, staging of PUTs, and results that the caller holds. A block that the
 * server may still write into is in quarantine, and nobody gets it before its quiescence is proved.
 */

import type { Mapping } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { allocationBytes, FreeList } from './free-list.js';
import type { Transitions } from './state-machine.js';

/**
 * - `transit`: an operation in flight has it, as a sink or as staging.
 * - `lent`: the caller has it, as the bytes of a result.
 * - `quarantined`: no operation has it, but a write may still land in it.
 * - `free`: it is the pool's again; the end of a block's life.
 */
export type BlockState = 'transit' | 'lent' | 'quarantined' | 'free';

const TRANSITIONS: Transitions<BlockState> = {
  transit: ['lent', 'quarantined', 'free'],
  lent: ['free'],
  quarantined: ['free'],
  free: [],
};

/** A piece of the pool, from its allocation until it is free. */
export interface Block {
  readonly offset: number;
  /** Usable bytes. */
  readonly length: number;
  readonly state: BlockState;
}

class PoolBlock implements Block {
  state: BlockState = 'transit';
  constructor(
    readonly offset: number,
    public length: number,
  ) {}
}

/** A result in the caller's hands. */
export interface LentBytes {
  readonly bytes: Buffer;
  /** Detaches the bytes and gives the memory back; idempotent. Otherwise the garbage collector does it some day. */
  release(): void;
}

interface Waiter {
  readonly length: number;
  readonly onBlock: (block: Block | undefined) => void;
}

/** Options of {@link ReceivePool}. */
export interface ReceivePoolOptions {
  readonly mapping: Mapping;
  /** The longest piece of memory that one registration covers; bytes. No block crosses a multiple of it. */
  readonly regionBytesMax: number;
  /** The most operations that may wait for a block. */
  readonly waitersMax: number;
}

/** Allocates blocks of one mapping. */
export class ReceivePool {
  readonly mapping: Mapping;
  readonly #free: FreeList;
  readonly #held: Record<BlockState, number> = { transit: 0, lent: 0, quarantined: 0, free: 0 };
  readonly #waiters = new Set<Waiter>();
  readonly #waitersMax: number;
  readonly #sizeBytes: number;
  readonly #regionBytesMax: number;
  #serving = false;
  #closed = false;

  constructor({ mapping, regionBytesMax, waitersMax }: ReceivePoolOptions) {
    this.mapping = mapping;
    this.#waitersMax = waitersMax;
    this.#regionBytesMax = Math.min(regionBytesMax, mapping.sizeBytes);
    this.#free = new FreeList(mapping.sizeBytes, this.#regionBytesMax);
    this.#sizeBytes = this.#free.freeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get freeBytes(): number {
    return this.#free.freeBytes;
  }

  get lentBytes(): number {
    return this.#held.lent;
  }

  get transitBytes(): number {
    return this.#held.transit;
  }

  get quarantinedBytes(): number {
    return this.#held.quarantined;
  }

  /** The block for `length` bytes (at least 1), or undefined when there is no room for it now. */
  tryAllocate(length: number): Block | undefined {
    if (this.#closed) return undefined;
    const offset = this.#free.take(length);
    if (offset === undefined) return undefined;
    this.#held.transit += allocationBytes(length);
    return new PoolBlock(offset, length);
  }

  /**
   * A block for an operation that can do without any. It is refused while half of the pool is in use, so that guesses do
   * not take what others need.
   */
  tryGuess(length: number): Block | undefined {
    return this.#free.freeBytes - length < this.#sizeBytes / 2 ? undefined : this.tryAllocate(length);
  }

  /**
   * Waits for a block that other operations in flight will give back, first come, first served. It does not wait for what callers
   * hold, so `onBlock` gets undefined when no operation is left to wait for: use memory of the operation's own then.
   *
   * @returns ends the waiting; a block that was given already is the receiver's
   */
  allocate(length: number, onBlock: (block: Block | undefined) => void): () => void {
    const block = this.#waiters.size === 0 ? this.tryAllocate(length) : undefined;
    if (
      block !== undefined ||
      this.#closed ||
      length > Math.min(this.#sizeBytes / 4, this.#regionBytesMax) ||
      this.#held.transit === 0 ||
      this.#waiters.size >= this.#waitersMax
    ) {
      onBlock(block);
      return () => undefined;
    }
    const waiter = { length, onBlock };
    this.#waiters.add(waiter);
    return () => {
      if (this.#waiters.delete(waiter)) this.#serve();
    };
  }

  /** Gives back the end of a block that turned out too long. */
  shrink(block: Block, length: number): void {
    const own = this.#own(block);
    const surplus = allocationBytes(own.length) - allocationBytes(length);
    if (own.state !== 'transit' || surplus < 0 || length < 1) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', `a ${own.state} block of ${own.length} cannot become ${length}`);
    }
    if (surplus > 0) {
      this.#free.give(own.offset + allocationBytes(length), surplus);
      this.#held.transit -= surplus;
    }
    own.length = length;
    if (surplus > 0) this.#serve();
  }

  /** Gives a block back: nothing is, or ever will be, written into it on behalf of its operation. */
  free(block: Block): void {
    const own = this.#own(block);
    this.#move(own, 'free');
    this.#free.give(own.offset, own.length);
    this.#serve();
    this.#unmapIfQuiet();
  }

  /** Its operation is over, but a write may still land in it. {@link free} ends that, once it is proved that none can. */
  quarantine(block: Block): void {
    this.#move(this.#own(block), 'quarantined');
    this.#serve();
  }

  /** Whether a block may be handed to the caller: a quarter of the pool always stays for operations in flight. */
  canLend(block: Block): boolean {
    return (
      this.#held.lent + this.#held.quarantined + allocationBytes(block.length) <= (this.#sizeBytes / 4) * 3 &&
      !this.#closed
    );
  }

  /** Hands a block to the caller as an ArrayBuffer of its own. */
  lend(block: Block): LentBytes {
    const own = this.#own(block);
    // First: a loan of a block in quarantine would free it when it is collected.
    assertTransition(own.state, 'lent');
    const { offset, length } = own;
    const loan = this.mapping.lend({ offset, length, onReturned: this.#freeing(own) });
    this.#move(own, 'lent');
    this.#serve();
    return { bytes: Buffer.from(loan.arrayBuffer), release: () => loan.release() };
  }

  /** Apart from {@link lend}: a closure keeps all that its function has, and a loan that is kept is never collected. */
  #freeing(block: PoolBlock): () => void {
    return () => this.free(block);
  }

  /** Unmaps the memory once no loan is out and nothing is in quarantine, and sends those who wait away. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#serve();
    this.#unmapIfQuiet();
  }

  #unmapIfQuiet(): void {
    if (this.#closed && this.#held.quarantined === 0) this.mapping.close();
  }

  #own(block: Block): PoolBlock {
    if (block instanceof PoolBlock) return block;
    throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'the block is not of this pool');
  }

  #move(block: PoolBlock, to: BlockState): void {
    assertTransition(block.state, to);
    const bytes = allocationBytes(block.length);
    this.#held[block.state] -= bytes;
    block.state = to;
    if (to !== 'free') this.#held[to] += bytes;
  }

  /** Gives waiters what there is, in their order; the first that does not fit keeps the others waiting behind it. */
  #serve(): void {
    if (this.#serving) return;
    this.#serving = true;
    try {
      for (const waiter of this.#waiters) {
        const block = this.tryAllocate(waiter.length);
        if (block === undefined && this.#held.transit > 0 && !this.#closed) return;
        this.#waiters.delete(waiter);
        waiter.onBlock(block);
      }
    } finally {
      this.#serving = false;
    }
  }
}

function assertTransition(from: BlockState, to: BlockState): void {
  if (TRANSITIONS[from].includes(to)) return;
  throw new FabricKvError('ERR_FABRICKV_INTERNAL', `receive block: ${from} → ${to} is not a transition`);
}
