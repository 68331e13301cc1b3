/**
 * Remembers how long the values of recently used keys were, so that a GET can name a sink that fits at the first try.
 */

/** The most keys that are remembered; the least recently used is forgotten first. */
const KEYS_MAX = 8192;

/** The sink for a key of unknown length. */
const GUESS_BYTES = 1024 * 1024;

/** After so many values in a row that came inline, a key of unknown length is asked for without a sink. */
const INLINE_STREAK_MAX = 32;

/** Lengths by key, and a guess for keys that it does not know. A wrong one costs a round trip, never more. */
export class SizeMemory {
  readonly #lengths = new Map<string, number>();
  #inlineStreak = 0;

  /** The length that the key's value had last; undefined when that is not known. */
  lookup(namespace: number, key: Buffer): number | undefined {
    return this.#lengths.size === 0 ? undefined : this.#lengths.get(nameOf(namespace, key));
  }

  /** What to reserve for a key that is not known; 0 while only small values are seen. */
  guess(): number {
    return this.#inlineStreak < INLINE_STREAK_MAX ? GUESS_BYTES : 0;
  }

  /** A value that travels by RDMA has this length. */
  remember(namespace: number, key: Buffer, length: number): void {
    this.#inlineStreak = 0;
    const name = nameOf(namespace, key);
    this.#lengths.delete(name);
    this.#lengths.set(name, length);
    if (this.#lengths.size <= KEYS_MAX) return;
    for (const oldest of this.#lengths.keys()) {
      this.#lengths.delete(oldest);
      break;
    }
  }

  /** A value came inline: its key needs no sink. `wasKnown` says whether {@link lookup} had a length for it. */
  sawInline(namespace: number, key: Buffer, wasKnown: boolean): void {
    this.#inlineStreak += 1;
    if (wasKnown && this.#lengths.size > 0) this.#lengths.delete(nameOf(namespace, key));
  }

  /** The key has no value. */
  forget(namespace: number, key: Buffer): void {
    if (this.#lengths.size > 0) this.#lengths.delete(nameOf(namespace, key));
  }
}

function nameOf(namespace: number, key: Buffer): string {
  const name = key.toString('latin1');
  // No key has this character.
  return namespace === 0 ? name : `${name}\u0100${namespace}`;
}
