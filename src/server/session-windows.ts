/**
 * The write windows of one session: which there are, what is granted from them, when they are offered and taken back.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { GrantExtent } from '../protocol/generated/fabrickv/v1/GrantExtent.js';
import type { ServerMessage } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import { EXTENT_BYTES_MAX } from '../protocol/limits.js';
import { fromBigInt } from '../protocol/wire.js';
import { reserveRanges } from './mutations.js';
import type { Peer } from './peers.js';
import type { ServerContext } from './server-context.js';
import type { ServerRail } from './server-rail.js';
import type { Extent } from './store/arena.js';
import { EXTENT_ALIGNMENT_BYTES, type Range } from './store/extent-allocator.js';
import { type WindowKind, type WindowPlace, type WindowUser, WriteWindow } from './windows.js';

/** Windows that several values share take this part of the arena, */
const ARENA_PART = 64;
/** but no less than this. */
const SHARED_BYTES_MIN = 1024 * 1024;
/** Values longer than such a window's length divided by this get one of their own. */
const SHARED_DIVISOR = 2;
/** Room beyond what a value takes is kept in windows only while this part of the arena stays free beside it. */
const HEADROOM_PART = 4;

/** A window that nobody uses for this long is taken back. */
const IDLE_MS = 1000;
/** A client that was asked to end its writes to a window is given this long when memory is wanted, */
const WANTED_GRACE_MS = 250;
/** and otherwise this long. */
const UNUSED_GRACE_MS = 1000;
/** A session window that is fuller than this is of no more use when the client has begun with a later one; the client has the same rule. */
const FILLED_MAX = 3 / 4;

/** Session windows of one session that are not closed yet, those that are being revoked included, */
const SESSION_WINDOWS_MAX = 6;
/** and those that are closed and whose proof is under way with them. */
const SESSION_WINDOWS_UNPROVEN_MAX = 16;

/** Room for a value, or for the next part of one. */
export interface Grant {
  /** The memory, in the order of the value's bytes. Whoever has the grant releases it to the arena, or publishes it. */
  readonly extents: readonly Extent[];
  /** The same, as the client is told. */
  readonly places: readonly GrantExtent[];
  /** Resolves when the first window is open and the grant may be sent; rejects when that fails. */
  readonly opened: Promise<void>;
}

/** Who has a grant: it is told when it can be used no more. */
export interface GrantUser extends WindowUser {
  /** A further window of the grant could not be opened. */
  onWindowFailed(error: unknown): void;
}

/** What the windows need of their session. */
export interface WindowHost {
  readonly context: ServerContext;
  readonly peer: Peer | undefined;
  send(operationId: number, message: Omit<ServerMessage, 'operationId'>, sizeBytes?: number): void;
}

/** The windows of one session. */
export class SessionWindows {
  private readonly windows = new Map<number, WriteWindow>();
  private readonly graceTimers = new Map<WriteWindow, NodeJS.Timeout>();
  /** Sealed, and not closed yet. */
  private readonly closing = new Map<WriteWindow, Promise<void>>();
  /** Session windows that a late write may still land in. */
  private readonly unproven = new Set<WriteWindow>();
  private readonly place: WindowPlace;
  /** The one that small grants share. */
  private shared: { readonly window: WriteWindow; readonly opened: Promise<void> } | undefined;
  private ended = false;

  constructor(
    private readonly host: WindowHost,
    readonly rails: readonly ServerRail[],
  ) {
    const { store, dataPlane, counters, logger } = host.context;
    this.place = { rails, mapping: dataPlane.mapping, arena: store.arena, counters, logger };
  }

