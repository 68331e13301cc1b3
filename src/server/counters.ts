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
  transferRetries = 0;
  peersRecycled = 0;
  windowsOpened = 0;
  windowsOpen = 0;
  replayedResults = 0;
}
