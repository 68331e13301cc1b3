/**
 * The write windows of the server's in one session: which there are, which writes are in flight to each, and where in the
 * session window the next value goes.
 */

import { type PeerPath, type RemoteMemory, type RemoteRegionId, remoteAddress, remoteKey } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { GrantExtent__Output } from '../protocol/generated/fabrickv/v1/GrantExtent.js';
import type { WindowOffer__Output } from '../protocol/generated/fabrickv/v1/WindowOffer.js';
import type { WindowRevoke__Output } from '../protocol/generated/fabrickv/v1/WindowRevoke.js';
import { toBigInt, toSafeInteger } from '../protocol/wire.js';
import { StateMachine, type Transitions } from './state-machine.js';

/** The most windows that are kept: 256 GiB of them. Past it, the oldest one that nobody uses is forgotten. */
const WINDOWS_MAX = 16_384;

/** Values in a session window begin at multiples of this. */
const ALIGNMENT_BYTES = 64;

/**
 * A value that takes more than this part of a session window goes into one in which nothing is on its way, and nothing goes there
 * until it has landed: values are announced in their order, and the others would wait long.
 */
const WINDOW_SHARE_MAX = 1 / 4;

/** A session window that is fuller than this is used no more once there is a later one. The server has the same rule. */
const WINDOW_FILLED_MAX = 3 / 4;

/** What was being written to a session window when the server asked for it may go on for so long; the server waits no longer. */
const LEAVING_MS = 1000;

/**
 * - `expected`: a grant names it; its offer follows while the first extents are written.
 * - `open`: it may be written to.
 * - `leaving`: nothing new begins there. What is on its way goes on.
 * - `ended`: the server has taken it back, or its keys are void.
 */
type WindowState = 'expected' | 'open' | 'leaving' | 'ended';

const TRANSITIONS: Transitions<WindowState> = {
  expected: ['open', 'ended'],
  open: ['leaving', 'ended'],
  leaving: ['ended'],
  ended: [],
};

/** A piece of the server's arena that this session may write to. */
export class WriteWindow implements RemoteMemory {
  /** Writes in flight. */
  writes = 0;
  /** Grants of operations in flight that name it. */
  grants = 0;
  /** Whether values in it are still to be announced; of a session window. */
  announcing = false;
  /** Whether the server has closed it. */
  closed = false;
  readonly #machine = new StateMachine<WindowState>('window', 'expected', TRANSITIONS);
  readonly #remotes = new Map<PeerPath, RemoteRegionId>();
  #offer: WindowOffer__Output | undefined;
  #length = 0;
  #leavesAtMs = 0;
  #waiting: (() => void)[] = [];

  constructor(readonly id: number) {}

  get state(): WindowState {
    return this.#machine.state;
  }

  get length(): number {
    return this.#length;
  }

  open(offer: WindowOffer__Output): void {
    this.#offer = offer;
    this.#length = toSafeInteger(offer.length, 'window length');
    this.#machine.to('open');
    this.#tellWaiting();
  }

  /** What is on its way may land, for a while. */
  leave(): void {
    this.#machine.to('leaving');
    this.#leavesAtMs = performance.now() + LEAVING_MS;
  }

