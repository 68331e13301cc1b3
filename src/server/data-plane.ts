/**
 * The server's half of the data plane: the arena's memory, the rails that can read it, the peers on them, and the
 * driver that turns quarantined memory into free memory.
 */

import type { Logger } from 'pino';
import { type Fabric, FabricError, type Mapping, mapMemory, openFabric, type ProviderChoice } from '../fabric/index.js';
import { FabricKvError, fromFabricError } from '../protocol/errors.js';
import type { ProviderOffer__Output } from '../protocol/generated/fabrickv/v1/ProviderOffer.js';
import { ARENA_SEGMENT_BYTES_MAX } from '../protocol/limits.js';
import { formatSize } from '../protocol/units.js';
import type { ServerCounters } from './counters.js';
import { type Peer, PeerTable } from './peers.js';
import type { ArenaMemory } from './store/arena.js';

/** How often peers are looked over for memory that waits for a proof, */
const RECLAIM_INTERVAL_MS = 500;
/** and how long such a peer must have been idle, so that no honest transfer is disturbed. */
const RECLAIM_IDLE_MS = 1000;

/** Providers of a client's offer that are looked at, */
const OFFERS_MAX = 8;
/** and how much of a name from outside is repeated in answers and logs. */
const NAME_LENGTH_MAX = 64;

/** What a session got of the data plane: a peer, or the reason why it has none. */
export type Negotiated =
  | { readonly provider: string; readonly peer: Peer; readonly table: PeerTable }
  | { readonly provider: undefined; readonly reason: string };

/** Arguments of {@link ServerDataPlane.open}. */
export interface DataPlaneOptions {
  readonly memoryBytes: number;
  readonly choice: ProviderChoice;
  readonly sourceAddresses: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly counters: ServerCounters;
  readonly logger: Logger;
}

/** Memory and fabric of one server. */
export class ServerDataPlane {
  private readonly tables: ReadonlyMap<string, PeerTable>;
  private readonly reclaimTimer: NodeJS.Timeout;

  private constructor(
    readonly fabric: Fabric,
    readonly mapping: Mapping,
    readonly memory: ArenaMemory,
    counters: ServerCounters,
    logger: Logger,
  ) {
    this.tables = new Map(
      fabric.providers.flatMap(({ name, rails: [rail] }) =>
        rail === undefined ? [] : [[name, new PeerTable(rail, mapping.id, counters, logger)] as const],
      ),
    );
    this.reclaimTimer = setInterval(() => this.reclaimIdle(), RECLAIM_INTERVAL_MS).unref();
  }

  /**
   * Opens the fabric, maps and prefaults the arena, and registers it for our own reads where the provider wants that.
   *
   * @throws ERR_FABRICKV_PROVIDER_MISSING, ERR_FABRICKV_LIBFABRIC_MISSING, ERR_FABRICKV_MEMORY, ERR_FABRICKV_REGISTRATION
   */
  static async open(options: DataPlaneOptions): Promise<ServerDataPlane> {
    const { memoryBytes, logger } = options;
    // The kernel would promise more than it has, and end some process when the pages are touched.
    const availableBytes = process.availableMemory();
    if (memoryBytes > availableBytes) {
      throw new FabricKvError(
        'ERR_FABRICKV_MEMORY',
        `the arena of ${formatSize(memoryBytes)} is more than the ${formatSize(availableBytes)} that this machine or container has available`,
      );
    }
    const fabric = await openFabric({
      choice: options.choice,
      sourceAddresses: options.sourceAddresses,
      environment: options.environment,
      railsMax: 1,
      onFailure: (rail, failure) =>
        logger.error(
          { err: failure, provider: rail.info.provider },
          'A rail has failed; its sessions have no data plane',
        ),
    }).catch((error: unknown) => {
      throw translate(error);
    });
    let mapping: Mapping | undefined;
    try {
      mapping = await mapMemory({ sizeBytes: memoryBytes, prefault: true });
      const segments: Buffer[] = [];
      for (let offset = 0; offset < memoryBytes; offset += ARENA_SEGMENT_BYTES_MAX) {
        const length = Math.min(ARENA_SEGMENT_BYTES_MAX, memoryBytes - offset);
        segments.push(mapping.buffer(offset, length));
        for (const { rails } of fabric.providers) {
          for (const rail of rails) {
            if (rail.info.needsLocalRegistration) await rail.register({ mapping, offset, length, access: 'local' });
          }
        }
      }
      const memory = { sizeBytes: memoryBytes, segmentBytes: ARENA_SEGMENT_BYTES_MAX, segments };
      return new ServerDataPlane(fabric, mapping, memory, options.counters, logger);
    } catch (error) {
      await fabric.close();
      mapping?.close();
      throw translate(error);
    }
  }

  /** The first provider of a client's offer that is open here, with the client as a peer on it. */
  async negotiate(offers: readonly ProviderOffer__Output[]): Promise<Negotiated> {
    if (offers.length === 0) return { provider: undefined, reason: 'the client has no data plane' };
    if (this.tables.size === 0) {
      const why = this.fabric.missing?.message ?? 'it was started with --provider none';
      return { provider: undefined, reason: `the server has no data plane: ${why}` };
    }
    const rejected: string[] = [];
    for (const { name, rails } of offers.slice(0, OFFERS_MAX)) {
      const table = this.tables.get(name);
      const [address] = rails;
      if (table === undefined || address === undefined) {
        rejected.push(`${name.slice(0, NAME_LENGTH_MAX)} is not open on the server`);
      } else if (table.rail.state !== 'open') {
        rejected.push(`the server's ${name} rail has failed`);
      } else if (address.format !== table.rail.info.addressFormat) {
        rejected.push(
          `${name} addresses are ${address.format.slice(0, NAME_LENGTH_MAX)} on the client and ${table.rail.info.addressFormat} on the server`,
        );
      } else {
        return { provider: name, table, peer: await table.acquire(address.address) };
      }
    }
    return { provider: undefined, reason: `no provider in common: ${rejected.join('; ')}` };
  }

  /** Proves for all peers that memory waits for, now: an allocation needs it. */
  async reclaim(): Promise<void> {
    await Promise.all([...this.tables.values()].map((table) => table.reclaim()));
  }

  /** Closes everything; nobody may use the arena afterwards. */
  async close(): Promise<void> {
    clearInterval(this.reclaimTimer);
    await this.fabric.close();
    this.mapping.close();
  }

  private *peers(): Iterable<Peer> {
    for (const table of this.tables.values()) yield* table.all();
  }

  private reclaimIdle(): void {
    const idleSinceMs = performance.now() - RECLAIM_IDLE_MS;
    for (const peer of this.peers()) {
      if (peer.lastUsedMs < idleSinceMs && peer.proofWanted) void peer.recycle();
    }
  }
}

function translate(error: unknown): unknown {
  return error instanceof FabricError ? fromFabricError(error) : error;
}
