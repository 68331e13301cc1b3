/**
 * The data of one PUT on its way into its room on the server: piece by piece, several at a time. What the kinds of sources
 * have in common; how pieces come about is theirs (put-transfers.ts, put-stream-transfer.ts).
 */

import type { FabricError, Mapping } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Counters } from './counters.js';
import type { ActiveWrite, DataPlane } from './data-plane.js';
import { toClientError } from './fabric-errors.js';
import type { GrantedRoom } from './granted-room.js';
import type { Block, ReceivePool } from './receive-pool.js';
import { StateMachine, type Transitions } from './state-machine.js';
import type { ValueCrc } from './value-crc.js';

const KIB = 1024;

/** When the pool is short, a transfer makes do with staging of this size. */
export const STAGED_PIECE_BYTES_MIN = 256 * KIB;

/** Bytes of the caller's are staged in pieces of this size: the copy of one overlaps with the write of another. */
export const STAGED_PIECE_BYTES = 1024 * KIB;
export const STAGED_PIECES_MAX = 4;

/**
 * - `running`: pieces are filled and written.
 * - `done`: every byte has landed and the CRC is known.
 * - `failed`, `cancelled`: nothing new is posted; writes may still be in flight.
 */
type TransferState = 'running' | 'done' | 'failed' | 'cancelled';

const TRANSITIONS: Transitions<TransferState> = {
  running: ['done', 'failed', 'cancelled'],
  done: [],
  failed: [],
  cancelled: [],
};

/** A piece of the value from its staging until it has landed. */
export interface Piece {
  readonly offset: number;
  readonly length: number;
  readonly mapping: Mapping;
  readonly mappingOffset: number;
  /** Its staging; undefined when it is written from where it is. */
  readonly block: Block | undefined;
  /** - `filling`. - `waiting`: for its window. - `writing`. */
  state: 'filling' | 'waiting' | 'writing';
  write: ActiveWrite | undefined;
}

/** What a transfer tells its PUT. */
export interface PutTransferEvents {
  /** The first write was submitted. */
  onSubmitted(): void;
  /** Every byte before this one has landed. */
  onLanded(bytes: number): void;
  /** All have landed, so many of them, and the CRC is complete. */
  onDone(length: number): void;
  /** It failed. What is in flight of it comes back before or after. */
  onError(error: FabricKvError): void;
  /** Of a value of unknown length: it needs this much more room than it has. {@link PutTransfer.roomGranted} answers. */
  onRoomNeeded(bytes: number): void;
  /**
   * Nothing of it reads the source any more. Comes once: after {@link onDone} or a {@link PutTransfer.cancel}, or when it has
   * failed, then possibly before {@link onError}.
   */
  onQuiet(): void;
}

/** Options of {@link PutTransfer}. */
export interface PutTransferOptions {
  readonly room: GrantedRoom;
  readonly crc: ValueCrc;
  readonly dataPlane: DataPlane;
  readonly pool: ReceivePool;
  readonly counters: Counters;
  readonly events: PutTransferEvents;
}

/** Writes one value into its room. */
export abstract class PutTransfer {
  protected readonly options: PutTransferOptions;
  /** Of the value: where the next piece begins. */
  protected nextOffset = 0;
  /**
   * Something is done off the JS thread, or awaited, for a piece or the CRC: one thing at a time, because each CRC continues the last one.
   */
  protected busy = false;
  readonly #machine = new StateMachine<TransferState>('PUT transfer', 'running', TRANSITIONS);
  /** Filled or being filled, and not landed, by offset. */
  readonly #pieces = new Map<number, Piece>();
  #landedBytes = 0;
  #stopWaiting: (() => void) | undefined;
  #submitted = false;
  #quiet = false;

  constructor(options: PutTransferOptions) {
    this.options = options;
  }

  /** Sets out. */
  start(): void {
    this.step(() => this.pump());
  }

  /** There is more room. */
  roomGranted(): void {
    this.step(() => this.pump());
  }

  /** Posts nothing more; `onQuiet` comes when nothing is in flight, at once if nothing is. Does nothing when it is over. */
  cancel(): void {
    if (this.running) this.#stop('cancelled');
  }

  /** Whether bytes that the source has given are on their way. */
  get isMoving(): boolean {
    return this.#pieces.size > 0;
  }

  /** Begins all that can be begun now, and then calls {@link finishIfLanded}. Called whenever something has ended. */
  protected abstract pump(): void;

  /** Whether all pieces have been entered and the CRC is complete. */
  protected abstract isComplete(): boolean;

  /** Whatever still feeds it is to stop. */
  protected stopped(): void {
    // Most have nothing that feeds them.
  }

  protected get running(): boolean {
    return this.#machine.state === 'running';
  }

  protected get piecesUnderWay(): number {
    return this.#pieces.size;
  }

  protected get waitingForStaging(): boolean {
    return this.#stopWaiting !== undefined;
  }

