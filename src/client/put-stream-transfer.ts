/**
 * The transfer of a stream: what it gives is collected into staged pieces of 1 MiB, whatever its own are, and it is read
 * no faster than they are written.
 */

import { SYNC_BYTES_MAX } from './limits.js';
import { PutTransfer, type PutTransferOptions, STAGED_PIECE_BYTES, STAGED_PIECES_MAX } from './put-transfer.js';
import type { Block } from './receive-pool.js';
import type { StreamLength } from './stream-length.js';
import type { StreamReader } from './stream-reader.js';

/** Room for a value of unknown length is asked for while so much of it is left, so that the writes need not wait for it. */
const ROOM_AHEAD_BYTES = 8 * 1024 * 1024;

/** The most that is asked for at a time: the protocol's own limit. */
const ROOM_BYTES_MAX = 16 * 1024 * 1024;

/** The first time it is this; then as much as there is already. */
const ROOM_BYTES_FIRST = 1024 * 1024;

/** What the source has given is written when it gives nothing more for this long, so that no staging waits with it. */
const PARTIAL_PIECE_MS = 50;

/** Options of {@link StreamTransfer}. */
export interface StreamTransferOptions extends PutTransferOptions {
  readonly reader: StreamReader;
  readonly length: StreamLength;
}

/** Writes a stream. */
export class StreamTransfer extends PutTransfer {
  readonly #reader: StreamReader;
  readonly #length: StreamLength;
  #begun = false;
  #ended = false;
  #roomPending = false;
  /** What is being waited for may be there. */
  #wake: (() => void) | undefined;

  constructor(options: StreamTransferOptions) {
    super(options);
    this.#reader = options.reader;
    this.#length = options.length;
  }

  override roomGranted(): void {
    this.#roomPending = false;
    super.roomGranted();
  }

  protected override pump(): void {
    if (!this.#begun) {
      this.#begun = true;
      void this.stepAsync(() => this.#feed());
    }
    this.#wake?.();
    this.finishIfLanded();
  }

  protected override isComplete(): boolean {
    return this.#ended;
  }

  protected override stopped(): void {
    this.#reader.interrupt();
    this.#wake?.();
  }

  /** Runs until the stream has ended, or the transfer. */
  async #feed(): Promise<void> {
    for (;;) {
      await this.#until(() => this.piecesUnderWay < STAGED_PIECES_MAX);
      const readiness = this.#reader.available ? 'bytes' : await this.#reader.ready();
      if (!this.running) return;
      if (readiness === 'ended') {
        this.#length.checkEnd(this.nextOffset);
        this.#ended = true;
        return;
      }
      this.#length.checkMore(this.nextOffset);
      await this.#until(() => this.#roomBytes > 0 || this.#askForRoom());
      if (!this.running) return;
      const block = await this.#staging(
        Math.min(STAGED_PIECE_BYTES, this.#roomBytes, this.#length.bytesMax - this.nextOffset),
      );
      if (block === undefined) return;
      await this.#fill(block);
    }
  }

  get #roomBytes(): number {
    return this.options.room.length - this.nextOffset;
  }

  /** Returns false always: the room comes later. */
  #askForRoom(): false {
    const { room, events } = this.options;
    if (this.#roomPending || this.#length.known !== undefined) return false;
    const bytes = Math.min(
      ROOM_BYTES_MAX,
      Math.max(ROOM_BYTES_FIRST, room.length),
      this.#length.bytesMax - room.length,
    );
    if (bytes <= 0) return false;
    this.#roomPending = true;
    events.onRoomNeeded(bytes);
    return false;
  }

  /** Waits until it holds, or the transfer has ended. */
  async #until(holds: () => boolean): Promise<void> {
    while (this.running && !holds()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    this.#wake = undefined;
  }

  /** Staging of at most so much; undefined when the transfer has ended. */
  async #staging(length: number): Promise<Block | undefined> {
    let block: Block | undefined;
    let isAsked = false;
    await this.#until(() => {
      if (block !== undefined) return true;
      if (isAsked && this.waitingForStaging) return false;
      isAsked = true;
      this.stage(length, (staged) => {
        block = staged;
      });
      return block !== undefined;
    });
    if (block !== undefined && !this.running) {
      this.options.pool.free(block);
      return undefined;
    }
    return block;
  }

  /** Fills a piece and writes it; at the end of the stream, or when the source is slow, it is shorter. */
  async #fill(block: Block): Promise<void> {
    const { pool, crc } = this.options;
    const reader = this.#reader;
    let filled = 0;
    let isOurs = true;
    try {
      while (filled < block.length) {
        if (!reader.available && !(await this.#moreSoon())) break;
        if (!this.running) return;
        const max = block.length - filled;
        const bytes = reader.take(crc.wanted ? max : Math.min(max, SYNC_BYTES_MAX));
        await this.#copy(bytes, block.offset + filled, this.nextOffset + filled);
        filled += bytes.length;
      }
      if (!this.running || filled === 0) return;
      if (filled < block.length) pool.shrink(block, filled);
      isOurs = false;
    } finally {
      if (isOurs) pool.free(block);
    }
    const piece = this.enter(filled, pool.mapping, block.offset, block);
    this.write(piece);
    // Ahead of the need for it, so that the writes go on meanwhile.
    if (this.running && this.#roomBytes < Math.min(ROOM_AHEAD_BYTES, this.nextOffset)) this.#askForRoom();
  }

  /** Whether the source gives more within {@link PARTIAL_PIECE_MS}. */
  async #moreSoon(): Promise<boolean> {
    const reader = this.#reader;
    const timer = setTimeout(() => reader.interrupt(), PARTIAL_PIECE_MS);
    try {
      return (await reader.ready()) === 'bytes';
    } finally {
      clearTimeout(timer);
    }
  }

  async #copy(bytes: Uint8Array, to: number, offset: number): Promise<void> {
    const { counters, pool, crc } = this.options;
    counters.bytesCopied += bytes.length;
    if (bytes.length > SYNC_BYTES_MAX) {
      const copied = await pool.mapping.copyIn({ offset: to, source: bytes, crcSeed: crc.seed });
      crc.advance(offset, offset + bytes.length, copied);
      return;
    }
    crc.add(offset, bytes);
    pool.mapping.writeSync(to, bytes);
  }
}
