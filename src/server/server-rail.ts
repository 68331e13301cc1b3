/**
 * A place among a provider's rails: the endpoint that is there now, and the proofs that it owes. When the endpoint is
 * replaced the place stays.
 */

import type { Logger } from 'pino';
import { FabricError, type Rail, type RailStats } from '../fabric/index.js';

/** What grows with a rail's work, */
const RAIL_WORK = [
  'writesPosted',
  'writesCompleted',
  'writesFailed',
  'bytesWritten',
  'registrations',
  'proofs',
  'peersDisconnected',
  'connectionsEnded',
] as const satisfies readonly (keyof RailStats)[];

/** and with what it holds now: all that is told of a rail. */
export const RAIL_COUNTS = [...RAIL_WORK, 'regionsOpen', 'peers'] as const satisfies readonly (keyof RailStats)[];

/** Rounds of proof begin this long after the last one, unless somebody waits for the memory. */
const PROOF_INTERVAL_MS = 20;

/** And never so often that they take more than one part in this of the time: with a thousand peers a round is work. */
const PROOF_TIME_PART = 5;

/** A round that failed is tried again after this. */
const PROOF_RETRY_MS = 1000;

/** `resting`. `due`: something waits, and a round begins soon. `running`. `closed`: the endpoint is, which proves all. */
type ProofState = 'resting' | 'due' | 'running' | 'closed';

const TRANSITIONS: Readonly<Record<ProofState, readonly ProofState[]>> = {
  resting: ['due', 'closed'],
  due: ['running', 'closed'],
  running: ['resting', 'due', 'closed'],
  closed: [],
};

/** The proofs of one endpoint, in rounds that are shared. */
class RailProofs {
  private state: ProofState = 'resting';
  /** What waits for the next round. */
  private waiting: (() => void)[] = [];
  /** What only the end of the endpoint proves. */
  private readonly held: (() => void)[] = [];
  private timer: NodeJS.Timeout | undefined;
  private round: Promise<void> = Promise.resolve();
  private lastEndedMs = Number.NEGATIVE_INFINITY;
  private lastTookMs = 0;
  private failed = false;

  constructor(
    readonly rail: Rail,
    private readonly logger: Logger,
  ) {}

  get heldCount(): number {
    return this.held.length;
  }

  /** Resolves when no write into what was closed before this call can land; never rejects. */
  prove(): Promise<void> {
    const { quiescence } = this.rail.info;
    if (quiescence === 'close-region' || this.state === 'closed') return Promise.resolve();
    if (quiescence === 'close-endpoint') return this.proveByClosing();
    return new Promise((resolve) => {
      this.waiting.push(resolve);
      this.schedule(PROOF_INTERVAL_MS);
    });
  }

  /** For a region that could not be closed, or that a rail which was closing already had. */
  proveByClosing(): Promise<void> {
    return this.state === 'closed' ? Promise.resolve() : new Promise((resolve) => this.held.push(resolve));
  }

  /** Somebody waits: what is due begins now. Resolves when every round that was asked for has ended, however. */
  async hurry(): Promise<void> {
    // A round that is under way may have missed what was closed meanwhile; the next one may have been begun by another
    // who waited for the same.
    if (this.state === 'running') await this.round;
    this.begin();
    if (this.is('running')) await this.round;
  }

  /** The endpoint is closed, and its CQ is never read again: nothing that was begun on it can land. */
  closed(): void {
    if (this.state === 'closed') return;
    this.become('closed');
    clearTimeout(this.timer);
    for (const resolve of [...this.waiting.splice(0), ...this.held.splice(0)]) resolve();
  }

  private schedule(afterMs: number): void {
    if (this.state !== 'resting') return;
    this.become('due');
    const restMs = Math.max(afterMs, this.lastTookMs * (PROOF_TIME_PART - 1));
    const delayMs = Math.max(0, this.lastEndedMs + restMs - performance.now());
    this.timer = setTimeout(() => this.begin(), delayMs).unref();
  }

  private begin(): void {
    if (this.state !== 'due') return;
    clearTimeout(this.timer);
    this.become('running');
    this.round = this.run();
  }

