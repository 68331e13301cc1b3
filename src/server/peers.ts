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
import { whileBusy } from './while-busy.js';

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

  /** Whether it can be written at all. */
  get isDefined(): boolean {
    return this.byPath.size > 0;
  }

  /** Enters it into the table of a link's rail, once. @throws FabricError `BUSY` when that is full, `RAIL_CLOSED` */
  define(link: PeerLink): void {
    const at = this.keys[link.clientRail];
    if (at === undefined || this.byLink.has(link)) return;
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
  readonly onRetry?: ((error: FabricError) => void) | undefined;
}

/** A write in flight. */
export class PeerWrite {
  private graceTimer: NodeJS.Timeout | undefined;
  private readonly write: StripedWrite;

  /** @internal Use {@link Peer.beginWrite}. */
  constructor(
    paths: PeerPaths,
    mappingId: number,
    private readonly disconnect: () => void,
    private readonly options: PeerWriteOptions,
  ) {
    const { segments, onRetry } = options;
    this.write = new StripedWrite({
      paths,
      segments: segments.map(({ localOffset, region, remoteOffset, length }) => ({
        mappingId,
        localOffset,
        remote: region,
        remoteOffset,
        length,
      })),
      onDone: (error) => this.done(error),
      onRetry,
    });
    for (const { region } of segments) region.use();
    this.write.start();
  }

  /** Bytes that have landed. */
  get landedBytes(): number {
    return this.write.landedBytes;
  }

  /** Posts nothing more; `onDone` follows when nothing is in flight, whatever the peer does. Idempotent. */
  cancel(): void {
    this.write.cancel();
    this.graceTimer ??= setTimeout(this.disconnect, CANCEL_GRACE_MS);
  }

