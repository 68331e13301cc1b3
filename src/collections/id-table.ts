/**
 * A map from ids to what is under way, for what every operation enters and leaves. A Map that lives long keeps more than it
 * holds: whenever its room is used up by what was entered and deleted, V8 gives it a new table in the old generation, and
 * the one before keeps what it held then until the next full collection. With 8 operations in flight that was 40 percent
 * of all garbage, and pauses of 6 ms (ADR 0007). Here the places of what has left are used again.
 */

const SLOTS_MIN = 64;
/** Room for more than this is given back when it is not needed any more. */
const SLOTS_KEPT_MAX = 8192;

/** Ids are integers from 0 up to 2^53. */
export class IdTable<T> {
  /** Open addressing, at most half full; -1 where there is nothing. */
  #ids = new Float64Array(SLOTS_MIN).fill(-1);
  #items: (T | undefined)[] = new Array<T | undefined>(SLOTS_MIN).fill(undefined);
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get(id: number): T | undefined {
    return this.#items[this.#slotOf(id)];
  }

  /** Enters an item, or puts it in the place of the one that had its id. */
  set(id: number, item: T): void {
    let slot = this.#slotOf(id);
    if (this.#ids[slot] === -1) {
      if ((this.#size + 1) * 2 > this.#ids.length) {
        this.#resize(this.#ids.length * 2);
        slot = this.#slotOf(id);
      }
      this.#ids[slot] = id;
      this.#size += 1;
    }
    this.#items[slot] = item;
  }

  /** Takes an item out; false when there is none. */
  delete(id: number): boolean {
    const slots = this.#ids.length;
    let hole = this.#slotOf(id);
    if (this.#ids[hole] === -1) return false;
    // What stands behind the hole, and would not be found past it, moves up.
    for (let slot = (hole + 1) & (slots - 1); this.#ids[slot] !== -1; slot = (slot + 1) & (slots - 1)) {
      const other = this.#ids[slot] ?? -1;
      const home = homeOf(other, slots);
      const pastHole = hole <= slot ? home <= hole || home > slot : home <= hole && home > slot;
      if (!pastHole) continue;
      this.#ids[hole] = other;
      this.#items[hole] = this.#items[slot];
      hole = slot;
    }
    this.#ids[hole] = -1;
    this.#items[hole] = undefined;
    this.#size -= 1;
    if (slots > SLOTS_KEPT_MAX && this.#size * 8 < slots) this.#resize(slots / 2);
    return true;
  }

  /** All items, those with the lowest ids first, as they are now. */
  toArray(): T[] {
    const items: T[] = [];
    for (const id of this.#ids.filter((known) => known !== -1).sort()) {
      const item = this.get(id);
      if (item !== undefined) items.push(item);
    }
    return items;
  }

  clear(): void {
    this.#ids.fill(-1);
    this.#items.fill(undefined);
    this.#size = 0;
  }

  /** Where the id is, or would be entered. */
  #slotOf(id: number): number {
    const ids = this.#ids;
    let slot = homeOf(id, ids.length);
    for (let found = ids[slot]; found !== id && found !== -1; found = ids[slot]) slot = (slot + 1) & (ids.length - 1);
    return slot;
  }

  #resize(slots: number): void {
    const ids = this.#ids;
    const items = this.#items;
    this.#ids = new Float64Array(slots).fill(-1);
    this.#items = new Array<T | undefined>(slots).fill(undefined);
    for (const [i, id] of ids.entries()) {
      if (id === -1) continue;
      const slot = this.#slotOf(id);
      this.#ids[slot] = id;
      this.#items[slot] = items[i];
    }
    items.fill(undefined);
  }
}

/** Ids that follow each other have homes that do, so that they do not collide. The number of places is a power of 2. */
function homeOf(id: number, slots: number): number {
  return id & (slots - 1);
}
