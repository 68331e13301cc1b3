/**
 * One run of a load. It must cost next to nothing beside the store: keys and choices are made before it begins, and an
 * operation takes one promise continuation and one look at the clock, which is its end and the next one's beginning.
 */

import { createKeyChooser, type KeyChooser } from './key-chooser.js';
import { workloadKeys, workloadValue } from './keys.js';
import { LatencyRecorder, summarizeAll, takeRecent } from './latency.js';
import { RANDOM_RANGE, Random } from './random.js';
import type { WorkloadTarget } from './target.js';
import type { WorkloadOptions, WorkloadProgress, WorkloadResult } from './workload.js';

const PROGRESS_INTERVAL_MS = 500;

/** An operation that is due sooner is waited for in turns of the event loop: timers are late by up to a millisecond. */
const TIMER_MS_MIN = 2;

/** What is due at the end itself is due after it, also where sums of fractions say otherwise. */
const ROUNDING_MS = 1e-6;

/** - `running`: operations are begun. - `ending`: what is in flight is awaited. - `ended`: the promise has settled. */
type RunState = 'running' | 'ending' | 'ended';

/** One load on one target; {@link run} it once. */
export class WorkloadRun {
  readonly #target: WorkloadTarget;
  readonly #options: WorkloadOptions;
  readonly #onProgress: ((progress: WorkloadProgress) => void) | undefined;
  readonly #keys: readonly Buffer[];
  readonly #value: Buffer;
  readonly #chooser: KeyChooser;
  readonly #random: Random;
  /** What is drawn below it is a GET. */
  readonly #getsBelow: number;
  /** Between two operations of an open loop; undefined for a closed one. */
  readonly #intervalMs: number | undefined;

  readonly #getLatency = new LatencyRecorder();
  readonly #putLatency = new LatencyRecorder();
  #gets = 0;
  #puts = 0;
  #misses = 0;
  #bytes = 0;

  #state: RunState = 'running';
  #startedAtMs = 0;
  #measuredFromMs = 0;
  #endsAtMs = 0;
  #inFlight = 0;
  #failure: { readonly error: unknown } | undefined;
  /** Open loop: how many were begun, and the lanes that wait for their next one. */
  #begun = 0;
  readonly #idle: Lane[] = [];
  #paceTimer: NodeJS.Timeout | undefined;
  #paceImmediate: NodeJS.Immediate | undefined;
  #progressTimer: NodeJS.Timeout | undefined;

