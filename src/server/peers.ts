/**
 * The peers of a rail: one for each fabric address, however many sessions its process has. A peer can be recycled:
 * removed from the address vector, which ends its connection and everything in flight on it, and inserted again. That
 * is what proves that no write of it to a closed window can still land (docs/architecture.md, quiescence).
 */

import type { Logger } from 'pino';
import {
  FabricError,
  type PeerId,
  type Rail,
  type RemoteAddress,
  type RemoteKey,
  type RemoteRegionId,
  type TransferId,
} from '../fabric/index.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import type { ServerCounters } from './counters.js';

/** Memory of a peer that we may write into. It keeps its meaning when the peer is recycled. */
export class PeerRegion {
  /** The rail's own name for it; changes when the peer is recycled, undefined while it is away. */
  id: RemoteRegionId | undefined;
  private writes = 0;
  private readonly unusedCallbacks: (() => void)[] = [];

  constructor(
    readonly address: RemoteAddress,
    readonly key: RemoteKey,
    readonly length: number,
  ) {}

  /** A write to it begins. */
  use(): void {
    this.writes += 1;
  }

  /** A write to it has ended. */
  unuse(): void {
    this.writes -= 1;
    if (this.writes === 0) for (const callback of this.unusedCallbacks.splice(0)) callback();
  }

  /** Resolves when no write to it is in flight. Writes end: their operations have deadlines. */
  unused(): Promise<void> {
    return this.writes === 0 ? Promise.resolve() : new Promise((resolve) => this.unusedCallbacks.push(resolve));
  }
}

/** A piece of a write: from the arena to a region of a peer. */
export interface PeerWriteSegment {
  readonly localOffset: number;
  readonly region: PeerRegion;
  readonly remoteOffset: number;
  readonly length: number;
}

/** What waits for the proof that a peer's earlier writes cannot land any more. */
export interface ProofWaiter {
  prove(): void;
  /** Whether memory is being held for it. */
  readonly wanted: boolean;
}

/** Transfers are given this long to end by themselves before their peer is recycled. */
const RECYCLE_GRACE_MS = 200;

/**
 * `recycling` ends in `present`; in `away` when the address could not be inserted again, which the next recycling tries
 * once more; or in `lost` when it could not be taken out, after which nothing of this peer is ever proved. `gone`: its
 * last session has ended.
 */
type PeerState = 'present' | 'recycling' | 'away' | 'lost' | 'gone';

const TRANSITIONS: Readonly<Record<PeerState, readonly PeerState[]>> = {
  present: ['recycling', 'gone'],
  recycling: ['present', 'away', 'lost'],
  away: ['recycling', 'gone'],
  lost: ['gone'],
  gone: [],
};

/** One fabric address. */
export class Peer {
  private state: PeerState = 'present';
  /** Recyclings and the removal, one after the other; never rejects. */
  private work: Promise<void> = Promise.resolve();
  /** A recycling that is asked for and has not begun; whoever asks now joins it. */
  private nextRecycling: Promise<void> | undefined;
  private readonly regions = new Set<PeerRegion>();
  private readonly sealed = new Set<ProofWaiter>();
  private readonly closings = new Set<Promise<void>>();
  private readonly idleCallbacks: (() => void)[] = [];
  private readonly closedCallbacks: (() => void)[] = [];
  /** Windows that are registered, or are about to be, or are not closed yet. */
  private windows = 0;
  private transfers = 0;
  /** Sessions that use it. */
  references = 0;
  lastUsedMs = performance.now();

  constructor(
    readonly rail: Rail,
    readonly address: Buffer,
    private id: PeerId,
    private readonly mappingId: number,
    private readonly counters: ServerCounters,
    private readonly logger: Logger,
  ) {}

  /** Whether a write can be posted now. */
  get present(): boolean {
    return this.state === 'present';
  }

  /** Windows that are closed, without the proof yet that the peer's writes to them have ended. */
  get sealedWindows(): number {
    return this.sealed.size;
  }

  /** Whether memory is held until it is proved that this peer cannot write to it. */
  get proofWanted(): boolean {
    for (const waiter of this.sealed) if (waiter.wanted) return true;
    return false;
  }

