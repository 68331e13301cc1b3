/**
 * The data plane of one session: the server as a peer on each rail, the regions that it may write into, the windows
 * that this client may write into, and the proof, when the session is over, that nothing is written any more.
 */

import type { Logger } from 'pino';
import {
  FabricError,
  type LocalRegion,
  type Mapping,
  type PeerId,
  PeerPath,
  PeerPaths,
  type ProviderName,
  type Rail,
  StripedWrite,
} from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { RailChanged__Output } from '../protocol/generated/fabrickv/v1/RailChanged.js';
import { fromBigInt } from '../protocol/wire.js';
import type { Counters } from './counters.js';
import { toClientError } from './fabric-errors.js';
import type { PeerRail } from './protocol-values.js';
import { StateMachine } from './state-machine.js';
import { grantEnded, type WriteTarget, WriteWindows } from './write-windows.js';

/** How long a server may take to say that it writes to a region no more; the registration is closed then anyway. */
const REGION_ENDED_TIMEOUT_MS = 5000;

/**
 * A server rail that was replaced stays in the address vectors this long: writes of the server's that it began there come
 * to their end meanwhile.
 */
const RAIL_MOVED_GRACE_MS = 2000;

/** - `up`: in use. - `retiring`: the session is over and the proof under way. - `retired`: nothing of it is left. */
type DataPlaneState = 'up' | 'retiring' | 'retired';

/** A registration of one range of a mapping on every rail. */
interface RegisteredRange {
  readonly regionId: number;
  readonly length: number;
  /** In the order of the rails; undefined on a rail that has failed. */
  readonly keys: readonly { readonly rail: Rail; readonly region: LocalRegion | undefined }[];
}

/** A mapping as a source of writes. */
interface LocalSource {
  readonly registered: Promise<void>;
  readonly regions: { readonly rail: Rail; readonly region: LocalRegion }[];
  ready: boolean;
}

/** One of the server's rails on all of ours. */
interface ServerRail {
  /** Counts its addresses. */
  generation: number;
  /** By rail of ours. */
  peers: readonly { readonly rail: Rail; readonly peer: PeerId }[];
}

/** Memory that the server has been told of, in ranges of at most {@link DataPlane.regionBytesMax}. */
export interface IntroducedMemory {
  readonly ranges: readonly RegisteredRange[];
  /** How a sink at this offset of the mapping is named. */
  place(offset: number): { readonly regionId: number; readonly offset: number };
}

/** A write in flight. */
export interface ActiveWrite {
  /** Posts nothing more of it; its `onDone` still comes, when nothing of it is in flight. */
  cancel(): void;
}

/** Options of {@link DataPlane.write}. */
export interface PieceWrite {
  readonly mapping: Mapping;
  readonly localOffset: number;
  readonly targets: readonly WriteTarget[];
  /** Called once: the source is not read any more. */
  readonly onDone: (error: FabricError | FabricKvError | undefined) => void;
}

/** Options of {@link DataPlane}. */
export interface DataPlaneOptions {
  readonly provider: ProviderName;
  readonly rails: readonly [Rail, ...Rail[]];
  readonly serverRails: readonly PeerRail[];
  readonly regionsMax: number;
  readonly send: (message: ClientMessage) => void;
  readonly counters: Counters;
  readonly logger: Logger;
}