  #resolve: (result: WorkloadResult) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;
  readonly #onAbort = (): void => {
    this.#end();
    this.#settleIfQuiet(performance.now());
  };

  constructor(
    target: WorkloadTarget,
    options: WorkloadOptions,
    onProgress: ((progress: WorkloadProgress) => void) | undefined,
  ) {
    this.#target = target;
    this.#options = options;
    this.#onProgress = onProgress;
    this.#keys = workloadKeys(options);
    this.#value = workloadValue(options);
    this.#random = new Random(options.seed);
    this.#chooser = createKeyChooser(options.distribution, options.keys, this.#random);
    this.#getsBelow = options.readRatio * RANDOM_RANGE;
    this.#intervalMs = options.ratePerSecond === undefined ? undefined : 1000 / options.ratePerSecond;
  }

  run(): Promise<WorkloadResult> {
    const { signal, concurrency, warmupMs, durationMs } = this.#options;
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#startedAtMs = performance.now();
      this.#measuredFromMs = this.#startedAtMs + warmupMs;
      this.#endsAtMs = this.#measuredFromMs + durationMs;
      if (signal?.aborted === true) {
        this.#onAbort();
        return;
      }
      signal?.addEventListener('abort', this.#onAbort, { once: true });
      if (this.#onProgress !== undefined) {
        this.#progressTimer = setInterval(() => this.#tellProgress(), PROGRESS_INTERVAL_MS);
      }
      for (let lane = 0; lane < concurrency; lane++) this.#continue(new Lane(this), this.#startedAtMs);
    });
  }

  /** A lane's operation has ended well. `length` is what a GET found, and undefined for a PUT. */
  succeeded(lane: Lane, length: number | undefined): void {
    const nowMs = performance.now();
    this.#inFlight -= 1;
    if (lane.dueAtMs >= this.#measuredFromMs) {
      const latencyMs = nowMs - lane.dueAtMs;
      if (length === undefined) {
        this.#puts += 1;
        this.#bytes += this.#value.length;
        this.#putLatency.record(latencyMs);
      } else {
        this.#gets += 1;
        if (length < 0) this.#misses += 1;
        else this.#bytes += length;
        this.#getLatency.record(latencyMs);
      }
    }
    this.#continue(lane, nowMs);
  }

  /** A lane's operation has failed. */
  failed(error: unknown): void {
    this.#inFlight -= 1;
    this.#fail(error);
  }

  /** Gives a lane that has nothing to do its next operation, if one is due. */
  #continue(lane: Lane, nowMs: number): void {
    if (nowMs >= this.#endsAtMs) this.#timeIsUp();
    if (this.#state !== 'running') {
      this.#settleIfQuiet(nowMs);
    } else if (this.#intervalMs === undefined) {
      this.#begin(lane, nowMs);
    } else if (this.#nextDueAtMs <= nowMs) {
      this.#beginDue(lane);
    } else {
      this.#idle.push(lane);
      this.#pace(nowMs);
    }
  }

  #begin(lane: Lane, dueAtMs: number): void {
    lane.dueAtMs = dueAtMs;
    this.#inFlight += 1;
    try {
      const key = this.#keys[this.#chooser.next()];
      if (key === undefined) throw new RangeError('a key was chosen that is not there');
      if (this.#random.next() < this.#getsBelow) this.#target.get(key).then(lane.onGot, lane.onFailed);
      else this.#target.put(key, this.#value).then(lane.onPut, lane.onFailed);
    } catch (error) {
      this.failed(error);
    }
  }

  /** When the next operation of an open loop is due. From the count, so that errors do not add up. */
  get #nextDueAtMs(): number {
    return this.#startedAtMs + this.#begun * (this.#intervalMs ?? 0);
  }

  #beginDue(lane: Lane): void {
    const dueAtMs = this.#nextDueAtMs;
    this.#begun += 1;
    this.#begin(lane, dueAtMs);
  }

  /** Sees to it that idle lanes get what becomes due, and that the run ends when nothing does any more. */
  #pace(nowMs: number): void {
    if (this.#paceTimer !== undefined || this.#paceImmediate !== undefined) return;
    const waitMs = Math.min(this.#nextDueAtMs, this.#endsAtMs) - nowMs;
    if (waitMs >= TIMER_MS_MIN) {
      this.#paceTimer = setTimeout(() => this.#dealOut(), waitMs - TIMER_MS_MIN + 1);
    } else {
      this.#paceImmediate = setImmediate(() => this.#dealOut());
    }
  }

  #dealOut(): void {
    this.#paceTimer = undefined;
    this.#paceImmediate = undefined;
    if (this.#state !== 'running') return;
    const nowMs = performance.now();
    if (nowMs >= this.#endsAtMs) {
      this.#timeIsUp();
      this.#settleIfQuiet(nowMs);
      return;
    }
    this.#beginAllDueBefore(nowMs);
    // Without an idle lane, whichever is done first takes the next operation.
    if (this.#state === 'running' && this.#idle.length > 0) this.#pace(nowMs);
  }

  #beginAllDueBefore(ms: number): void {
    while (this.#state === 'running' && this.#nextDueAtMs < ms) {
      const lane = this.#idle.pop();
      if (lane === undefined) return;
      this.#beginDue(lane);
    }
  }

  /** The end, but for what was due in the moments since the last look at the clock. */
  #timeIsUp(): void {
    this.#beginAllDueBefore(this.#endsAtMs - ROUNDING_MS);
    this.#end();
  }

  /** Nothing is begun any more. Idempotent. */
  #end(): void {
    if (this.#state !== 'running') return;
    this.#state = 'ending';
    this.#endsAtMs = Math.min(this.#endsAtMs, performance.now());
    clearTimeout(this.#paceTimer);
    clearImmediate(this.#paceImmediate);
  }

  #fail(error: unknown): void {
    // Whoever aborts may end his store too: what fails then says nothing about it.
    if (this.#options.signal?.aborted !== true) this.#failure ??= { error };
    this.#end();
    this.#settleIfQuiet(performance.now());
  }

  #settleIfQuiet(nowMs: number): void {
    if (this.#state !== 'ending' || this.#inFlight > 0) return;
    this.#state = 'ended';
    clearInterval(this.#progressTimer);
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    if (this.#failure === undefined) this.#resolve(this.#result(nowMs));
    else this.#reject(this.#failure.error);
  }

  #result(nowMs: number): WorkloadResult {
    return {
      operations: this.#gets + this.#puts,
      gets: this.#gets,
      puts: this.#puts,
      misses: this.#misses,
      bytes: this.#bytes,
      seconds: this.#secondsAt(nowMs),
      overdue: this.#overdue(),
      latency: summarizeAll([this.#getLatency, this.#putLatency]),
      getLatency: this.#gets === 0 ? undefined : summarizeAll([this.#getLatency]),
      putLatency: this.#puts === 0 ? undefined : summarizeAll([this.#putLatency]),
    };
  }

  #secondsAt(nowMs: number): number {
    return Math.max(0, nowMs - this.#measuredFromMs) / 1000;
  }

  #overdue(): number {
    if (this.#intervalMs === undefined) return 0;
    // Operation 0 is due at the start, and none at the end.
    const dueBy = (ms: number): number => Math.ceil((ms - ROUNDING_MS - this.#startedAtMs) / (this.#intervalMs ?? 1));
    const first = Math.max(this.#begun, dueBy(this.#measuredFromMs));
    return Math.max(0, dueBy(this.#endsAtMs) - first);
  }

  #tellProgress(): void {
    const nowMs = performance.now();
    if (this.#state === 'ended' || nowMs < this.#measuredFromMs) return;
    const { p99Us } = takeRecent([this.#getLatency, this.#putLatency]);
    try {
      const operations = this.#gets + this.#puts;
      this.#onProgress?.({ operations, bytes: this.#bytes, seconds: this.#secondsAt(nowMs), p99Us });
    } catch (error) {
      this.#fail(error);
    }
  }
}

/** One of the operations in flight, and after it the next. Its callbacks are made once, not once for each of them. */
class Lane {
  /** When its operation began; in an open loop, when it should have. */
  dueAtMs = 0;
  readonly onGot: (length: number) => void;
  readonly onPut: () => void;
  readonly onFailed: (error: unknown) => void;

  constructor(run: WorkloadRun) {
    this.onGot = (length) => run.succeeded(this, length);
    this.onPut = () => run.succeeded(this, undefined);
    this.onFailed = (error) => run.failed(error);
  }
}