  /** Nothing new is written to it. What is in flight goes on. */
  end(): void {
    if (this.state === 'ended') return;
    this.#machine.to('ended');
    for (const [{ rail }, remote] of this.#remotes) rail.forgetRemote(remote);
    this.#remotes.clear();
    this.#tellWaiting();
  }

  /** Calls back once, in a later turn of events, when it is expected no more. */
  whenKnown(onKnown: () => void): void {
    this.#waiting.push(onKnown);
  }

  /** @throws ERR_FABRICKV_GRANT_ENDED when it was taken back, ERR_FABRICKV_PROTOCOL when the range is not in it */
  check(offset: number, length: number): void {
    if (!this.#takesWrites) throw grantEnded(this.id);
    if (offset + length > this.#length) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the grant leaves window ${this.id}`);
    }
  }

  /**
   * Its id on a path's rail, entered into the rail's table when that path is first used. Undefined when the window has
   * ended, so that a write to it that failed is not tried again, and where it cannot be written to: the path is gone, or the
   * server's rail had failed when the window was registered.
   */
  on(path: PeerPath): RemoteRegionId | undefined {
    if (!this.#takesWrites || path.state === 'gone') return undefined;
    const known = this.#remotes.get(path);
    if (known !== undefined) return known;
    const rails = this.#offer?.rails ?? [];
    const key = rails[path.index % rails.length];
    if (key === undefined) return undefined;
    const address = toBigInt(key.address);
    const rkey = toBigInt(key.rkey);
    if (address === 0n && rkey === 0n) return undefined;
    const remote = path.rail.defineRemote({
      peer: path.peer,
      address: remoteAddress(address),
      key: remoteKey(rkey),
      length: this.#length,
    });
    this.#remotes.set(path, remote);
    return remote;
  }

  get #takesWrites(): boolean {
    return this.state === 'open' || (this.state === 'leaving' && performance.now() < this.#leavesAtMs);
  }

  #tellWaiting(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const onKnown of waiting) onKnown();
  }
}

/** Where a value, or a part of one, is to be written. */
export interface WriteTarget {
  readonly window: WriteWindow;
  readonly windowOffset: number;
  readonly length: number;
}

/** A session window, and how much of it is given out. */
interface SessionWindow {
  readonly window: WriteWindow;
  next: number;
  /** A value of more than {@link WINDOW_SHARE_MAX} of it is the last in {@link slots}. */
  largeLast: boolean;
  /** Values that are not announced yet, in ascending order. */
  readonly slots: WindowSlot[];
}

/**
 * - `writing`: it is on its way. - `landed`: it is to be announced. - `gone`: it was announced, or given up.
 */
type SlotState = 'writing' | 'landed' | 'gone';

/** The place of one value in a session window. */
export class WindowSlot {
  state: SlotState = 'writing';
  #announce: (() => void) | undefined;

  constructor(
    readonly target: WriteTarget,
    private readonly onChange: () => void,
  ) {}

  /**
   * The value has landed: `announce` is called, at once or when those before it in the window have been announced or given up,
   * unless this one is {@link giveUp | given up} before.
   */
  landed(announce: () => void): void {
    if (this.state !== 'writing') return;
    this.state = 'landed';
    this.#announce = announce;
    this.onChange();
  }

  /** The value will not be announced. Its room stays a gap. Idempotent. */
  giveUp(): void {
    if (this.state === 'gone') return;
    this.state = 'gone';
    this.onChange();
  }

  /** @internal */
  announce(): void {
    this.state = 'gone';
    this.#announce?.();
  }
}

/** Windows by id. */
export class WriteWindows {
  readonly #windows = new Map<number, WriteWindow>();
  /** The session's own that there may be room in, oldest first. */
  readonly #session: SessionWindow[] = [];

  constructor(
    /** Of the server. */
    private readonly rails: number,
    private readonly send: (message: ClientMessage) => void,
  ) {}

  /**
   * The server offers a window.
   *
   * @throws ERR_FABRICKV_PROTOCOL when it offers one twice, or without a key for each of its rails
   */
  offered(offer: WindowOffer__Output): void {
    const { windowId } = offer;
    const window = this.#windows.get(windowId) ?? this.#enter(windowId);
    if (window.state !== 'expected' || offer.rails.length !== this.rails) {
      throw new FabricKvError(
        'ERR_FABRICKV_PROTOCOL',
        `window ${windowId} was offered before, or not with ${this.rails} keys`,
      );
    }
    window.open(offer);
    if (offer.sessionWindow) this.#session.push({ window, next: 0, largeLast: false, slots: [] });
  }

  /**
   * The server takes a window back; unless it has closed it, it is told when no write is in flight. What is being written to the
   * session window is announced before that: the server still takes it for a while.
   */
  revoked({ windowId, closed }: WindowRevoke__Output): void {
    const window = this.#windows.get(windowId);
    if (window === undefined) {
      if (!closed) this.send({ operationId: 0, windowEnded: { windowId } });
      return;
    }
    window.closed = closed;
    if (closed) this.#end(window);
    else this.#leave(window);
    this.#leaveIfQuiet(window);
  }

  /** Every key is void: the server's rails have changed. No answer is due for that. */
  voidAll(): void {
    for (const window of this.#windows.values()) this.#end(window);
    this.#windows.clear();
  }

  /**
   * Where the extents of a grant are. Windows that are not there yet are expected. The grant needs an {@link ungrant}.
   */
  grant(extents: readonly GrantExtent__Output[]): WriteTarget[] {
    return extents.map(({ windowId, windowOffset, length }) => {
      const window = this.#windows.get(windowId) ?? this.#enter(windowId);
      window.grants += 1;
      return {
        window,
        windowOffset: toSafeInteger(windowOffset, 'window_offset'),
        length: toSafeInteger(length, 'length'),
      };
    });
  }

  /** Nobody writes to these targets any more. */
  ungrant(targets: readonly WriteTarget[]): void {
    for (const { window } of targets) {
      window.grants -= 1;
      // What was expected and is wanted by nobody may never come.
      if (window.state === 'expected' && window.grants === 0) this.#windows.delete(window.id);
    }
  }

  /**
   * Room for a value in the session window; undefined when it does not fit, or there is no window.
   *
   * Room is given out in ascending order of offset and never again: a PUT that is given up leaves a gap. Values that are written at
   * the same time land in any order, but the server takes a value only behind those that it was told of in the same window, and
   * anything else for a hostile sign. So one that lands early waits for the word of those before it, which is a matter of microseconds
   * where they are of like size: the rails take turns.
   */
  allocate(length: number): WindowSlot | undefined {
    for (const session of this.#session) {
      const { window, next, slots } = session;
      const isLarge = length > window.length * WINDOW_SHARE_MAX;
      const isInTheWay = slots.length > 0 && (isLarge || session.largeLast);
      if (next + length > window.length || isInTheWay) continue;
      session.next = Math.ceil((next + length) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
      session.largeLast = isLarge;
      while (this.#session[0] !== session && isFilled(this.#session[0])) this.#session.shift();
      window.grants += 1;
      const slot = new WindowSlot({ window, windowOffset: next, length }, () => this.#announceInOrder(session));
      slots.push(slot);
      window.announcing = true;
      return slot;
    }
    return undefined;
  }

  /** Memory of the server's that a probe of a path may name. */
  probeRegion(path: PeerPath): RemoteRegionId | undefined {
    for (const window of this.#windows.values()) {
      const remote = window.on(path);
      if (remote !== undefined) return remote;
    }
    return undefined;
  }

  /** A write to the window begins. */
  beginWrite(window: WriteWindow): void {
    window.writes += 1;
  }

  /** A write that was begun is over. */
  written(window: WriteWindow): void {
    window.writes -= 1;
    this.#leaveIfQuiet(window);
  }

  /** The session is over. */
  close(): void {
    this.voidAll();
  }

  #enter(windowId: number): WriteWindow {
    if (this.#windows.size >= WINDOWS_MAX) this.#forgetOldest();
    const window = new WriteWindow(windowId);
    this.#windows.set(windowId, window);
    return window;
  }

  /** Nothing new begins in a session window. */
  #leave(window: WriteWindow): void {
    if (window.state === 'open') window.leave();
    else window.end();
    this.#forgetRoom(window);
  }

  #end(window: WriteWindow): void {
    window.end();
    this.#forgetRoom(window);
  }

  #forgetRoom(window: WriteWindow): void {
    const place = this.#session.findIndex((session) => session.window === window);
    if (place >= 0) this.#session.splice(place, 1);
  }

  #leaveIfQuiet(window: WriteWindow): void {
    const isOver = window.state === 'leaving' || window.state === 'ended';
    if (!isOver || window.writes > 0 || window.announcing) return;
    if (this.#windows.get(window.id) !== window) return;
    window.end();
    this.#windows.delete(window.id);
    if (!window.closed) this.send({ operationId: 0, windowEnded: { windowId: window.id } });
  }

  #announceInOrder(session: SessionWindow): void {
    const { window, slots } = session;
    for (let first = slots[0]; first !== undefined && first.state !== 'writing'; first = slots[0]) {
      slots.shift();
      if (first.state === 'landed') first.announce();
    }
    if (slots.length > 0 || !window.announcing) return;
    window.announcing = false;
    // Of a full one nothing more is wanted: the server need not ask for it.
    if (session.next >= window.length) this.#leave(window);
    this.#leaveIfQuiet(window);
  }

  #forgetOldest(): void {
    for (const window of this.#windows.values()) {
      if (window.writes > 0 || window.grants > 0) continue;
      this.#end(window);
      this.#windows.delete(window.id);
      return;
    }
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server has granted parts of ${WINDOWS_MAX} windows`);
  }
}

function isFilled(session: SessionWindow | undefined): boolean {
  return session !== undefined && session.next >= session.window.length * WINDOW_FILLED_MAX;
}

/** The error of an operation whose window was taken back. */
export function grantEnded(windowId: number): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_GRANT_ENDED', `the server took window ${windowId} back`);
}
