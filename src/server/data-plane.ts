/**
 * The server's half of the data plane: the arena's memory, the rails that can read it, the peers on them, and what turns
 * quarantined memory into free memory.
 */

import type { Logger } from 'pino';
import {
  type Fabric,
  FabricError,
  type Mapping,
  mapMemory,
  openFabric,
  type ProviderChoice,
  type Rail,
  type RailChoice,
  type RailTuning,
} from '../fabric/index.js';
import { FabricKvError, fromFabricError } from '../protocol/errors.js';
import type { ProviderOffer__Output } from '../protocol/generated/fabrickv/v1/ProviderOffer.js';
import { ARENA_SEGMENT_BYTES_MAX } from '../protocol/limits.js';
import { formatSize } from '../protocol/units.js';
import type { ServerCounters } from './counters.js';
import { PeerTable } from './peer-table.js';
import type { Peer } from './peers.js';
import { RailReplacement } from './rail-replacement.js';
import { ServerRail } from './server-rail.js';
import type { SessionWindows } from './session-windows.js';
import { SharedRun } from './shared-run.js';
import type { Arena, ArenaMemory } from './store/arena.js';

/** How often windows are looked over for those that nobody uses, and quarantine for what only a new rail would free. */
const HOUSEKEEPING_INTERVAL_MS = 250;

/** Segments of the arena begin at multiples of this, a huge page, where the rails allow segments of that size at all. */
const SEGMENT_ALIGNMENT_BYTES = 2 * 1024 * 1024;

/** Rails of one client; there are machines with 32. */
const CLIENT_RAILS_MAX = 64;

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
  readonly rails?: RailChoice | undefined;
  /** CPUs for the progress threads. */
  readonly cpus?: readonly number[] | undefined;
  readonly numaNode?: number | undefined;
  /** Unprovable memory past which a rail is opened anew; a quarter of the arena by default. */
  readonly maxQuarantineBytes?: number | undefined;
  readonly tuning?: RailTuning | undefined;
  readonly environment: Readonly<Record<string, string>>;
  readonly counters: ServerCounters;
  readonly logger: Logger;
}

/** Memory and fabric of one server. */
export class ServerDataPlane {
  private readonly tables = new Map<string, PeerTable>();
  private readonly sessionWindows = new Set<SessionWindows>();
  private readonly replacement: RailReplacement;
  private readonly timer: NodeJS.Timeout;
  private readonly maxQuarantineBytes: number;
  private readonly proving = new SharedRun(() => this.reclaimNow(false));
  private readonly yielding = new SharedRun(() => this.reclaimNow(true));
  private arena: Arena | undefined;
  /** Unlike any that a client may remember of an earlier server. */
  private windowIds = Math.floor(Math.random() * 2 ** 31);

  private constructor(
    readonly fabric: Fabric,
    readonly mapping: Mapping,
    readonly memory: ArenaMemory,
    { counters, logger, maxQuarantineBytes }: DataPlaneOptions,
  ) {
    for (const { name, rails } of fabric.providers) {
      const serverRails = rails.map((rail, i) => new ServerRail(rail, i, rails.length, logger));
      this.tables.set(name, new PeerTable(serverRails, mapping.id, logger));
    }
    this.maxQuarantineBytes = maxQuarantineBytes ?? memory.sizeBytes / 4;
    this.replacement = new RailReplacement({
      fabric,
      registerArena: (rail) => registerArena(rail, mapping, memory),
      windows: this.sessionWindows,
      counters,
      logger,
    });
    this.timer = setInterval(() => this.keepHouse(), HOUSEKEEPING_INTERVAL_MS).unref();
  }

  /**
   * Opens the fabric, maps and prefaults the arena, and registers it for our own reads where the provider wants that.
   *
   * @throws ERR_FABRICKV_PROVIDER_MISSING, ERR_FABRICKV_LIBFABRIC_MISSING, ERR_FABRICKV_MEMORY, ERR_FABRICKV_REGISTRATION
   */
  static async open(options: DataPlaneOptions): Promise<ServerDataPlane> {
    const { memoryBytes, logger, rails, cpus, numaNode } = options;
    // The kernel would promise more than it has, and end some process when the pages are touched.
    const availableBytes = process.availableMemory();
    if (memoryBytes > availableBytes) {
      throw new FabricKvError(
        'ERR_FABRICKV_MEMORY',
        `the arena of ${formatSize(memoryBytes)} is more than the ${formatSize(availableBytes)} that this machine or container has available`,
      );
    }
    const fabric = await openFabric({
      ...options.tuning,
      choice: options.choice,
      sourceAddresses: options.sourceAddresses,
      environment: options.environment,
      ...(rails === undefined ? {} : { rails }),
      ...(cpus === undefined ? {} : { cpus }),
      onFailure: (rail, failure) => logger.error({ err: failure, provider: rail.info.provider }, 'A rail has failed'),
    }).catch((error: unknown) => {
      throw translate(error);
    });
    // Rails that were named are wanted, whatever the provider: none of them is no reason to go without.
    if (typeof rails === 'object' && fabric.missing !== undefined) throw translate(fabric.missing);
    let mapping: Mapping | undefined;
    try {
      mapping = await mapMemory({
        sizeBytes: memoryBytes,
        prefault: true,
        ...(numaNode === undefined ? {} : { numaNode }),
      });
      const segmentBytes = segmentBytesFor(fabric);
      const segments: Buffer[] = [];
      for (let offset = 0; offset < memoryBytes; offset += segmentBytes) {
        segments.push(mapping.buffer(offset, Math.min(segmentBytes, memoryBytes - offset)));
      }
      const memory = { sizeBytes: memoryBytes, segmentBytes, segments };
      for (const rail of fabric.providers.flatMap((provider) => provider.rails)) {
        await registerArena(rail, mapping, memory);
      }
      return new ServerDataPlane(fabric, mapping, memory, options);
    } catch (error) {
      await fabric.close();
      mapping?.close();
      throw translate(error);
    }
  }

