/**
 * The source of a `putStream`: anything that gives bytes piece by piece, read no faster than they are sent.
 */

import { EventEmitter } from 'node:events';
import { FabricKvError } from '../protocol/errors.js';

/** What can be sent as a stream: a Node.js `Readable` of bytes, a web `ReadableStream`, an async generator. */
export type ByteStream = AsyncIterable<Uint8Array>;

/** A stream, or a function that begins it anew: then a PUT that is interrupted can be sent again. */
export type StreamSource = ByteStream | (() => ByteStream);

const NO_BYTES = new Uint8Array(0);

/** Blocks of what is kept in memory: Data, of which each piece has at most 64 KiB, never crosses from one to the next. */
const KEPT_BLOCK_BYTES = 64 * 1024;
const KEPT_BLOCK_BYTES_MAX = 1024 * 1024;

/** - `bytes`: some can be taken. - `ended`: there are no more. - `interrupted`: the waiting was ended; it can begin again. */
type Readiness = 'bytes' | 'ended' | 'interrupted';

/** Reads one stream, once. Its beginning can be kept, to be sent again. */
export class StreamReader {
  readonly #stream: ByteStream;
  readonly #iterator: AsyncIterator<unknown>;
  /** The beginning of the stream, all blocks full but the last. */
  readonly #kept: Buffer[] = [];
  #keptBytes = 0;
  #lastBlockBytes = 0;
  /** What the stream gave last, as far as it was neither kept nor taken. */
  #chunk: Uint8Array = NO_BYTES;
  #spent = false;
  #ended = false;
  #error: FabricKvError | undefined;
  #isReading = false;
  #onReady: ((interrupted: boolean) => void) | undefined;
  #closed = false;
  /** Counts the interruptions. */
  #turn = 0;
  readonly #onWait: (waits: boolean) => void;

