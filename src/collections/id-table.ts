/**
 * A map from ids to what is under way, for what every operation enters and leaves. A Map that lives long keeps more than it
 * holds: whenever its room is used up by what was entered and deleted, V8 gives it a new table in the old generation, and
 * the one before keeps what it held then until the next full collection. With 8 operations in flight that was 40 percent
 * of all garbage, and pauses of 6 ms (ADR 0007). Here the places of what has left are used again.
 */

const PLACES_MIN = 64;
/** Room for more than this is given back when it is not needed any more. */
const PLACES_KEPT_MAX = 8192;
const NONE = -1;

/** Ids are integers from 0 up to 2^53. */
export class IdTable<T> {
  /** The first place of each chain. As many as there are places, a power of 2. */
  #heads = new Int32Array(PLACES_MIN).fill(NONE);
  /** By place: what it holds, and the next place of its chain, or of those that are free. */
  #ids = new Float64Array(PLACES_MIN);
  #items: (T | undefined)[] = new Array<T | undefined>(PLACES_MIN).fill(undefined);
  #next = new Int32Array(PLACES_MIN);
  #free = NONE;
  /** Places from here on have never been used. */
  #unused = 0;
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get(id: number): T | undefined {
    const place = this.#placeOf(id);
    return place === NONE ? undefined : this.#items[place];
  }

  /** Enters an item, or puts it in the place of the one that had its id. */
  set(id: number, item: T): void {
    const known = this.#placeOf(id);
    if (known !== NONE) {
      this.#items[known] = item;
      return;
    }
    if (this.#size === this.#heads.length) this.#resize(2 * this.#size);
    this.#enter(id, item);
  }

  /** Takes an item out; false when there is none. */
  delete(id: number): boolean {
    const chain = chainOf(id, this.#heads.length);
    let before = NONE;
    let place = this.#heads[chain] ?? NONE;
    while (place !== NONE && this.#ids[place] !== id) {
      before = place;
      place = this.#next[place] ?? NONE;
    }
    if (place === NONE) return false;
    const after = this.#next[place] ?? NONE;
    if (before === NONE) this.#heads[chain] = after;
    else this.#next[before] = after;
    this.#items[place] = undefined;
    this.#next[place] = this.#free;
    this.#free = place;
    this.#size -= 1;
    if (this.#heads.length > PLACES_KEPT_MAX && this.#size * 8 < this.#heads.length) {
      this.#resize(this.#heads.length / 2);
    }
    return true;
  }

  /** All items, those with the lowest ids first, as they are now. */
  toArray(): T[] {
    return this.#entries()
      .sort(([a], [b]) => a - b)
      .map(([, item]) => item);
  }

  clear(): void {
    this.#items.fill(undefined);
    this.#renew(PLACES_MIN);
  }

  #placeOf(id: number): number {
    let place = this.#heads[chainOf(id, this.#heads.length)] ?? NONE;
    while (place !== NONE && this.#ids[place] !== id) place = this.#next[place] ?? NONE;
    return place;
  }

  /** There is room, and no item with this id. */
  #enter(id: number, item: T): void {
    let place = this.#free;
    if (place === NONE) {
      place = this.#unused;
      this.#unused += 1;
    } else {
      this.#free = this.#next[place] ?? NONE;
    }
    const chain = chainOf(id, this.#heads.length);
    this.#ids[place] = id;
    this.#items[place] = item;
    this.#next[place] = this.#heads[chain] ?? NONE;
    this.#heads[chain] = place;
    this.#size += 1;
  }

  #entries(): [number, T][] {
    const entries: [number, T][] = [];
    for (let place of this.#heads) {
      for (; place !== NONE; place = this.#next[place] ?? NONE) {
        entries.push([this.#ids[place] ?? 0, this.#items[place] as T]);
      }
    }
    return entries;
  }

  #resize(places: number): void {
    const entries = this.#entries();
    // The old array may live on for a while: it must keep nothing alive.
    this.#items.fill(undefined);
    this.#renew(places);
    for (const [id, item] of entries) this.#enter(id, item);
  }

  #renew(places: number): void {
    this.#heads = new Int32Array(places).fill(NONE);
    this.#ids = new Float64Array(places);
    this.#items = new Array<T | undefined>(places).fill(undefined);
    this.#next = new Int32Array(places);
    this.#free = NONE;
    this.#unused = 0;
    this.#size = 0;
  }
}

/** @internal Ids may be addresses, which share their low bits: all bits count, by Knuth's multiplicative hashing. */
export function chainOf(id: number, chains: number): number {
  return Math.imul((id / 2 ** 32) ^ id, 0x9e37_79b1) >>> (Math.clz32(chains) + 1);
}
