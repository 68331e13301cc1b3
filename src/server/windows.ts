/**
 * Write windows: pieces of the arena that one client may write to for a while. A value that lies in a window keeps it as a
 * barrier, until it is proved that no write of the client can land there (I2, I3).
 */

import type { Logger } from 'pino';
import { FabricError, type LocalRegion, type Mapping } from '../fabric/index.js';
import type { ServerCounters } from './counters.js';
import type { ServerRail } from './server-rail.js';
import type { Arena, Extent, QuarantineReason, WriteBarrier } from './store/arena.js';
import { alignedLength, EXTENT_ALIGNMENT_BYTES, type Range } from './store/extent-allocator.js';
import { whileBusy } from './while-busy.js';

/**
 * - `made`: its memory is reserved.
 * - `registering` on every rail.
 * - `open`.
 * - `revoking`: the client was asked to end its writes; what it has written is still taken.
 * - `closing`: its memory regions are being closed. Nothing is granted or taken any more.
 * - `sealed`: they are closed. The rails' proofs follow by themselves.
 * - `proven`: no write can land. Its memory is free, as far as it is nobody's.
 */
type WindowState = 'made' | 'registering' | 'open' | 'revoking' | 'closing' | 'sealed' | 'proven';

const TRANSITIONS: Readonly<Record<WindowState, readonly WindowState[]>> = {
  made: ['registering', 'closing'],
  registering: ['open', 'closing'],
  open: ['revoking', 'closing'],
  revoking: ['closing'],
  closing: ['sealed'],
  sealed: ['proven'],
  proven: [],
};

/**
 * `grants`: the server says where each value goes. `session`: the client does, in ascending order.
 */
export type WindowKind = 'grants' | 'session';

/** What all windows of a server share. */
export interface WindowPlace {
  readonly rails: readonly ServerRail[];
  readonly mapping: Mapping;
  readonly arena: Arena;
  readonly counters: ServerCounters;
  readonly logger: Logger;
}

/** Address and remote key on one rail. */
export interface WindowKey {
  readonly address: bigint;
  readonly key: bigint;
}

/** A memory region of a window, and the endpoint that it is on. */
interface Registration {
  readonly proofs: ServerRail['currentProofs'];
  readonly region: LocalRegion;
}

/** Who is told that a window that it depends on is closed. */
export interface WindowUser {
  /** Those that it depends on; kept by its session. */
  readonly dependsOn: WriteWindow[];
  onWindowClosed(): void;
}

/** One piece of the arena, open to the writes of one client. */
export class WriteWindow implements WriteBarrier {
  private state: WindowState = 'made';
  private registrations: Registration[] = [];
  private keysOfRails: readonly WindowKey[] = [];
  private readonly provenCallbacks: (() => void)[] = [];
  /** PUTs in flight. */
  private readonly users: WindowUser[] = [];
  /** Nothing before it is claimed anew. */
  private claimedEnd = 0;
  /** What was skipped below {@link claimedEnd}. */
  private readonly gaps: Range[] = [];
  private reason: QuarantineReason = 'open';
  private sealWanted = false;
  private resolveClosed: () => void = () => undefined;
  private readonly closed = new Promise<void>((resolve) => {
    this.resolveClosed = resolve;
  });
  lastUsedMs = performance.now();

  /** The range is reserved in the arena, and is the window's from now on. */
  constructor(
    readonly id: number,
    readonly kind: WindowKind,
    readonly range: Range,
    private readonly place: WindowPlace,
  ) {
    place.counters.windowsOpened += 1;
    place.counters.windowsOpen += 1;
  }

  /** Resolves when its memory regions are closed. */
  get whenClosed(): Promise<void> {
    return this.closed;
  }

  /** Whether the client may write there, or may soon. */
  get usable(): boolean {
    return this.state === 'made' || this.state === 'registering' || this.state === 'open';
  }

  /** Whether what the client has written there is still taken. */
  get accepting(): boolean {
    return this.state === 'open' || this.state === 'revoking';
  }

  get proven(): boolean {
    return this.state === 'proven';
  }

  get waitsFor(): QuarantineReason {
    return this.reason;
  }

  /** Whether a PUT depends on it. */
  get inUse(): boolean {
    return this.users.length > 0;
  }

  /** Bytes behind everything that was claimed. */
  get leftBytes(): number {
    return this.range.length - this.claimedEnd;
  }

  get usedBytes(): number {
    return this.claimedEnd;
  }

  /** Whether the client could ever write there. */
  get wasOpened(): boolean {
    return this.keysOfRails.length > 0;
  }

  /** One for each rail, in their order; zeros for a rail that is down. Empty before it is open. */
  get keys(): readonly WindowKey[] {
    return this.keysOfRails;
  }

