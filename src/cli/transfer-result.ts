/**
 * What put and get tell of a transfer.
 */

import type { TaskContext } from './command.js';

/** What both know of a transfer when it is done. */
export interface Transfer {
  readonly path: 'inline' | 'rdma';
  readonly bytes: number;
  readonly ms: number;
  readonly version: bigint;
  /** Undefined for a value that was stored without one. */
  readonly crc32c: number | undefined;
}

/** Shorter values have no rate that means anything to people. */
export const RATED_BYTES_MIN = 64 * 1024;

/** CRC-32C as eight hexadecimal digits. */
export function crcText(crc32c: number): string {
  return crc32c.toString(16).padStart(8, '0');
}

/** The same for programs; null for a value that was stored without one. */
export function crcOrNull(crc32c: number | undefined): string | null {
  return crc32c === undefined ? null : crcText(crc32c);
}

/** Milliseconds with three decimals: what is below a microsecond is noise. */
export function roundMs(ms: number): number {
  return Number(ms.toFixed(3));
}

/** Gigabytes (10^9) a second; null for what is too short to have a rate. */
export function rateGBps({ bytes, ms }: Pick<Transfer, 'bytes' | 'ms'>): number | null {
  return bytes === 0 || ms === 0 ? null : Number((bytes / ms / 1e6).toPrecision(3));
}

/** A transfer for programs. */
export function transferObject(
  transfer: Transfer,
  { client, keyText }: TaskContext,
): Readonly<Record<string, unknown>> {
  return {
    key: keyText,
    path: transfer.path,
    provider: client.connection.provider ?? null,
    bytes: transfer.bytes,
    ms: roundMs(transfer.ms),
    GBps: rateGBps(transfer),
    // Versions have 64 bits, more than a JSON number keeps.
    version: String(transfer.version),
    crc32c: crcOrNull(transfer.crc32c),
  };
}

/** A transfer in words, to follow `stored` or `got`. */
export function transferText(transfer: Transfer, { client }: TaskContext): string {
  const how = transfer.path === 'rdma' ? `RDMA (${client.connection.provider ?? 'unknown provider'})` : 'gRPC (inline)';
  // What fits one message takes as long as the message, whatever its length: a rate would say nothing.
  const rate = transfer.bytes < RATED_BYTES_MIN ? null : rateGBps(transfer);
  const crc = transfer.crc32c === undefined ? 'without a CRC-32C: not verified' : `CRC-32C ${crcText(transfer.crc32c)}`;
  return `by ${how} in ${roundMs(transfer.ms)} ms${rate === null ? '' : `, ${rate} GB/s`}, ${crc}`;
}