  /** Waits for a recycling that is under way; says whether a write can be posted then. */
  async settled(): Promise<boolean> {
    if (this.state === 'away') await this.recycle();
    while (this.state === 'recycling') await this.work;
    return this.present;
  }

  /** Introduces memory of the peer. @throws FabricError when the rail's table of regions is full. */
  addRegion(address: RemoteAddress, key: RemoteKey, length: number): PeerRegion {
    const region = new PeerRegion(address, key, length);
    if (this.state === 'present') region.id = this.rail.defineRemote({ peer: this.id, address, key, length });
    this.regions.add(region);
    return region;
  }

  removeRegion(region: PeerRegion): void {
    if (!this.regions.delete(region)) return;
    this.forget(region);
  }

  /**
   * Posts a write from the arena. The peer must be {@link present}.
   *
   * @throws FabricError when it cannot be posted; ERR_FABRICKV_INVALID_ARGUMENT when the region has ended
   */
  write(segments: readonly PeerWriteSegment[], onDone: (error?: FabricError) => void): TransferId {
    const posted = segments.map(({ localOffset, region, remoteOffset, length }) => {
      if (region.id === undefined) throw this.withoutId(region);
      return { mappingId: this.mappingId, localOffset, remoteRegionId: region.id, remoteOffset, length };
    });
    const id = this.rail.write({
      peer: this.id,
      segments: posted,
      onDone: (error) => {
        this.transfers -= 1;
        this.lastUsedMs = performance.now();
        for (const { region } of segments) region.unuse();
        if (this.transfers === 0) for (const callback of this.idleCallbacks.splice(0)) callback();
        onDone(error);
      },
    });
    this.transfers += 1;
    for (const { region } of segments) region.use();
    return id;
  }

  /** A window is about to be registered for this peer: it is not removed for good before {@link windowClosed}. */
  windowOpened(): void {
    this.windows += 1;
  }

  /** A window is not registered any more, or never was. */
  windowClosed(): void {
    this.windows -= 1;
    if (this.windows === 0) for (const callback of this.closedCallbacks.splice(0)) callback();
  }

  /** A window is being closed: whoever wants its memory waits for that. */
  windowClosing(closing: Promise<void>): void {
    this.closings.add(closing);
    void closing.then(() => this.closings.delete(closing));
  }

  /** From now on a {@link recycle} proves this. */
  awaitProof(waiter: ProofWaiter): void {
    this.lastUsedMs = performance.now();
    this.sealed.add(waiter);
  }

  /**
   * Ends the connection to the peer with everything in flight on it, and makes a new start. Honest transfers in flight
   * are waited for a moment; those that are cut off are retried by whoever owns them.
   */
  recycle(): Promise<void> {
    // One that is under way may have missed what was sealed meanwhile.
    this.nextRecycling ??= this.enqueue(() => {
      this.nextRecycling = undefined;
      return this.recycleNow();
    });
    return this.nextRecycling;
  }

  /** Proves what memory is held for, if there is such, closings under way included. */
  async reclaim(): Promise<void> {
    await Promise.all(this.closings);
    if (this.proofWanted) await this.recycle();
  }

  /** The last session has gone: nothing will be posted, and what the peer posted cannot land. */
  remove(): Promise<void> {
    return this.enqueue(() => this.removeNow());
  }

  private enqueue(job: () => Promise<void>): Promise<void> {
    this.work = this.work.then(job).catch((error: unknown) => {
      if (this.state === 'recycling') this.become('lost');
      this.logger.error({ err: toFabricKvError(error) }, 'Internal error');
    });
    return this.work;
  }

  private async removeNow(): Promise<void> {
    // The removal proves nothing of a window that is open meanwhile: a PUT that is being committed ends first.
    if (this.windows > 0) await new Promise<void>((resolve) => this.closedCallbacks.push(resolve));
    const { state } = this;
    if (state === 'gone') return;
    this.become('gone');
    for (const region of this.regions) this.removeRegion(region);
    if (state === 'present') await this.removeAndProve();
  }

  private async recycleNow(): Promise<void> {
    if (this.state !== 'present' && this.state !== 'away') return;
    const inVector = this.state === 'present';
    this.become('recycling');
    if (inVector) {
      await this.idle();
      for (const region of this.regions) this.forget(region);
      if (!(await this.removeAndProve())) {
        this.become('lost');
        return;
      }
      this.counters.peersRecycled += 1;
    }
    this.become((await this.insertAgain()) ? 'present' : 'away');
  }