  /** Enters a piece, which takes its place in the value. */
  protected enter(length: number, mapping: Mapping, mappingOffset: number, block?: Block): Piece {
    const offset = this.nextOffset;
    this.nextOffset += length;
    const piece: Piece = { offset, length, mapping, mappingOffset, block, state: 'filling', write: undefined };
    this.#pieces.set(offset, piece);
    return piece;
  }

  /**
   * Staging, at once or later, for a piece of at most `length` bytes.
   *
   * @returns false when it comes later, or when pieces of this transfer will give theirs back
   */
  protected stage(length: number, onBlock: (block: Block) => void): boolean {
    const { pool } = this.options;
    const block = pool.tryAllocate(length);
    if (block !== undefined) {
      onBlock(block);
      return true;
    }
    // With pieces under way their staging comes back; only a transfer that has none must wait for others.
    if (this.#pieces.size > 0) return false;
    let came = false;
    let isLate = false;
    const stop = pool.allocate(Math.min(length, STAGED_PIECE_BYTES_MIN), (waited) => {
      came = true;
      this.#stopWaiting = undefined;
      this.step(() => {
        if (waited === undefined) throw noStaging();
        onBlock(waited);
        if (isLate && this.running) this.pump();
      });
    });
    if (came) return true;
    isLate = true;
    this.#stopWaiting = stop;
    return false;
  }

  /** Writes a piece that is filled; when its window is not there yet, as soon as it is. */
  protected write(piece: Piece): void {
    if (!this.running) {
      this.leave(piece);
      return;
    }
    const { dataPlane, room, events } = this.options;
    const targets = room.part(piece.offset, piece.length);
    const expected = targets.find(({ window }) => window.state === 'expected');
    if (expected !== undefined) {
      piece.state = 'waiting';
      expected.window.whenKnown(() => {
        if (this.#pieces.get(piece.offset) === piece) this.step(() => this.write(piece));
      });
      return;
    }
    piece.write = dataPlane.write({
      mapping: piece.mapping,
      localOffset: piece.mappingOffset,
      targets,
      onDone: (error) => this.#written(piece, error),
    });
    piece.state = 'writing';
    if (this.#submitted) return;
    this.#submitted = true;
    events.onSubmitted();
  }

  /** The piece's memory is not read any more. */
  protected leave(piece: Piece): void {
    this.#pieces.delete(piece.offset);
    if (piece.block !== undefined) this.options.pool.free(piece.block);
    this.#tellWhenQuiet();
  }

  protected finishIfLanded(): void {
    if (!this.running || this.busy || this.#pieces.size > 0 || !this.isComplete()) return;
    this.#machine.to('done');
    this.options.events.onDone(this.nextOffset);
    this.#tellWhenQuiet();
  }

  protected fail(error: unknown): void {
    if (!this.running) return;
    this.#stop('failed');
    this.options.events.onError(toClientError(error, { details: { bytesDone: String(this.#landedBytes) } }));
  }

  /** A step; what it throws ends the transfer. */
  protected step(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.fail(error);
    }
  }

  /** A step off the JS thread, or one that waits. What it throws ends the transfer; afterwards it goes on. */
  protected async stepAsync(step: () => Promise<void>): Promise<void> {
    this.busy = true;
    try {
      await step();
    } catch (error) {
      this.fail(error);
    }
    this.busy = false;
    if (this.running) this.step(() => this.pump());
    else for (const piece of [...this.#pieces.values()]) if (piece.state === 'filling') this.leave(piece);
    this.#tellWhenQuiet();
  }

  #written(piece: Piece, error: FabricError | FabricKvError | undefined): void {
    piece.write = undefined;
    this.leave(piece);
    if (!this.running) return;
    if (error !== undefined) {
      this.fail(error);
      return;
    }
    this.step(() => {
      let landed = this.nextOffset;
      for (const { offset } of this.#pieces.values()) landed = Math.min(landed, offset);
      if (landed > this.#landedBytes) {
        this.#landedBytes = landed;
        this.options.events.onLanded(landed);
      }
      if (this.running) this.pump();
    });
  }

  #stop(state: 'failed' | 'cancelled'): void {
    this.#machine.to(state);
    this.#stopWaiting?.();
    this.#stopWaiting = undefined;
    this.stopped();
    for (const piece of [...this.#pieces.values()]) {
      if (piece.state === 'writing') piece.write?.cancel();
      // What is being filled is left by the step that fills it.
      else if (piece.state === 'waiting' || !this.busy) this.leave(piece);
    }
    this.#tellWhenQuiet();
  }

  #tellWhenQuiet(): void {
    if (this.#quiet || this.running || this.#pieces.size > 0 || this.busy) return;
    this.#quiet = true;
    this.options.events.onQuiet();
  }
}

function noStaging(): FabricKvError {
  return new FabricKvError(
    'ERR_FABRICKV_RESOURCE_EXHAUSTED',
    'no receive memory is free to stage the value: release results, or give the client more receiveMemory',
  );
}
