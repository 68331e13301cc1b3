/**
 * The data of one PUT on its way into the grant: piece by piece, several at a time, each tried again when the data plane
 * fails. Bytes of the caller's go through staging in registered memory; a region is written from where it is.
 */

import type { FabricError, Mapping } from '../fabric/index.js';
import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Counters } from './counters.js';
import type { ActiveWrite, DataPlane, WriteTarget } from './data-plane.js';
import { isTransient, toClientError } from './fabric-errors.js';
import { SYNC_BYTES_MAX, TRANSFER_RETRIES_MAX, transferBackoffMs } from './limits.js';
import { type PutSource, pieceOf } from './put-source.js';
import type { Block, ReceivePool } from './receive-pool.js';
import { StateMachine, type Transitions } from './state-machine.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** Bytes of the caller's are staged in pieces of this size: the copy of one overlaps with the write of another. */
const STAGED_PIECE_BYTES = MIB;
const STAGED_PIECES_MAX = 4;

/** Of a staged value of less than two pieces the first one is smaller, so that something overlaps. */
const STAGED_PIECE_BYTES_MIN = 256 * KIB;

/** A region is written in larger pieces: their ends only tell the server how far it may check. */
const REGION_PIECE_BYTES = 8 * MIB;
const REGION_PIECES_MAX = 2;

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
interface Piece {
  readonly offset: number;
  readonly length: number;
  readonly mapping: Mapping;
  readonly mappingOffset: number;
  readonly block: Block | undefined;
  write: ActiveWrite | undefined;
}

/** What a transfer tells its PUT. */
export interface PutTransferEvents {
  /** The first write was submitted. */
  onSubmitted(): void;
  /** Every byte before this one has landed. */
  onLanded(bytes: number): void;
  /** All have landed, and this is their CRC-32C. */
  onDone(crc: number): void;
  /** It failed. */
  onError(error: FabricKvError): void;
  /** It is over, and nothing of it reads the source any more. Comes once, after one of the other two or a {@link PutTransfer.cancel}. */
  onQuiet(): void;
}

/** Options of {@link PutTransfer}. */
export interface PutTransferOptions {
  readonly source: PutSource;
  readonly extents: readonly WriteTarget[];
  readonly dataPlane: DataPlane;
  readonly pool: ReceivePool;
  readonly counters: Counters;
  readonly events: PutTransferEvents;
}

/** Writes one value into one grant. */
export class PutTransfer {
  readonly #machine = new StateMachine<TransferState>('PUT transfer', 'running', TRANSITIONS);
  readonly #options: PutTransferOptions;
  readonly #piecesMax: number;
  readonly #pieceBytes: number;
  /** Filled and not landed, by offset. */
  readonly #pieces = new Map<number, Piece>();
  /** Those of them that failed and wait for the retry. */
  #unwritten: Piece[] = [];
  #retryTimer: NodeJS.Timeout | undefined;
  #retries = 0;
  #nextOffset = 0;
  #landedBytes = 0;
  /** A piece is being filled, or the CRC of one computed: one at a time, because each CRC continues the last one. */
  #filling = false;
  #crcOffset = 0;
  #crc = 0;
  #stopWaiting: (() => void) | undefined;
  #submitted = false;
  #quiet = false;

