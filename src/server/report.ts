/**
 * The server's counters and gauges by name, as Pong carries them. docs/operations.md describes each.
 */

import type { ServerContext } from './server-context.js';
import { RAIL_COUNTS } from './server-rail.js';
import type { Sessions } from './sessions.js';

/** All of them; cheap enough for every second, too dear for every operation. */
export function reportOf(
  { counters, store, dataPlane, eventLoop }: ServerContext,
  sessions: Sessions,
): Record<string, number> {
  const { totalBytes, usedBytes, reservedBytes, freeBytes, quarantinedBytes } = store.arena.usage;
  const quarantined = store.arena.quarantinedBy();
  const report: Record<string, number> = {
    keys: store.keys,
    valueBytes: store.valueBytes,
    memoryTotalBytes: totalBytes,
    memoryUsedBytes: usedBytes,
    memoryFreeBytes: freeBytes,
    memoryReservedBytes: reservedBytes,
    memoryQuarantinedBytes: quarantinedBytes,
    quarantinedOpenBytes: quarantined.open,
    quarantinedProvingBytes: quarantined.proving,
    quarantinedUnprovableBytes: quarantined.unprovable,
    sessions: sessions.count,
    operationsInFlight: sessions.operationsInFlight,
    ...sessions.held,
    leases: sessions.leases,
    leasedBytes: store.heldBytes,
    ...counters,
    ...eventLoop.delays,
  };
  for (const rail of dataPlane.rails()) {
    const stats = rail.stats();
    for (const name of RAIL_COUNTS) {
      const counter = `rail${name.charAt(0).toUpperCase()}${name.slice(1)}`;
      report[counter] = (report[counter] ?? 0) + stats[name];
    }
  }
  return report;
}