/** One session's use of the rails. */
export class DataPlane {
  readonly provider: ProviderName;
  readonly windows: WriteWindows;
  /** The longest range that one registration covers; bytes. */
  readonly regionBytesMax: number;
  readonly #machine = new StateMachine<DataPlaneState>('data plane', 'up', {
    up: ['retiring'],
    retiring: ['retired'],
    retired: [],
  });
  readonly #options: DataPlaneOptions;
  /** Rail i of ours writes to the server's rail i mod n. */
  readonly #paths: PeerPaths;
  readonly #serverRails: ServerRail[] = [];
  readonly #regions = new Map<number, RegisteredRange>();
  readonly #sources = new Map<number, LocalSource>();
  readonly #needsLocalRegistration: boolean;
  readonly #ending = new Map<number, () => void>();
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #writes = new Set<StripedWrite>();
  /** Peers that are to be removed from the address vectors, and when. */
  readonly #leaving = new Map<NodeJS.Timeout, ServerRail['peers']>();
  #nextRegionId = 1;

  constructor(options: DataPlaneOptions) {
    this.#options = options;
    this.provider = options.provider;
    this.regionBytesMax = Math.min(...options.rails.map((rail) => rail.info.maxRegionBytes));
    this.#needsLocalRegistration = options.rails.some((rail) => rail.info.needsLocalRegistration);
    this.windows = new WriteWindows(options.serverRails.length, options.send);
    this.#paths = new PeerPaths({
      probeRegion: (path) => this.windows.probeRegion(path),
      onChange: (path, reason) => this.#pathChanged(path, reason),
    });
  }

  get state(): DataPlaneState {
    return this.#machine.state;
  }

  /** Ours, for the log. */
  get railNames(): string[] {
    return this.#options.rails.map(({ info }) => `${info.domain} ${info.addressText}`);
  }

  /**
   * Inserts the server's addresses into the rails' address vectors.
   *
   * @throws ERR_FABRICKV_DATA_PLANE, ERR_FABRICKV_RESOURCE_EXHAUSTED
   */
  insertServer(): Promise<void> {
    return this.#track(async () => {
      for (const [index, { address }] of this.#options.serverRails.entries()) {
        this.#serverRails[index] = { generation: 1, peers: [] };
        await this.#insert(index, address);
      }
    });
  }

  /**
   * A rail of the server's has a new address. Every window that was offered before is taken for void, writes to them end, and
   * their PUTs begin anew.
   *
   * @throws ERR_FABRICKV_PROTOCOL, and as {@link insertServer}: the session cannot go on then
   */
  async onRailChanged({ rail, generation, address }: RailChanged__Output): Promise<void> {
    const serverRail = this.#serverRails[rail];
    if (serverRail === undefined || address === null) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server has no rail ${rail}, or gave it no address`);
    }
    if (generation <= serverRail.generation) return;
    serverRail.generation = generation;
    this.#options.logger.info({ rail, generation }, "A rail of the server's has a new address");
    this.windows.voidAll();
    for (const write of this.#writes) write.cancel();
    const old = serverRail.peers;
    const timer = setTimeout(() => {
      this.#leaving.delete(timer);
      void this.#track(() => this.#removePeers(old));
    }, RAIL_MOVED_GRACE_MS).unref();
    this.#leaving.set(timer, old);
    // Nothing is written that way while the new address is entered, not to windows that are offered meanwhile either.
    for (const path of this.#paths.all) {
      if (path.index % this.#options.serverRails.length === rail) this.#paths.drop(path);
    }
    await this.#track(() => this.#insert(rail, address.address));
  }

  /**
   * Registers a mapping for the server to write into, and tells the server. Fresh keys each time.
   *
   * @throws ERR_FABRICKV_REGISTRATION, ERR_FABRICKV_RESOURCE_EXHAUSTED past the server's max_regions, ERR_FABRICKV_DATA_PLANE when the session is over
   */
  introduce(mapping: Mapping): Promise<IntroducedMemory> {
    return this.#track(async () => {
      const ranges: RegisteredRange[] = [];
      try {
        for (let offset = 0; offset < mapping.sizeBytes; offset += this.regionBytesMax) {
          ranges.push(await this.#register(mapping, offset, Math.min(this.regionBytesMax, mapping.sizeBytes - offset)));
        }
        this.#assertUp();
      } catch (error) {
        for (const range of ranges) await this.#deregister(range);
        throw error;
      }
      for (const { regionId, length, keys } of ranges) {
        const rails = keys.map(({ region }) => ({
          address: fromBigInt(region?.address ?? 0n),
          rkey: fromBigInt(region?.key ?? 0n),
        }));
        this.#options.send({ operationId: 0, region: { regionId, length, rails } });
      }
      return {
        ranges,
        place: (offset) => {
          const range = ranges[Math.floor(offset / this.regionBytesMax)];
          if (range === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink outside of its memory');
          return { regionId: range.regionId, offset: offset % this.regionBytesMax };
        },
      };
    });
  }

  /**
   * Withdraws memory that no operation uses any more: tells the server, waits for its answer (at most 5 s), and closes the
   * registrations. Never rejects; does nothing when the session is over, whose end does the same.
   */
  async withdraw(memory: IntroducedMemory): Promise<void> {
    await Promise.all(
      memory.ranges.map(async (range) => {
        if (!this.#regions.has(range.regionId) || this.state !== 'up') return;
        await this.#awaitRegionEnded(range.regionId);
        if (this.state === 'up') await this.#track(() => this.#deregister(range));
      }),
    );
  }

  /** The server says that it has no write to the region in flight. */
  onRegionEnded(regionId: number): void {
    this.#ending.get(regionId)?.();
  }

  /** Whether a mapping can be written from at once; otherwise {@link prepareSource} makes it so. */
  isSource(mapping: Mapping): boolean {
    return !this.#needsLocalRegistration || this.#sources.get(mapping.id)?.ready === true;
  }

  /** Makes a mapping usable as a source of writes, where the provider wants that said. */
  async prepareSource(mapping: Mapping): Promise<void> {
    if (!this.#needsLocalRegistration) return;
    const source = this.#sources.get(mapping.id) ?? this.#enterSource(mapping);
    try {
      await source.registered;
    } catch (error) {
      // It left nothing behind: the next PUT may try again.
      if (this.#sources.get(mapping.id) === source) this.#sources.delete(mapping.id);
      throw error;
    }
  }

  /** The mapping is no source any more. Never rejects. */
  async forgetSource(mapping: Mapping): Promise<void> {
    const source = this.#sources.get(mapping.id);
    if (source === undefined) return;
    this.#sources.delete(mapping.id);
    await this.#deregisterSource(source);
  }

  /**
   * Writes a piece of a mapping into windows of the server's, over all rails. What fails on one goes on over the others.
   *
   * @throws ERR_FABRICKV_GRANT_ENDED when a window was taken back; ERR_FABRICKV_DATA_PLANE
   */
  write({ mapping, localOffset, targets, onDone }: PieceWrite): ActiveWrite {
    this.#assertUp();
    const { counters } = this.#options;
    let from = localOffset;
    for (const { window, windowOffset, length } of targets) window.check(windowOffset, length);
    const segments = targets.map(({ window, windowOffset, length }) => {
      const localFrom = from;
      from += length;
      return { mappingId: mapping.id, localOffset: localFrom, remote: window, remoteOffset: windowOffset, length };
    });
    const write = new StripedWrite({
      paths: this.#paths,
      segments,
      onDone: (error) => {
        this.#writes.delete(write);
        // What fails because its window has ended is no failure of the data plane.
        const ended = targets.find(({ window }) => window.state === 'ended');
        for (const { window } of targets) this.windows.written(window);
        onDone(error !== undefined && ended !== undefined ? grantEnded(ended.window.id) : error);
      },
      onRetry: (error) => {
        counters.retries += 1;
        counters.writesPosted += 1;
        this.#options.logger.debug({ err: error }, 'A part of a write is tried again');
      },
    });
    for (const { window } of targets) this.windows.beginWrite(window);
    this.#writes.add(write);
    counters.writesPosted += 1;
    write.start();
    return write;
  }

  /**
   * Ends it: closes every registration, removes the server from the address vectors, which flushes the writes of both sides,
   * and has the rails prove that nothing else is under way.
   *
   * @returns whether it is proved that no write can land in the session's regions any more
   */
  async retire(): Promise<boolean> {
    this.#machine.to('retiring');
    this.#paths.close();
    this.windows.close();
    for (const ended of this.#ending.values()) ended();
    for (const write of this.#writes) write.cancel();
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    const sources = [...this.#sources.values()];
    this.#sources.clear();
    let proved = true;
    for (const range of [...this.#regions.values()]) proved = (await this.#deregister(range)) && proved;
    for (const { peers } of this.#serverRails.splice(0)) await this.#removePeers(peers);
    for (const [timer, peers] of this.#leaving) {
      clearTimeout(timer);
      await this.#removePeers(peers);
    }
    this.#leaving.clear();
    // Removed first, so that a server that does not answer any more is not waited for.
    const proofs = await Promise.all(this.#options.rails.map((rail) => this.#prove(rail)));
    for (const source of sources) await this.#deregisterSource(source);
    this.#machine.to('retired');
    return proved && proofs.every(Boolean);
  }

  /** Enters an address of one of the server's rails into all rails of ours, and makes paths of those that it is written by. */
  async #insert(index: number, address: Buffer): Promise<void> {
    const { rails, serverRails } = this.#options;
    const peers: { rail: Rail; peer: PeerId }[] = [];
    const serverRail = this.#serverRails[index];
    if (serverRail !== undefined) serverRail.peers = peers;
    for (const [i, rail] of rails.entries()) {
      this.#assertUp();
      // One that has failed since the session began has a path already, which is used no more.
      if (rail.state !== 'open' && this.#paths.all.length === rails.length) continue;
      const peer = await rail.insertPeer(address);
      peers.push({ rail, peer });
      if (i % serverRails.length === index) this.#paths.set(new PeerPath(i, rail, peer));
    }
    if (peers.length === 0) throw new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'no rail is open any more');
  }

  #pathChanged({ index }: PeerPath, reason: FabricError | undefined): void {
    const { logger } = this.#options;
    if (reason === undefined) logger.info({ rail: index }, 'A rail to the server is back');
    else logger.warn({ rail: index, err: reason }, 'A rail to the server has failed and is not used until it is back');
  }

  async #register(mapping: Mapping, offset: number, length: number): Promise<RegisteredRange> {
    const { regionsMax, rails, counters } = this.#options;
    this.#assertUp();
    if (regionsMax > 0 && this.#regions.size >= regionsMax) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        `the server takes at most ${regionsMax} regions from one session: release some`,
      );
    }
    const keys: { rail: Rail; region: LocalRegion | undefined }[] = [];
    const range = { regionId: this.#nextRegionId++, length, keys };
    this.#regions.set(range.regionId, range);
    try {
      for (const rail of rails) {
        keys.push({ rail, region: undefined });
        // The server writes by the others: its own writes to this one fail with the rail.
        if (rail.state !== 'open' && rails.some(({ state }) => state === 'open')) continue;
        const region = await rail.register({ mapping, offset, length, access: 'remote-write' });
        keys[keys.length - 1] = { rail, region };
        counters.registrations += 1;
      }
    } catch (error) {
      await this.#deregister(range);
      throw toClientError(error);
    }
    return range;
  }

  /** Returns whether every rail has closed its registration. */
  async #deregister(range: RegisteredRange): Promise<boolean> {
    if (!this.#regions.delete(range.regionId)) return true;
    let closed = true;
    for (const { rail, region } of range.keys) {
      if (region === undefined) continue;
      try {
        await rail.deregister(region);
      } catch (error) {
        this.#options.logger.warn({ err: error, regionId: range.regionId }, 'Closing a registration failed');
        closed = rail.state === 'closed' && closed;
      }
    }
    return closed;
  }

  #enterSource(mapping: Mapping): LocalSource {
    const regions: LocalSource['regions'] = [];
    const register = async (): Promise<void> => {
      try {
        for (const rail of this.#options.rails) {
          if (!rail.info.needsLocalRegistration || rail.state !== 'open') continue;
          for (let offset = 0; offset < mapping.sizeBytes; offset += this.regionBytesMax) {
            this.#assertUp();
            const length = Math.min(this.regionBytesMax, mapping.sizeBytes - offset);
            regions.push({ rail, region: await rail.register({ mapping, offset, length, access: 'local' }) });
            this.#options.counters.registrations += 1;
          }
        }
        source.ready = true;
      } catch (error) {
        await this.#closeLocal(regions);
        throw error;
      }
    };
    const source: LocalSource = { registered: this.#track(register), regions, ready: false };
    this.#sources.set(mapping.id, source);
    return source;
  }

  async #deregisterSource({ registered, regions }: LocalSource): Promise<void> {
    // A registration that failed has left nothing behind.
    await Promise.allSettled([registered]);
    await this.#closeLocal(regions);
  }

  async #closeLocal(regions: LocalSource['regions']): Promise<void> {
    for (const { rail, region } of regions.splice(0)) {
      try {
        await rail.deregister(region);
      } catch (error) {
        if (rail.state === 'closed') continue;
        this.#options.logger.warn({ err: error }, 'Closing the registration of a source failed');
      }
    }
  }

  /** Never rejects. */
  async #removePeers(peers: ServerRail['peers']): Promise<void> {
    for (const { rail, peer } of peers) {
      try {
        await rail.removePeer(peer);
      } catch (error) {
        if (rail.state === 'closed') continue;
        this.#options.logger.warn({ err: error }, 'Removing the server from the address vector failed');
      }
    }
  }

  async #prove(rail: Rail): Promise<boolean> {
    try {
      await rail.prove();
      return true;
    } catch (error) {
      // A closed rail has no endpoint left to receive by.
      if (rail.state === 'closed') return true;
      const isExpected = error instanceof FabricError && error.code === 'UNPROVABLE';
      this.#options.logger[isExpected ? 'debug' : 'warn']({ err: error }, 'It cannot be proved that a rail is quiet');
      return false;
    }
  }

  #awaitRegionEnded(regionId: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#options.logger.warn({ regionId }, 'The server did not confirm the end of a region');
        ended();
      }, REGION_ENDED_TIMEOUT_MS);
      const ended = (): void => {
        clearTimeout(timer);
        this.#ending.delete(regionId);
        resolve();
      };
      this.#ending.set(regionId, ended);
      this.#options.send({ operationId: 0, regionEnded: { regionId } });
    });
  }

  #assertUp(): void {
    if (this.state !== 'up') throw new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the session is over');
  }

  /** Runs what must be over before the session's registrations can be closed. */
  async #track<T>(work: () => Promise<T>): Promise<T> {
    const promise = work();
    this.#underWay.add(promise);
    try {
      return await promise;
    } catch (error) {
      throw toClientError(error);
    } finally {
      this.#underWay.delete(promise);
    }
  }
}
