/**
 * Memory that frames are written to, used again when the transport does not read them any more. V8 counts every new Buffer as pressure, and
 * collects the whole heap after 64 MiB of them: with values of 4 KiB that was 15 times a second (ADR 0007).
 */

import { FRAME_BYTES_TARGET } from './limits.js';

/** Two frames of the usual length. */
export const LARGE_CHUNK_BYTES = 2 * FRAME_BYTES_TARGET;

/** Frames are cut out of it one after the other. */
export class Chunk {
  /** Those that the transport has not taken. */
  frames = 0;

  constructor(readonly bytes: Buffer) {}
}

/** Large chunks that nobody uses, of all that share it. */
export class ChunkPool {
  readonly #free: Buffer[] = [];

  /** @param keptMax how many it keeps; with 0 none, for a transport that does not say when it has taken a frame */
  constructor(private readonly keptMax: number) {}

  get kept(): number {
    return this.#free.length;
  }

  take(): Chunk {
    return new Chunk(this.#free.pop() ?? Buffer.allocUnsafeSlow(LARGE_CHUNK_BYTES));
  }

  /** Nobody reads or writes it any more. Those of another length are left to the garbage collector. */
  give({ bytes }: Chunk): void {
    if (bytes.length === LARGE_CHUNK_BYTES && this.#free.length < this.keptMax) this.#free.push(bytes);
  }
}
