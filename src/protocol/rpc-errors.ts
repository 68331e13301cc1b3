/**
 * Our errors over gRPC: a status with a google.rpc.ErrorInfo in `grpc-status-details-bin`. Nobody parses messages.
 */

import { Metadata, type ServiceError, type StatusObject, status } from '@grpc/grpc-js';
import { ERRORS, FabricKvError, isErrorCode } from './errors.js';
import type { Failure, Failure__Output } from './generated/fabrickv/v1/Failure.js';
import type { ErrorInfo, ErrorInfo__Output } from './generated/google/rpc/ErrorInfo.js';
import type { Status, Status__Output } from './generated/google/rpc/Status.js';
import { messageOf } from './proto.js';

const DETAILS_KEY = 'grpc-status-details-bin';
const ERROR_INFO_URL = 'type.googleapis.com/google.rpc.ErrorInfo';
const DOMAIN = 'fabrickv';

const statusMessage = () => messageOf<Status, Status__Output>('google.rpc.Status');
const errorInfoMessage = () => messageOf<ErrorInfo, ErrorInfo__Output>('google.rpc.ErrorInfo');

/**
 * A gRPC status that carries the error. A defect's own text stays inside: it is for our log, not for a peer.
 */
export function toStatus(error: FabricKvError): Pick<StatusObject, 'code' | 'details' | 'metadata'> {
  const row = ERRORS[error.code];
  const message = error.code === 'ERR_FABRICKV_INTERNAL' ? row.summary : error.message;
  const info: ErrorInfo = {
    reason: error.code,
    domain: DOMAIN,
    metadata: {
      ...error.details,
      retryable: String(error.retryable),
      ...(error.outcome === undefined ? {} : { outcome: error.outcome }),
      ...(error.stage === undefined ? {} : { stage: error.stage }),
    },
  };
  const metadata = new Metadata();
  metadata.set(
    DETAILS_KEY,
    statusMessage().serialize({
      code: row.grpc,
      message,
      details: [{ type_url: ERROR_INFO_URL, value: errorInfoMessage().serialize(info) }],
    }),
  );
  return { code: row.grpc, details: message, metadata };
}

/** The error inside a gRPC error, or undefined when a server that is not ours (or gRPC itself) made it. */
export function fromServiceError(error: ServiceError): FabricKvError | undefined {
  const [bytes] = error.metadata?.get(DETAILS_KEY) ?? [];
  if (!Buffer.isBuffer(bytes)) return undefined;
  const info = errorInfoIn(bytes);
  if (info === undefined || info.domain !== DOMAIN || !isErrorCode(info.reason)) return undefined;
  const { retryable, outcome, stage, ...details } = info.metadata;
  return new FabricKvError(info.reason, error.details, {
    retryable: retryable === 'true',
    outcome: outcome === 'not-applied' || outcome === 'unknown' ? outcome : undefined,
    stage,
    details,
    cause: error,
  });
}

function errorInfoIn(bytes: Buffer): ErrorInfo__Output | undefined {
  try {
    const any = statusMessage()
      .deserialize(bytes)
      .details.find((detail) => detail.type_url === ERROR_INFO_URL);
    return any !== undefined && Buffer.isBuffer(any.value) ? errorInfoMessage().deserialize(any.value) : undefined;
  } catch {
    // Not ours: what a proxy, or another server, has put under this key.
    return undefined;
  }
}

/** Whether gRPC says that the method does not exist there: the peer is no FabricKV server. */
export function isUnknownMethod(error: ServiceError): boolean {
  return error.code === status.UNIMPLEMENTED;
}

/** The error as a Failure of one operation of a session. */
export function toFailure(error: FabricKvError, sinkBusy = false): Failure {
  const message = error.code === 'ERR_FABRICKV_INTERNAL' ? ERRORS[error.code].summary : error.message;
  return {
    code: error.code,
    message,
    retryable: error.retryable,
    outcome:
      error.outcome === undefined ? 'NOT_A_MUTATION' : error.outcome === 'not-applied' ? 'NOT_APPLIED' : 'UNKNOWN',
    stage: error.stage ?? '',
    details: { ...error.details },
    sinkBusy,
  };
}

/** A Failure from a server as an error. A code that this release does not know becomes ERR_FABRICKV_INTERNAL with the code in its text. */
export function fromFailure(failure: Failure__Output): FabricKvError {
  const code = isErrorCode(failure.code) ? failure.code : undefined;
  return new FabricKvError(
    code ?? 'ERR_FABRICKV_INTERNAL',
    code === undefined ? `${failure.code}: ${failure.message}` : failure.message,
    {
      retryable: failure.retryable,
      outcome:
        failure.outcome === 'NOT_APPLIED' ? 'not-applied' : failure.outcome === 'UNKNOWN' ? 'unknown' : undefined,
      stage: failure.stage === '' ? undefined : failure.stage,
      details: failure.details,
    },
  );
}
