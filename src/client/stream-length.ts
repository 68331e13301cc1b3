/**
 * How long a stream is, may be, and turns out to be.
 */

import { FabricKvError } from '../protocol/errors.js';

/** The length of one stream. */
export class StreamLength {
  constructor(
    /** As the caller said; undefined when nobody knows. */
    readonly known: number | undefined,
    /** The longest value that the server takes; bytes. */
    private readonly valueBytesMax: number,
  ) {}

  /** The stream must not have more than this. */
  get bytesMax(): number {
    return this.known ?? this.valueBytesMax;
  }

  /** @throws ERR_FABRICKV_VALUE_TOO_LARGE when it is known to be */
  checkKnown(): void {
    if (this.known === undefined || this.known <= this.valueBytesMax) return;
    throw this.#tooLarge(`the stream has ${this.known} bytes`);
  }

  /**
   * There are more bytes after the first `bytes`.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT, ERR_FABRICKV_VALUE_TOO_LARGE
   */
  checkMore(bytes: number): void {
    if (bytes < this.bytesMax) return;
    if (this.known !== undefined) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        `the source gives more than the ${this.known} bytes of its length`,
        { outcome: 'not-applied' },
      );
    }
    throw this.#tooLarge('the source goes on');
  }

  /** @throws ERR_FABRICKV_INVALID_ARGUMENT */
  checkEnd(bytes: number): void {
    if (this.known === undefined || bytes === this.known) return;
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      `the source has ended after ${bytes} of the ${this.known} bytes of its length`,
      { outcome: 'not-applied' },
    );
  }

  #tooLarge(what: string): FabricKvError {
    return new FabricKvError(
      'ERR_FABRICKV_VALUE_TOO_LARGE',
      `${what}; the server takes values of at most ${this.valueBytesMax} bytes`,
      { outcome: 'not-applied', details: { maxValueBytes: String(this.valueBytesMax) } },
    );
  }
}
