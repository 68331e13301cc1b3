/**
 * Leases: a session's hold on one version of one value, for reading it by ranges. Overwriting and deleting go on beside
 * them; a value that is in the index no more stays for as long as somebody holds it.
 */

import { randomBytes } from 'node:crypto';
import { FabricKvError } from '../protocol/errors.js';
import { LEASE_IDLE_MS, LEASES_PER_SESSION_MAX } from '../protocol/limits.js';
import { UINT64_MAX } from '../protocol/wire.js';
import type { ServerCounters } from './counters.js';
import type { StoredValue, ValueHolder } from './store/store.js';

/** `idle`: its time runs. `reading`: ranges are in flight under it. `ended`: nobody finds it any more. */
type LeaseState = 'idle' | 'reading' | 'ended';

const TRANSITIONS: Readonly<Record<LeaseState, readonly LeaseState[]>> = {
  idle: ['reading', 'ended'],
  reading: ['idle', 'ended'],
  ended: [],
};

/** One hold. It may end while ranges are in flight under it: those pin the value themselves. */
export class Lease {
  private state: LeaseState = 'idle';
  /** Ranges in flight. */
  private readers = 0;
  /** When the last range ended, on the table's clock. */
  idleSinceMs = 0;

  constructor(
    readonly id: bigint,
    readonly value: StoredValue,
    private readonly table: LeaseTable,
  ) {}

  /** A range is read: the lease does not run out before the matching {@link leave}. */
  enter(): void {
    this.readers += 1;
    if (this.state === 'idle') this.become('reading');
  }

  /** The range is over, however. The lease's time begins anew. */
  leave(): void {
    this.readers -= 1;
    if (this.readers < 0) throw new Error('a lease is left more often than it was entered');
    if (this.readers === 0 && this.state === 'reading') this.become('idle');
  }

  /** Gives the hold up. Idempotent. */
  end(): void {
    if (this.state !== 'ended') this.become('ended');
  }

