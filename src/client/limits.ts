/**
 * Limits of the client's own, measured or chosen.
 */

/** CRCs and copies up to this length are made on the JS thread: handing them to another one would take longer. */
export const SYNC_BYTES_MAX = 256 * 1024;

/** A transfer that failed on the data plane is tried again this often, within the deadline. */
export const TRANSFER_RETRIES_MAX = 3;

/** How many GETs may have memory of their own at a time. */
export const OWN_SINKS_MAX = 8;

/** Values longer than this are read in ranges, so that the loss of a session costs no more than what was on its way. */
export const RANGED_BYTES_MIN = 64 * 1024 * 1024;

/** The longest range that is asked for at a time, */
export const RANGE_BYTES_MAX = 8 * 1024 * 1024;

/** and how many of one value may be in flight, or with the consumer of a stream. */
export const RANGES_IN_FLIGHT_MAX = 4;

/**
 * Requests for a lease that one session may have on their way, those that were given up included: with the leases of open
 * streams they stay below the 256 that the server gives a session.
 */
export const HOLDS_IN_FLIGHT_MAX = 64;

/** A lease under which nothing is read is renewed after this long; the server ends it after 30 s. */
export const LEASE_RENEWAL_MS = 10_000;

/** The first retry of a transfer waits about this long: a connection is back after some 20 ms. */
const TRANSFER_BACKOFF_MS = 25;

/** How long to wait before retry number `retry` (from 1): exponential, with jitter. */
export function transferBackoffMs(retry: number): number {
  return TRANSFER_BACKOFF_MS * 2 ** (retry - 1) * (0.5 + Math.random());
}