  /** The arena over this memory: what is freed there may wait for proofs of these rails. */
  attach(arena: Arena): void {
    this.arena = arena;
  }

  /** The windows of a session are kept in order until {@link forgetWindows}. */
  addWindows(windows: SessionWindows): void {
    this.sessionWindows.add(windows);
  }

  forgetWindows(windows: SessionWindows): void {
    this.sessionWindows.delete(windows);
  }

  /** Never the same twice, whichever session it is for: a late PutWritten must not name another session's memory. */
  nextWindowId(): number {
    this.windowIds = (this.windowIds % (2 ** 32 - 1)) + 1;
    return this.windowIds;
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
      const open = table?.rails.find(({ rail }) => rail.state === 'open')?.rail;
      const format = open?.info.addressFormat;
      const stranger = rails.find((address) => address.format !== format);
      if (table === undefined || rails.length === 0) {
        rejected.push(`${name.slice(0, NAME_LENGTH_MAX)} is not open on the server`);
      } else if (open === undefined) {
        rejected.push(`the server's ${name} rails have failed`);
      } else if (rails.length > CLIENT_RAILS_MAX) {
        rejected.push(`${name}: ${rails.length} rails are more than ${CLIENT_RAILS_MAX}`);
      } else if (stranger !== undefined) {
        rejected.push(
          `${name} addresses are ${stranger.format.slice(0, NAME_LENGTH_MAX)} on the client and ${format} on the server`,
        );
      } else {
        try {
          return { provider: name, table, peer: await table.acquire(rails.map(({ address }) => address)) };
        } catch (error) {
          // EFA peers have to be alike (docs/efa.md); the next provider may serve those that are not.
          if (!(error instanceof FabricError) || error.call !== 'insertPeer' || error.code !== 'TRANSFER_FAILED') {
            throw error;
          }
          rejected.push(`${name}: ${error.text}`);
        }
      }
    }
    return { provider: undefined, reason: `no provider in common: ${rejected.join('; ')}` };
  }

  /**
   * An allocation needs memory that is not free yet: proofs that are due are made now.
   *
   * @param yieldWindows windows that nobody is using are taken back first
   */
  reclaim(yieldWindows: boolean): Promise<void> {
    // Each looks at all sessions: those who are out of memory at the same time share it.
    return (yieldWindows ? this.yielding : this.proving).run();
  }

  private async reclaimNow(yieldWindows: boolean): Promise<void> {
    if (yieldWindows) await Promise.all([...this.sessionWindows].map((windows) => windows.yieldMemory()));
    await Promise.all([...this.serverRails()].map(([, rail]) => rail.hurry()));
    // Whoever waits for a proof has its turn before the memory is looked for.
    await new Promise((resolve) => setImmediate(resolve));
  }

  /** Closes everything; nobody may use the arena afterwards. */
  async close(): Promise<void> {
    clearInterval(this.timer);
    await this.replacement.stop();
    await this.fabric.close();
    for (const [, rail] of this.serverRails()) rail.closed();
    this.mapping.close();
  }

  /** All rails' places. */
  *rails(): Iterable<ServerRail> {
    for (const [, rail] of this.serverRails()) yield rail;
  }

  private *serverRails(): Iterable<readonly [PeerTable, ServerRail]> {
    for (const table of this.tables.values()) for (const rail of table.rails) yield [table, rail];
  }

  private keepHouse(): void {
    const nowMs = performance.now();
    for (const windows of this.sessionWindows) windows.sweep(nowMs);
    const unprovableBytes = this.arena?.quarantinedBy().unprovable ?? 0;
    for (const [table, rail] of this.serverRails()) {
      if (rail.rail.state === 'failed') {
        this.replacement.request(table, rail, 'it has failed');
      } else if (rail.isStuck) {
        this.replacement.request(table, rail, 'writes on it do not come back');
      } else if (unprovableBytes > this.maxQuarantineBytes && rail.holdsUnprovable) {
        this.replacement.request(table, rail, `${formatSize(unprovableBytes)} of memory wait for its end`);
      }
    }
  }
}

/** The longest pieces that every rail registers. */
function segmentBytesFor(fabric: Fabric): number {
  const limits = fabric.providers.flatMap(({ rails }) => rails.map((rail) => rail.info.maxRegionBytes));
  const bytes = Math.min(ARENA_SEGMENT_BYTES_MAX, ...limits);
  return bytes > SEGMENT_ALIGNMENT_BYTES ? bytes - (bytes % SEGMENT_ALIGNMENT_BYTES) : bytes;
}

/** Makes a rail able to read the arena, where it wants that. */
async function registerArena(rail: Rail, mapping: Mapping, { sizeBytes, segmentBytes }: ArenaMemory): Promise<void> {
  if (!rail.info.needsLocalRegistration) return;
  for (let offset = 0; offset < sizeBytes; offset += segmentBytes) {
    const length = Math.min(segmentBytes, sizeBytes - offset);
    await rail.register({ mapping, offset, length, access: 'local' });
  }
}

function translate(error: unknown): unknown {
  if (!(error instanceof FabricError)) return error;
  // At the start nothing is an argument but what the operator has set, such as a CPU that is not there.
  if (error.code === 'INVALID_ARGUMENT') {
    return new FabricKvError('ERR_FABRICKV_SETTING', error.message, { remedy: error.hint, cause: error });
  }
  return fromFabricError(error);
}
