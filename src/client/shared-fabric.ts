/**
 * The fabrics of this process: one for each choice of provider, source addresses, rails and options, shared by all clients that
 * ask for the same.
 */

import { type Fabric, openFabric, type ProviderChoice, type RailChoice } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { toClientError } from './fabric-errors.js';
import { withTimeLimit } from './time-limit.js';

/** What a client wants of its fabric. */
export interface FabricRequest {
  readonly choice: ProviderChoice;
  /** Numeric local addresses; none for wherever libfabric likes. */
  readonly sourceAddresses: readonly string[];
  readonly rails: RailChoice;
  readonly spinUs: number | 'auto';
  readonly cpus: readonly number[];
  readonly environment: Readonly<Record<string, string>>;
}

/** One client's share of a fabric. */
export interface FabricLease {
  readonly fabric: Fabric;
  /**
   * Gives the share up; the last one closes the fabric. Idempotent.
   *
   * @param onClosed called when the fabric is closed, which may be long after this has resolved: no peer writes any more
   */
  release(onClosed: () => void): Promise<void>;
}

/** Rails take some 2 s at most to close, when writes do not come back. */
const CLOSE_TIMEOUT_MS = 5000;

interface Entry {
  readonly opening: Promise<Fabric>;
  users: number;
  readonly onClosed: (() => void)[];
}

const fabrics = new Map<string, Entry>();

/**
 * A share of the fabric for this request, which is opened if it is the first one.
 *
 * @throws ERR_FABRICKV_PROVIDER_MISSING, ERR_FABRICKV_LIBFABRIC_MISSING when a provider was named and is not there
 */
export async function acquireFabric(request: FabricRequest): Promise<FabricLease> {
  const { choice, sourceAddresses, rails, spinUs, cpus, environment } = request;
  const sorted = Object.entries(environment).sort(([a], [b]) => (a < b ? -1 : 1));
  const name = JSON.stringify([choice, sourceAddresses, rails, spinUs, cpus, sorted]);
  const entry = fabrics.get(name) ?? {
    opening: openFabric(request),
    users: 0,
    onClosed: [],
  };
  fabrics.set(name, entry);
  entry.users += 1;
  let fabric: Fabric;
  try {
    fabric = await entry.opening;
  } catch (error) {
    if (fabrics.get(name) === entry) fabrics.delete(name);
    throw toClientError(error);
  }
  let releasing: Promise<void> | undefined;
  return {
    fabric,
    release: (onClosed) => {
      releasing ??= release(name, entry, fabric, onClosed);
      return releasing;
    },
  };
}

async function release(name: string, entry: Entry, fabric: Fabric, onClosed: () => void): Promise<void> {
  entry.users -= 1;
  entry.onClosed.push(onClosed);
  if (entry.users > 0) return;
  if (fabrics.get(name) === entry) fabrics.delete(name);
  const late = (): Error =>
    new FabricKvError('ERR_FABRICKV_INTERNAL', `the fabric was not closed within ${CLOSE_TIMEOUT_MS} ms`);
  const close = async (): Promise<void> => {
    await fabric.close();
    for (const closed of entry.onClosed.splice(0)) closed();
  };
  await withTimeLimit(close(), CLOSE_TIMEOUT_MS, late);
}
