/**
 * `client.getStream`: a value of any length, read in constant memory.
 */

import { Readable } from 'node:stream';
import { FabricKvError } from '../protocol/errors.js';
import type { Version } from '../protocol/wire.js';
import { type ClientCore, Operation } from './operation.js';
import type { CallSettings } from './options.js';
import { PieceSource } from './piece-source.js';
import type { ValueFacts } from './range-request.js';
import type { ValueInfo, ValuePath } from './value.js';

/** How the bytes are read: decided by what is used first. */
type Mode = 'undecided' | 'readable' | 'pieces';

/**
 * The bytes of one version of one value, in order, whatever happens to the key meanwhile. Read it as any Readable, or by
 * {@link pieces}, which copies nothing; the chunks of the Readable are copies, made on another thread. The CRC-32C is checked on the way: when it is wrong the stream fails with
 * ERR_FABRICKV_CHECKSUM before its last bytes. Destroy a stream that you do not read to its end: until then it keeps its version
 * in the server's memory and some of the client's.
 */
export class ValueStream extends Readable implements ValueInfo {
  /** Bytes. */
  readonly length: number;
  readonly version: Version;
  /** Of the whole value; undefined when it was put without a checksum. Then nothing is checked. */
  readonly crc32c: number | undefined;
  readonly #source: PieceSource;
  #mode: Mode = 'undecided';
  #failure: FabricKvError | undefined;

  constructor(source: PieceSource, { length, version, crc32c }: ValueFacts) {
    // Chunks are pieces: one is read ahead here, and some by the source.
    super({ highWaterMark: 1 });
    this.length = length;
    this.version = version;
    this.crc32c = crc32c;
    this.#source = source;
  }

  /** How it has travelled so far: `rdma` when any of it has. */
  get path(): ValuePath {
    return this.#source.path;
  }

  /**
   * The value in pieces of at most 8 MiB. Each is a view of the memory that the server wrote into, valid until the next one is
   * asked for: then it is detached (of length 0). Copy what you keep, and await what you do with a piece. Leaving the loop
   * destroys the stream. To be called once, instead of reading the stream.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT when the stream is being read already
   */
  pieces(): AsyncIterableIterator<Buffer> {
    if (this.#mode !== 'undecided') {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        'the stream is being read already: use one way or the other',
      );
    }
    this.#mode = 'pieces';
    const pieces = this.#eachPiece();
    // A generator that is left before it has begun does not come to its own `finally`.
    const leave = pieces.return.bind(pieces);
    pieces.return = (value) => {
      this.destroy();
      return leave(value);
    };
    return pieces;
  }

  override _read(): void {
    if (this.#mode === 'pieces') return;
    this.#mode = 'readable';
    this.#source.copyAll();
    void this.#readPiece();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#source.stop();
    callback(error);
  }

  /** The source has failed: whoever reads hears of it, and nobody else. */
  failed(error: FabricKvError): void {
    this.#failure = error;
    if (this.#mode === 'readable') this.destroy(error);
  }

  async #readPiece(): Promise<void> {
    try {
      if (this.#failure !== undefined) throw this.#failure;
      const piece = await this.#source.take();
      if (piece === undefined) {
        this.push(null);
        return;
      }
      // Whoever gets a chunk may keep it for as long as he likes. Lending chunks until the garbage collector finds them was
      // measured too: it comes too late, so that after a moment nearly all of the pool is lent to nobody, and every
      // other reader's results are copied instead.
      this.push(await piece.keep());
    } catch (error) {
      this.destroy(error instanceof Error ? error : new Error(String(error)));
    }
  }

  async *#eachPiece(): AsyncGenerator<Buffer, undefined> {
    try {
      for (;;) {
        const piece = await this.#source.take();
        if (piece === undefined) return undefined;
        try {
          yield piece.bytes;
        } finally {
          piece.release();
        }
      }
    } finally {
      this.destroy();
    }
  }
}

/** Opens a stream: done with the first answer. */
export class GetStreamOperation extends Operation<ValueStream | undefined> {
  #source: PieceSource | undefined;
  #stream: ValueStream | undefined;

  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'get', key, call);
  }

  protected override attempt(): void {
    // The source finds its sessions itself.
    this.leaveSession();
    const { core, key, call, trace, requestId, operationId } = this;
    const source = new PieceSource({
      core,
      key: key ?? Buffer.alloc(0),
      call,
      trace,
      requestId,
      firstOperationId: operationId,
      events: {
        onValue: (facts) => {
          const stream = new ValueStream(source, facts);
          this.#stream = stream;
          this.succeed(stream);
          source.detach();
        },
        onAbsent: () => {
          if (key !== undefined) core.sizes.forget(call.namespace, key);
          this.succeed(undefined);
        },
        onFailed: (error) => {
          if (this.#stream === undefined) this.fail(error);
          else this.#stream.failed(error);
        },
      },
    });
    this.#source = source;
    source.start();
  }

  protected override succeeded(): void {
    throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a stream has no requests of its own');
  }

  protected override sessionLost(): void {
    // It is the source's business.
  }

  protected override release(): void {
    if (this.#stream === undefined) this.#source?.stop();
  }

  protected override finishTrace(): void {
    // The value has only begun to come: its source tells when it is there.
    if (this.#stream === undefined) super.finishTrace();
  }
}
