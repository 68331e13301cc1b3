import { nativeAddon } from './addon.js';
import { FabricError, translateErrors } from './errors.js';

/** What was loaded. */
export interface LibfabricInfo {
  /** The file that was loaded, symbolic links resolved. */
  readonly path: string;
  /** Its version, as in `1.17`. */
  readonly version: string;
  /** The API version that is asked for: the lower of `version` and `buildVersion`. */
  readonly apiVersion: string;
  /** The headers that the addon was built with. */
  readonly buildVersion: string;
  /**
   * Whether removing a peer flushes its operations on `…;ofi_rxm`. False when something else in this process had loaded
   * libfabric before, without `FI_AV_REMOVE_CLEANUP`: rails then say `close-endpoint` for their quiescence.
   */
  readonly removalFlushes: boolean;
}

/** Options of {@link loadLibfabric}. */
export interface LoadLibfabricOptions {
  /** libfabric's own variables, set before it loads; they win over what the process has, except `FI_AV_REMOVE_CLEANUP`. */
  readonly environment?: Readonly<Record<string, string>>;
}

/** One provider on one device, as `fi_getinfo` reports it. */
export interface ProviderEntry {
  /** libfabric's own name, as in `tcp;ofi_rxm`. */
  readonly provider: string;
  readonly domain: string;
  readonly fabric: string;
  /** As in `FI_SOCKADDR_IN`. */
  readonly addressFormat: string;
  /** The source address in words, empty where there is none. */
  readonly addressText: string;
  readonly maxMessageBytes: number;
  readonly transmitCredits: number;
  readonly keyBytes: number;
  /** 0 where the provider does not say. */
  readonly linkSpeedBitsPerSecond: number;
  /** `up`, `down` or `unknown`. */
  readonly linkState: string;
  /** The NIC's device name, empty where the provider does not say. */
  readonly device: string;
}

/** Options of {@link listEndpoints}. */
export interface ListEndpointsOptions {
  /** A numeric local address; without one, libfabric lists every interface. */
  readonly sourceAddress?: string;
  /** libfabric's own name; without one, every provider. */
  readonly provider?: string;
}

let info: LibfabricInfo | undefined;

/**
 * Loads libfabric on the JS thread: 10–30 ms, or 200 ms with Debian's, which brings a PSM library that measures the clock as it
 * is loaded. Idempotent: later calls return what the first one loaded, whatever their
 * environment. `FABRICKV_LIBFABRIC`, when set, is the only place tried; otherwise `libfabric.so.1` on the loader's path,
 * then `/opt/amazon/efa/lib64` and `lib`. Signal handlers that libfabric installs on loading are undone.
 *
 * @throws FabricError `LIBFABRIC_MISSING` with where it looked and what to install; `ADDON_MISSING`.
 */
export function loadLibfabric({ environment = {} }: LoadLibfabricOptions = {}): LibfabricInfo {
  if (info !== undefined) return info;
  const result = nativeAddon().loadLibfabric(environment);
  if ('code' in result) throw new FabricError(result);
  info = result;
  return info;
}

/**
 * What `fi_getinfo` offers for our hints, best first. It runs on libuv's pool and loads libfabric if need be.
 *
 * @throws FabricError `PROVIDER_MISSING` with fi_getinfo's errno when there is nothing; `LIBFABRIC_MISSING`; `ADDON_MISSING`.
 */
export async function listEndpoints({
  sourceAddress = '',
  provider = '',
}: ListEndpointsOptions = {}): Promise<ProviderEntry[]> {
  loadLibfabric();
  return translateErrors(nativeAddon().listEndpoints(provider, sourceAddress));
}
