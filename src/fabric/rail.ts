import { type CompletionDetail, nativeAddon } from './addon.js';
import { FabricError, type FabricErrorDetails, invalidArgument, toFabricError } from './errors.js';
import type { LocalRegionId, PeerId, RemoteAddress, RemoteKey, RemoteRegionId, TransferId } from './ids.js';
import { loadLibfabric } from './libfabric.js';
import { NativeMapping } from './native-memory.js';
import { LIBFABRIC_PROVIDERS, type ProviderName } from './providers.js';
import {
  type LocalRegion,
  type OpenRailOptions,
  type PingOptions,
  RAIL_STATS_FIELDS,
  type RailInfo,
  type RailStats,
  type RailTuning,
  type RegisterOptions,
  type RemoteRegionOptions,
  type WriteOptions,
  type WriteSegment,
} from './rail-types.js';

export type * from './rail-types.js';

type Tuning = Required<Omit<RailTuning, 'forceQuiescence'>>;

const DEFAULTS: Readonly<Record<ProviderName, Tuning>> = {
  // Measured: 1 MiB chunks, 2–4 in flight per peer, are best on tcp; 8 cost a third.
  tcp: { spinUs: 'auto', chunkBytes: 1024 * 1024, chunksInFlight: 4, chunksInFlightPerPeer: 4 },
  // Read, not measured: the knee is at 256–512 KiB on EFA, and devices want depth.
  verbs: { spinUs: 'auto', chunkBytes: 1024 * 1024, chunksInFlight: 16, chunksInFlightPerPeer: 32 },
  efa: { spinUs: 'auto', chunkBytes: 512 * 1024, chunksInFlight: 16, chunksInFlightPerPeer: 32 },
};

/** What the addon takes for `spinUs: 'auto'` and for no `cpu`. */
const AUTO = -1;
const NO_CPU = -1;
const FIELDS_PER_SEGMENT = 5;
/** The addon numbers its transfers slot + generation × this. */
const TRANSFER_SLOTS = 16_384;

type OnDone = WriteOptions['onDone'];

/** One completion of a batch. */
interface Settlement {
  readonly token: number;
  readonly detail: CompletionDetail | undefined;
  /** Of a transfer. */
  readonly onDone: OnDone | undefined;
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Opens a NIC: fabric, domain, completion queue, address vector and endpoint, on a progress thread of the rail's own.
 * Loads libfabric if need be.
 *
 * @throws FabricError `PROVIDER_MISSING` when fi_getinfo has nothing for these options, or an object of the rail cannot be
 * opened (`call` names it); `LIBFABRIC_MISSING`, `ADDON_MISSING`; `INVALID_ARGUMENT` for a tuning value that is not positive.
 */
export async function openRail(options: OpenRailOptions): Promise<Rail> {
  const tuning = { ...DEFAULTS[options.provider], ...withoutUndefined(options) };
  for (const name of ['chunkBytes', 'chunksInFlight', 'chunksInFlightPerPeer'] as const) {
    if (!Number.isSafeInteger(tuning[name]) || tuning[name] <= 0) {
      throw invalidArgument('openRail', `${name} is ${tuning[name]}; it must be a positive integer`);
    }
  }
  if (tuning.spinUs !== 'auto' && !(tuning.spinUs >= 0)) {
    throw invalidArgument('openRail', `spinUs is ${tuning.spinUs}; it must be 'auto' or not negative`);
  }
  const { cpu } = options;
  if (cpu !== undefined && !(Number.isSafeInteger(cpu) && cpu >= 0)) {
    throw invalidArgument('openRail', `cpu is ${cpu}; it must be a whole number from 0`);
  }
  loadLibfabric();
  return Rail.open(options, tuning);
}

/**
 * One NIC's endpoint and the thread that drives it. All methods belong to the JS thread; the work is done on the progress
 * thread, and results come back in batches. At most 8,192 calls are pending at once, 7,168 of them writes and
 * others that begin something: past it they fail with `BUSY`, while {@link Rail.deregister}, {@link Rail.removePeer},
 * {@link Rail.disconnectPeer} and {@link Rail.prove} still have room. A rail that is forgotten stays open until the process or worker ends: close it.
 */
export class Rail {
  readonly info: RailInfo;
  readonly #handle: number;
  readonly #link: Link;
  readonly #stats = new Float64Array(RAIL_STATS_FIELDS.length);
  #closing: Promise<void> | undefined;

  private constructor(info: RailInfo, handle: number, link: Link) {
    this.info = info;
    this.#handle = handle;
    this.#link = link;
  }

