/**
 * The clients as the server's rails see them: one peer for each set of fabric addresses, however many sessions its
 * process has, with a path from every rail of the server's.
 */

import type { Logger } from 'pino';
import {
  FabricError,
  type PeerId,
  PeerPath,
  PeerPaths,
  type Rail,
  type RemoteAddress,
  type RemoteKey,
  type RemoteMemory,
  type RemoteRegionId,
  StripedWrite,
} from '../fabric/index.js';
import { toFabricKvError } from '../protocol/errors.js';
import type { ServerRail } from './server-rail.js';

/** A cancelled write that has not come back after this long is flushed by ending the connections to its peer. */
const CANCEL_GRACE_MS = 250;

/** Where a client's region begins and what opens it, on one of the client's rails. */
export interface RegionKey {
  readonly address: RemoteAddress;
  readonly key: RemoteKey;
}

/**
 * An address of the client in the vector of one of our rails. We write through the one that {@link path} is set for; the
 * others, of a client with more rails than we have, are connected all the same: the client writes to us from there, and
 * a connection that we did not make is ended by the next proof.
 */
interface PeerLink {
  readonly serverRail: ServerRail;
  /** The endpoint that was there when the address was inserted: the id means something on that one only. */
  readonly rail: Rail;
  readonly id: PeerId;
  readonly clientRail: number;
  readonly path: PeerPath | undefined;
}

/** Memory of a peer that we may write into. */
export class PeerRegion implements RemoteMemory {
  private readonly byLink = new Map<PeerLink, RemoteRegionId>();
  private readonly byPath = new Map<PeerPath, RemoteRegionId>();
  private writes = 0;
  private readonly unusedCallbacks: (() => void)[] = [];

  constructor(
    /** One for each rail of the client's. */
    readonly keys: readonly RegionKey[],
    readonly length: number,
  ) {}

  on(path: PeerPath): RemoteRegionId | undefined {
    return this.byPath.get(path);
  }

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

  /** The rail's name for it on one link, for a ping. */
  onLink(link: PeerLink): RemoteRegionId | undefined {
    return this.byLink.get(link);
  }

  /** Enters it into the table of a link's rail. @throws FabricError when that is full, or closed */
  define(link: PeerLink): void {
    const at = this.keys[link.clientRail];
    if (at === undefined) return;
    const id = link.rail.defineRemote({
      peer: link.id,
      address: at.address,
      key: at.key,
      length: this.length,
    });
    this.byLink.set(link, id);
    if (link.path !== undefined) this.byPath.set(link.path, id);
  }

  /** Strikes it off the table of a link's rail. */
  forget(link: PeerLink): void {
    const id = this.byLink.get(link);
    if (id === undefined) return;
    link.rail.forgetRemote(id);
    this.byLink.delete(link);
    if (link.path !== undefined) this.byPath.delete(link.path);
  }
}

/** A piece of a write: from the arena to a region of a peer. Offsets and lengths in bytes. */
export interface PeerWriteSegment {
  readonly localOffset: number;
  readonly region: PeerRegion;
  readonly remoteOffset: number;
  readonly length: number;
}

/** Arguments of {@link Peer.beginWrite}. */
export interface PeerWriteOptions {
  readonly segments: readonly PeerWriteSegment[];
  /**
   * Called exactly once, never before {@link Peer.beginWrite} has returned: without an error when every byte is visible at
   * the peer, else with the error that ended it (`CANCELLED` after {@link PeerWrite.cancel}). Nothing of it is in flight
   * then. What fails on one rail goes on by itself, on another one or after a new connection.
   */
  readonly onDone: (error?: FabricError) => void;
  /** A part of it failed and goes on. */
  readonly onRetry?: (error: FabricError) => void;
}

/** A write in flight. */
export interface PeerWrite {
  /** Bytes that have landed. */
  readonly landedBytes: number;
  /** Posts nothing more; `onDone` follows when nothing is in flight, whatever the peer does. Idempotent. */
  cancel(): void;
}

/** `present` → `leaving`, its last session has ended → `gone` from every address vector. */
type PeerState = 'present' | 'leaving' | 'gone';

const TRANSITIONS: Readonly<Record<PeerState, readonly PeerState[]>> = {
  present: ['leaving'],
  leaving: ['gone'],
  gone: [],
};