  /**
   * @param onWait told when it begins to wait for the stream, and when that has ended
   * @throws ERR_FABRICKV_INVALID_ARGUMENT when it is no stream, or one that somebody else reads
   */
  constructor(stream: unknown, onWait: (waits: boolean) => void = ignore) {
    if (!isStream(stream)) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        'the source is no Readable, no async iterable, and no function that returns one',
      );
    }
    this.#stream = stream;
    this.#onWait = onWait;
    try {
      this.#iterator = stream[Symbol.asyncIterator]();
    } catch (error) {
      throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `the source cannot be read: ${textOf(error)}`, {
        cause: error,
      });
    }
    ignoreErrorEvents(stream);
  }

  /** Bytes that were read and kept. */
  get keptBytes(): number {
    return this.#keptBytes;
  }

  /** Whether the stream is known to have more than so many bytes. Before anything was taken. */
  hasMoreThan(bytes: number): boolean {
    return this.#keptBytes + this.#chunk.length > bytes;
  }

  /** Whether bytes were taken: the stream cannot be sent from its beginning any more. */
  get spent(): boolean {
    return this.#spent;
  }

  /** Whether bytes can be taken without waiting. */
  get available(): boolean {
    return this.#kept.length > 0 || this.#chunk.length > 0;
  }

  /**
   * Waits until bytes can be taken. One may wait at a time.
   *
   * @throws ERR_FABRICKV_SOURCE when the source fails, with its error as the cause (a FabricKvError is passed on),
   * ERR_FABRICKV_INVALID_ARGUMENT when it gives something else than bytes
   */
  async ready(): Promise<Readiness> {
    return this.available ? 'bytes' : this.#more();
  }

  /** Ends the waiting of {@link ready} and {@link keep}; what the stream gives then is there for the next one. */
  interrupt(): void {
    this.#turn += 1;
    this.#tellReady(true);
  }

  /** The next bytes, at most `max`: a view that is good until {@link ready} is called. Empty when there are none to be had at once. */
  take(max: number): Uint8Array {
    const [block] = this.#kept;
    if (block !== undefined) {
      const length = this.#kept.length === 1 ? this.#lastBlockBytes : block.length;
      const taken = block.subarray(0, Math.min(max, length));
      if (taken.length === length) this.#kept.shift();
      else {
        this.#kept[0] = block.subarray(taken.length);
        if (this.#kept.length === 1) this.#lastBlockBytes -= taken.length;
      }
      this.#spent = true;
      return taken;
    }
    const taken = this.#chunk.subarray(0, max);
    this.#chunk = this.#chunk.subarray(taken.length);
    if (taken.length > 0) this.#spent = true;
    return taken;
  }

  /**
   * Reads on, and keeps what it reads, until there is more than `bytes`, or the stream has ended. Before anything was taken.
   * What would be too much stays with the stream that gave it.
   */
  async keep(bytes: number): Promise<Readiness> {
    const turn = this.#turn;
    while (!this.hasMoreThan(bytes)) {
      this.#keep(this.#chunk);
      this.#chunk = NO_BYTES;
      const readiness = await this.#more();
      // Interrupted in the same moment in which something came: another one may wait by now.
      if (turn !== this.#turn) return 'interrupted';
      if (readiness !== 'bytes') return readiness;
    }
    return 'bytes';
  }

  /** All that was kept, in blocks; it stays there. */
  keptBlocks(): Buffer[] {
    const last = this.#kept.length - 1;
    return this.#kept.map((block, i) => (i === last ? block.subarray(0, this.#lastBlockBytes) : block));
  }

  /** Nothing more is wanted: destroys the stream, if it has not ended. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#tellReady(true);
    this.#kept.length = 0;
    this.#chunk = NO_BYTES;
    // A generator that is in the middle of something ends when it is done with that; it is not waited for.
    if (!this.#ended) end(this.#stream, () => this.#iterator.return?.());
  }

  async #more(): Promise<Readiness> {
    if (this.#error === undefined && !this.#ended) {
      if (!this.#isReading) void this.#read();
      this.#onWait(true);
      const interrupted = await new Promise<boolean>((resolve) => {
        this.#onReady = resolve;
      });
      if (interrupted) return 'interrupted';
    }
    if (this.#error !== undefined) throw this.#error;
    return this.#chunk.length > 0 ? 'bytes' : 'ended';
  }

  #tellReady(interrupted: boolean): void {
    const onReady = this.#onReady;
    if (onReady === undefined) return;
    this.#onReady = undefined;
    this.#onWait(false);
    onReady(interrupted);
  }

  /** Never rejects. */
  async #read(): Promise<void> {
    this.#isReading = true;
    try {
      while (this.#chunk.length === 0 && !this.#ended) {
        const { done, value } = await this.#iterator.next();
        if (done === true) this.#ended = true;
        else if (value instanceof Uint8Array) this.#chunk = value;
        else throw notBytes(value);
      }
    } catch (error) {
      // A stream that gives the wrong things is still there to be closed.
      this.#error = sourceFailed(error);
    }
    this.#isReading = false;
    this.#tellReady(false);
  }

  /** Copies: what a stream gives is its own again when it is asked for more, and many small pieces would cost an object each. */
  #keep(chunk: Uint8Array): void {
    for (let from = 0; from < chunk.length; ) {
      let block = this.#kept.at(-1);
      if (block === undefined || this.#lastBlockBytes === block.length) {
        const sizeBytes = Math.min(KEPT_BLOCK_BYTES_MAX, Math.max(KEPT_BLOCK_BYTES, this.#keptBytes));
        block = Buffer.allocUnsafeSlow(sizeBytes);
        this.#kept.push(block);
        this.#lastBlockBytes = 0;
      }
      const bytes = Math.min(chunk.length - from, block.length - this.#lastBlockBytes);
      block.set(chunk.subarray(from, from + bytes), this.#lastBlockBytes);
      this.#lastBlockBytes += bytes;
      this.#keptBytes += bytes;
      from += bytes;
    }
  }
}

/** Whether it can be read; a function that returns a stream is none. */
export function isStream(stream: unknown): stream is ByteStream {
  return stream instanceof Object && typeof (stream as Partial<ByteStream>)[Symbol.asyncIterator] === 'function';
}

/** Ends a stream that nobody has begun to read. Never throws: what is no stream, or is somebody else's, is left alone. */
export function closeStream(source: unknown): void {
  if (!isStream(source)) return;
  ignoreErrorEvents(source);
  end(source, () => {
    const { cancel, return: finish } = source as { readonly cancel?: unknown; readonly return?: unknown };
    const close = typeof cancel === 'function' ? cancel : finish;
    return typeof close === 'function' ? close.call(source) : undefined;
  });
}

/** Destroys what can be destroyed; for anything else, calls `otherwise`. Nobody waits for it, or hears of its failure. */
function end(stream: ByteStream, otherwise: () => unknown): void {
  const { destroy } = stream as { readonly destroy?: unknown };
  try {
    Promise.resolve(typeof destroy === 'function' ? destroy.call(stream) : otherwise()).catch(ignore);
  } catch (error) {
    ignore(error);
  }
}

/**
 * Node's own iterator listens from its first step on, and no longer than to its last: an error before or after that, as of a
 * file that is missing, would end the process. What matters of it the iterator tells.
 */
function ignoreErrorEvents(stream: ByteStream): void {
  if (stream instanceof EventEmitter) stream.on('error', ignore);
}

function ignore(_what: unknown): void {
  // Nobody wants to know.
}

/** What a source throws, as the error of its PUT: a FabricKvError is passed on. */
export function sourceFailed(error: unknown): FabricKvError {
  if (error instanceof FabricKvError) return error;
  return new FabricKvError('ERR_FABRICKV_SOURCE', `the source of the value failed: ${textOf(error)}`, {
    cause: error,
    outcome: 'not-applied',
  });
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function notBytes(value: unknown): FabricKvError {
  const hint = typeof value === 'string' ? ': set no encoding on the stream' : '';
  return new FabricKvError(
    'ERR_FABRICKV_INVALID_ARGUMENT',
    `the source gave a ${typeof value} where bytes (a Uint8Array) were due${hint}`,
  );
}
