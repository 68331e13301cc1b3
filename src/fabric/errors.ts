import { getSystemErrorName } from 'node:util';

/**
 * What went wrong in the native layer, in words that stay the same from release to release.
 *
 * - `LIBFABRIC_MISSING`: libfabric is not installed, too old, or the addon was built without its headers.
 * - `ADDON_MISSING`: the native addon was not built, so there is no data plane; memory falls back to plain buffers.
 * - `PROVIDER_MISSING`: libfabric is there, but not the provider that was named.
 * - `REGISTRATION_FAILED`: a memory region could not be registered, or its registration not be closed.
 * - `MAPPING_FAILED`: memory could not be mapped or prefaulted.
 * - `TRANSFER_FAILED`: a write, or the peer that it was for, failed.
 * - `CANCELLED`: the transfer was cancelled, or its peer was removed.
 * - `RAIL_CLOSED`: the rail was closed, is closing, or has failed.
 * - `UNPROVABLE`: nothing but closing the rail proves here that no write can still land (`Rail.prove`).
 * - `BUSY`: a bounded table or ring is full, or the system out of something; `call` names it. Nothing was achieved, and it
 *   may be tried again.
 * - `INVALID_ARGUMENT`: out of bounds, an id that is not (or no longer) known, a malformed address.
 */
export type FabricErrorCode =
  | 'LIBFABRIC_MISSING'
  | 'ADDON_MISSING'
  | 'PROVIDER_MISSING'
  | 'REGISTRATION_FAILED'
  | 'MAPPING_FAILED'
  | 'TRANSFER_FAILED'
  | 'CANCELLED'
  | 'RAIL_CLOSED'
  | 'UNPROVABLE'
  | 'BUSY'
  | 'INVALID_ARGUMENT';

/** The parts of a {@link FabricError}; what the addon reports, field by field. */
export interface FabricErrorDetails {
  readonly code: FabricErrorCode;
  /** The libfabric or system call that failed (`fi_mr_reg`, `mmap`), or the name of our own check. */
  readonly call: string;
  /** A positive errno, or one of libfabric's own numbers from 256 on; 0 where there is none. */
  readonly errno?: number;
  /** `fi_strerror` or `strerror` of `errno`, or a sentence. */
  readonly text: string;
  /** libfabric's provider name, as in `tcp;ofi_rxm`. */
  readonly provider?: string | undefined;
  /** The provider's own number from `fi_cq_readerr`. It means nothing on tcp. */
  readonly providerErrno?: number | undefined;
  /** What `fi_cq_strerror` says about it. */
  readonly providerText?: string | undefined;
  /** What the user can do. */
  readonly hint?: string | undefined;
  /** Of a transfer: see {@link FabricError.landedBytes}. */
  readonly landedBytes?: number | undefined;
}

/** libfabric's error numbers that are not errnos (rdma/fi_errno.h). */
const FABRIC_ERRNO_NAMES: ReadonlyMap<number, string> = new Map([
  [256, 'FI_EOTHER'],
  [257, 'FI_ETOOSMALL'],
  [258, 'FI_EOPBADSTATE'],
  [259, 'FI_EAVAIL'],
  [260, 'FI_EBADFLAGS'],
  [261, 'FI_ENOEQ'],
  [262, 'FI_EDOMAIN'],
  [263, 'FI_ENOCQ'],
  [264, 'FI_ECRC'],
  [265, 'FI_ETRUNC'],
  [266, 'FI_ENOKEY'],
  [267, 'FI_ENOAV'],
  [268, 'FI_EOVERRUN'],
  [269, 'FI_ENORX'],
]);

/**
 * The name of an errno, as in `ECANCELED`, or of one of libfabric's numbers, as in `FI_ENOKEY`.
 * An empty string for 0; `E<number>` for one that nobody knows.
 */
export function errnoName(errno: number): string {
  if (errno === 0) return '';
  const fabricName = FABRIC_ERRNO_NAMES.get(errno);
  if (fabricName !== undefined) return fabricName;
  const name = getSystemErrorName(-errno);
  return name.startsWith('Unknown') ? `E${errno}` : name;
}

/**
 * An error of the native layer: which call failed, how, and in which provider. It knows nothing of keys, sessions or
 * gRPC; the layers above translate it by `code`.
 */
export class FabricError extends Error {
  override readonly name = 'FabricError';
  readonly code: FabricErrorCode;
  readonly call: string;
  readonly errno: number;
  readonly errnoName: string;
  readonly text: string;
  readonly provider: string | undefined;
  readonly providerErrno: number | undefined;
  readonly providerText: string | undefined;
  readonly hint: string | undefined;
  /**
   * Of a write that failed or was cancelled: how many of its first bytes, in the order of its segments, are visible at
   * the target. What lies behind them may have landed in part; a write that is continued from here leaves no hole.
   * 0 for everything else.
   */
  readonly landedBytes: number;

  constructor(details: FabricErrorDetails, options?: ErrorOptions) {
    const errno = details.errno ?? 0;
    const name = errnoName(errno);
    const where = details.provider === undefined ? '' : ` [${details.provider}]`;
    const provider = details.providerText ? `; the provider says: ${details.providerText}` : '';
    super(`${details.call}${where}: ${details.text}${name === '' ? '' : ` (${name})`}${provider}`, options);
    this.code = details.code;
    this.call = details.call;
    this.errno = errno;
    this.errnoName = name;
    this.text = details.text;
    this.provider = details.provider;
    this.providerErrno = details.providerErrno;
    this.providerText = details.providerText;
    this.hint = details.hint;
    this.landedBytes = details.landedBytes ?? 0;
  }
}

/** An `INVALID_ARGUMENT` from one of our own checks. */
export function invalidArgument(call: string, text: string): FabricError {
  return new FabricError({ code: 'INVALID_ARGUMENT', call, text });
}

/**
 * Turns what the addon rejected or returned (a plain {@link FabricErrorDetails}) into a {@link FabricError};
 * anything else is passed through, so that a defect of ours is not disguised as a fabric failure.
 */
export function toFabricError(reason: unknown): unknown {
  return isDetails(reason) ? new FabricError(reason) : reason;
}

/** Awaits a promise of the addon and turns its rejection into a {@link FabricError}. */
export async function translateErrors<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (reason) {
    throw toFabricError(reason);
  }
}

function isDetails(reason: unknown): reason is FabricErrorDetails {
  return (
    typeof reason === 'object' &&
    reason !== null &&
    !(reason instanceof Error) &&
    'code' in reason &&
    'call' in reason &&
    'text' in reason
  );
}