/** One client process. */
export class Peer {
  private state: PeerState = 'present';
  private readonly links: PeerLink[] = [];
  private readonly paths: PeerPaths;
  /** The place of each rail's path among the paths; a rail that was down at first has none before it is back. */
  private readonly pathIndexes = new Map<ServerRail, number>();
  private readonly regions = new Set<PeerRegion>();
  /** Moves and the removal, one after the other; never rejects. */
  private work: Promise<void> = Promise.resolve();
  private connected = false;
  /** Sessions that use it. */
  references = 0;

  private constructor(
    readonly name: string,
    /** Of the client's rails. */
    readonly addresses: readonly Buffer[],
    private readonly mappingId: number,
    private readonly logger: Logger,
  ) {
    this.paths = new PeerPaths({
      probeRegion: (path) => {
        for (const region of this.regions) return region.on(path);
        return undefined;
      },
      onChange: (path, reason) => {
        const fields = { err: reason, rail: path.index, provider: path.rail.info.provider };
        if (reason === undefined) logger.info(fields, 'A path to a client is back');
        else logger.warn(fields, 'A path to a client has failed; its traffic goes over the others');
      },
    });
  }

  /** Inserts a client's addresses into the rails' vectors. @throws FabricError when one is not accepted */
  static async insert(
    name: string,
    addresses: readonly Buffer[],
    rails: readonly ServerRail[],
    mappingId: number,
    logger: Logger,
  ): Promise<Peer> {
    const peer = new Peer(name, addresses, mappingId, logger);
    try {
      for (const serverRail of rails) await peer.insertOn(serverRail);
    } catch (error) {
      await peer.remove();
      throw error;
    }
    return peer;
  }

  /** How many rails the client has. */
  get railCount(): number {
    return this.addresses.length;
  }

  /** Introduces memory of the peer. @throws FabricError when a rail's table of regions is full */
  addRegion(keys: readonly RegionKey[], length: number): PeerRegion {
    const region = new PeerRegion(keys, length);
    this.regions.add(region);
    try {
      for (const link of this.links) if (link.rail.state === 'open') region.define(link);
    } catch (error) {
      this.removeRegion(region);
      throw error;
    }
    // From now on the peer can be reached: its first GET need not wait for the connection, and what it writes to us comes
    // over a connection that we know.
    if (!this.connected) this.connect(region);
    return region;
  }

  removeRegion(region: PeerRegion): void {
    if (!this.regions.delete(region)) return;
    for (const link of this.links) region.forget(link);
  }

  /** Writes from the arena into regions of the peer, over all paths to it. */
  beginWrite({ segments, onDone, onRetry }: PeerWriteOptions): PeerWrite {
    let graceTimer: NodeJS.Timeout | undefined;
    const write = new StripedWrite({
      paths: this.paths,
      segments: segments.map(({ localOffset, region, remoteOffset, length }) => ({
        mappingId: this.mappingId,
        localOffset,
        remote: region,
        remoteOffset,
        length,
      })),
      onDone: (error) => {
        clearTimeout(graceTimer);
        for (const { region } of segments) region.unuse();
        onDone(error);
      },
      ...(onRetry === undefined ? {} : { onRetry }),
    });
    for (const { region } of segments) region.use();
    write.start();
    return {
      get landedBytes() {
        return write.landedBytes;
      },
      cancel: () => {
        write.cancel();
        graceTimer ??= setTimeout(() => this.disconnect(), CANCEL_GRACE_MS);
      },
    };
  }

  /** A rail of ours has been replaced: the paths and regions move to the new endpoint. */
  moved(serverRail: ServerRail): Promise<void> {
    return this.enqueue(async () => {
      if (this.state !== 'present') return;
      for (const link of this.links.filter((other) => other.serverRail === serverRail)) {
        // The old endpoint is closed soon, and its tables with it.
        for (const region of this.regions) region.forget(link);
        this.links.splice(this.links.indexOf(link), 1);
      }
      const first = this.links.length;
      await this.insertOn(serverRail);
      for (const link of this.links.slice(first)) {
        for (const region of this.regions) region.define(link);
      }
      for (const region of this.regions) {
        this.connect(region);
        break;
      }
    });
  }

  /** The last session has gone. Never rejects. */
  leave(): Promise<void> {
    return this.enqueue(() => this.remove());
  }

  private async insertOn(serverRail: ServerRail): Promise<void> {
    const { rail, index, count } = serverRail;
    if (rail.state !== 'open') return;
    const ours = index % this.addresses.length;
    for (const [clientRail, address] of this.addresses.entries()) {
      if (clientRail !== ours && clientRail % count !== index) continue;
      const id = await rail.insertPeer(address);
      const path = clientRail === ours ? new PeerPath(this.pathIndex(serverRail), rail, id) : undefined;
      this.links.push({ serverRail, rail, id, clientRail, path });
      if (path !== undefined) this.paths.set(path);
    }
  }

