/**
 * What the server has done since it started. docs/operations.md describes each.
 */

/** Plain numbers, counted where the thing happens. */
export class ServerCounters {
  getsInline = 0;
  getsRdma = 0;
  getsMissing = 0;
  putsInline = 0;
  putsRdma = 0;
  putsAborted = 0;
  deletes = 0;
  bytesReadInline = 0;
  bytesReadRdma = 0;
  bytesWrittenInline = 0;
  bytesWrittenRdma = 0;
  failures = 0;
  sessionsOpened = 0;
  /** Requests for a part of a value. */
  rangesRead = 0;
  leasesOpened = 0;
  leasesExpired = 0;
  leasesDisplaced = 0;
  transfers = 0;
  transferRetries = 0;
  windowsOpened = 0;
  windowsOpen = 0;
  /** Rules of write windows that clients broke. */
  hostileSigns = 0;
  putsIntoSessionWindows = 0;
  railsReplaced = 0;
  replayedResults = 0;
  /** Times that a session was not read from until its client had read its answers. */
  sessionsHeldBack = 0;
  /** Sessions that were ended for what they held of the server's memory. */
  sessionsEndedForMemory = 0;
  /** Connections that were cut because nobody read the last words of a session. */
  connectionsCut = 0;
  connectionsRefused = 0;
  sessionsRefused = 0;
}
