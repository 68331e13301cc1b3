/**
 * What `get`, `getInto` and `put` give back.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { Version } from '../protocol/wire.js';

/** How a value travelled. */
export type ValuePath = 'inline' | 'rdma';

/** What is known of a value beside its bytes. */
export interface ValueInfo {
  /** Bytes. */
  readonly length: number;
  readonly version: Version;
  /** Of the whole value, as the server verified it when it was put; undefined when it was put without a checksum. */
  readonly crc32c: number | undefined;
  readonly path: ValuePath;
}

/** What `put` answers. */
export type PutInfo = ValueInfo;

/** A value from `get`. */
export interface KvValue extends ValueInfo, Disposable {
  /**
   * The value. Of an RDMA result it is the memory that the server wrote into, unless that runs short: then it is a copy.
   * Never shared with another result.
   */
  readonly bytes: Buffer;
  /**
   * Gives the memory back at once; `bytes` is detached (of length 0) afterwards if it was registered memory. Idempotent.
   * What is not released, the garbage collector gives back some day; nothing waits for it.
   */
  release(): void;
}

/** A {@link KvValue}. */
export class ReceivedValue implements KvValue {
  readonly length: number;
  readonly version: Version;
  readonly crc32c: number | undefined;
  readonly path: ValuePath;
  readonly #release: (() => void) | undefined;

  constructor(
    readonly bytes: Buffer,
    info: ValueInfo,
    release?: () => void,
  ) {
    this.length = info.length;
    this.version = info.version;
    this.crc32c = info.crc32c;
    this.path = info.path;
    this.#release = release;
  }

  release(): void {
    this.#release?.();
  }

  [Symbol.dispose](): void {
    this.#release?.();
  }
}

/** ERR_FABRICKV_CHECKSUM when the CRC is not what the server announced; a value that was stored without one has none to differ from. */
export function checksumError(info: ValueInfo, actual: number): FabricKvError | undefined {
  if (info.crc32c === undefined || actual === info.crc32c) return undefined;
  return new FabricKvError(
    'ERR_FABRICKV_CHECKSUM',
    `received ${info.length} bytes (${info.path}) with CRC-32C ${hex(actual)}; the server says ${hex(info.crc32c)}`,
  );
}

function hex(crc: number): string {
  return `0x${crc.toString(16).padStart(8, '0')}`;
}
