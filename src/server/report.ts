/**
 * The server's counters and gauges by name, as Pong carries them. docs/operations.md describes each.
 */

import type { ServerContext } from './server-context.js';
import type { Sessions } from './sessions.js';

/** All of them; cheap enough for every second, too dear for every operation. */
export function reportOf({ counters, store, dataPlane }: ServerContext, sessions: Sessions): Record<string, number> {
  const { totalBytes, usedBytes, freeBytes, quarantinedBytes } = store.arena.usage;
  const report: Record<string, number> = {
    keys: store.keys,
    valueBytes: store.valueBytes,
    memoryTotalBytes: totalBytes,
    memoryUsedBytes: usedBytes,
    memoryFreeBytes: freeBytes,
    memoryQuarantinedBytes: quarantinedBytes,
    sessions: sessions.count,
    operationsInFlight: sessions.operationsInFlight,
    ...counters,
  };
  for (const { rails } of dataPlane.fabric.providers) {
    for (const rail of rails) {
      const { writesPosted, writesCompleted, writesFailed, bytesWritten, registrations, regionsOpen, peers } =
        rail.stats();
      const stats = { writesPosted, writesCompleted, writesFailed, bytesWritten, registrations, regionsOpen, peers };
      for (const [name, value] of Object.entries(stats)) {
        const counter = `rail${name.charAt(0).toUpperCase()}${name.slice(1)}`;
        report[counter] = (report[counter] ?? 0) + value;
      }
    }
  }
  return report;
}
