/**
 * Registered memory of the caller's own: what `getInto` receives into and `put` sends from without a copy.
 */

import type { Mapping } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { DataPlane, IntroducedMemory } from './data-plane.js';

/** The longest view of a region; one Buffer cannot be much longer on every Node.js. */
const VIEW_BYTES_MAX = 1024 ** 3;

/** Memory from `KvClient.allocate`. */
export interface Region {
  /** Bytes. */
  readonly sizeBytes: number;
  /**
   * The whole region.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT when it is longer than 1 GiB: use {@link view}
   */
  readonly buffer: Buffer;
  /** Whether an operation, or a write that may still land after its operation was given up, uses the region. */
  readonly busy: boolean;
  /**
   * A piece of the region, of at most 1 GiB. Views stay valid after {@link release}, but then cost the memory.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT when it leaves the region or is too long
   */
  view(offset: number, length: number): Buffer;
  /** Resolves when the region is not {@link busy}, or the client is closed. It can last as long as the session. */
  quiesced(): Promise<void>;
  /**
   * Gives the region back, once it is quiet; it cannot be used for operations any more from now on. Idempotent. Closing
   * the client does the same.
   */
  release(): Promise<void>;
}

/** How an operation holds a region: many may send from it at a time, or one may receive into it. */
export type RegionUse = 'source' | 'sink';

/** A region with what operations need of it. */
export class UserRegion implements Region {
  readonly mapping: Mapping;
  /** The client that it belongs to. */
  readonly owner: object;
  readonly #uses: Record<RegionUse, number> = { source: 0, sink: 0 };
  readonly #onReleased: (region: UserRegion) => void;
  #whenQuiet: (() => void)[] = [];
  #buffer: Buffer | undefined;
  #introduced: { readonly dataPlane: DataPlane; readonly memory: Promise<IntroducedMemory> } | undefined;
  /** Where it was last prepared as a source of writes; what an earlier session had of it went with the session. */
  #sourceOf: DataPlane | undefined;
  #releasing: Promise<void> | undefined;
  #closed = false;

  constructor(mapping: Mapping, owner: object, onReleased: (region: UserRegion) => void) {
    this.mapping = mapping;
    this.owner = owner;
    this.#onReleased = onReleased;
  }

  get sizeBytes(): number {
    return this.mapping.sizeBytes;
  }

  get buffer(): Buffer {
    this.#buffer ??= this.view(0, this.sizeBytes);
    return this.#buffer;
  }

  get busy(): boolean {
    return this.#uses.source + this.#uses.sink > 0;
  }

  view(offset: number, length: number): Buffer {
    const fits = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
    if (!fits || offset + length > this.sizeBytes || length > VIEW_BYTES_MAX) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        `a view of ${length} bytes at ${offset} of a region of ${this.sizeBytes}; views have at most ${VIEW_BYTES_MAX}`,
      );
    }
    if (this.#closed) throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the region was released');
    return length === 0 ? Buffer.alloc(0) : this.mapping.buffer(offset, length);
  }

  quiesced(): Promise<void> {
    return this.busy && !this.#closed ? new Promise((resolve) => this.#whenQuiet.push(resolve)) : Promise.resolve();
  }

  release(): Promise<void> {
    this.#releasing ??= this.#release();
    return this.#releasing;
  }

  /**
   * An operation begins to use the region. Each needs an {@link unhold}.
   *
   * @throws ERR_FABRICKV_REGION_BUSY, ERR_FABRICKV_INVALID_ARGUMENT when it was released
   */
  hold(use: RegionUse): void {
    if (this.#releasing !== undefined) {
      throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the region was released');
    }
    if (use === 'sink' ? this.busy : this.#uses.sink > 0) throw new FabricKvError('ERR_FABRICKV_REGION_BUSY');
    this.#uses[use] += 1;
  }

  /** The operation's use is over, and nothing of it can be written or read any more. */
  unhold(use: RegionUse): void {
    if (this.#uses[use] < 1) throw new FabricKvError('ERR_FABRICKV_INTERNAL', `the region is in no use as a ${use}`);
    this.#uses[use] -= 1;
    if (this.busy) return;
    this.#tellWaiting();
    if (this.#closed) this.mapping.close();
  }

  /** The region as the session's server knows it; it is introduced when a session first needs it. */
  introduceTo(dataPlane: DataPlane): Promise<IntroducedMemory> {
    if (this.#introduced?.dataPlane === dataPlane) return this.#introduced.memory;
    const memory = dataPlane.introduce(this.mapping);
    const introduced = { dataPlane, memory };
    this.#introduced = introduced;
    // One that failed may be tried again by the next operation.
    memory.catch(() => {
      if (this.#introduced === introduced) this.#introduced = undefined;
    });
    return memory;
  }

  /** A view of a part of it, if one of the whole region has been made already: making one costs more than a small task. */
  seenBytes(offset: number, length: number): Uint8Array | undefined {
    return this.#buffer?.subarray(offset, offset + length);
  }

  /** Makes the region usable as a source of writes in a session. */
  prepareSource(dataPlane: DataPlane): Promise<void> {
    this.#sourceOf = dataPlane;
    return dataPlane.prepareSource(this.mapping);
  }

  /**
   * The client is closed. Memory that something may still be written into stays mapped until the use of it is over. Views
   * that the caller has keep the memory.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#releasing ??= Promise.resolve();
    this.#buffer = undefined;
    this.#tellWaiting();
    if (!this.busy) this.mapping.close();
  }

  #tellWaiting(): void {
    const waiting = this.#whenQuiet;
    this.#whenQuiet = [];
    for (const resolve of waiting) resolve();
  }

  async #release(): Promise<void> {
    await this.quiesced();
    const introduced = this.#introduced;
    if (introduced !== undefined) {
      // An introduction that failed has left nothing behind.
      const [memory] = await Promise.allSettled([introduced.memory]);
      if (memory.status === 'fulfilled') await introduced.dataPlane.withdraw(memory.value);
    }
    await this.#sourceOf?.forgetSource(this.mapping);
    this.#onReleased(this);
    this.close();
  }
}
