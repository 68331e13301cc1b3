/**
 * The store: which value stands under which key, and who still reads it.
 */

import type { Version } from '../../protocol/wire.js';
import type { Arena, Extent } from './arena.js';
import { VersionClock } from './version-clock.js';

/** Keeps a value for longer than one read. */
export interface ValueHolder {
  /** The value has left the index: from now on it is there only for those who hold or read it. */
  onSuperseded(value: StoredValue): void;
}

/** What is held of a store: of all values that were held for somebody when they left the index, and still are. */
interface Held {
  supersededBytes: number;
}

/**
 * One committed version of one value. Its bytes never change; it lives until it is neither in the index nor held or read
 * by anyone.
 */
export class StoredValue {
  // The index's own reference.
  private references = 1;
  // Few values have any.
  private holders: Set<ValueHolder> | undefined;
  private inIndex = true;

  constructor(
    readonly extents: readonly Extent[],
    readonly length: number,
    readonly version: Version,
    /** Undefined when it was stored without one. */
    readonly crc32c: number | undefined,
    readonly storedUnixMs: number,
    private readonly arena: Arena,
    private readonly held: Held,
  ) {}

  /** Whether another version, or none, is under its key now. */
  get superseded(): boolean {
    return !this.inIndex;
  }

  /** Keeps the bytes until the matching {@link letGo}; the holder hears when the value leaves the index. */
  hold(holder: ValueHolder): void {
    if (!this.inIndex) throw new Error('a value that has left the index is held');
    this.holders ??= new Set();
    if (this.holders.has(holder)) throw new Error('a value is held twice by one holder');
    this.holders.add(holder);
    this.retain();
  }

  /** Ends a {@link hold}. */
  letGo(holder: ValueHolder): void {
    if (this.holders?.delete(holder) !== true) throw new Error('a value is let go by somebody who does not hold it');
    if (!this.inIndex && this.holders.size === 0) this.held.supersededBytes -= this.length;
    this.release();
  }

  /** @internal The index gives it up. */
  supersede(): void {
    this.inIndex = false;
    if (this.holders !== undefined && this.holders.size > 0) {
      this.held.supersededBytes += this.length;
      for (const holder of this.holders) holder.onSuperseded(this);
    }
    this.release();
  }

  /** Keeps the bytes until the matching {@link release}. */
  retain(): void {
    if (this.references === 0) throw new Error('a value that was freed is retained');
    this.references += 1;
  }

  /** Gives a reference back; with the last one the extents go back to the arena. */
  release(): void {
    if (this.references === 0) throw new Error('a value is released twice');
    this.references -= 1;
    if (this.references === 0) this.arena.release(this.extents);
  }
}

/** What is to be published under a key. */
export interface Publication {
  readonly namespace: number;
  readonly key: Uint8Array;
  readonly extents: readonly Extent[];
  readonly length: number;
  /** Undefined for a value that nobody has computed it of. */
  readonly crc32c: number | undefined;
}

/** Values by namespace and key. Every method is synchronous, so each is atomic to everybody else. */
export class Store {
  // A key's bytes as a latin1 string: one character a byte, so different keys are different strings.
  private readonly namespaces = new Map<number, Map<string, StoredValue>>();
  private count = 0;
  private bytes = 0;
  private readonly held: Held = { supersededBytes: 0 };

  constructor(
    readonly arena: Arena,
    private readonly clock = new VersionClock(),
  ) {}

  /** How many values there are. */
  get keys(): number {
    return this.count;
  }

  /** The lengths of all values together. */
  get valueBytes(): number {
    return this.bytes;
  }

  /** The lengths of all values that are there only because somebody holds them. Those that are just read do not count. */
  get heldBytes(): number {
    return this.held.supersededBytes;
  }

  /** The value under a key. Retain it before you give up the turn. */
  lookup(namespace: number, key: Uint8Array): StoredValue | undefined {
    return this.namespaces.get(namespace)?.get(indexKey(key));
  }

  /** Puts a value under a key, in place of what was there. The extents belong to the store from now on. */
  publish({ namespace, key, extents, length, crc32c }: Publication): StoredValue {
    const value = new StoredValue(extents, length, this.clock.next(), crc32c, Date.now(), this.arena, this.held);
    let index = this.namespaces.get(namespace);
    if (index === undefined) {
      index = new Map();
      this.namespaces.set(namespace, index);
    }
    const name = indexKey(key);
    const old = index.get(name);
    index.set(name, value);
    this.count += old === undefined ? 1 : 0;
    this.bytes += length - (old?.length ?? 0);
    old?.supersede();
    return value;
  }

  /**
   * Takes the value from under a key; readers in flight keep it until they are done.
   *
   * @returns the version that was deleted, or undefined when nothing was there
   */
  remove(namespace: number, key: Uint8Array): Version | undefined {
    const index = this.namespaces.get(namespace);
    const name = indexKey(key);
    const value = index?.get(name);
    if (index === undefined || value === undefined) return undefined;
    index.delete(name);
    if (index.size === 0) this.namespaces.delete(namespace);
    this.count -= 1;
    this.bytes -= value.length;
    value.supersede();
    return value.version;
  }
}

function indexKey(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.length).toString('latin1');
}
