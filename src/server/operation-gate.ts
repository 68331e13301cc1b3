/**
 * The two limits of a queue: so many in flight, so many waiting behind them, no more. Each session has its own, and all
 * sessions of a server have two more together.
 */

/** So many of each kind every gate has for itself, whatever the others have taken. */
export const GATE_OWN_MAX = 16;

/** What all gates of a server have in flight and waiting. Past these limits each has what is its own, and no more. */
export class SharedGate {
  inFlight = 0;
  waiting = 0;
  /** Those that have room of their own, and starts that wait for room of everybody's. */
  readonly starved = new Set<OperationGate>();
  private admitting = false;

  constructor(
    readonly inFlightMax: number,
    readonly waitingMax: number,
  ) {}

  /** There is room again: it goes to those who wait for it. */
  admit(): void {
    if (this.admitting || this.starved.size === 0) return;
    this.admitting = true;
    try {
      for (const gate of this.starved) {
        if (this.inFlight >= this.inFlightMax) break;
        gate.admit();
      }
    } finally {
      this.admitting = false;
    }
  }
}

/** Lets operations start while there is room, keeps some waiting, and refuses the rest. */
export class OperationGate {
  private inFlight = 0;
  // A set keeps the order of arrival, and lets one that has ended while it waited go from its middle.
  private readonly waitingStarts = new Set<() => void>();
  private admitting = false;
  private closed = false;

  constructor(
    readonly inFlightMax: number,
    readonly waitingMax: number,
    private readonly shared = new SharedGate(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY),
  ) {}

  /** How many have started and not left. */
  get active(): number {
    return this.inFlight;
  }

  /** How many wait for their turn. */
  get waiting(): number {
    return this.waitingStarts.size;
  }

  /** What has run out, for the error of one that was refused. */
  get refusal(): string {
    return this.waitingStarts.size >= this.waitingMax
      ? `the session has ${this.waitingMax} transfers waiting (--max-waiting)`
      : `the sessions of the server have ${this.shared.waiting} transfers waiting, this one ${this.waiting} of them`;
  }

  /**
   * Calls `start`, now or when it is its turn; whoever was started must {@link leave}.
   *
   * @returns false when it was refused, because both limits are reached; `start` is never called then
   */
  enter(start: () => void): boolean {
    // Those who came before go first.
    if (this.waitingStarts.size > 0) this.admit();
    if (this.waitingStarts.size === 0 && this.mayStart()) {
      this.begin(start);
      return true;
    }
    if (!this.mayWait()) return false;
    this.waitingStarts.add(start);
    this.shared.waiting += 1;
    if (this.inFlight < this.inFlightMax) this.shared.starved.add(this);
    return true;
  }

  /** One that waits has ended: it is never started. Does nothing to one that does not wait. */
  withdraw(start: () => void): void {
    if (!this.waitingStarts.delete(start)) return;
    this.shared.waiting -= 1;
    if (this.waitingStarts.size === 0) this.shared.starved.delete(this);
  }

  /** Nothing starts any more; what waits is to be withdrawn. */
  close(): void {
    this.closed = true;
  }

  /** One that was started has ended; the next one starts in its place. */
  leave(): void {
    this.inFlight -= 1;
    this.shared.inFlight -= 1;
    this.admit();
    this.shared.admit();
  }

  /** Starts what waits, as far as there is room. */
  admit(): void {
    // One that fails in its own start leaves inside the loop below: a call for each of thousands would end the stack.
    if (this.admitting) return;
    this.admitting = true;
    try {
      while (this.mayStart()) {
        const [next] = this.waitingStarts;
        if (next === undefined) break;
        this.withdraw(next);
        this.begin(next);
      }
      if (this.waitingStarts.size > 0 && this.inFlight < this.inFlightMax) this.shared.starved.add(this);
    } finally {
      this.admitting = false;
    }
  }

  private begin(start: () => void): void {
    this.inFlight += 1;
    this.shared.inFlight += 1;
    start();
  }

  // Of what is its own no gate ever waits for another's.
  private mayStart(): boolean {
    const { inFlight, shared } = this;
    const hasRoom = inFlight < GATE_OWN_MAX || shared.inFlight < shared.inFlightMax;
    return !this.closed && inFlight < this.inFlightMax && hasRoom;
  }

  private mayWait(): boolean {
    const { size } = this.waitingStarts;
    return (
      !this.closed && size < this.waitingMax && (size < GATE_OWN_MAX || this.shared.waiting < this.shared.waitingMax)
    );
  }
}
