/**
 * A stream on its way out as Data: read no faster than gRPC takes it.
 */

import type { DataSource } from '../protocol/frame-writer.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { StreamLength } from './stream-length.js';
import type { StreamReader } from './stream-reader.js';
import type { ValueCrc } from './value-crc.js';

/** Options of {@link StreamData}. */
export interface StreamDataOptions {
  readonly operationId: number;
  readonly reader: StreamReader;
  readonly length: StreamLength;
  /** Of the stream, as Data says it. */
  readonly totalLength: number;
  readonly crc: ValueCrc;
  /** Hands a piece to the session, which asks for it when it is its turn. */
  readonly send: (source: DataSource<ClientMessage>) => void;
  /** After each piece: the bytes that were handed on so far. */
  readonly onPiece: (bytesSent: number) => void;
  /** All have been handed on; what is sent from now on comes after them. */
  readonly onEnd: () => void;
  readonly onError: (error: unknown) => void;
}

/** Sends a stream of known length. */
export class StreamData {
  readonly #options: StreamDataOptions;
  #offset = 0;
  #stopped = false;
  #handedOn: (() => void) | undefined;

  constructor(options: StreamDataOptions) {
    this.#options = options;
  }

  /** Runs until the stream has ended, or {@link stop}. Never rejects. */
  async run(): Promise<void> {
    const { onEnd, onError } = this.#options;
    try {
      if (await this.#sendAll()) onEnd();
    } catch (error) {
      if (!this.#stopped) onError(error);
    }
  }

  /** Nothing more of it is sent, and no callback called. */
  stop(): void {
    this.#stopped = true;
    this.#options.reader.interrupt();
    this.#handedOn?.();
  }

  /** Returns whether it has come to the end. */
  async #sendAll(): Promise<boolean> {
    const { reader, length, crc, onPiece } = this.#options;
    for (;;) {
      const readiness = reader.available ? 'bytes' : await reader.ready();
      if (this.#stopped || readiness === 'interrupted') return false;
      if (readiness === 'ended') {
        length.checkEnd(this.#offset);
        return true;
      }
      length.checkMore(this.#offset);
      const bytes = reader.take(Math.min(DATA_BYTES_MAX, length.bytesMax - this.#offset));
      crc.add(this.#offset, bytes);
      await this.#handOn(bytes);
      if (this.#stopped) return false;
      this.#offset += bytes.length;
      onPiece(this.#offset);
    }
  }

  #handOn(bytes: Uint8Array): Promise<void> {
    const { operationId, totalLength, send } = this.#options;
    const message = { operationId, data: { offset: this.#offset, bytes, totalLength } };
    let left = true;
    return new Promise((resolve) => {
      this.#handedOn = resolve;
      send({
        next: () => {
          if (!left || this.#stopped) return undefined;
          left = false;
          resolve();
          return { message, sizeBytes: bytes.length };
        },
      });
    });
  }
}
