/**
 * The CRC-32C of a value that is sent, computed in the order of its bytes and only once, however often they are sent.
 */

import { crc32c } from '../fabric/index.js';

/** Continued as the value's bytes are touched anyway. */
export class ValueCrc {
  #bytes = 0;
  #crc = 0;

  constructor(
    /** False for a PUT without a checksum: then nothing is computed. */
    readonly wanted: boolean,
  ) {}

  /** How many bytes, from the first on, it covers; endless when none is wanted. */
  get bytes(): number {
    return this.wanted ? this.#bytes : Number.POSITIVE_INFINITY;
  }

  /** Of the bytes that it covers: the seed of what follows. */
  get seed(): number {
    return this.#crc;
  }

  /** For `PutInfo`. */
  get value(): number | undefined {
    return this.wanted ? this.#crc : undefined;
  }

  /** For the wire. */
  get fields(): { readonly crc32c: number; readonly withoutCrc: boolean } {
    return { crc32c: this.#crc, withoutCrc: !this.wanted };
  }

  /** Adds bytes on the calling thread, as far as it does not cover them already. For small pieces. */
  add(offset: number, bytes: Uint8Array): void {
    const known = this.#bytes - offset;
    if (!this.wanted || known < 0 || known >= bytes.length) return;
    this.#crc = crc32c(known === 0 ? bytes : bytes.subarray(known), this.#crc);
    this.#bytes = offset + bytes.length;
  }

  /**
   * The bytes from `offset` to `end` were added elsewhere, from {@link seed} on. Does nothing when another attempt at the same value
   * has been faster.
   */
  advance(offset: number, end: number, crc: number): void {
    if (offset !== this.#bytes || !this.wanted) return;
    this.#bytes = end;
    this.#crc = crc;
  }
}
