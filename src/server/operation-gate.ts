/**
 * The two limits of a queue: so many in flight, so many waiting behind them, no more.
 */

/** Lets operations start while there is room, keeps some waiting, and refuses the rest. */
export class OperationGate {
  private inFlight = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(
    readonly inFlightMax: number,
    readonly waitingMax: number,
  ) {}

  /** How many have started and not left. */
  get active(): number {
    return this.inFlight;
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
    if (this.waiting.length >= this.waitingMax) return false;
    this.waiting.push(start);
    return true;
  }

  /** One that was started has ended; the next one starts in its place. */
  leave(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.inFlight -= 1;
    else next();
  }
}
