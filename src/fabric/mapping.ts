/** Options of {@link Mapping.lend}. */
export interface LendOptions {
  /** Bytes from the start of the mapping. */
  readonly offset: number;
  /** Bytes; at most 4 GiB on Node 20 (`buffer.constants.MAX_LENGTH`). */
  readonly length: number;
  /** Called exactly once, on the JS thread, when nothing can reach the lent bytes any more. */
  readonly onReturned: () => void;
}

/** Bytes of a mapping that were handed to the user. */
export interface Loan {
  /** An external ArrayBuffer of its own: never shared with another loan or view. */
  readonly arrayBuffer: ArrayBuffer;
  /**
   * Detaches the ArrayBuffer and returns the memory at once, `onReturned` included. Idempotent. When the user has moved
   * the bytes away (`ArrayBuffer.prototype.transfer`), they are returned when the garbage collector finds the new owner.
   * The bytes must not be in use by an asynchronous call of Node's (a pending `fs.write`) any more.
   */
  release(): void;
}

/** Options of the calls that copy and check. */
export interface CopyInOptions {
  readonly offset: number;
  readonly source: Uint8Array;
  /** The CRC-32C of what came before, 0 by default. */
  readonly crcSeed?: number;
}

/** Options of {@link Mapping.copyOut}. */
export interface CopyOutOptions {
  readonly offset: number;
  /** As many bytes as it holds are copied into it. It must not be transferred or detached meanwhile. */
  readonly target: Uint8Array;
  /** The CRC-32C of what came before, 0 by default. */
  readonly crcSeed?: number;
}

/** Options of {@link Mapping.crc32c}. */
export interface CrcOptions {
  readonly offset: number;
  readonly length: number;
  /** The CRC-32C of what came before, 0 by default. */
  readonly seed?: number;
}

/**
 * A piece of anonymous memory that outlives whatever uses it: it is unmapped when it has been closed and no view, loan,
 * registration, transfer or task is left. All offsets and lengths are bytes; every call throws (or rejects with)
 * FabricError `INVALID_ARGUMENT` when they leave the mapping or the mapping is closed.
 */
export interface Mapping {
  /** Names the mapping in `Rail.register` and `Rail.write`. Never reused within the process. */
  readonly id: number;
  readonly sizeBytes: number;
  /** Whether the kernel was asked for transparent huge pages and agreed. */
  readonly hugePages: boolean;

  /**
   * A view of at most 1 GiB, for the owner's own use. It keeps the mapping alive until it is collected. Every call makes
   * a new external ArrayBuffer, which V8 counts as external memory: call it once per segment, and take subarrays.
   */
  buffer(offset: number, length: number): Buffer;

  /** Hands bytes to the user; see {@link Loan}. */
  lend(options: LendOptions): Loan;

  /** Copies into the mapping on libuv's pool; resolves with the CRC-32C of `source`, continued from the seed. */
  copyIn(options: CopyInOptions): Promise<number>;

  /** Copies out of the mapping on libuv's pool; resolves with the CRC-32C of what was copied, continued from the seed. */
  copyOut(options: CopyOutOptions): Promise<number>;

  /** CRC-32C of a range, on libuv's pool. */
  crc32c(options: CrcOptions): Promise<number>;

  /** Copies into the mapping on the JS thread; for small sizes. */
  writeSync(offset: number, source: Uint8Array): void;

  /** Copies out of the mapping into a new Buffer on the JS thread; for small sizes. */
  readSync(offset: number, length: number): Buffer;

  /** Gives up this handle. Idempotent. The memory goes when its last user does. */
  close(): void;
}