  private become(next: LeaseState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a lease goes from ${this.state} to ${next}`);
    this.state = next;
    if (next === 'idle') this.table.onIdle(this);
    else if (next === 'reading') this.table.onReading(this);
    else this.table.onEnded(this);
  }
}

/** Options of {@link LeaseTable}. */
export interface LeaseTableOptions {
  /**
   * Bytes of values that are in no index any more and may be held. Past it the lease that was used longest ago ends; one
   * value always stays, however long it is.
   */
  readonly supersededBytesMax: number;
  readonly counters: Pick<ServerCounters, 'leasesOpened' | 'leasesExpired' | 'leasesDisplaced'>;
  /** Called when the last lease has ended. */
  readonly onEmpty?: () => void;
  /** For tests. */
  readonly nowMs?: () => number;
}

/**
 * The leases of one session.
 *
 * A lease on a value that is in the index costs nothing, so those are bounded in number only. What counts in bytes is
 * memory that would be free without the lease. That is bounded when a value leaves the index, and not when the lease is
 * taken, or a session could not read a few large values side by side: nobody overwrites most of what is read.
 */
export class LeaseTable implements ValueHolder {
  private readonly leases = new Map<bigint, Lease>();
  /** How many leases there are on each value: its bytes count once. */
  private readonly values = new Map<StoredValue, number>();
  /** In the order in which they became so: the first one runs out first. */
  private readonly idle = new Set<Lease>();
  private superseded = 0;
  private supersededBytes = 0;
  private timer: NodeJS.Timeout | undefined;
  private closed = false;
  private readonly nowMs: () => number;
  /** Ids of different sessions differ: what a client kept of a session that it lost must not be found in the next one. */
  private lastId = randomBytes(8).readBigUInt64LE();

  constructor(private readonly options: LeaseTableOptions) {
    this.nowMs = options.nowMs ?? (() => performance.now());
  }

  /** How many there are. */
  get count(): number {
    return this.leases.size;
  }

  /**
   * Takes a lease on a value that is in the index.
   *
   * @throws ERR_FABRICKV_RESOURCE_EXHAUSTED
   */
  open(value: StoredValue): Lease {
    if (this.closed) throw new Error('a session that has ended takes a lease');
    if (this.leases.size >= LEASES_PER_SESSION_MAX) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        `the session has ${LEASES_PER_SESSION_MAX} leases; end those that are read to their end, or read without one`,
      );
    }
    const lease = new Lease(this.nextId(), value, this);
    const others = this.values.get(value) ?? 0;
    if (others === 0) value.hold(this);
    this.values.set(value, others + 1);
    this.leases.set(lease.id, lease);
    this.onIdle(lease);
    this.options.counters.leasesOpened += 1;
    return lease;
  }

  /** @throws ERR_FABRICKV_LEASE_EXPIRED when there is no such lease (any more) */
  find(id: bigint): Lease {
    const lease = this.leases.get(id);
    if (lease !== undefined) return lease;
    throw new FabricKvError(
      'ERR_FABRICKV_LEASE_EXPIRED',
      `this session has no such lease: it was not used for ${LEASE_IDLE_MS / 1000} s, was ended, or made room when its value was replaced`,
    );
  }

  /** The client is done with it. One that is not there is nothing to complain of: it may have run out. */
  end(id: bigint): void {
    this.leases.get(id)?.end();
  }

  /** The session ends, and all leases with it. */
  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    this.timer = undefined;
    for (const lease of [...this.leases.values()]) lease.end();
  }

  /** A value that is held here has left the index. */
  onSuperseded(value: StoredValue): void {
    this.superseded += 1;
    this.supersededBytes += value.length;
    while (this.supersededBytes > this.options.supersededBytesMax && this.superseded > 1) {
      const lease = this.leastRecent();
      if (lease === undefined) return;
      this.options.counters.leasesDisplaced += 1;
      lease.end();
    }
  }

  /** @internal A lease's time begins. */
  onIdle(lease: Lease): void {
    lease.idleSinceMs = this.nowMs();
    this.idle.add(lease);
    this.touch(lease);
    this.arm();
  }

  /** @internal A lease's time stops. The timer finds that out by itself. */
  onReading(lease: Lease): void {
    this.idle.delete(lease);
    this.touch(lease);
  }

  /** @internal */
  onEnded(lease: Lease): void {
    const { value } = lease;
    this.leases.delete(lease.id);
    this.idle.delete(lease);
    const others = (this.values.get(value) ?? 0) - 1;
    if (others > 0) {
      this.values.set(value, others);
    } else {
      this.values.delete(value);
      if (value.superseded) {
        this.superseded -= 1;
        this.supersededBytes -= value.length;
      }
      value.letGo(this);
    }
    if (this.leases.size === 0) this.options.onEmpty?.();
  }

  /** Ends what has been idle for too long. Called by the timer, one for all of them. */
  expire(): void {
    this.timer = undefined;
    const dueMs = this.nowMs() - LEASE_IDLE_MS;
    for (const lease of this.idle) {
      if (lease.idleSinceMs > dueMs) break;
      this.options.counters.leasesExpired += 1;
      lease.end();
    }
    this.arm();
  }

  /** The timer runs while something is idle. A renewal leaves it as it is: it looks again when it was too early. */
  private arm(): void {
    if (this.timer !== undefined || this.closed) return;
    const [first] = this.idle;
    if (first === undefined) return;
    const leftMs = first.idleSinceMs + LEASE_IDLE_MS - this.nowMs();
    this.timer = setTimeout(() => this.expire(), Math.max(1, Math.ceil(leftMs)));
  }

  /** Keeps the leases in the order of their use. */
  private touch(lease: Lease): void {
    this.leases.delete(lease.id);
    this.leases.set(lease.id, lease);
  }

  /** Of the leases that hold memory of a value that nobody else finds: the one used longest ago, idle ones first. */
  private leastRecent(): Lease | undefined {
    for (const lease of this.idle) if (lease.value.superseded) return lease;
    for (const lease of this.leases.values()) if (lease.value.superseded) return lease;
    return undefined;
  }

  private nextId(): bigint {
    // 0 stands for no lease.
    this.lastId = this.lastId === UINT64_MAX ? 1n : this.lastId + 1n;
    return this.lastId;
  }
}
