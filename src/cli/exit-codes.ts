/**
 * Exit codes (design.md, section 9), and the one table from error codes to them.
 */

import type { ErrorCode } from '../protocol/errors.js';

/** What kv-client ends with. */
export const EXIT = {
  done: 0,
  notFound: 1,
  usage: 2,
  connection: 3,
  refused: 4,
  dataPlane: 5,
  deadline: 6,
  /** A defect of FabricKV in this process; EX_SOFTWARE of sysexits.h, so that it is none of the above. */
  defect: 70,
} as const;

/** 128 + the signal's number, as a shell would say it. */
export const SIGNAL_EXIT = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

/** kv-client's exit code for each error. */
const CLIENT_EXIT_CODES: Readonly<Record<ErrorCode, number>> = {
  ERR_FABRICKV_NOT_FOUND: EXIT.notFound,

  // The command cannot do what it was asked for, whatever the server says.
  ERR_FABRICKV_INVALID_KEY: EXIT.usage,
  ERR_FABRICKV_INVALID_ARGUMENT: EXIT.usage,
  ERR_FABRICKV_SETTING: EXIT.usage,
  ERR_FABRICKV_FILE: EXIT.usage,
  ERR_FABRICKV_SOURCE: EXIT.usage,
  ERR_FABRICKV_TOO_LARGE_FOR_BUFFER: EXIT.usage,
  ERR_FABRICKV_SINK_TOO_SMALL: EXIT.usage,
  ERR_FABRICKV_LIBFABRIC_MISSING: EXIT.usage,
  ERR_FABRICKV_PROVIDER_MISSING: EXIT.usage,
  ERR_FABRICKV_MEMORY: EXIT.usage,
  ERR_FABRICKV_ADDRESS_IN_USE: EXIT.usage,
  ERR_FABRICKV_ADDRESS_UNAVAILABLE: EXIT.usage,

  ERR_FABRICKV_CONNECT: EXIT.connection,
  ERR_FABRICKV_CONNECTION_LOST: EXIT.connection,
  ERR_FABRICKV_NOT_FABRICKV: EXIT.connection,
  ERR_FABRICKV_PROTOCOL_VERSION: EXIT.connection,
  ERR_FABRICKV_CLOSED: EXIT.connection,

  ERR_FABRICKV_VALUE_TOO_LARGE: EXIT.refused,
  ERR_FABRICKV_TOO_LARGE_FOR_UNARY: EXIT.refused,
  ERR_FABRICKV_CAPACITY: EXIT.refused,
  ERR_FABRICKV_RESOURCE_EXHAUSTED: EXIT.refused,
  ERR_FABRICKV_GRANT_ENDED: EXIT.refused,
  ERR_FABRICKV_LEASE_EXPIRED: EXIT.refused,
  ERR_FABRICKV_VERSION_CHANGED: EXIT.refused,
  ERR_FABRICKV_PROTOCOL: EXIT.refused,
  ERR_FABRICKV_UNIMPLEMENTED: EXIT.refused,
  ERR_FABRICKV_SHUTTING_DOWN: EXIT.refused,

  ERR_FABRICKV_DATA_PLANE: EXIT.dataPlane,
  ERR_FABRICKV_CHECKSUM: EXIT.dataPlane,
  ERR_FABRICKV_REGISTRATION: EXIT.dataPlane,
  ERR_FABRICKV_REGION_BUSY: EXIT.dataPlane,

  ERR_FABRICKV_DEADLINE: EXIT.deadline,

  // Only a signal cancels, and its exit code is then told; a call of our own that is cancelled otherwise is a defect.
  ERR_FABRICKV_CANCELLED: EXIT.defect,
  ERR_FABRICKV_INTERNAL: EXIT.defect,
};

/** The exit code of kv-client for an error. */
export function clientExitCode(code: ErrorCode): number {
  return CLIENT_EXIT_CODES[code];
}

/** What makes kv-server end with 2: it cannot start as it was asked to. Anything else is 1. */
const CANNOT_START: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_FABRICKV_SETTING',
  'ERR_FABRICKV_INVALID_ARGUMENT',
  'ERR_FABRICKV_ADDRESS_IN_USE',
  'ERR_FABRICKV_ADDRESS_UNAVAILABLE',
  'ERR_FABRICKV_PROVIDER_MISSING',
  'ERR_FABRICKV_LIBFABRIC_MISSING',
  'ERR_FABRICKV_MEMORY',
  'ERR_FABRICKV_REGISTRATION',
]);

/** The exit code of kv-server for an error at its start. */
export function serverExitCode(code: ErrorCode): number {
  return CANNOT_START.has(code) ? 2 : 1;
}
