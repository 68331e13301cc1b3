import { isIP } from 'node:net';
import { FabricError, invalidArgument } from './errors.js';
import { listEndpoints, type ProviderEntry } from './libfabric.js';
import { type ConsideredProvider, LIBFABRIC_PROVIDERS } from './providers.js';

/**
 * Which rails to open, per provider: `auto` for every NIC, a number for the first so many of those, or domain names
 * (`rdmap0s6-rdm`, `mlx5_0`, `eth0`) and numeric local addresses in the order in which they are to be numbered.
 */
export type RailChoice = 'auto' | number | readonly string[];

/** Where a rail is opened; nothing named: wherever libfabric likes. */
export interface RailPlace {
  readonly domain?: string;
  readonly sourceAddress?: string;
}

/** @throws FabricError `INVALID_ARGUMENT` for a number that is not positive, and for an empty list. */
export function checkRailChoice(choice: RailChoice): void {
  const valid = typeof choice === 'number' ? Number.isSafeInteger(choice) && choice > 0 : choice.length > 0;
  if (!valid) throw invalidArgument('openFabric', `rails is ${JSON.stringify(choice)}; it must name one rail at least`);
}

/** The address that is worth asking for when a provider is looked for. */
export function probeAddress(choice: RailChoice, sourceAddresses: readonly string[]): string | undefined {
  return typeof choice === 'object' ? choice.find((name) => isIP(name) !== 0) : sourceAddresses[0];
}

/**
 * The places of each provider's rails, in the order of `candidates`; none for a provider that has nothing of a list.
 * Of a list that names nothing of tcp's, tcp still gets its source addresses: it is opened beside the better ones.
 *
 * @throws FabricError `PROVIDER_MISSING` for a name that no candidate has; the text says what there is.
 */
export async function findPlaces(
  candidates: readonly ConsideredProvider[],
  choice: RailChoice,
  sourceAddresses: readonly string[],
): Promise<RailPlace[][]> {
  if (typeof choice !== 'object') {
    const count = choice === 'auto' ? Number.POSITIVE_INFINITY : choice;
    return candidates.map((candidate) => everyPlace(candidate, sourceAddresses).slice(0, count));
  }
  const known = await Promise.all(candidates.map(everyEndpoint));
  const unknown = choice.find((name) => isIP(name) === 0 && !known.flat().some(({ domain }) => domain === name));
  if (unknown !== undefined) {
    const names = [...new Set(known.flat().map(describe))].join(', ');
    throw new FabricError({
      code: 'PROVIDER_MISSING',
      call: 'fi_getinfo',
      text: `there is no rail "${unknown}"; there is ${names || 'none at all'}`,
      hint: 'name a domain as `fi_info` shows it, or a numeric address of this host',
    });
  }
  return candidates.map((candidate, i) => {
    const places = choice.flatMap((name) => namedPlace(candidate, known[i] ?? [], name));
    return places.length === 0 && candidate.provider === 'tcp' && candidates.length > 1
      ? everyPlace(candidate, sourceAddresses)
      : places;
  });
}

function everyPlace({ provider, endpoints }: ConsideredProvider, sourceAddresses: readonly string[]): RailPlace[] {
  if (provider !== 'efa' && sourceAddresses.length > 0)
    return sourceAddresses.map((sourceAddress) => ({ sourceAddress }));
  if (provider === 'tcp') return [{}];
  const active = endpoints.filter(({ linkState }) => linkState !== 'down');
  const domains = [...new Set(active.map(({ domain }) => domain))];
  return domains.length === 0 ? [{}] : domains.map((domain) => ({ domain }));
}

function namedPlace({ provider }: ConsideredProvider, known: readonly ProviderEntry[], name: string): RailPlace[] {
  // An address is the tcp provider's, or that of the RDMA device that has it; EFA knows none.
  if (isIP(name) !== 0) return provider === 'efa' ? [] : [{ sourceAddress: name }];
  const endpoint = known.find(({ domain }) => domain === name);
  if (endpoint === undefined) return [];
  const sourceAddress = addressOf(endpoint);
  return [provider === 'efa' || sourceAddress === undefined ? { domain: name } : { domain: name, sourceAddress }];
}

/** Everything that the provider has, wherever it is; what was found for one source address is only a part. */
async function everyEndpoint({ provider, endpoints }: ConsideredProvider): Promise<readonly ProviderEntry[]> {
  try {
    return await listEndpoints({ provider: LIBFABRIC_PROVIDERS[provider] });
  } catch (error) {
    // verbs answers only to a source address.
    if (error instanceof FabricError && error.code === 'PROVIDER_MISSING') return endpoints;
    throw error;
  }
}

function addressOf({ addressText }: ProviderEntry): string | undefined {
  const address = /^\[(.*)\]:\d+$|^([\d.]+):\d+$/.exec(addressText);
  return address?.[1] ?? address?.[2];
}

function describe(endpoint: ProviderEntry): string {
  const address = addressOf(endpoint);
  return address === undefined ? endpoint.domain : `${endpoint.domain} (${address})`;
}
