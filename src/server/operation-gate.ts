/**
 * The two limits of a queue: so many in flight, so many waiting behind them, no more.
 */

/** Lets operations start while there is room, keeps some waiting, and refuses the rest. */
export class OperationGate {
  private inFlight = 0;
  // A set keeps the order of arrival, and lets one that has ended while it waited go from its middle.
  private readonly waitingStarts = new Set<() => void>();
  private admitting = false;

  constructor(
    readonly inFlightMax: number,
    readonly waitingMax: number,
  ) {}

  /** How many have started and not left. */
  get active(): number {
    return this.inFlight;
  }

  /** How many wait for their turn. */
  get waiting(): number {
    return this.waitingStarts.size;
  }

  /**
   * Calls `start`, now or when it is its turn; whoever was started must {@link leave}.
   *
   * @returns false when it was refused, because both limits are reached; `start` is never called then
   */
  enter(start: () => void): boolean {
    if (this.inFlight < this.inFlightMax) {
      this.inFlight += 1;
      start();
      return true;
    }
    if (this.waitingStarts.size >= this.waitingMax) return false;
    this.waitingStarts.add(start);
    return true;
  }

  /** One that waits has ended: it is never started. Does nothing to one that does not wait. */
  withdraw(start: () => void): void {
    this.waitingStarts.delete(start);
  }

  /** One that was started has ended; the next one starts in its place. */
  leave(): void {
    this.inFlight -= 1;
    // One that fails in its own start leaves inside the loop below: a call for each of thousands would end the stack.
    if (this.admitting) return;
    this.admitting = true;
    try {
      while (this.inFlight < this.inFlightMax) {
        const [next] = this.waitingStarts;
        if (next === undefined) break;
        this.waitingStarts.delete(next);
        this.inFlight += 1;
        next();
      }
    } finally {
      this.admitting = false;
    }
  }
}
