/**
 * The peers of a rail: one for each fabric address, however many sessions its process has. A peer can be recycled:
 * removed from the address vector, which ends its connection and everything in flight on it, and inserted again. That
 * is what proves that no write of it to a closed window can still land (docs/architecture.md, quiescence).
 */

import type { Logger } from 'pino';
import type {
  FabricError,
  PeerId,
  Rail,
  RemoteAddress,
  RemoteKey,
  RemoteRegionId,
  TransferId,
} from '../fabric/index.js';
import { toFabricKvError } from '../protocol/errors.js';
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

/** One fabric address. */
export class Peer {
  private state: 'present' | 'recycling' | 'gone' = 'present';
  private recycling: Promise<void> = Promise.resolve();
  /** A recycling that is asked for and has not begun; whoever asks now joins it. */
  private nextRecycling: Promise<void> | undefined;
  private readonly regions = new Set<PeerRegion>();
  private readonly sealed = new Set<ProofWaiter>();
  private readonly idleCallbacks: (() => void)[] = [];
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

  /** Resolves when a recycling that is under way has ended. */
  settled(): Promise<void> {
    return this.nextRecycling ?? this.recycling;
  }

  /** Introduces memory of the peer. @throws FabricError when the rail's table of regions is full. */
  addRegion(address: RemoteAddress, key: RemoteKey, length: number): PeerRegion {
    const region = new PeerRegion(address, key, length);
    if (this.state === 'present') region.id = this.rail.defineRemote({ peer: this.id, address, key, length });
    this.regions.add(region);
    return region;
  }

  removeRegion(region: PeerRegion): void {
    if (!this.regions.delete(region) || region.id === undefined) return;
    this.rail.forgetRemote(region.id);
    region.id = undefined;
  }

  /** Posts a write from the arena. The peer must be {@link present}. @throws FabricError when it cannot be posted */
  write(segments: readonly PeerWriteSegment[], onDone: (error?: FabricError) => void): TransferId {
    const posted = segments.map(({ localOffset, region, remoteOffset, length }) => {
      if (region.id === undefined) throw new Error('a write to a region of a peer that is away');
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

  /** From now on a {@link recycle} proves this. */
  awaitProof(waiter: ProofWaiter): void {
    this.lastUsedMs = performance.now();
    if (this.state === 'gone') waiter.prove();
    else this.sealed.add(waiter);
  }

  /**
   * Ends the connection to the peer with everything in flight on it, and makes a new start. Honest transfers in flight
   * are waited for a moment; those that are cut off are retried by whoever owns them.
   */
  recycle(): Promise<void> {
    // One that is under way may have missed what was sealed meanwhile.
    this.nextRecycling ??= this.recycling.then(() => {
      this.nextRecycling = undefined;
      this.recycling = this.recycleNow();
      return this.recycling;
    });
    return this.nextRecycling;
  }

  /** The last session has gone: nothing will be posted, and what the peer posted cannot land. */
  async remove(): Promise<void> {
    await this.settled();
    if (this.state === 'gone') return;
    this.state = 'gone';
    for (const region of this.regions) this.removeRegion(region);
    await this.removeAndProve();
  }

  private async recycleNow(): Promise<void> {
    if (this.state === 'gone') return;
    this.state = 'recycling';
    await this.idle();
    for (const region of this.regions) {
      if (region.id !== undefined) this.rail.forgetRemote(region.id);
      region.id = undefined;
    }
    await this.removeAndProve();
    this.counters.peersRecycled += 1;
    try {
      this.id = await this.rail.insertPeer(this.address);
      for (const region of this.regions) {
        region.id = this.rail.defineRemote({ peer: this.id, ...region });
      }
      this.state = 'present';
    } catch (error) {
      this.state = 'gone';
      this.logger.error({ err: toFabricKvError(error) }, 'A peer could not be inserted again; its data plane is down');
    }
  }

  private async removeAndProve(): Promise<void> {
    const proved = [...this.sealed];
    try {
      await this.rail.removePeer(this.id);
    } catch (error) {
      this.logger.error({ err: toFabricKvError(error) }, 'A peer could not be removed; its windows stay in quarantine');
      return;
    }
    for (const waiter of proved) {
      this.sealed.delete(waiter);
      waiter.prove();
    }
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
    const existing = this.peers.get(name) ?? this.inserting.get(name);
    const inserting = existing ?? this.insert(name, address);
    if (inserting instanceof Promise) this.inserting.set(name, inserting);
    const peer = await inserting;
    peer.references += 1;
    return peer;
  }

  /** A session has ended: with the last one the peer goes, and what it was granted is proved safe. */
  async release(peer: Peer): Promise<void> {
    peer.references -= 1;
    if (peer.references > 0) {
      if (peer.sealedWindows > 0) await peer.recycle();
      return;
    }
    const name = peer.address.toString('latin1');
    if (this.peers.get(name) === peer) this.peers.delete(name);
    await peer.remove();
  }

  private async insert(name: string, address: Buffer): Promise<Peer> {
    try {
      const id = await this.rail.insertPeer(address);
      const peer = new Peer(this.rail, address, id, this.mappingId, this.counters, this.logger);
      this.peers.set(name, peer);
      return peer;
    } finally {
      this.inserting.delete(name);
    }
  }
}
