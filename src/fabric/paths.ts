/**
 * The ways from this process to one peer: a rail of ours, and the peer on it. A path that fails is taken out and probed
 * until it is back; while there is another one, nothing waits for it.
 */

import { Bag } from '../collections/bag.js';
import { FabricError } from './errors.js';
import type { PeerId, RemoteRegionId, TransferId } from './ids.js';
import type { Rail } from './rail.js';

/** A path on which nothing completes for this long, while something is in flight on it, is cut and taken out. */
export const STALL_MS_DEFAULT = 1000;

/** While the rail is busy with other peers, a path may wait so much longer: it may be slow because they are many. */
const BUSY_RAIL_PATIENCE = 5;

/** How often paths with writes in flight are looked at. */
const WATCH_INTERVAL_MS = 250;

/** The first probe of a path that was taken out comes after this, each further one after twice the time, */
const PROBE_FIRST_MS = 100;
/** up to this. */
const PROBE_INTERVAL_MS_MAX = 2000;

/** What a path is told of the writes on it. */
export interface PathTraffic {
  /** Its place in the traffic of its path: the path's. */
  trafficPlace: number;
  /** Bytes that have landed so far; only whether it grows matters. */
  readonly landedBytes: number;
  /** Posts nothing more of it on this path; what was posted comes back, and the rest goes on elsewhere. */
  cut(): void;
}

/** The writes in flight on one path. */
class Traffic extends Bag<PathTraffic> {
  protected override placeOf(traffic: PathTraffic): number {
    return traffic.trafficPlace;
  }

  protected override setPlace(traffic: PathTraffic, place: number): void {
    traffic.trafficPlace = place;
  }
}

/** - `up`: in use. - `out`: it has failed, and is probed. - `gone`: replaced, or its owner has left. */
export type PathState = 'up' | 'out' | 'gone';

/** One rail, and the peer on it. */
export class PeerPath {
  /** @internal Set by {@link PeerPaths}. */
  state: PathState = 'up';
  /** @internal Writes in flight, for the watch. */
  readonly traffic = new Traffic();
  /** @internal What has landed by writes that have ended. */
  settledBytes = 0;
  /** @internal */
  lastLandedBytes = 0;
  /** @internal */
  lastProgressMs = 0;
  /** @internal What the whole rail had written then; undefined until it is first looked at. */
  railBytesAtProgress: number | undefined;

  constructor(
    /** Its place among the paths to this peer. */
    readonly index: number,
    readonly rail: Rail,
    readonly peer: PeerId,
  ) {}

  /** A write on it begins. */
  enter(traffic: PathTraffic): void {
    if (this.traffic.size === 0) {
      this.lastProgressMs = performance.now();
      this.railBytesAtProgress = undefined;
    }
    this.traffic.add(traffic);
  }

  /** A write on it has ended, after so much. */
  leave(traffic: PathTraffic, landedBytes: number): void {
    this.traffic.delete(traffic);
    this.settledBytes += landedBytes;
  }
}

/** Options of {@link PeerPaths}. */
export interface PeerPathsOptions {
  /** Memory of the peer that a probe may name: a probe writes no bytes. Undefined when there is none on that path. */
  readonly probeRegion: (path: PeerPath) => RemoteRegionId | undefined;
  /** Called when a path is taken out, with the reason, and when it is back. */
  readonly onChange?: (path: PeerPath, reason: FabricError | undefined) => void;
  /** Called when not even the connection of a path could be ended: what is in flight there stays until its rail is closed. */
  readonly onStuck?: (path: PeerPath, error: FabricError) => void;
  /** How long a path may be without progress; milliseconds, 1,000 by default. */
  readonly stallMs?: number;
}

/** All paths to one peer. */
export class PeerPaths {
  readonly #options: PeerPathsOptions;
  readonly #stallMs: number;
  readonly #paths: PeerPath[] = [];
  readonly #probes = new Map<PeerPath, NodeJS.Timeout>();
  #watch: NodeJS.Timeout | undefined;
  #turn = 0;
  #closed = false;

  constructor(options: PeerPathsOptions) {
    this.#options = options;
    this.#stallMs = options.stallMs ?? STALL_MS_DEFAULT;
  }

  /** Every path, also those that are out. */
  get all(): readonly PeerPath[] {
    return this.#paths;
  }

  /** Adds a path, or puts it in the place of the one that had its index. */
  set(path: PeerPath): void {
    const old = this.#paths[path.index];
    if (old !== undefined) this.drop(old);
    this.#paths[path.index] = path;
  }

