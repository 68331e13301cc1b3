import { readdir } from 'node:fs/promises';
import { FabricError } from './errors.js';
import { listEndpoints, type ProviderEntry } from './libfabric.js';

/** A provider by the name that users give it. */
export type ProviderName = 'efa' | 'verbs' | 'tcp';

/** What a user can ask for. `auto`: the best there is. `none`: no data plane at all. */
export type ProviderChoice = 'auto' | 'none' | ProviderName;

/** Best first. */
export const PROVIDER_PREFERENCE: readonly ProviderName[] = ['efa', 'verbs', 'tcp'];

/** libfabric's names for ours. `tcp` is never the native tcp RDM, where nothing stops a write in progress. */
export const LIBFABRIC_PROVIDERS: Readonly<Record<ProviderName, string>> = {
  efa: 'efa',
  verbs: 'verbs;ofi_rxm',
  tcp: 'tcp;ofi_rxm',
};

/** What was found out about one provider. */
export interface ConsideredProvider {
  readonly provider: ProviderName;
  readonly available: boolean;
  /** A sentence for the operator. */
  readonly reason: string;
  /** Its endpoints, none when it is not available. */
  readonly endpoints: readonly ProviderEntry[];
}

/** The outcome of {@link selectProviders}. */
export interface ProviderSelection {
  readonly chosen: ProviderName | undefined;
  /** Every provider that was asked for, best first. */
  readonly considered: readonly ConsideredProvider[];
}

/** Options of {@link selectProviders}. */
export interface SelectProvidersOptions {
  readonly choice: ProviderChoice;
  /** A numeric local address; it binds tcp and verbs, and means nothing to EFA. */
  readonly sourceAddress?: string;
}

/**
 * Finds out which providers work here and which one to use. `fi_getinfo` runs on libuv's pool; with `none`, libfabric
 * is not even loaded.
 *
 * @throws FabricError `PROVIDER_MISSING` when a provider was named and is not there; with `auto` only what concerns
 * libfabric as a whole (`LIBFABRIC_MISSING`, `ADDON_MISSING`).
 */
export async function selectProviders({ choice, sourceAddress }: SelectProvidersOptions): Promise<ProviderSelection> {
  if (choice === 'none') return { chosen: undefined, considered: [] };
  const considered: ConsideredProvider[] = [];
  for (const provider of choice === 'auto' ? PROVIDER_PREFERENCE : [choice]) {
    considered.push(await consider(provider, sourceAddress));
  }
  const chosen = considered.find((candidate) => candidate.available)?.provider;
  if (chosen === undefined && choice !== 'auto') {
    throw new FabricError({
      code: 'PROVIDER_MISSING',
      call: 'fi_getinfo',
      text: considered[0]?.reason ?? `${choice} is not available`,
      provider: LIBFABRIC_PROVIDERS[choice],
      hint: REMEDIES[choice],
    });
  }
  return { chosen, considered };
}

const REMEDIES: Readonly<Record<ProviderName, string>> = {
  efa: 'check that the instance type has EFA, that an EFA interface is attached, and that the AWS EFA installer was run',
  verbs: 'check `ibv_devices` and `rdma link`, and name a source address that belongs to the RDMA device',
  tcp: 'check that the source address belongs to this host, and that libfabric was built with tcp and rxm (`fi_info -p tcp`)',
};

async function consider(provider: ProviderName, sourceAddress: string | undefined): Promise<ConsideredProvider> {
  const name = LIBFABRIC_PROVIDERS[provider];
  const bound = provider !== 'efa' && sourceAddress !== undefined;
  try {
    const endpoints = await listEndpoints({ provider: name, ...(bound ? { sourceAddress } : {}) });
    const first = endpoints[0];
    const on = first === undefined ? '' : ` on ${first.domain}${first.addressText && ` (${first.addressText})`}`;
    return { provider, available: true, reason: `${name} is available${on}`, endpoints };
  } catch (error) {
    if (!(error instanceof FabricError) || error.code !== 'PROVIDER_MISSING') throw error;
    const from = bound ? ` for source address ${sourceAddress}` : '';
    const devices = provider === 'tcp' ? '' : await describeDevices();
    return {
      provider,
      available: false,
      reason: `no ${provider} endpoint${from}: fi_getinfo says "${error.text}"${devices}`,
      endpoints: [],
    };
  }
}

async function describeDevices(): Promise<string> {
  try {
    const devices = await readdir('/sys/class/infiniband');
    if (devices.length > 0) return `; RDMA devices: ${devices.join(', ')}`;
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
  }
  return '; this host has no RDMA device (/sys/class/infiniband is empty)';
}