  private done(error: FabricError | undefined): void {
    clearTimeout(this.graceTimer);
    for (const { region } of this.options.segments) region.unuse();
    this.options.onDone(error);
  }
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
  private readonly pinging = new Set<PeerLink>();
  /** Whether it was told that a table had no room for a region. */
  private crowdedOut = false;
  private readonly disconnectWhenStuck = (): void => this.disconnect();
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
        for (const region of this.regions) {
          const remoteRegionId = region.on(path);
          if (remoteRegionId !== undefined) return remoteRegionId;
        }
        return undefined;
      },
      onStuck: (path, error) =>
        this.report(
          error,
          'Writes to a client do not come back',
          this.links.find(({ rail }) => rail === path.rail),
        ),
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

  /** Introduces memory of the peer. When the table of a rail is full it cannot be written, as {@link reaches} tells. */
  addRegion(keys: readonly RegionKey[], length: number): PeerRegion {
    const region = new PeerRegion(keys, length);
    this.regions.add(region);
    this.define(region);
    // From now on the peer can be reached: its first GET need not wait for the connection, and what it writes to us comes
    // over a connection that we know.
    if (!this.connected && region.isDefined) this.ping();
    return region;
  }

  /** Strikes regions off. */
  removeRegions(regions: Iterable<PeerRegion>): void {
    const removed = [...regions].filter((region) => this.regions.delete(region));
    for (const link of this.links) {
      for (const region of removed) region.forget(link);
      if (link.path === undefined && this.pingRegion(link) === undefined) this.defineForPing(link);
    }
  }

  /** Whether a region can be written: one that a rail's table had no room for is tried again. */
  reaches(region: PeerRegion): boolean {
    return region.isDefined || (this.regions.has(region) && this.define(region));
  }

  /** Writes from the arena into regions of the peer, over all paths to it. */
  beginWrite(options: PeerWriteOptions): PeerWrite {
    return new PeerWrite(this.paths, this.mappingId, this.disconnectWhenStuck, options);
  }

  /** A rail of ours has been replaced: the paths and regions move to the new endpoint. */
  moved(serverRail: ServerRail): Promise<void> {
    return this.enqueue(async () => {
      if (this.state !== 'present' || !this.isBehind(serverRail)) return;
      const old = this.links.filter((link) => link.serverRail === serverRail);
      // Until then the old path is written on, if it still can be.
      await this.insertOn(serverRail);
      // The old endpoint is closed soon, and its tables with it.
      for (const link of old) {
        for (const region of this.regions) region.forget(link);
        this.links.splice(this.links.indexOf(link), 1);
      }
      this.ping();
    });
  }

  /** Whether it is not on the endpoint that a rail of ours has now. */
  isBehind(serverRail: ServerRail): boolean {
    const links = this.links.filter((link) => link.serverRail === serverRail);
    return serverRail.rail.state === 'open' && !links.some(({ rail }) => rail === serverRail.rail);
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
      let id: PeerId;
      try {
        id = await rail.insertPeer(address);
      } catch (error) {
        if (error instanceof FabricError && error.code === 'RAIL_CLOSED') return;
        throw error;
      }
      const path = clientRail === ours ? new PeerPath(this.pathIndex(serverRail), rail, id) : undefined;
      const link: PeerLink = { serverRail, rail, id, clientRail, path };
      this.links.push(link);
      if (path === undefined) {
        this.defineForPing(link);
        continue;
      }
      // A write that finds the path finds its regions there.
      for (const region of this.regions) this.define(region);
      this.paths.set(path);
    }
  }

  /**
   * Enters a region into the tables of all rails, or of none: on every path, and on a link that is not one where there is
   * none yet that can be pinged. A client with many rails and regions would fill the tables otherwise.
   *
   * @returns whether it can be written now
   */
  private define(region: PeerRegion): boolean {
    try {
      for (const link of this.links) {
        if (link.rail.state !== 'open') continue;
        if (link.path !== undefined) ignoringClosed(() => region.define(link));
        else if (this.pingRegion(link) === undefined) ignoringClosed(() => region.define(link));
      }
    } catch (error) {
      if (!(error instanceof FabricError && error.code === 'BUSY')) throw error;
      for (const link of this.links) region.forget(link);
      if (!this.crowdedOut)
        this.logger.warn({ err: error }, 'There is no room for more regions: a client is not written');
      this.crowdedOut = true;
    }
    return region.isDefined;
  }

  /** A link that is no path has one region, for pings. */
  private defineForPing(link: PeerLink): void {
    for (const region of this.regions) {
      try {
        if (link.rail.state === 'open') ignoringClosed(() => region.define(link));
      } catch (error) {
        this.logger.debug({ err: error }, 'There is no room for a region of a client');
      }
      return;
    }
  }

  private pathIndex(serverRail: ServerRail): number {
    const index = this.pathIndexes.get(serverRail) ?? this.pathIndexes.size;
    this.pathIndexes.set(serverRail, index);
    return index;
  }

  /**
   * Connects to it where it is not connected, so that what it writes to us comes over a connection that a proof does not
   * end. A connection may have ended unnoticed since the last time: writing no bytes is cheap enough to be done again.
   */
  ping(): void {
    for (const link of this.links) {
      const remoteRegionId = this.pingRegion(link);
      if (remoteRegionId === undefined || this.pinging.has(link)) continue;
      this.connected = true;
      const onDone = (error?: unknown): void => {
        this.pinging.delete(link);
        if (error !== undefined) this.logger.debug({ err: error }, 'A client could not be connected early');
      };
      this.pinging.add(link);
      try {
        link.rail.pingPeer({ peer: link.id, remoteRegionId, onDone });
      } catch (error) {
        onDone(error);
      }
    }
  }

  private pingRegion(link: PeerLink): RemoteRegionId | undefined {
    for (const region of this.regions) {
      const remoteRegionId = region.onLink(link);
      if (remoteRegionId !== undefined) return remoteRegionId;
    }
    return undefined;
  }

  /** Ends all connections to it: what is in flight comes back, and goes on over new ones if it is still wanted. */
  private disconnect(): void {
    for (const link of this.links) {
      const { rail, id, path } = link;
      if (path === undefined) continue;
      const end = async (): Promise<void> => {
        if (path.traffic.size > 0) await rail.disconnectPeer(id);
      };
      whileBusy(end).catch((error: unknown) =>
        this.report(error, 'The connection to a client could not be ended', link),
      );
    }
  }

  private async remove(): Promise<void> {
    this.become('leaving');
    this.paths.close();
    for (const link of this.links) for (const region of this.regions) region.forget(link);
    this.regions.clear();
    await Promise.all(
      this.links.splice(0).map(async (link) => {
        const { rail, id } = link;
        try {
          if (rail.state === 'open') await whileBusy(() => rail.removePeer(id));
        } catch (error) {
          this.report(error, 'A client could not be removed from the address vector', link);
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

  /** A rail that has closed or failed says so itself, once. One whose writes do not come back is to be replaced. */
  private report(error: unknown, message: string, link?: PeerLink): void {
    if (error instanceof FabricError && error.errnoName === 'ETIMEDOUT') link?.serverRail.reportStuck(link.rail);
    const level = error instanceof FabricError && error.code === 'RAIL_CLOSED' ? 'debug' : 'error';
    this.logger[level]({ err: error }, message);
  }
}

/** What a rail that is closing does not take is taken by the one that follows it. */
function ignoringClosed(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof FabricError && error.code === 'RAIL_CLOSED')) throw error;
  }
}