  /** @internal Use {@link openRail}. */
  static async open(options: OpenRailOptions, tuning: Tuning): Promise<Rail> {
    const addon = nativeAddon();
    const link = new Link(addon.completions, options.onFailure);
    const handle = addon.openRail(
      {
        provider: LIBFABRIC_PROVIDERS[options.provider],
        sourceAddress: options.sourceAddress ?? '',
        domain: options.domain ?? '',
        spinUs: tuning.spinUs === 'auto' ? AUTO : tuning.spinUs,
        chunkBytes: tuning.chunkBytes,
        chunksInFlight: tuning.chunksInFlight,
        chunksInFlightPerPeer: tuning.chunksInFlightPerPeer,
        forceLocalRegistration: options.forceLocalRegistration ?? false,
        forceCloseEndpoint: options.forceQuiescence === 'close-endpoint',
        cpu: options.cpu ?? NO_CPU,
      },
      (count, details) => link.deliver(count, details),
    );
    if (typeof handle !== 'number') throw new FabricError(handle);
    try {
      const info = await link.wait<Omit<RailInfo, 'provider'>>(OPEN_TOKEN);
      link.state = 'open';
      return new Rail({ provider: options.provider, ...info }, handle, link);
    } catch (error) {
      await addon.railJoin(handle);
      throw error;
    }
  }

  /** `failed`: the progress thread met an error that it cannot survive; nothing works any more but `close`. */
  get state(): 'open' | 'failed' | 'closed' {
    return this.#link.state === 'opening' ? 'open' : this.#link.state;
  }

  /** Why the rail failed. */
  get failure(): FabricError | undefined {
    return this.#link.failure;
  }

  /**
   * Registers a piece of a mapping. The registration holds the mapping until {@link deregister} has resolved. One that
   * peers may write to gets a random key where the provider lets us choose.
   *
   * @throws FabricError `REGISTRATION_FAILED` with fi_mr_reg's errno and a hint; `INVALID_ARGUMENT`, `BUSY`, `RAIL_CLOSED`.
   */
  async register({ mapping, offset, length, access }: RegisterOptions): Promise<LocalRegion> {
    if (!(mapping instanceof NativeMapping)) throw invalidArgument('register', "the mapping is not the addon's");
    const addon = nativeAddon();
    const region = await this.#command<{ id: LocalRegionId; address: RemoteAddress; key: RemoteKey }>(
      addon.railRegister(this.#handle, mapping.id, offset, length, access === 'remote-write'),
    );
    return { id: region.id, address: region.address, key: region.key, length };
  }

  /**
   * Closes a region's registration. A region that is the source of writes in flight is closed when they have come back.
   * For what it proves about the peers' writes see {@link RailInfo.quiescence}.
   *
   * @throws FabricError `REGISTRATION_FAILED` when libfabric refuses: the region, and its mapping, then stay until the rail
   * is closed; `INVALID_ARGUMENT` for a region that is not registered, `BUSY`, `RAIL_CLOSED` (closing did it).
   */
  async deregister(region: LocalRegion): Promise<void> {
    await this.#command(nativeAddon().railDeregister(this.#handle, region.id));
  }

  /**
   * Inserts a peer's rail address. Nothing is connected until the first write. The same address may be inserted more than
   * once; each gets an id of its own.
   *
   * @throws FabricError `INVALID_ARGUMENT` when the address is not one of this rail's format, `TRANSFER_FAILED` with
   * fi_av_insert's errno, `BUSY` when 4,096 peers are there, `RAIL_CLOSED`.
   */
  async insertPeer(address: Uint8Array): Promise<PeerId> {
    return this.#command<PeerId>(nativeAddon().railInsertPeer(this.#handle, address));
  }

  /**
   * Removes a peer: posts nothing more for it, flushes its writes in flight, settles its transfers with `CANCELLED`, and
   * resolves only then. On `…;ofi_rxm` this closes the connection in both directions, needs nothing from the peer, and
   * ends its writes into our regions too; if the same address was inserted more than once,
   * the others' writes in flight fail with `TRANSFER_FAILED` (`ECANCELED`) and later ones reconnect. On other providers it
   * waits for the writes in flight.
   *
   * @throws FabricError `TRANSFER_FAILED` with `ETIMEDOUT` when the writes in flight do not come back within 2 s: their
   * sources stay held, and only closing the rail frees them; `INVALID_ARGUMENT` for an unknown peer.
   */
  async removePeer(peer: PeerId): Promise<void> {
    await this.#command(nativeAddon().railRemovePeer(this.#handle, peer));
  }

  /**
   * Ends the connection to a peer, and with it what is in flight to it: those writes fail with `TRANSFER_FAILED`
   * (`ECANCELED`). The peer, its remote regions and the writes of which nothing is in flight stay; the next one connects
   * again. Needs nothing from the peer. On providers other than `…;ofi_rxm` all its transfers are cancelled and waited
   * for.
   *
   * @throws FabricError `TRANSFER_FAILED` with `ETIMEDOUT` as in {@link removePeer}; `INVALID_ARGUMENT`, `BUSY`,
   * `RAIL_CLOSED`.
   */
  async disconnectPeer(peer: PeerId): Promise<void> {
    await this.#command(nativeAddon().railDisconnectPeer(this.#handle, peer));
  }

