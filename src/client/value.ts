/**
 * What `get`, `getInto` and `put` give back.
 */

import type { Version } from '../protocol/wire.js';

/** How a value travelled. */
export type ValuePath = 'inline' | 'rdma';

/** What is known of a value beside its bytes. */
export interface ValueInfo {
  /** Bytes. */
  readonly length: number;
  readonly version: Version;
  /** Of the whole value, as the server verified it when it was put. */
  readonly crc32c: number;
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
  readonly crc32c: number;
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
