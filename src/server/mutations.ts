/**
 * What all mutations share: memory for a value, options, and results that are remembered.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { PutOptions__Output } from '../protocol/generated/fabrickv/v1/PutOptions.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import { toBigInt } from '../protocol/wire.js';
import type { ServerContext } from './server-context.js';
import type { Extent } from './store/arena.js';
import type { Range } from './store/extent-allocator.js';

/** @throws ERR_FABRICKV_VALUE_TOO_LARGE */
export function checkLength(context: ServerContext, length: number): void {
  const { maxValueBytes } = context.settings;
  if (length > maxValueBytes) {
    throw new FabricKvError(
      'ERR_FABRICKV_VALUE_TOO_LARGE',
      `the value has ${length} bytes; --max-value is ${maxValueBytes}`,
      { outcome: 'not-applied', details: { length: String(length), maxValueBytes: String(maxValueBytes) } },
    );
  }
}

/**
 * Takes extents for a value. When there is room only in quarantine and in windows, those are closed that nobody uses, and it
 * is first proved that the memory is safe.
 *
 * @param stillWanted asked after that wait; nothing is taken when it says no
 * @throws ERR_FABRICKV_CAPACITY
 */
export function allocateExtents(
  context: ServerContext,
  length: number,
  stillWanted: () => boolean,
): Promise<readonly Extent[]> {
  return take(context, length, stillWanted, () => context.store.arena.allocate(length));
}

/** The same for windows: see {@link Arena.reserve}. @throws ERR_FABRICKV_CAPACITY */
export function reserveRanges(
  context: ServerContext,
  length: number,
  stillWanted: () => boolean,
): Promise<readonly Range[]> {
  return take(context, length, stillWanted, () => context.store.arena.reserve(length));
}

async function take<Piece>(
  context: ServerContext,
  length: number,
  stillWanted: () => boolean,
  attempt: () => readonly Piece[] | undefined,
): Promise<readonly Piece[]> {
  const { arena } = context.store;
  let taken = attempt();
  // What is on its way back already is waited for before anybody's windows are taken.
  for (const { yieldWindows } of [{ yieldWindows: false }, { yieldWindows: true }]) {
    if (taken !== undefined) return taken;
    const { freeBytes, reservedBytes } = arena.usage;
    const { open, proving } = arena.quarantinedBy();
    const reachable = freeBytes + proving + (yieldWindows ? open + reservedBytes : 0);
    if (reachable < length) continue;
    await context.dataPlane.reclaim(yieldWindows);
    if (!stillWanted()) return [];
    taken = attempt();
  }
  if (taken !== undefined) return taken;
  throw outOfMemory(context, length);
}

/** The arena is full: how full, and of what. */
export function outOfMemory(context: ServerContext, length: number): FabricKvError {
  const { freeBytes, totalBytes, quarantinedBytes, reservedBytes } = context.store.arena.usage;
  return new FabricKvError(
    'ERR_FABRICKV_CAPACITY',
    `no room for ${length} bytes: ${freeBytes} of the arena's ${totalBytes} are free, ${quarantinedBytes} quarantined, ${reservedBytes} in windows`,
    {
      outcome: 'not-applied',
      // More than there is at all never fits, however often it is tried.
      retryable: length <= totalBytes,
      details: { length: String(length), freeBytes: String(freeBytes), totalBytes: String(totalBytes) },
    },
  );
}

/** @throws ERR_FABRICKV_UNIMPLEMENTED for what this release does not do yet: better refused than ignored */
export function refuseOptions(options: PutOptions__Output | null): void {
  if (options === null) return;
  const asked =
    toBigInt(options.ttlMs) !== 0n ||
    options.ifAbsent ||
    toBigInt(options.ifVersion) !== 0n ||
    options.acknowledgement !== 'MEMORY';
  if (asked) {
    throw new FabricKvError('ERR_FABRICKV_UNIMPLEMENTED', 'this server takes no PutOptions', {
      outcome: 'not-applied',
    });
  }
}

/** Keeps a mutation's result for retries. Callers without a client id (0) do not retry. */
export function remember(context: ServerContext, clientId: bigint, operationId: number, result: Result): void {
  if (clientId !== 0n) context.history.settle(clientId, operationId, result);
}