  /**
   * Resolves when no write that anybody had begun into a region whose {@link deregister} had resolved before this call
   * can still land. Where {@link RailInfo.quiescence} is `fence`: every inbound connection is ended (its writer's
   * operations fail, and it connects again), every peer that we have written to must answer a write of no bytes within
   * 200 ms (2 s, while writes to it complete), and is disconnected otherwise; honest peers that we connected to notice
   * nothing. It takes a round trip, and
   * calls that are made meanwhile share the next round. Where it is `close-region` it resolves at once.
   *
   * @throws FabricError `UNPROVABLE` where it is `close-endpoint`; `RAIL_CLOSED` when the rail closes first: then its
   * close is the proof; `BUSY` when a connection or the process's files were out of reach just now: it may be tried again.
   */
  async prove(): Promise<void> {
    await this.#command(nativeAddon().railProve(this.#handle));
  }

  /**
   * Enters a region of a peer's into the rail's table, at most 65,536 of them.
   *
   * @throws FabricError `BUSY` when the table is full, `INVALID_ARGUMENT` for an unknown peer, `RAIL_CLOSED`.
   */
  defineRemote({ peer, address, key, length }: RemoteRegionOptions): RemoteRegionId {
    return unwrap(nativeAddon().railDefineRemote(this.#handle, peer, address, key, length));
  }

  /** Strikes a remote region off the table; writes that were begun go on. Idempotent. */
  forgetRemote(region: RemoteRegionId): void {
    nativeAddon().railForgetRemote(this.#handle, region);
  }

  /**
   * Writes pieces of mappings into a peer's regions, delivery-complete. The mappings are held until it is done. Transfers
   * take turns, peer by peer and then transfer by transfer.
   *
   * @throws FabricError `INVALID_ARGUMENT` when a piece leaves its mapping or its remote region, or its source is not
   * registered where it must be, before anything is posted; `BUSY` at the limit; `RAIL_CLOSED`.
   */
  write({ peer, segments, onDone }: WriteOptions): TransferId {
    const packed = segments instanceof Float64Array ? segments : pack(segments);
    const transfer = unwrap(nativeAddon().railWrite(this.#handle, peer, packed));
    this.#link.transfers[transfer % TRANSFER_SLOTS] = onDone;
    return transfer;
  }

  /**
   * Writes no bytes to a peer, delivery-complete: an ordinary transfer, to be cancelled and flushed as such. It makes the
   * connection where there is none, so that it is ours and a proof leaves it alone ({@link prove}), and it tells whether
   * the peer is there.
   *
   * @throws FabricError `INVALID_ARGUMENT` when the region is not one of the peer's, `BUSY`, `RAIL_CLOSED`.
   */
  pingPeer({ peer, remoteRegionId, onDone }: PingOptions): TransferId {
    const transfer = unwrap(nativeAddon().railPingPeer(this.#handle, peer, remoteRegionId));
    this.#link.transfers[transfer % TRANSFER_SLOTS] = onDone;
    return transfer;
  }

  /** Bytes of a transfer that have completed; 0 once it has settled. For progress and stall detection; cheap. */
  bytesCompleted(transfer: TransferId): number {
    return nativeAddon().railBytesCompleted(this.#handle, transfer);
  }

  /** Chunks of a transfer that are posted and have not come back; 0 once it has settled. */
  chunksInFlight(transfer: TransferId): number {
    return nativeAddon().railChunksInFlight(this.#handle, transfer);
  }

  /**
   * Posts nothing more of a transfer; its `onDone` is called with `CANCELLED` when nothing of it is in flight. To get
   * there with a frozen peer, {@link disconnectPeer}. Does nothing to a transfer that has settled.
   */
  cancel(transfer: TransferId): void {
    nativeAddon().railCancel(this.#handle, transfer);
  }

  /** Counters; cheap enough to ask every second, too dear to ask per operation. */
  stats(): RailStats {
    nativeAddon().railStats(this.#handle, this.#stats);
    return Object.fromEntries(
      RAIL_STATS_FIELDS.map((field, i) => [field, this.#stats[i] ?? 0]),
    ) as unknown as RailStats;
  }

  /**
   * Cancels and flushes everything, closes all of the rail's objects and ends its thread. What is pending settles with
   * `RAIL_CLOSED`. Idempotent. It takes milliseconds, and at most some 2 s when writes do not come back.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const addon = nativeAddon();
    const token = addon.railClose(this.#handle);
    if (typeof token === 'number') await this.#link.wait(token);
    await addon.railJoin(this.#handle);
    this.#link.state = 'closed';
    this.#link.abandon();
  }

  async #command<T>(token: number | FabricErrorDetails): Promise<T> {
    return this.#link.wait<T>(unwrap(token));
  }
}

/** The token of the completion that ends the opening, and of the one that says that the rail failed. */
const OPEN_TOKEN = -1;
const FAILURE_TOKEN = -2;

/** What waits for the progress thread, and the state that it reports. */
class Link {
  state: 'opening' | 'open' | 'failed' | 'closed' = 'opening';
  failure: FabricError | undefined;
  /** By slot; the generation is the addon's business. */
  readonly transfers = new Array<OnDone | undefined>(TRANSFER_SLOTS).fill(undefined);
  readonly #pending = new Map<number, Pending>();
  readonly #completions: Float64Array;
  readonly #onFailure: ((failure: FabricError) => void) | undefined;

  constructor(completions: Float64Array, onFailure: ((failure: FabricError) => void) | undefined) {
    this.#completions = completions;
    this.#onFailure = onFailure;
  }

  wait<T>(token: number): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(token, { resolve: resolve as (value: unknown) => void, reject });
    });
  }

  /**
   * Settles a batch. A callback of the user's that throws must not keep the rest from being settled: what it threw is
   * thrown again when the batch is done, and so becomes an uncaught exception.
   */
  deliver(count: number, details: readonly CompletionDetail[] | undefined): void {
    // All are looked up before the first is called. The addon has freed the slots of the whole batch, so a callback that
    // begins a write may get the slot of a transfer further on in it; and the pairs are the addon's scratch.
    const batch: Settlement[] = [];
    for (let i = 0; i < count * 2; i += 2) {
      const token = this.#completions[i] ?? 0;
      const detail = details?.[this.#completions[i + 1] ?? -1];
      batch.push({ token, detail, onDone: token >= 0 ? this.#takeTransfer(token) : undefined });
    }
    let thrown: { readonly error: unknown } | undefined;
    for (const settlement of batch) {
      try {
        this.#settle(settlement);
      } catch (error) {
        thrown ??= { error };
      }
    }
    if (thrown !== undefined) throw thrown.error;
  }

  /** Rejects what the closed rail will never answer. Nothing is left unless the rail could not tell. */
  abandon(): void {
    const closed = new FabricError({ code: 'RAIL_CLOSED', call: 'close', text: 'the rail is closed' });
    for (const pending of this.#pending.values()) pending.reject(closed);
    this.#pending.clear();
    for (const [slot, onDone] of this.transfers.entries()) {
      this.transfers[slot] = undefined;
      onDone?.(closed);
    }
  }

  /** Takes a transfer's callback out of its slot. */
  #takeTransfer(transfer: number): OnDone | undefined {
    const slot = transfer % TRANSFER_SLOTS;
    const onDone = this.transfers[slot];
    this.transfers[slot] = undefined;
    return onDone;
  }

  #settle({ token, detail, onDone }: Settlement): void {
    if (token >= 0) onDone?.(detail?.error === undefined ? undefined : new FabricError(detail.error));
    else if (token === FAILURE_TOKEN) this.#fail(detail);
    else this.#settleCommand(token, detail);
  }

  #settleCommand(token: number, detail: CompletionDetail | undefined): void {
    const pending = this.#pending.get(token);
    this.#pending.delete(token);
    if (detail?.error === undefined) pending?.resolve(detail?.value);
    else pending?.reject(new FabricError(detail.error));
  }

  #fail(detail: CompletionDetail | undefined): void {
    const reason = toFabricError(detail?.error);
    if (this.state === 'closed' || !(reason instanceof FabricError)) return;
    this.state = 'failed';
    this.failure = reason;
    this.#onFailure?.(reason);
  }
}

/** Of a write of one segment, as most are: the addon has read it when the next one is packed. */
const onePacked = new Float64Array(FIELDS_PER_SEGMENT);

function pack(segments: readonly WriteSegment[]): Float64Array {
  const packed = segments.length === 1 ? onePacked : new Float64Array(segments.length * FIELDS_PER_SEGMENT);
  let at = 0;
  for (const segment of segments) {
    packed[at++] = segment.mappingId;
    packed[at++] = segment.localOffset;
    packed[at++] = segment.remoteRegionId;
    packed[at++] = segment.remoteOffset;
    packed[at++] = segment.length;
  }
  return packed;
}

function unwrap(result: number | FabricErrorDetails): number {
  if (typeof result === 'number') return result;
  throw new FabricError(result);
}

function withoutUndefined(options: RailTuning): RailTuning {
  return Object.fromEntries(
    (['spinUs', 'chunkBytes', 'chunksInFlight', 'chunksInFlightPerPeer'] as const)
      .filter((name) => options[name] !== undefined)
      .map((name) => [name, options[name]]),
  );
}
