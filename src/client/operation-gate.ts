/**
 * How many operations may be in flight, and how many may wait for that.
 */

import { FabricKvError } from '../protocol/errors.js';

/** What passes a gate. */
export interface Gated {
  /** Called once, in the order of entering, when there is room. */
  admit(): void;
  /** Whether it was admitted and has not left: the gate's own. */
  inGate?: boolean;
}

/** The two limits of a {@link OperationGate}. */
export interface GateLimits {
  /** Past it, callers wait. */
  readonly inFlightMax: number;
  /** Past it, callers are refused at once. */
  readonly waitingMax: number;
  /** What runs out, for the error. */
  readonly what: string;
}

/** First come, first served, with a limit on both sides. */
export class OperationGate {
  readonly #waiting = new Set<Gated>();
  #inside = 0;
  #inFlightMax: number;
  #admitting = false;

  constructor(private readonly limits: GateLimits) {
    this.#inFlightMax = limits.inFlightMax;
  }

  get inFlight(): number {
    return this.#inside;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** Takes the server's limit into account: never more in flight than both sides allow. */
  limitInFlight(max: number): void {
    this.#inFlightMax = Math.min(this.limits.inFlightMax, max);
    this.#admitWaiting();
  }

  /** What it kept apart is over: nobody has to wait any more. */
  open(): void {
    this.#inFlightMax = Number.POSITIVE_INFINITY;
    this.#admitWaiting();
  }

  /**
   * Admits an operation, at once or when there is room.
   *
   * @throws ERR_FABRICKV_RESOURCE_EXHAUSTED when too many wait already
   */
  enter(gated: Gated): void {
    if (this.#waiting.size === 0 && this.#inside < this.#inFlightMax) {
      this.#admit(gated);
      return;
    }
    if (this.#waiting.size >= this.limits.waitingMax) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        `${this.#inFlightMax} ${this.limits.what} are in flight and ${this.#waiting.size} wait: no more may wait`,
        { details: { inFlight: String(this.#inside), waiting: String(this.#waiting.size) } },
      );
    }
    this.#waiting.add(gated);
  }

  /** The operation has ended, wherever it was. Idempotent. */
  leave(gated: Gated): void {
    if (gated.inGate !== true) {
      this.#waiting.delete(gated);
      return;
    }
    gated.inGate = false;
    this.#inside -= 1;
    if (this.#waiting.size > 0) this.#admitWaiting();
  }

  #admit(gated: Gated): void {
    gated.inGate = true;
    this.#inside += 1;
    gated.admit();
  }

  #admitWaiting(): void {
    // An admitted operation that ends at once comes back here: the loop below goes on for it, without recursion.
    if (this.#admitting) return;
    this.#admitting = true;
    try {
      for (const gated of this.#waiting) {
        if (this.#inside >= this.#inFlightMax) break;
        this.#waiting.delete(gated);
        this.#admit(gated);
      }
    } finally {
      this.#admitting = false;
    }
  }
}