  /**
   * Registers it for the client's writes on every rail that works.
   *
   * @returns false when it was sealed meanwhile
   * @throws FabricError when that fails on one, or no rail works; it is sealed then
   */
  async open(): Promise<boolean> {
    if (this.sealWanted) return false;
    const { mapping, rails } = this.place;
    const { offset, length } = this.range;
    this.become('registering');
    const results = await Promise.allSettled(
      rails.map(async ({ rail, currentProofs: proofs }) => {
        if (rail.state !== 'open') return undefined;
        const region = await rail.register({ mapping, offset, length, access: 'remote-write' });
        return { proofs, region };
      }),
    );
    const failure = results.find((result) => result.status === 'rejected');
    const registrations = results.map((result) => (result.status === 'fulfilled' ? result.value : undefined));
    this.registrations = registrations.filter((registration) => registration !== undefined);
    const failed = failure !== undefined || this.registrations.length === 0;
    // Whoever opens it hears of a failure, and tells those who depend on it.
    if (failed) this.users.length = 0;
    if (this.sealWanted || failed) this.close();
    if (failure !== undefined) throw failure.reason;
    if (failed) throw new FabricError({ code: 'RAIL_CLOSED', call: 'register', text: 'no rail is open' });
    if (this.sealWanted) return false;
    this.keysOfRails = registrations.map((registration) => registration?.region ?? { address: 0n, key: 0n });
    this.become('open');
    return true;
  }

  /** Takes room for a value behind what was claimed; undefined when there is not enough. */
  claim(length: number): Extent | undefined {
    if (!this.usable || alignedLength(length) > alignedLength(this.range.length) - this.claimedEnd) return undefined;
    return this.claimAt(this.claimedEnd, length);
  }

  /** Whether a value of the client's choice lies in the window, behind those before. */
  fits(offset: number, length: number): boolean {
    return (
      offset % EXTENT_ALIGNMENT_BYTES === 0 &&
      offset >= this.claimedEnd &&
      length > 0 &&
      offset + length <= this.range.length
    );
  }

  /** Takes a range that {@link fits}. */
  claimAt(offset: number, length: number): Extent {
    if (!this.fits(offset, length)) throw new Error(`a window has no room for ${length} bytes at ${offset}`);
    const from = this.claimedEnd;
    if (offset > from) this.gaps.push({ offset: this.range.offset + from, length: offset - from });
    this.claimedEnd = offset + alignedLength(length);
    this.lastUsedMs = performance.now();
    return this.place.arena.claim({ offset: this.range.offset + offset, length }, this);
  }

  /** A PUT depends on it: it is told when the window closes, and is not disturbed for want of memory or for idling. */
  enter(user: WindowUser): void {
    this.users.push(user);
  }

  leave(user: WindowUser): void {
    const place = this.users.indexOf(user);
    const last = this.users.pop();
    if (place >= 0 && place < this.users.length && last !== undefined) this.users[place] = last;
    this.lastUsedMs = performance.now();
  }

  /** The client is asked to end its writes. @returns false when it is past that */
  revoke(): boolean {
    if (this.state !== 'open') return false;
    this.become('revoking');
    return true;
  }

  /**
   * Closes the window for good; its proof follows. Resolves when its memory regions are closed. Idempotent; never rejects.
   */
  seal(): Promise<void> {
    this.sealWanted = true;
    // One that is being registered is closed as soon as it is.
    if (this.state === 'made' || this.accepting) this.close();
    return this.closed;
  }

  whenProven(callback: () => void): void {
    if (this.proven) callback();
    else this.provenCallbacks.push(callback);
  }

  private close(): void {
    const { arena, counters } = this.place;
    this.become('closing');
    counters.windowsOpen -= 1;
    // What nobody has claimed goes back with everything else, when it is proved.
    const { offset, length } = this.range;
    const rest = { offset: offset + this.claimedEnd, length: alignedLength(length) - this.claimedEnd };
    for (const range of rest.length > 0 ? [...this.gaps, rest] : this.gaps) arena.giveUp(range, this);
    this.gaps.length = 0;
    for (const user of [...this.users]) user.onWindowClosed();
    void this.prove();
  }

  private async prove(): Promise<void> {
    const { logger } = this.place;
    const proofs = await Promise.all(
      this.registrations.map(async ({ proofs: rail, region }) => {
        try {
          await whileBusy(() => rail.rail.deregister(region));
        } catch (error) {
          // A rail that is closing says so before it has closed: only the end of that is the proof.
          if (!(error instanceof FabricError && error.code === 'RAIL_CLOSED')) {
            logger.error({ err: error }, 'A write window could not be closed; its memory is held until its rail is');
          }
          return { byClosing: true, prove: () => rail.proveByClosing() };
        }
        return { byClosing: rail.rail.info.quiescence === 'close-endpoint', prove: () => rail.prove() };
      }),
    );
    this.reason = proofs.some(({ byClosing }) => byClosing) ? 'unprovable' : 'proving';
    this.become('sealed');
    this.resolveClosed();
    await Promise.all(proofs.map(({ prove }) => prove()));
    this.become('proven');
    for (const callback of this.provenCallbacks.splice(0)) callback();
  }

  private become(next: WindowState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a window goes from ${this.state} to ${next}`);
    this.state = next;
  }
}
