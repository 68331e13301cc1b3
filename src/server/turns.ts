/**
 * Turns of the event loop, dealt out to all sessions that have more to do than a few messages: however many they are, and
 * however much each of them asks for, the loop comes back to its sockets in time.
 */

/** Who has work for several turns. */
export interface TurnTaker {
  /**
   * Does a part of it.
   *
   * @param endsAtMs when the turn should be over, on performance.now()'s clock
   * @returns whether there is more that can be done now
   */
  takeTurn(endsAtMs: number): boolean;
}

/** All of them together have this long between two looks at the sockets. */
const ROUND_MS_MAX = 5;

/** What all of them may do straight away between two rounds, in bytes of frames. */
const STRAIGHT_BYTES_MAX = 64 * 1024;

/** First come, first served; whoever has not finished queues again behind the others. */
export class Turns {
  private queue: TurnTaker[] = [];
  private scheduled = false;
  private straightBytes = 0;
  private readonly round = (): void => {
    this.scheduled = false;
    this.takeRound();
  };

  /** Queues somebody, who must not be in the queue. */
  add(taker: TurnTaker): void {
    this.queue.push(taker);
    if (this.scheduled) return;
    this.scheduled = true;
    setImmediate(this.round);
  }

  /**
   * Counts what is done straight away, without a turn: each does little of that, but they are many.
   *
   * @returns whether more may be done that way; if not, whoever comes has to {@link add} himself
   */
  mayGoOn(bytes: number): boolean {
    this.straightBytes += bytes;
    return this.straightBytes <= STRAIGHT_BYTES_MAX;
  }

  private takeRound(): void {
    this.straightBytes = 0;
    const takers = this.queue;
    this.queue = [];
    let nowMs = performance.now();
    const endsAtMs = nowMs + ROUND_MS_MAX;
    let taken = 0;
    for (const taker of takers) {
      if (nowMs >= endsAtMs) break;
      // What one leaves of its time is the others'.
      const shareMs = (endsAtMs - nowMs) / (takers.length - taken);
      taken += 1;
      if (taker.takeTurn(nowMs + shareMs)) this.queue.push(taker);
      nowMs = performance.now();
    }
    if (taken < takers.length) this.queue = [...takers.slice(taken), ...this.queue];
    if (this.queue.length === 0 || this.scheduled) return;
    this.scheduled = true;
    setImmediate(this.round);
  }
}
