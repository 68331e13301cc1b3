/**
 * A large inline PUT on its way out, as Data.
 */

import { crc32c } from '../fabric/index.js';
import type { DataSource } from '../protocol/frame-writer.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import { type PutSource, readPiece } from './put-source.js';

/** Options of {@link PutData}. */
export interface PutDataOptions {
  readonly operationId: number;
  readonly source: PutSource;
  /** After each piece: the bytes that were handed on so far. */
  readonly onPiece: (bytesSent: number) => void;
  /** In the turn in which the last piece is handed on; what is sent from now on comes after it. */
  readonly onEnd: (crc: number) => void;
  /** The source cannot be read; nothing more comes. */
  readonly onError: (error: unknown) => void;
}

/** Pieces of at most 64 KiB, ascending, with the CRC of them all. */
export class PutData implements DataSource<ClientMessage> {
  #offset = 0;
  #crc = 0;
  #stopped = false;

  constructor(private readonly options: PutDataOptions) {}

  /** Nothing more of it is sent. */
  stop(): void {
    this.#stopped = true;
  }

  next(): { readonly message: ClientMessage; readonly sizeBytes: number } | undefined {
    const { operationId, source, onPiece, onEnd, onError } = this.options;
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
    this.#crc = crc32c(bytes, this.#crc);
    const message = { operationId, data: { offset: this.#offset, bytes, totalLength: source.length } };
    this.#offset += length;
    onPiece(this.#offset);
    if (this.#offset === source.length) queueMicrotask(() => onEnd(this.#crc));
    return { message, sizeBytes: length };
  }
}