  private async run(): Promise<void> {
    const covered = this.waiting.splice(0);
    const beganMs = performance.now();
    this.failed = false;
    try {
      await this.rail.prove();
      for (const resolve of covered) resolve();
    } catch (error) {
      // Also what is `UNPROVABLE`: where that is for good, nothing is asked to be proved like this.
      this.failed = true;
      this.waiting.unshift(...covered);
      // One that is closed or has failed says so itself, and the end of its endpoint is the proof.
      if (!(error instanceof FabricError && error.code === 'RAIL_CLOSED')) {
        this.logger.error({ err: error }, 'It could not be proved that no late write can land; memory is held back');
      }
    }
    this.lastEndedMs = performance.now();
    this.lastTookMs = this.lastEndedMs - beganMs;
    if (this.is('closed')) {
      for (const resolve of this.waiting.splice(0)) resolve();
      return;
    }
    this.become('resting');
    if (this.waiting.length > 0) this.schedule(this.failed ? PROOF_RETRY_MS : PROOF_INTERVAL_MS);
  }

  /** Also where the compiler believes that it knows the state from before a wait. */
  private is(state: ProofState): boolean {
    return this.state === state;
  }

  private become(next: ProofState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a rail's proofs go from ${this.state} to ${next}`);
    this.state = next;
  }
}

/** One of a provider's rails on the server. */
export class ServerRail {
  /** Counts from 1, and with every endpoint that takes the place. */
  generation = 1;
  private proofs: RailProofs;
  private stuck = false;
  /** Endpoints that were here before and are not closed yet, */
  private readonly leaving = new Set<Rail>();
  /** and what those that are closed had done. */
  private readonly past = new Map<(typeof RAIL_WORK)[number], number>();
  private readonly logger: Logger;

  constructor(
    rail: Rail,
    /** Its place among the provider's rails, */
    readonly index: number,
    /** and how many there are. */
    readonly count: number,
    logger: Logger,
  ) {
    this.logger = logger;
    this.proofs = new RailProofs(rail, logger);
  }

  /** The endpoint. */
  get rail(): Rail {
    return this.proofs.rail;
  }

  /** Whether memory is held back that only the end of the endpoint frees. */
  get holdsUnprovable(): boolean {
    return this.proofs.heldCount > 0;
  }

  /** Whether writes on the endpoint never come back: their operations, and what they hold, end with it only. */
  get isStuck(): boolean {
    return this.stuck;
  }

  /** Writes on an endpoint did not come back when their connection was ended. */
  reportStuck(rail: Rail): void {
    if (rail === this.rail) this.stuck = true;
  }

  /** The proofs of the endpoint that is there now, for a region that is registered on it. */
  get currentProofs(): Pick<RailProofs, 'rail' | 'prove' | 'proveByClosing'> {
    return this.proofs;
  }

  /** Begins what proofs are due now; resolves when they have ended, however. */
  hurry(): Promise<void> {
    return this.proofs.hurry();
  }

  /**
   * Another endpoint takes the place.
   *
   * @returns what to call when the old one is closed
   */
  replace(rail: Rail): () => void {
    const old = this.proofs;
    this.leaving.add(old.rail);
    this.proofs = new RailProofs(rail, this.logger);
    this.stuck = false;
    this.generation += 1;
    return () => old.closed();
  }

  /** An endpoint that was here before is about to be closed: what it has done is kept. */
  retire(rail: Rail): void {
    if (!this.leaving.delete(rail)) return;
    const stats = rail.stats();
    for (const name of RAIL_WORK) this.past.set(name, (this.past.get(name) ?? 0) + stats[name]);
  }

  /** Of all endpoints that were ever here, together. */
  stats(): Record<(typeof RAIL_COUNTS)[number], number> {
    const all = [this.rail, ...this.leaving].map((rail) => rail.stats());
    const sum = (name: (typeof RAIL_COUNTS)[number]): number => all.reduce((total, stats) => total + stats[name], 0);
    const sums = Object.fromEntries(RAIL_COUNTS.map((name) => [name, sum(name)])) as ReturnType<ServerRail['stats']>;
    for (const [name, count] of this.past) sums[name] += count;
    return sums;
  }

  /** The endpoint is closed, and no other comes. */
  closed(): void {
    this.proofs.closed();
  }
}