  private pathIndex(serverRail: ServerRail): number {
    const index = this.pathIndexes.get(serverRail) ?? this.pathIndexes.size;
    this.pathIndexes.set(serverRail, index);
    return index;
  }

  private connect(region: PeerRegion): void {
    this.connected = true;
    for (const link of this.links) {
      const remoteRegionId = region.onLink(link);
      if (remoteRegionId === undefined) continue;
      try {
        link.rail.pingPeer({
          peer: link.id,
          remoteRegionId,
          onDone: (error) => {
            if (error !== undefined) this.logger.debug({ err: error }, 'A client could not be connected early');
          },
        });
      } catch (error) {
        this.logger.debug({ err: error }, 'A client could not be connected early');
      }
    }
  }

  /** Ends all connections to it: what is in flight comes back, and goes on over new ones if it is still wanted. */
  private disconnect(): void {
    for (const { rail, id, path } of this.links) {
      if (path === undefined || path.traffic.size === 0) continue;
      rail
        .disconnectPeer(id)
        .catch((error: unknown) => this.report(error, 'The connection to a client could not be ended'));
    }
  }

  private async remove(): Promise<void> {
    this.become('leaving');
    this.paths.close();
    for (const region of this.regions) this.removeRegion(region);
    await Promise.all(
      this.links.splice(0).map(async ({ rail, id }) => {
        try {
          if (rail.state === 'open') await rail.removePeer(id);
        } catch (error) {
          this.report(error, 'A client could not be removed from the address vector');
        }
      }),
    );
    this.become('gone');
  }

  private enqueue(job: () => Promise<void>): Promise<void> {
    this.work = this.work.then(job).catch((error: unknown) => {
      if (error instanceof FabricError) this.report(error, 'A client could not be moved to a new endpoint');
      else this.logger.error({ err: toFabricKvError(error) }, 'Internal error');
    });
    return this.work;
  }

  private become(next: PeerState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a peer goes from ${this.state} to ${next}`);
    this.state = next;
  }

  /** A rail that has closed or failed says so itself, once. */
  private report(error: unknown, message: string): void {
    const level = error instanceof FabricError && error.code === 'RAIL_CLOSED' ? 'debug' : 'error';
    this.logger[level]({ err: error }, message);
  }
}

/** The peers of one provider's rails, by their addresses. */
export class PeerTable {
  private readonly peers = new Map<string, Peer>();
  private readonly inserting = new Map<string, Promise<Peer>>();
  private readonly removing = new Map<string, Promise<void>>();

  constructor(
    readonly rails: readonly ServerRail[],
    private readonly mappingId: number,
    private readonly logger: Logger,
  ) {}

  /** All peers. */
  all(): Iterable<Peer> {
    return this.peers.values();
  }

  /** A session begins to use a client's addresses. @throws FabricError when one cannot be inserted */
  async acquire(addresses: readonly Buffer[]): Promise<Peer> {
    const name = addresses.map((address) => `${address.length}:${address.toString('latin1')}`).join('');
    // Counted in this turn: its last other session may end in the next.
    const existing = this.peers.get(name);
    if (existing !== undefined) return use(existing);
    let inserting = this.inserting.get(name);
    if (inserting === undefined) {
      inserting = this.insert(name, addresses);
      this.inserting.set(name, inserting);
    }
    return use(await inserting);
  }

  /** A session has ended: with the last one the peer goes. Never rejects. */
  async release(peer: Peer): Promise<void> {
    peer.references -= 1;
    if (peer.references > 0) return;
    if (this.peers.get(peer.name) === peer) this.peers.delete(peer.name);
    const removing = peer.leave();
    this.removing.set(peer.name, removing);
    await removing;
    if (this.removing.get(peer.name) === removing) this.removing.delete(peer.name);
  }

  /** A rail of this table has been replaced. */
  async moved(serverRail: ServerRail): Promise<void> {
    await Promise.all([...this.peers.values()].map((peer) => peer.moved(serverRail)));
  }

  private async insert(name: string, addresses: readonly Buffer[]): Promise<Peer> {
    try {
      // Removing an address ends every connection to it: one that is just being removed is waited for.
      await this.removing.get(name);
      const peer = await Peer.insert(name, addresses, this.rails, this.mappingId, this.logger);
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
