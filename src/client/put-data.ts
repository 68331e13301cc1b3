/**
 * A large inline PUT on its way out, as Data.
 */

import type { DataSource } from '../protocol/frame-writer.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import { type PutSource, readPiece } from './put-source.js';
import type { ValueCrc } from './value-crc.js';

/** Options of {@link PutData}. */
export interface PutDataOptions {
  readonly operationId: number;
  readonly source: PutSource;
  /** Continued as far as it does not cover the value yet. */
  readonly crc: ValueCrc;
  /** After each piece: the bytes that were handed on so far. */
  readonly onPiece: (bytesSent: number) => void;
  /** In the turn in which the last piece is handed on; what is sent from now on comes after it. */
  readonly onEnd: () => void;
  /** The source cannot be read; nothing more comes. */
  readonly onError: (error: unknown) => void;
}

/** Pieces of at most 64 KiB, ascending. */
export class PutData implements DataSource<ClientMessage> {
  #offset = 0;
  #stopped = false;

  constructor(private readonly options: PutDataOptions) {}

  /** Nothing more of it is sent. */
  stop(): void {
    this.#stopped = true;
  }

  next(): { readonly message: ClientMessage; readonly sizeBytes: number } | undefined {
    const { operationId, source, crc, onPiece, onEnd, onError } = this.options;
    const length = Math.min(DATA_BYTES_MAX, source.length - this.#offset);
    if (length <= 0 || this.#stopped) return undefined;
    let bytes: Uint8Array;
    try {
      bytes = readPiece(source, this.#offset, length);
    } catch (error) {
      this.#stopped = true;
      onError(error);
      return undefined;
    }
    // 64 KiB at a time, 4 µs each: handing them to another thread would take longer.
    crc.add(this.#offset, bytes);
    const message = { operationId, data: { offset: this.#offset, bytes, totalLength: source.length } };
    this.#offset += length;
    onPiece(this.#offset);
    if (this.#offset === source.length) queueMicrotask(onEnd);
    return { message, sizeBytes: length };
  }
}
