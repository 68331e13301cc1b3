/**
 * Remembers how long the values of recently used keys were, so that a GET can name a sink that fits at the first try.
 */

/** The keys that were used last are remembered: so many at least, twice as many at most. */
const KEYS_MIN = 8192;

/** The sink for a key of unknown length. */
const GUESS_BYTES = 1024 * 1024;

/** After so many values in a row that came inline, a key of unknown length is asked for without a sink. */
const INLINE_STREAK_MAX = 32;

/** Lengths by key, and a guess for keys that it does not know. A wrong one costs a round trip, never more. */
export class SizeMemory {
  /** Two generations, so that a key that is used often changes nothing, and the old ones go all at once. */
  #young = new Map<string, number>();
  #old = new Map<string, number>();
  #inlineStreak = 0;

  /** The length that the key's value had last; undefined when that is not known. */
  lookup(namespace: number, key: Buffer): number | undefined {
    if (this.#isEmpty) return undefined;
    const name = nameOf(namespace, key);
    const recent = this.#young.get(name);
    if (recent !== undefined) return recent;
    const length = this.#old.get(name);
    if (length !== undefined) this.#enter(name, length);
    return length;
  }

  /** What to reserve for a key that is not known; 0 while only small values are seen. */
  guess(): number {
    return this.#inlineStreak < INLINE_STREAK_MAX ? GUESS_BYTES : 0;
  }

  /** A value that travels by RDMA has this length. */
  remember(namespace: number, key: Buffer, length: number): void {
    this.#inlineStreak = 0;
    const name = nameOf(namespace, key);
    if (this.#young.get(name) !== length) this.#enter(name, length);
  }

  /** A value came inline: its key needs no sink. `wasKnown` says whether {@link lookup} had a length for it. */
  sawInline(namespace: number, key: Buffer, wasKnown: boolean): void {
    this.#inlineStreak += 1;
    if (wasKnown) this.forget(namespace, key);
  }

  /** The key has no value. */
  forget(namespace: number, key: Buffer): void {
    if (this.#isEmpty) return;
    const name = nameOf(namespace, key);
    this.#young.delete(name);
    this.#old.delete(name);
  }

  get #isEmpty(): boolean {
    return this.#young.size === 0 && this.#old.size === 0;
  }

  #enter(name: string, length: number): void {
    this.#young.set(name, length);
    if (this.#young.size < KEYS_MIN) return;
    this.#old = this.#young;
    this.#young = new Map();
  }
}

function nameOf(namespace: number, key: Buffer): string {
  const name = key.toString('latin1');
  // No key has this character.
  return namespace === 0 ? name : `${name}\u0100${namespace}`;
}