  private async insertAgain(): Promise<boolean> {
    try {
      this.id = await this.rail.insertPeer(this.address);
    } catch (error) {
      this.report(error, 'A peer could not be inserted again; its data plane is down');
      return false;
    }
    for (const region of this.regions) {
      const { address, key, length } = region;
      try {
        region.id = this.rail.defineRemote({ peer: this.id, address, key, length });
      } catch (error) {
        this.report(error, 'A region of a peer could not be introduced again; it gets its values inline');
      }
    }
    return true;
  }

  /** @returns false when the peer could not be removed, and so nothing is proved */
  private async removeAndProve(): Promise<boolean> {
    const proved = [...this.sealed];
    try {
      await this.rail.removePeer(this.id);
    } catch (error) {
      this.report(error, 'A peer could not be removed; its windows stay in quarantine');
      return false;
    }
    for (const waiter of proved) {
      this.sealed.delete(waiter);
      waiter.prove();
    }
    return true;
  }

  private become(next: PeerState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a peer goes from ${this.state} to ${next}`);
    this.state = next;
  }

  private forget(region: PeerRegion): void {
    if (region.id === undefined) return;
    this.rail.forgetRemote(region.id);
    region.id = undefined;
  }

  private withoutId(region: PeerRegion): FabricKvError {
    return this.regions.has(region)
      ? new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the region of the sink could not be introduced to the rail')
      : new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the region of the sink has ended');
  }

  /** A rail that has closed or failed says so itself, once. */
  private report(error: unknown, message: string): void {
    const level = error instanceof FabricError && error.code === 'RAIL_CLOSED' ? 'debug' : 'error';
    this.logger[level]({ err: error }, message);
  }

  private idle(): Promise<void> {
    if (this.transfers === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, RECYCLE_GRACE_MS);
      this.idleCallbacks.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

/** The peers of one rail, by address. */
export class PeerTable {
  private readonly peers = new Map<string, Peer>();
  private readonly inserting = new Map<string, Promise<Peer>>();
  private readonly removing = new Map<string, Promise<void>>();

  constructor(
    readonly rail: Rail,
    private readonly mappingId: number,
    private readonly counters: ServerCounters,
    private readonly logger: Logger,
  ) {}

  /** All peers, for those who look for memory to reclaim. */
  all(): Iterable<Peer> {
    return this.peers.values();
  }

  /** A session begins to use an address. @throws FabricError when it cannot be inserted */
  async acquire(address: Buffer): Promise<Peer> {
    const name = address.toString('latin1');
    // Counted in this turn: its last other session may end in the next.
    const existing = this.peers.get(name);
    if (existing !== undefined) return use(existing);
    let inserting = this.inserting.get(name);
    if (inserting === undefined) {
      inserting = this.insert(name, address);
      this.inserting.set(name, inserting);
    }
    return use(await inserting);
  }

  /** A session has ended: with the last one the peer goes, and what it was granted is proved safe. Never rejects. */
  async release(peer: Peer): Promise<void> {
    peer.references -= 1;
    if (peer.references > 0) {
      await peer.reclaim();
      return;
    }
    const name = peer.address.toString('latin1');
    if (this.peers.get(name) === peer) this.peers.delete(name);
    const removing = peer.remove();
    this.removing.set(name, removing);
    await removing;
    if (this.removing.get(name) === removing) this.removing.delete(name);
  }

  /** Proves for all peers that memory waits for, those that are being removed included. */
  async reclaim(): Promise<void> {
    await Promise.all([...this.removing.values(), ...[...this.peers.values()].map((peer) => peer.reclaim())]);
  }

  private async insert(name: string, address: Buffer): Promise<Peer> {
    try {
      // Removing an address ends every connection to it: one that is just being removed is waited for.
      await this.removing.get(name);
      const id = await this.rail.insertPeer(address);
      const peer = new Peer(this.rail, address, id, this.mappingId, this.counters, this.logger);
      this.peers.set(name, peer);
      return peer;
    } finally {
      this.inserting.delete(name);
    }
  }
}

function use(peer: Peer): Peer {
  peer.references += 1;
  return peer;
}