  /** @throws ERR_FABRICKV_PROTOCOL when the grant is not as long as the value */
  constructor(options: PutTransferOptions) {
    this.#options = options;
    const { source, extents } = options;
    const granted = extents.reduce((sum, { length }) => sum + length, 0);
    if (granted !== source.length) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `a grant of ${granted} bytes for a value of ${source.length}`);
    }
    this.#piecesMax = source.kind === 'region' ? REGION_PIECES_MAX : STAGED_PIECES_MAX;
    this.#pieceBytes =
      source.kind === 'region'
        ? REGION_PIECE_BYTES
        : Math.min(STAGED_PIECE_BYTES, Math.max(STAGED_PIECE_BYTES_MIN, Math.ceil(source.length / 2)));
  }

  /** Sets out. */
  start(): void {
    this.#step(() => this.#pump());
  }

  /** Posts nothing more; `onQuiet` follows when nothing is in flight. Does nothing when it is over. */
  cancel(): void {
    if (this.#machine.state === 'running') this.#stop('cancelled');
  }

  #pump(): void {
    const { source } = this.#options;
    while (
      this.#machine.state === 'running' &&
      !this.#filling &&
      this.#stopWaiting === undefined &&
      this.#nextOffset < source.length &&
      this.#pieces.size < this.#piecesMax
    ) {
      const length = Math.min(this.#pieceBytes, source.length - this.#nextOffset);
      if (source.kind === 'region') this.#fillFromRegion(source.region.mapping, length);
      else if (!this.#fillFromBytes(source.bytes, length)) break;
    }
    this.#continueRegionCrc();
    this.#finishIfLanded();
  }

  #fillFromRegion(mapping: Mapping, length: number): void {
    const offset = this.#nextOffset;
    this.#nextOffset += length;
    this.#write(this.#enter({ offset, length, mapping, mappingOffset: offset, block: undefined, write: undefined }));
  }

  /** Returns false when there is no staging for now. */
  #fillFromBytes(bytes: Uint8Array, length: number): boolean {
    const { pool } = this.#options;
    const block = pool.tryAllocate(length);
    if (block !== undefined) {
      this.#stage(bytes, block);
      return true;
    }
    // With pieces under way their staging comes back; only a transfer that has none must wait for others.
    if (this.#pieces.size > 0) return false;
    let came = false;
    const stop = pool.allocate(Math.min(length, STAGED_PIECE_BYTES_MIN), (waited) => {
      came = true;
      this.#stopWaiting = undefined;
      this.#step(() => this.#staging(bytes, waited));
    });
    if (!came) this.#stopWaiting = stop;
    return false;
  }

  #staging(bytes: Uint8Array, block: Block | undefined): void {
    if (block === undefined) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        'no receive memory is free to stage the value: release results, or give the client more receiveMemory',
      );
    }
    this.#stage(bytes, block);
    this.#pump();
  }

  #stage(bytes: Uint8Array, block: Block): void {
    const { counters, pool } = this.#options;
    const { mapping } = pool;
    const offset = this.#nextOffset;
    const { length } = block;
    const source = pieceOf(bytes, offset, length);
    this.#nextOffset += length;
    counters.bytesCopied += length;
    const piece = this.#enter({ offset, length, mapping, mappingOffset: block.offset, block, write: undefined });
    if (length <= SYNC_BYTES_MAX) {
      this.#crc = crc32c(source, this.#crc);
      mapping.writeSync(block.offset, source);
      this.#write(piece);
      return;
    }
    this.#filling = true;
    void this.#stepAsync(piece, async () => {
      this.#crc = await mapping.copyIn({ offset: block.offset, source, crcSeed: this.#crc });
      this.#filling = false;
      this.#write(piece);
      this.#pump();
    });
  }

  /** Of a region the CRC is computed beside the writes, on a worker thread. */
  #continueRegionCrc(): void {
    const { source } = this.#options;
    if (source.kind !== 'region' || this.#filling || this.#machine.state !== 'running') return;
    const offset = this.#crcOffset;
    const length = Math.min(REGION_PIECE_BYTES, source.length - offset);
    if (length === 0) return;
    const { mapping } = source.region;
    this.#filling = true;
    void this.#stepAsync(undefined, async () => {
      this.#crc = await mapping.crc32c({ offset, length, seed: this.#crc });
      this.#crcOffset = offset + length;
      this.#filling = false;
      this.#pump();
    });
  }

  #enter(piece: Piece): Piece {
    this.#pieces.set(piece.offset, piece);
    return piece;
  }

  #write(piece: Piece): void {
    if (this.#machine.state !== 'running') {
      this.#leave(piece);
      return;
    }
    const { dataPlane, extents, events } = this.#options;
    try {
      piece.write = dataPlane.write({
        mapping: piece.mapping,
        localOffset: piece.mappingOffset,
        targets: targetsOf(extents, piece.offset, piece.length),
        onDone: (error) => this.#written(piece, error),
      });
    } catch (error) {
      this.#unwrittenPiece(piece, error);
      return;
    }
    if (this.#submitted) return;
    this.#submitted = true;
    events.onSubmitted();
  }

  #written(piece: Piece, error: FabricError | undefined): void {
    piece.write = undefined;
    if (error !== undefined && this.#machine.state === 'running') {
      this.#unwrittenPiece(piece, error);
      return;
    }
    this.#leave(piece);
    if (this.#machine.state !== 'running') return;
    this.#step(() => {
      const landed = Math.min(this.#nextOffset, ...this.#pieces.keys());
      if (landed > this.#landedBytes) {
        this.#landedBytes = landed;
        this.#options.events.onLanded(landed);
      }
      this.#pump();
    });
  }

  /** Tries the piece again after a short while, together with what fails until then: the connection died for all of them. */
  #unwrittenPiece(piece: Piece, error: unknown): void {
    this.#unwritten.push(piece);
    if (!isTransient(error) || (this.#retryTimer === undefined && this.#retries >= TRANSFER_RETRIES_MAX)) {
      this.#fail(error);
      return;
    }
    if (this.#retryTimer !== undefined) return;
    this.#retries += 1;
    this.#options.counters.retries += 1;
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = undefined;
      const pieces = this.#unwritten;
      this.#unwritten = [];
      for (const unwritten of pieces) this.#step(() => this.#write(unwritten));
    }, transferBackoffMs(this.#retries));
  }

  #finishIfLanded(): void {
    const { source, events } = this.#options;
    if (this.#machine.state !== 'running' || this.#filling || this.#pieces.size > 0) return;
    if (this.#nextOffset < source.length || (source.kind === 'region' && this.#crcOffset < source.length)) return;
    this.#machine.to('done');
    events.onDone(this.#crc);
    this.#tellWhenQuiet();
  }

  #fail(error: unknown): void {
    if (this.#machine.state !== 'running') return;
    this.#stop('failed');
    this.#options.events.onError(
      toClientError(error, { details: { bytesDone: String(this.#landedBytes), retries: String(this.#retries) } }),
    );
  }

  #stop(state: 'failed' | 'cancelled'): void {
    this.#machine.to(state);
    clearTimeout(this.#retryTimer);
    this.#stopWaiting?.();
    this.#stopWaiting = undefined;
    for (const piece of this.#unwritten.splice(0)) this.#leave(piece);
    for (const piece of this.#pieces.values()) piece.write?.cancel();
    this.#tellWhenQuiet();
  }

  /** The piece's memory is not read any more. */
  #leave(piece: Piece): void {
    this.#pieces.delete(piece.offset);
    if (piece.block !== undefined) this.#options.pool.free(piece.block);
    this.#tellWhenQuiet();
  }

  #tellWhenQuiet(): void {
    if (this.#quiet || this.#machine.state === 'running' || this.#pieces.size > 0 || this.#filling) return;
    this.#quiet = true;
    this.#options.events.onQuiet();
  }

  #step(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** A step off the JS thread, for a piece or for the CRC alone. */
  async #stepAsync(piece: Piece | undefined, step: () => Promise<void>): Promise<void> {
    try {
      await step();
    } catch (error) {
      this.#filling = false;
      if (piece !== undefined && piece.write === undefined && this.#pieces.has(piece.offset)) this.#leave(piece);
      this.#fail(error);
    }
    this.#tellWhenQuiet();
  }
}

/** The parts of the extents that take `length` bytes of the value from `offset` on. */
function targetsOf(extents: readonly WriteTarget[], offset: number, length: number): WriteTarget[] {
  const targets: WriteTarget[] = [];
  let start = 0;
  for (const extent of extents) {
    const from = Math.max(offset, start);
    const to = Math.min(offset + length, start + extent.length);
    if (from < to) {
      targets.push({
        windowId: extent.windowId,
        windowOffset: extent.windowOffset + from - start,
        length: to - from,
      });
    }
    start += extent.length;
  }
  return targets;
}
