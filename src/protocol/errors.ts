/**
 * The one table of errors. The TypeScript union, the gRPC mapping and docs/errors.md come from it.
 */

import { status } from '@grpc/grpc-js';

/** What is known of a mutation that failed: the old value is untouched, or nobody can say. */
export type MutationOutcome = 'not-applied' | 'unknown';

interface ErrorRow {
  /** What has happened, in one sentence. */
  readonly summary: string;
  /** What the user can do about it. */
  readonly remedy: string;
  /** The gRPC status that carries it. */
  readonly grpc: status;
  /** Whether the same call may succeed if it is made again. */
  readonly retryable: boolean;
}

/** Every error code, with its meaning, its remedy, its gRPC status and whether a retry can help. */
export const ERRORS = {
  ERR_FABRICKV_INVALID_KEY: {
    summary: 'The key is empty or longer than 1,024 bytes.',
    remedy: 'Use a key of 1 to 1,024 bytes; hash longer ones.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_INVALID_ARGUMENT: {
    summary: 'An argument is not what the call takes.',
    remedy: 'Correct the argument that the message names.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_NOT_FOUND: {
    summary: 'No value is stored under the key.',
    remedy: 'Check the key and the namespace; the value may never have been stored, or have been deleted.',
    grpc: status.NOT_FOUND,
    retryable: false,
  },
  ERR_FABRICKV_VALUE_TOO_LARGE: {
    summary: "The value is longer than the server's --max-value.",
    remedy: 'Raise --max-value on the server, or split the value over several keys.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_TOO_LARGE_FOR_UNARY: {
    summary: 'The value is longer than the 1 MiB that a unary call carries.',
    remedy: 'Use a session: the client SDK or kv-client.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_TOO_LARGE_FOR_BUFFER: {
    summary: 'The value is longer than one Buffer can be on this Node.js.',
    remedy: 'Read it with getStream, in constant memory, or into a region with getInto.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_SINK_TOO_SMALL: {
    summary: 'The region given to getInto is smaller than the value.',
    remedy: 'Allocate a region of the length in the error (or of stat), and call again.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_REGION_BUSY: {
    summary: 'A write of an earlier operation may still land in the region.',
    remedy: 'Await region.quiesced(), or use another region.',
    grpc: status.FAILED_PRECONDITION,
    retryable: true,
  },
  ERR_FABRICKV_CAPACITY: {
    summary: 'The arena has no room for the value.',
    remedy: 'Delete values, or start the server with more --memory.',
    grpc: status.RESOURCE_EXHAUSTED,
    retryable: true,
  },
  ERR_FABRICKV_RESOURCE_EXHAUSTED: {
    summary: 'A limit is reached; the message says which.',
    remedy: 'Have fewer operations or sessions at a time, or raise the limit that the message names.',
    grpc: status.RESOURCE_EXHAUSTED,
    retryable: true,
  },
  ERR_FABRICKV_CHECKSUM: {
    summary: 'The bytes that arrived do not have the CRC-32C that was announced; they were thrown away.',
    remedy: 'Retry. If it happens again, test the memory and the network cards of both machines.',
    grpc: status.DATA_LOSS,
    retryable: true,
  },
  ERR_FABRICKV_GRANT_ENDED: {
    summary: 'The grant of this PUT has ended: it expired, its session ended, or the server stopped.',
    remedy: 'Put the value again; give it more time if the transfer is slow.',
    grpc: status.ABORTED,
    retryable: true,
  },
  ERR_FABRICKV_LEASE_EXPIRED: {
    summary: 'The lease under which a range was asked for has ended.',
    remedy: 'Start reading the value again.',
    grpc: status.ABORTED,
    retryable: true,
  },
  ERR_FABRICKV_VERSION_CHANGED: {
    summary: 'The value was replaced or deleted while it was read in parts, and its lease had ended with the session.',
    remedy: 'Start reading the value again.',
    grpc: status.ABORTED,
    retryable: true,
  },
  ERR_FABRICKV_DATA_PLANE: {
    summary: 'An RDMA write failed or did not complete: the data plane is broken, the control plane works.',
    remedy:
      'Check that the firewall or security group lets all traffic pass between the two fabric addresses, not only the gRPC port. --inline-threshold max avoids the data plane.',
    grpc: status.UNAVAILABLE,
    retryable: true,
  },
  ERR_FABRICKV_DEADLINE: {
    summary: 'The operation did not end within its time.',
    remedy: 'Give it more time (timeoutMs, --timeout), or look at the stage that the error names.',
    grpc: status.DEADLINE_EXCEEDED,
    retryable: true,
  },
  ERR_FABRICKV_CANCELLED: {
    summary: 'The caller gave the operation up.',
    remedy: 'Nothing to do: the caller asked for it.',
    grpc: status.CANCELLED,
    retryable: false,
  },
  ERR_FABRICKV_SOURCE: {
    summary: 'The stream that was to be put failed.',
    remedy: 'Look at the cause, which is what the stream threw.',
    grpc: status.ABORTED,
    retryable: false,
  },
  ERR_FABRICKV_CONNECT: {
    summary: 'No connection to the server.',
    remedy: 'Check that the server runs, that the address and port are its own, and that no firewall is between.',
    grpc: status.UNAVAILABLE,
    retryable: true,
  },
  ERR_FABRICKV_CONNECTION_LOST: {
    summary: 'The connection to the server was lost and did not come back in time.',
    remedy: 'Check that the server still runs and is reachable; then retry.',
    grpc: status.UNAVAILABLE,
    retryable: true,
  },
  ERR_FABRICKV_NOT_FABRICKV: {
    summary: 'What answers at the address is not a FabricKV server.',
    remedy: 'Check the address and port: another service listens there.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_PROTOCOL_VERSION: {
    summary: 'Client and server have no version of the protocol in common.',
    remedy: 'Bring the older of the two up to date; the message names both.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_PROTOCOL: {
    summary: 'The peer sent something that the protocol does not allow.',
    remedy: 'Use the same release on both sides; if it persists, report it with both logs.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_UNIMPLEMENTED: {
    summary: 'The server does not know this kind of operation or option.',
    remedy: 'Bring the server up to date, or do without it.',
    grpc: status.UNIMPLEMENTED,
    retryable: false,
  },
  ERR_FABRICKV_SHUTTING_DOWN: {
    summary: 'The server is stopping and starts nothing new.',
    remedy: 'Retry when it is back.',
    grpc: status.UNAVAILABLE,
    retryable: true,
  },
  ERR_FABRICKV_CLOSED: {
    summary: 'The client is closed.',
    remedy: 'Connect a new one; await the operations before you close it.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_LIBFABRIC_MISSING: {
    summary: 'libfabric cannot be loaded, so there is no data plane.',
    remedy:
      'Install it (Debian, Ubuntu: apt-get install libfabric1 libfabric-dev, then npm rebuild fabrickv; EC2: the EFA installer), or set FABRICKV_LIBFABRIC to its path, or use --provider none.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_PROVIDER_MISSING: {
    summary: 'libfabric has no such provider on this machine.',
    remedy:
      'Use --provider auto, or install the driver and device that the provider needs (fi_info lists what there is).',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_MEMORY: {
    summary: 'The memory cannot be mapped.',
    remedy: 'Ask for less --memory, or free some on the machine; containers have a limit of their own.',
    grpc: status.RESOURCE_EXHAUSTED,
    retryable: false,
  },
  ERR_FABRICKV_REGISTRATION: {
    summary: 'The memory cannot be registered with the network card.',
    remedy: 'Raise the memlock limit (ulimit -l unlimited, or scripts/run-with-rdma.sh), or ask for less memory.',
    grpc: status.RESOURCE_EXHAUSTED,
    retryable: false,
  },
  ERR_FABRICKV_ADDRESS_IN_USE: {
    summary: 'Another process listens at the address.',
    remedy: 'Stop it, or choose another --listen-addr.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_ADDRESS_UNAVAILABLE: {
    summary: 'The address is not one of this machine, cannot be resolved, or may not be used.',
    remedy: 'Name an address of this machine (ip addr lists them), or 0.0.0.0 for all.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_SETTING: {
    summary: 'A setting has a value that it cannot have.',
    remedy: 'Correct the flag, variable or file entry that the message names; --help lists what each takes.',
    grpc: status.INVALID_ARGUMENT,
    retryable: false,
  },
  ERR_FABRICKV_FILE: {
    summary: 'A local file cannot be read or written.',
    remedy: 'Check the path, its permissions and the free space.',
    grpc: status.FAILED_PRECONDITION,
    retryable: false,
  },
  ERR_FABRICKV_INTERNAL: {
    summary: 'A defect of FabricKV.',
    remedy: 'Report it with the logs of both sides.',
    grpc: status.INTERNAL,
    retryable: false,
  },
} as const satisfies Record<string, ErrorRow>;

/** Stable; match on it. */
export type ErrorCode = keyof typeof ERRORS;

/** What an error knows beside its code and message. */
export interface FabricKvErrorDetails {
  /** Of a mutation: whether the old value is certainly untouched. */
  readonly outcome?: MutationOutcome | undefined;
  /** The last stage that the operation reached (docs/architecture.md, stages). */
  readonly stage?: string | undefined;
  /** `clientId-operationId`; both sides' logs have it. */
  readonly requestId?: string | undefined;
  /** The other side's address. */
  readonly peer?: string | undefined;
  /** The error below, such as a FabricError with the libfabric call and errno. */
  readonly cause?: unknown;
  /** When the row's general remedy can be said more exactly. */
  readonly remedy?: string | undefined;
  /** When the row's general answer is not right for this case. */
  readonly retryable?: boolean | undefined;
  /** Numbers and names for programs, such as `length` of a value that was too large. */
  readonly details?: Readonly<Record<string, string>> | undefined;
}

/** The only error that FabricKV throws. Match on {@link FabricKvError.code}. */
export class FabricKvError extends Error {
  override readonly name = 'FabricKvError';
  readonly code: ErrorCode;
  /** Whether the same call may succeed if it is made again. */
  readonly retryable: boolean;
  /** Of a mutation that failed: `not-applied` or `unknown`. */
  readonly outcome: MutationOutcome | undefined;
  /** The last stage that the operation reached. */
  readonly stage: string | undefined;
  /** `clientId-operationId`, as in both sides' logs. */
  readonly requestId: string | undefined;
  /** The other side's address. */
  readonly peer: string | undefined;
  /** What to do about it. */
  readonly remedy: string;
  /** Numbers and names for programs. */
  readonly details: Readonly<Record<string, string>>;

  constructor(code: ErrorCode, message?: string, more: FabricKvErrorDetails = {}) {
    const row: ErrorRow = ERRORS[code];
    super(message ?? row.summary, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.retryable = more.retryable ?? row.retryable;
    this.outcome = more.outcome;
    this.stage = more.stage;
    this.requestId = more.requestId;
    this.peer = more.peer;
    this.remedy = more.remedy ?? row.remedy;
    this.details = more.details ?? {};
  }

  /** The same error with what has become known since; what it knew already stays. */
  with(more: FabricKvErrorDetails): FabricKvError {
    const error = new FabricKvError(this.code, this.message, {
      outcome: this.outcome ?? more.outcome,
      stage: this.stage ?? more.stage,
      requestId: this.requestId ?? more.requestId,
      peer: this.peer ?? more.peer,
      cause: this.cause ?? more.cause,
      remedy: this.remedy,
      retryable: this.retryable,
      details: { ...more.details, ...this.details },
    });
    if (this.stack !== undefined) error.stack = this.stack;
    return error;
  }
}

/** Whether a string from outside is one of our codes. */
export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(ERRORS, code);
}

const CODES_OF_FABRIC: Readonly<Record<string, ErrorCode>> = {
  LIBFABRIC_MISSING: 'ERR_FABRICKV_LIBFABRIC_MISSING',
  ADDON_MISSING: 'ERR_FABRICKV_LIBFABRIC_MISSING',
  PROVIDER_MISSING: 'ERR_FABRICKV_PROVIDER_MISSING',
  MAPPING_FAILED: 'ERR_FABRICKV_MEMORY',
  REGISTRATION_FAILED: 'ERR_FABRICKV_REGISTRATION',
  TRANSFER_FAILED: 'ERR_FABRICKV_DATA_PLANE',
  CANCELLED: 'ERR_FABRICKV_DATA_PLANE',
  RAIL_CLOSED: 'ERR_FABRICKV_DATA_PLANE',
  BUSY: 'ERR_FABRICKV_RESOURCE_EXHAUSTED',
};

/** An error of the fabric layer, by its code there, as the error that users see; it stays as the cause. */
export function fromFabricError(
  error: Error & { readonly code: string; readonly hint?: string | undefined },
  more: FabricKvErrorDetails = {},
): FabricKvError {
  return new FabricKvError(CODES_OF_FABRIC[error.code] ?? 'ERR_FABRICKV_INTERNAL', error.message, {
    remedy: error.hint,
    ...more,
    cause: error,
  });
}

/** Any thrown thing as a FabricKvError; what is not one is a defect, and keeps its cause. */
export function toFabricKvError(error: unknown): FabricKvError {
  if (error instanceof FabricKvError) return error;
  const text = error instanceof Error ? error.message : String(error);
  return new FabricKvError('ERR_FABRICKV_INTERNAL', text, { cause: error });
}