  /**
   * Takes room for `length` bytes, at least one, in windows; further ones are opened while the client writes to the first.
   *
   * @param stillWanted asked after a wait for memory
   * @throws ERR_FABRICKV_CAPACITY
   */
  async grant(length: number, user: GrantUser, stillWanted: () => boolean): Promise<Grant> {
    const shared = this.grantShared(length, user);
    if (shared !== undefined) return shared;
    const ranges = await reserveRanges(this.host.context, length, stillWanted);
    const windows = ranges.map((range) => this.add('grants', range));
    const extents: Extent[] = [];
    for (const window of windows) {
      const extent = window.claim(window.range.length);
      if (extent === undefined) throw new Error('a window does not hold what it was made for');
      extents.push(extent);
      this.use(window, user);
    }
    return { extents, places: placesOf(extents, windows), opened: this.openAll(windows, user) };
  }

  /** A PUT is over: it depends on its windows no more. Those that are full, or of no use to others, are closed. */
  release(user: WindowUser, expired = false): void {
    for (const window of user.dependsOn.splice(0)) {
      window.leave(user);
      if (expired && window === this.shared?.window) this.shared = undefined;
      const spent = window.kind === 'grants' && window !== this.shared?.window && !window.inUse;
      if (spent) this.seal(window, 'its PUTs have ended');
    }
  }

  /**
   * Takes what the client says that it has written into its session window.
   *
   * @throws ERR_FABRICKV_GRANT_ENDED when the window was taken back, ERR_FABRICKV_PROTOCOL when it may not be written there:
   *   then every window of the session is closed
   */
  takeWritten(windowId: number, offset: number, length: number, user: WindowUser): Extent {
    const window = this.windows.get(windowId);
    // Ids are not used twice: it may have been one.
    if (window === undefined) throw grantEnded();
    if (window.kind !== 'session') {
      throw this.hostile(`PutWritten for window ${windowId}, which is no session window`);
    }
    if (!window.accepting) throw grantEnded();
    if (!window.fits(offset, length)) {
      throw this.hostile(
        `PutWritten of ${length} bytes at ${offset} does not follow the last value of window ${windowId}`,
      );
    }
    const extent = window.claimAt(offset, length);
    this.use(window, user);
    this.supersede(window);
    return extent;
  }

  /**
   * A value comes by RDMA: the session gets a window of its own, and the next one before the last is full. Where a value takes most
   * of a window, one more, so that there is one whose offer need not be waited for.
   */
  offerSessionWindows(wantedBytes: number): void {
    const windowBytes = this.sharedBytes();
    const ahead = wantedBytes > windowBytes / SHARED_DIVISOR && wantedBytes <= windowBytes ? 2 : 1;
    while (this.roomAhead(wantedBytes) < ahead && this.offerSessionWindow());
  }

  /** How many of the session's windows have room for a value like this, and more. */
  private roomAhead(wantedBytes: number): number {
    let count = 0;
    for (const window of this.windows.values()) {
      if (window.kind === 'session' && window.usable && !nearlyFull(window, wantedBytes)) count += 1;
    }
    return count;
  }

  /** @returns false when the session can have no further one now */
  private offerSessionWindow(): boolean {
    if (this.ended) return false;
    const { length: count } = [...this.windows.values(), ...this.closing.keys()].filter(
      ({ kind }) => kind === 'session',
    );
    if (count >= SESSION_WINDOWS_MAX) return false;
    // What only the end of an endpoint proves has a bound of its own, --max-quarantine.
    const unproven = [...this.unproven].filter(({ waitsFor }) => waitsFor !== 'unprovable');
    if (unproven.length >= SESSION_WINDOWS_UNPROVEN_MAX) return false;
    const range = this.reserveWithHeadroom(this.sharedBytes());
    if (range === undefined) return false;
    const window = this.add('session', range);
    this.unproven.add(window);
    window.whenProven(() => this.unproven.delete(window));
    // Without it the client asks for a grant each time.
    this.open(window).catch((error: unknown) =>
      this.host.context.logger.warn({ err: error }, 'A session window could not be opened'),
    );
    return true;
  }

