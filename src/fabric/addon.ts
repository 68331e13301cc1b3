import { createRequire } from 'node:module';
import { FabricError, type FabricErrorDetails } from './errors.js';

/** The first part of a rail's completion pair is a control token when it is negative, else a transfer id. */
export type CompletionHandler = (count: number, details: readonly CompletionDetail[] | undefined) => void;

/** What came with a completion: an error, or the value of a control command. */
export interface CompletionDetail {
  readonly error?: FabricErrorDetails;
  readonly value?: unknown;
}

/** One entry of fi_getinfo, as the addon reports it. */
export interface NativeProviderEntry {
  readonly provider: string;
  readonly domain: string;
  readonly fabric: string;
  readonly addressFormat: string;
  readonly addressText: string;
  readonly maxMessageBytes: number;
  readonly transmitCredits: number;
  readonly keyBytes: number;
  readonly linkSpeedBitsPerSecond: number;
  readonly linkState: string;
  readonly device: string;
}

/** Options of a rail, all of them present: `rail.ts` fills in the defaults. */
export interface NativeRailOptions {
  readonly provider: string;
  readonly sourceAddress: string;
  readonly domain: string;
  /** Negative: auto. */
  readonly spinUs: number;
  readonly chunkBytes: number;
  readonly chunksInFlight: number;
  readonly chunksInFlightPerPeer: number;
  readonly forceLocalRegistration: boolean;
  readonly forceCloseEndpoint: boolean;
  /** Negative: none. */
  readonly cpu: number;
}

/**
 * The addon, function by function. It only converts and forwards; the meaning of each call is documented at the class
 * or function of this folder that makes it. Calls that can fail at once return the {@link FabricErrorDetails} instead
 * of throwing; promises reject with them.
 */
export interface NativeAddon {
  readonly builtWithLibfabric: boolean;
  readonly crc32cImplementation: string;

  /** Pairs {id, detail index or -1}, filled before each {@link CompletionHandler} call. Valid only during that call. */
  readonly completions: Float64Array;
  /** Called with the loans whose memory nobody can reach any more. */
  onLoansReturned(handler: (loans: readonly number[]) => void): void;

  /** A negative NUMA node: none in particular. */
  mapMemory(
    sizeBytes: number,
    prefault: boolean,
    hugePages: boolean,
    numaNode: number,
  ): Promise<{ id: number; hugePages: boolean }>;
  closeMapping(mapping: number): void;
  viewMapping(mapping: number, offset: number, length: number): ArrayBuffer | FabricErrorDetails;
  lendMapping(mapping: number, offset: number, length: number, loan: number): ArrayBuffer | FabricErrorDetails;
  /** Detaches; false when something else had detached it before. */
  detach(arrayBuffer: ArrayBuffer): boolean;
  copyIn(mapping: number, offset: number, source: Uint8Array, seed: number): Promise<number>;
  copyOut(mapping: number, offset: number, target: Uint8Array, seed: number): Promise<number>;
  crc32cOfMapping(mapping: number, offset: number, length: number, seed: number): Promise<number>;
  writeSync(mapping: number, offset: number, source: Uint8Array): FabricErrorDetails | undefined;
  readSync(mapping: number, offset: number, target: Uint8Array): FabricErrorDetails | undefined;
  crc32c(bytes: Uint8Array, seed: number): number;
  /** `sched_yield(2)`. */
  yieldCpu(): void;
  /** Mappings of this process that have not been unmapped; for leak tests. */
  liveMappings(): number;
  /** The process or worker is about to end: what runs on libuv's pool gives up at its next step. */
  stopTasks(): void;

  loadLibfabric(environment: Readonly<Record<string, string>>): NativeLibfabricInfo | FabricErrorDetails;
  listEndpoints(provider: string, sourceAddress: string): Promise<NativeProviderEntry[]>;

  openRail(options: NativeRailOptions, handler: CompletionHandler): number | FabricErrorDetails;
  railRegister(
    rail: number,
    mapping: number,
    offset: number,
    length: number,
    remoteWrite: boolean,
  ): number | FabricErrorDetails;
  railDeregister(rail: number, region: number): number | FabricErrorDetails;
  railInsertPeer(rail: number, address: Uint8Array): number | FabricErrorDetails;
  railRemovePeer(rail: number, peer: number): number | FabricErrorDetails;
  railDisconnectPeer(rail: number, peer: number): number | FabricErrorDetails;
  railProve(rail: number): number | FabricErrorDetails;
  railDefineRemote(
    rail: number,
    peer: number,
    address: bigint,
    key: bigint,
    length: number,
  ): number | FabricErrorDetails;
  railForgetRemote(rail: number, remote: number): boolean;
  railWrite(rail: number, peer: number, segments: Float64Array): number | FabricErrorDetails;
  railPingPeer(rail: number, peer: number, remote: number): number | FabricErrorDetails;
  railCancel(rail: number, transfer: number): boolean;
  railBytesCompleted(rail: number, transfer: number): number;
  railChunksInFlight(rail: number, transfer: number): number;
  railStats(rail: number, into: Float64Array): void;
  railClose(rail: number): number | FabricErrorDetails;
  /** Joins the progress thread on libuv's pool, after the completion of `railClose`; the id is then gone. */
  railJoin(rail: number): Promise<void>;
}

/** What was loaded. */
export interface NativeLibfabricInfo {
  readonly path: string;
  readonly version: string;
  readonly apiVersion: string;
  readonly buildVersion: string;
  readonly removalFlushes: boolean;
}

let loaded: { addon: NativeAddon } | { error: FabricError } | undefined;

/**
 * The native addon, loaded on first use. `FABRICKV_ADDON` names another file, or `none` for no addon at all.
 *
 * @throws FabricError `ADDON_MISSING` when it was not built or does not load; `cause` says why.
 */
export function nativeAddon(): NativeAddon {
  loaded ??= load();
  if ('error' in loaded) throw loaded.error;
  return loaded.addon;
}

/** The native addon, or undefined where it cannot be loaded. */
export function nativeAddonIfBuilt(): NativeAddon | undefined {
  loaded ??= load();
  return 'error' in loaded ? undefined : loaded.addon;
}

function load(): { addon: NativeAddon } | { error: FabricError } {
  const require = createRequire(import.meta.url);
  const named = process.env['FABRICKV_ADDON'];
  // This file runs as dist/src/fabric/addon.js, three folders below the package.
  const path = named ?? '../../../native/build/Release/fabrickv.node';
  try {
    if (named === 'none') throw new Error('FABRICKV_ADDON is none');
    const addon = require(path) as NativeAddon;
    // process.exit() waits for libuv's pool, and prefaulting an arena of many GiB takes its time.
    process.once('exit', () => addon.stopTasks());
    return { addon };
  } catch (cause) {
    const details: FabricErrorDetails = {
      code: 'ADDON_MISSING',
      call: 'require',
      text: `the native addon cannot be loaded: ${cause instanceof Error ? cause.message.split('\n')[0] : String(cause)}`,
      hint: 'install a C++ compiler, cmake and libfabric-dev, then run `npm rebuild fabrickv`',
    };
    return { error: new FabricError(details, { cause }) };
  }
}