  /** Nothing is written on a path any more; another one may take its place. */
  drop(path: PeerPath): void {
    path.state = 'gone';
    clearTimeout(this.#probes.get(path));
    this.#probes.delete(path);
  }

  /**
   * The paths to write on: those that are up. When none is, all whose rail is open, since what is about to be written is as
   * good as a probe.
   */
  usable(): readonly PeerPath[] {
    const open = this.#paths.filter(({ rail, state }) => rail.state === 'open' && state !== 'gone');
    const up = open.filter(({ state }) => state === 'up');
    return up.length > 0 ? up : open;
  }

  /** One of some paths, in turn; none of none. */
  oneOf(paths: readonly PeerPath[]): readonly PeerPath[] {
    this.#turn += 1;
    const path = paths[this.#turn % paths.length];
    return path === undefined ? [] : [path];
  }

  /** A write on the path has failed. It is taken out, if it is not the only one, and probed. */
  failed(path: PeerPath, reason: FabricError): void {
    if (path.state !== 'up' || this.#closed || this.#paths.length < 2) return;
    path.state = 'out';
    this.#options.onChange?.(path, reason);
    this.#probeAfter(path, PROBE_FIRST_MS);
  }

  /** Watches the paths' progress while a write is in flight. */
  watch(): void {
    this.#watch ??= setInterval(() => this.#look(), WATCH_INTERVAL_MS).unref();
  }

  /** The owner leaves: nothing is probed or watched any more. Ending the writes in flight is the owner's own business. */
  close(): void {
    this.#closed = true;
    clearInterval(this.#watch);
    for (const path of this.#paths) this.drop(path);
  }

  #look(): void {
    const nowMs = performance.now();
    let busy = false;
    for (const path of this.#paths) {
      if (path.traffic.size === 0) continue;
      busy = true;
      let landedBytes = path.settledBytes;
      for (const traffic of path.traffic.toArray()) landedBytes += traffic.landedBytes;
      const railBytes = path.rail.stats().bytesWritten;
      path.railBytesAtProgress ??= railBytes;
      const patienceMs = this.#stallMs * (railBytes === path.railBytesAtProgress ? 1 : BUSY_RAIL_PATIENCE);
      if (landedBytes !== path.lastLandedBytes) {
        path.lastLandedBytes = landedBytes;
        path.lastProgressMs = nowMs;
        path.railBytesAtProgress = railBytes;
      } else if (nowMs - path.lastProgressMs >= patienceMs) {
        path.lastProgressMs = nowMs;
        path.railBytesAtProgress = railBytes;
        // Of some writes nothing may have been posted yet: those are no business of the connection's.
        for (const traffic of path.traffic.toArray()) traffic.cut();
        // What is in flight comes back with an error.
        this.#disconnect(path);
      }
    }
    if (busy) return;
    clearInterval(this.#watch);
    this.#watch = undefined;
  }

  #disconnect(path: PeerPath): void {
    path.rail.disconnectPeer(path.peer).catch((error: unknown) => {
      if (!(error instanceof FabricError)) throw error;
      // A rail that is full is asked again at the next look, and one that is closed has ended everything.
      if (error.code === 'TRANSFER_FAILED') this.#options.onStuck?.(path, error);
    });
  }

  #probeAfter(path: PeerPath, delayMs: number): void {
    if (this.#closed || path.state !== 'out' || path.rail.state !== 'open') return;
    const timer = setTimeout(() => this.#probe(path, delayMs), delayMs).unref();
    this.#probes.set(path, timer);
  }

  #probe(path: PeerPath, delayMs: number): void {
    if (path.rail.state !== 'open') return;
    const nextMs = Math.min(2 * delayMs, PROBE_INTERVAL_MS_MAX);
    let ping: TransferId | undefined;
    const patience = setTimeout(() => {
      if (ping !== undefined) path.rail.cancel(ping);
      this.#disconnect(path);
    }, this.#stallMs).unref();
    const onDone = (error?: FabricError): void => {
      clearTimeout(patience);
      if (error !== undefined) this.#probeAfter(path, nextMs);
      else if (path.state === 'out' && !this.#closed) {
        path.state = 'up';
        this.#probes.delete(path);
        this.#options.onChange?.(path, undefined);
      }
    };
    try {
      const remoteRegionId = this.#options.probeRegion(path);
      if (remoteRegionId !== undefined) {
        ping = path.rail.pingPeer({ peer: path.peer, remoteRegionId, onDone });
        return;
      }
    } catch (error) {
      // The rail is full or closed; the first passes, and the second is seen next time.
      if (!(error instanceof FabricError)) throw error;
    }
    clearTimeout(patience);
    this.#probeAfter(path, nextMs);
  }
}