  /** The client says that it writes to a window no more. That proves nothing, but the window need not stay open for it. */
  onEnded(windowId: number): void {
    const window = this.windows.get(windowId);
    if (window !== undefined && (window.kind === 'session' || !window.usable)) this.seal(window);
  }

  /** The client has broken a rule of its windows. @returns the error that says so */
  hostile(message: string): FabricKvError {
    this.host.context.counters.hostileSigns += 1;
    this.host.context.logger.warn(
      { reason: message },
      'A client broke the rules of its write windows; they are closed',
    );
    this.sealAll('a rule of write windows was broken');
    return new FabricKvError('ERR_FABRICKV_PROTOCOL', message, { outcome: 'not-applied' });
  }

  /** Closes every window now. The session may be granted others. */
  sealAll(reason: string): void {
    for (const window of [...this.windows.values()]) this.seal(window, reason);
  }

  /** A rail of ours has another endpoint. */
  announce({ index, generation, rail }: ServerRail): void {
    const { address, addressFormat } = rail.info;
    this.host.send(0, { railChanged: { rail: index, generation, address: { address, format: addressFormat } } });
  }

  /** Takes back what nobody has used for a while. */
  sweep(nowMs: number): void {
    for (const window of [...this.windows.values()]) {
      if (!window.inUse && nowMs - window.lastUsedMs >= IDLE_MS)
        this.takeBack(window, 'it was not used', UNUSED_GRACE_MS);
    }
  }

  /** Memory is wanted: takes back what nobody is using. Resolves when it is closed. */
  async yieldMemory(): Promise<void> {
    const closing = [...this.closing.values()];
    for (const window of [...this.windows.values()]) {
      if (window.inUse) continue;
      closing.push(window.whenClosed);
      this.takeBack(window, 'the server needs its memory', WANTED_GRACE_MS);
    }
    await Promise.all(closing);
  }

  /** The session ends. Resolves when every window is closed. */
  async end(): Promise<void> {
    this.ended = true;
    for (const window of [...this.windows.values()]) this.seal(window);
    await Promise.all(this.closing.values());
  }

  private grantShared(length: number, user: GrantUser): Grant | undefined {
    const sharedBytes = this.sharedBytes();
    if (length > sharedBytes / SHARED_DIVISOR) return undefined;
    let { shared } = this;
    let extent = shared?.window.claim(length);
    if (shared === undefined || extent === undefined) {
      const range = this.reserveWithHeadroom(sharedBytes);
      if (range === undefined) return undefined;
      this.shared = undefined;
      if (shared !== undefined && !shared.window.inUse) this.seal(shared.window, 'it is full');
      const window = this.add('grants', range);
      extent = window.claim(length);
      shared = { window, opened: this.open(window) };
      this.shared = shared;
      // Whoever has a grant in it hears of it too.
      shared.opened.catch(() => undefined);
    }
    if (extent === undefined) throw new Error('a window does not hold what it was made for');
    this.use(shared.window, user);
    return { extents: [extent], places: placesOf([extent], [shared.window]), opened: shared.opened };
  }

  /** Opens the windows one after the other; the promise is about the first. */
  private async openAll([first, ...others]: readonly WriteWindow[], user: GrantUser): Promise<void> {
    if (first === undefined) return;
    await this.open(first);
    void (async () => {
      try {
        for (const window of others) await this.open(window);
      } catch (error) {
        user.onWindowFailed(error);
      }
    })();
  }

  private async open(window: WriteWindow): Promise<void> {
    // The client is about to write: over a connection that it makes the next proof would cut it off.
    this.host.peer?.ping();
    try {
      if (!(await window.open())) return;
    } catch (error) {
      this.seal(window);
      throw error;
    }
    this.host.send(0, {
      windowOffer: {
        windowId: window.id,
        length: window.range.length,
        rails: window.keys.map(({ address, key }) => ({ address: fromBigInt(address), rkey: fromBigInt(key) })),
        ...(window.kind === 'session' ? { sessionWindow: true } : {}),
      },
    });
  }

