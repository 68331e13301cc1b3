/**
 * The data plane of one session: the server as a peer on each rail, the regions that it may write into, the windows
 * that this client may write into, and the proof, when the session is over, that nothing is written any more.
 */

import type { Logger } from 'pino';
import type { FabricError, LocalRegion, Mapping, PeerId, ProviderName, Rail, TransferId } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import { fromBigInt } from '../protocol/wire.js';
import type { Counters } from './counters.js';
import { toClientError } from './fabric-errors.js';
import type { PeerRail } from './protocol-values.js';
import { StateMachine } from './state-machine.js';
import { WriteWindows } from './write-windows.js';

/** How long a server may take to say that it writes to a region no more; the registration is closed then anyway. */
const REGION_ENDED_TIMEOUT_MS = 5000;

/** - `up`: in use. - `retiring`: the session is over and the proof under way. - `retired`: nothing of it is left. */
type DataPlaneState = 'up' | 'retiring' | 'retired';

/** A registration of one range of a mapping on every rail. */
interface RegisteredRange {
  readonly regionId: number;
  readonly length: number;
  readonly keys: readonly { readonly rail: Rail; readonly region: LocalRegion }[];
}

/** Memory that the server has been told of, in ranges of at most {@link DataPlane.regionBytesMax}. */
export interface IntroducedMemory {
  readonly ranges: readonly RegisteredRange[];
  /** How a sink at this offset of the mapping is named. */
  place(offset: number): { readonly regionId: number; readonly offset: number };
}

/** One extent of a grant, or a part of one. */
export interface WriteTarget {
  readonly windowId: number;
  readonly windowOffset: number;
  readonly length: number;
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
  readonly onDone: (error: FabricError | undefined) => void;
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
  readonly #rail: Rail;
  /** Every server rail on every rail of ours; the first of the first is the one that is written to. */
  readonly #peers: { readonly rail: Rail; readonly peer: PeerId }[] = [];
  readonly #regions = new Map<number, RegisteredRange>();
  readonly #localRegions = new Map<number, Promise<LocalRegion[]>>();
  readonly #ending = new Map<number, () => void>();
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #writes = new Set<TransferId>();
  #nextRegionId = 1;

  constructor(options: DataPlaneOptions) {
    this.#options = options;
    this.provider = options.provider;
    this.#rail = options.rails[0];
    this.regionBytesMax = Math.min(...options.rails.map((rail) => rail.info.maxRegionBytes));
    this.windows = new WriteWindows(this.#rail, options.send);
  }

  get state(): DataPlaneState {
    return this.#machine.state;
  }

  /**
   * Inserts the server's addresses into the rails' address vectors.
   *
   * @throws ERR_FABRICKV_DATA_PLANE, ERR_FABRICKV_RESOURCE_EXHAUSTED
   */
  insertServer(): Promise<void> {
    return this.#track(async () => {
      for (const rail of this.#options.rails) {
        for (const { address } of this.#options.serverRails) {
          this.#assertUp();
          this.#peers.push({ rail, peer: await rail.insertPeer(address) });
        }
      }
    });
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
        const rails = keys.map(({ region }) => ({ address: fromBigInt(region.address), rkey: fromBigInt(region.key) }));
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

