/**
 * Where the bytes of one PUT go: the extents that were granted so far, in the order of the value's bytes.
 */

import type { WriteTarget } from './write-windows.js';

/** Grows while the value is on its way. */
export class GrantedRoom {
  readonly #targets: WriteTarget[] = [];
  /** Of the value: where each target begins. */
  readonly #starts: number[] = [];
  #length = 0;

  /** Bytes of the value that have room. */
  get length(): number {
    return this.#length;
  }

  /** All extents, for the one who gives them back. */
  get targets(): readonly WriteTarget[] {
    return this.#targets;
  }

  add(targets: readonly WriteTarget[]): void {
    for (const target of targets) {
      this.#targets.push(target);
      this.#starts.push(this.#length);
      this.#length += target.length;
    }
  }

  /** The parts of the extents that take `length` bytes of the value from `offset` on. */
  part(offset: number, length: number): WriteTarget[] {
    const parts: WriteTarget[] = [];
    for (let i = this.#indexOf(offset), from = offset; from < offset + length; i += 1) {
      const target = this.#targets[i];
      const start = this.#starts[i];
      if (target === undefined || start === undefined) break;
      const to = Math.min(offset + length, start + target.length);
      parts.push({
        window: target.window,
        windowOffset: target.windowOffset + from - start,
        length: to - from,
      });
      from = to;
    }
    return parts;
  }

  #indexOf(offset: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] ?? 0) <= offset) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low - 1);
  }
}