  private add(kind: WindowKind, range: Range): WriteWindow {
    const window = new WriteWindow(this.host.context.dataPlane.nextWindowId(), kind, range, this.place);
    this.windows.set(window.id, window);
    return window;
  }

  private use(window: WriteWindow, user: WindowUser): void {
    if (user.dependsOn.includes(window)) return;
    user.dependsOn.push(window);
    window.enter(user);
  }

  /** The client has begun with a later session window: those before it that are nearly full are of no more use. */
  private supersede(by: WriteWindow): void {
    for (const window of this.windows.values()) {
      if (window === by) return;
      // They are kept in the order in which they were made.
      if (window.kind === 'session' && isFilled(window)) {
        this.revoke(window, 'the next one is in use', UNUSED_GRACE_MS);
      }
    }
  }

  private takeBack(window: WriteWindow, reason: string, graceMs: number): void {
    if (window === this.shared?.window) this.shared = undefined;
    // An honest client writes only where it has a grant, or to what it was offered.
    if (window.kind === 'grants' || window.keys.length === 0) this.seal(window, reason);
    else this.revoke(window, reason, graceMs);
  }

  private revoke(window: WriteWindow, reason: string, graceMs: number): void {
    if (!window.revoke()) return;
    this.host.send(0, { windowRevoke: { windowId: window.id, reason } });
    this.graceTimers.set(
      window,
      setTimeout(() => this.seal(window), graceMs),
    );
  }

  /** @param reason told to the client, if it was not told before */
  private seal(window: WriteWindow, reason?: string): void {
    // Its PUTs may have ended with another one's closing, and it with them.
    if (!this.windows.has(window.id)) return;
    const told = this.graceTimers.has(window);
    this.forget(window);
    if (reason !== undefined && !told && window.keys.length > 0) {
      this.host.send(0, { windowRevoke: { windowId: window.id, reason, closed: true } });
    }
    const closing = window.seal();
    this.closing.set(window, closing);
    void closing.then(() => this.closing.delete(window));
  }

  private forget(window: WriteWindow): void {
    clearTimeout(this.graceTimers.get(window));
    this.graceTimers.delete(window);
    this.windows.delete(window.id);
    if (window === this.shared?.window) this.shared = undefined;
  }

  private sharedBytes(): number {
    const part = Math.floor(this.place.arena.sizeBytes / ARENA_PART / EXTENT_ALIGNMENT_BYTES) * EXTENT_ALIGNMENT_BYTES;
    return Math.min(EXTENT_BYTES_MAX, Math.max(SHARED_BYTES_MIN, part));
  }

  /** One range, or none: this is a convenience, for which nobody has to wait and no value is refused. */
  private reserveWithHeadroom(length: number): Range | undefined {
    const { arena } = this.place;
    const { freeBytes, totalBytes } = arena.usage;
    if (this.ended || freeBytes - length < totalBytes / HEADROOM_PART) return undefined;
    const ranges = arena.reserve(length);
    const [range] = ranges ?? [];
    if (ranges === undefined || range === undefined || ranges.length === 1) return range;
    arena.cancelReservation(ranges);
    return undefined;
  }
}

function isFilled({ usedBytes, range }: WriteWindow): boolean {
  return usedBytes >= range.length * FILLED_MAX;
}

function nearlyFull(window: WriteWindow, wantedBytes: number): boolean {
  return isFilled(window) || (window.leftBytes < wantedBytes && wantedBytes <= window.range.length);
}

function placesOf(extents: readonly Extent[], windows: readonly WriteWindow[]): GrantExtent[] {
  return extents.map(({ offset, length }, i) => {
    const window = windows[i];
    return { windowId: window?.id ?? 0, windowOffset: offset - (window?.range.offset ?? 0), length };
  });
}

function grantEnded(): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_GRANT_ENDED', 'the window was taken back', { outcome: 'not-applied' });
}