  /** Makes a mapping usable as a source of writes, where the provider wants that said. */
  async prepareSource(mapping: Mapping): Promise<void> {
    if (!this.#rail.info.needsLocalRegistration) return;
    let registered = this.#localRegions.get(mapping.id);
    if (registered === undefined) {
      registered = this.#track(async () => {
        const regions: LocalRegion[] = [];
        try {
          for (let offset = 0; offset < mapping.sizeBytes; offset += this.regionBytesMax) {
            this.#assertUp();
            const length = Math.min(this.regionBytesMax, mapping.sizeBytes - offset);
            regions.push(await this.#rail.register({ mapping, offset, length, access: 'local' }));
            this.#options.counters.registrations += 1;
          }
        } catch (error) {
          await this.#deregisterLocal(regions);
          throw error;
        }
        return regions;
      });
      this.#localRegions.set(mapping.id, registered);
    }
    try {
      await registered;
    } catch (error) {
      // It left nothing behind: the next PUT may try again.
      if (this.#localRegions.get(mapping.id) === registered) this.#localRegions.delete(mapping.id);
      throw error;
    }
  }

  /** The mapping is no source any more. Never rejects. */
  async forgetSource(mapping: Mapping): Promise<void> {
    const registered = this.#localRegions.get(mapping.id);
    if (registered === undefined) return;
    this.#localRegions.delete(mapping.id);
    await this.#deregisterLocal(registered);
  }

  /**
   * Writes a piece of a mapping into windows of the server's.
   *
   * @throws ERR_FABRICKV_GRANT_ENDED when a window was taken back; ERR_FABRICKV_DATA_PLANE; FabricError `BUSY`
   */
  write({ mapping, localOffset, targets, onDone }: PieceWrite): ActiveWrite {
    this.#assertUp();
    const peer = this.#peers[0]?.peer;
    if (peer === undefined) throw new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the server is no peer on the rail');
    const rail = this.#rail;
    const begun: number[] = [];
    let transfer: TransferId;
    try {
      let from = localOffset;
      const segments = targets.map(({ windowId, windowOffset, length }) => {
        const remoteRegionId = this.windows.beginWrite(peer, windowId, windowOffset, length);
        begun.push(windowId);
        const localFrom = from;
        from += length;
        return { mappingId: mapping.id, localOffset: localFrom, remoteRegionId, remoteOffset: windowOffset, length };
      });
      transfer = rail.write({
        peer,
        segments,
        onDone: (error) => {
          this.#writes.delete(transfer);
          for (const windowId of begun) this.windows.written(windowId);
          onDone(error);
        },
      });
    } catch (error) {
      for (const windowId of begun) this.windows.written(windowId);
      throw error;
    }
    this.#writes.add(transfer);
    this.#options.counters.writesPosted += 1;
    return { cancel: () => rail.cancel(transfer) };
  }

  /**
   * Ends it: closes every registration and removes the server from the address vectors, which flushes the writes of both
   * sides.
   *
   * @returns whether that proves that no write of the server can land in the session's regions any more
   */
  async retire(): Promise<boolean> {
    this.#machine.to('retiring');
    for (const ended of this.#ending.values()) ended();
    for (const transfer of this.#writes) this.#rail.cancel(transfer);
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    const sources = [...this.#localRegions.values()];
    this.#localRegions.clear();
    let proved = true;
    for (const range of [...this.#regions.values()]) proved = (await this.#deregister(range)) && proved;
    for (const { rail, peer } of this.#peers.splice(0)) {
      const removed = await this.#removePeer(rail, peer);
      // A closed rail has no endpoint left to receive by.
      proved = (rail.state === 'closed' || (rail.info.quiescence !== 'close-endpoint' && removed)) && proved;
    }
    for (const source of sources) await this.#deregisterLocal(source);
    this.windows.close();
    this.#machine.to('retired');
    return proved;
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
    const keys: { rail: Rail; region: LocalRegion }[] = [];
    const range = { regionId: this.#nextRegionId++, length, keys };
    this.#regions.set(range.regionId, range);
    try {
      for (const rail of rails) {
        keys.push({ rail, region: await rail.register({ mapping, offset, length, access: 'remote-write' }) });
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
      try {
        await rail.deregister(region);
      } catch (error) {
        this.#options.logger.warn({ err: error, regionId: range.regionId }, 'Closing a registration failed');
        closed = rail.state === 'closed' && closed;
      }
    }
    return closed;
  }

  async #deregisterLocal(registered: LocalRegion[] | Promise<LocalRegion[]>): Promise<void> {
    try {
      for (const region of await registered) await this.#rail.deregister(region);
    } catch (error) {
      this.#options.logger.warn({ err: error }, 'Closing the registration of a source failed');
    }
  }

  async #removePeer(rail: Rail, peer: PeerId): Promise<boolean> {
    try {
      await rail.removePeer(peer);
      return true;
    } catch (error) {
      if (rail.state === 'closed') return true;
      this.#options.logger.warn({ err: error }, 'Removing the server from the address vector failed');
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
