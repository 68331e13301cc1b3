/**
 * A set without an order, for what every small operation enters and leaves: a Set costs ten times as much.
 */

/** Each item keeps the place that it has, so that it can be found; -1 when it has none. It may be in one bag of a kind at a time. */
export abstract class Bag<T> {
  readonly #items: T[] = [];

  get size(): number {
    return this.#items.length;
  }

  /** Enters an item; does nothing when it is there. */
  add(item: T): void {
    if (this.#items[this.placeOf(item)] === item) return;
    this.setPlace(item, this.#items.length);
    this.#items.push(item);
  }

  /** Takes an item out; false when it is not there. */
  delete(item: T): boolean {
    const place = this.placeOf(item);
    if (this.#items[place] !== item) return false;
    const last = this.#items.pop();
    if (last !== undefined && last !== item) {
      this.#items[place] = last;
      this.setPlace(last, place);
    }
    this.setPlace(item, -1);
    return true;
  }

  /** All of them, as they are now: what happens to the bag afterwards changes nothing. */
  toArray(): T[] {
    return [...this.#items];
  }

  /** Takes all of them out. */
  takeAll(): T[] {
    const items = this.#items.splice(0);
    for (const item of items) this.setPlace(item, -1);
    return items;
  }

  protected abstract placeOf(item: T): number;
  protected abstract setPlace(item: T, place: number): void;
}
