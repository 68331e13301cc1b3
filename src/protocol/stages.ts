/**
 * Stages: the named steps of an operation, the same words on both sides and in every log. The current stage of every
 * operation in flight is always known; the lines are written at debug only.
 */

import type { Logger } from 'pino';
import type { KeyFormatter } from './keys.js';
import { turnNowMs } from './turn-clock.js';

/** The stages of a client's operations, with the message of each. */
export const CLIENT_STAGES = {
  'get.start': 'GET: Starting request',
  'get.buffer.allocated': 'GET: Allocated receive buffer',
  'get.location.created': 'GET: Created response location',
  'get.request.sent': 'GET: Sent gRPC request',
  'get.response.received': 'GET: Received gRPC response',
  'get.done': 'GET: Retrieved value',
  'get.fallback.inline': 'GET: Falling back to inline',
  'get.quarantined': 'GET: Receive buffer held until no write can land in it',
  'get.failed': 'GET: Failed',
  'put.start': 'PUT: Starting request',
  'put.grant.requested': 'PUT: Requested write grant',
  'put.grant.received': 'PUT: Received write grant',
  'put.write.submitted': 'PUT: Submitted RDMA write',
  'put.write.completed': 'PUT: RDMA write completed',
  'put.commit.sent': 'PUT: Sent commit',
  'put.done': 'PUT: Stored value',
  'put.fallback.inline': 'PUT: Falling back to inline',
  'put.failed': 'PUT: Failed',
  'delete.start': 'DELETE: Starting request',
  'delete.done': 'DELETE: Done',
  'delete.failed': 'DELETE: Failed',
  'exists.start': 'EXISTS: Starting request',
  'exists.done': 'EXISTS: Done',
  'exists.failed': 'EXISTS: Failed',
  'stat.start': 'STAT: Starting request',
  'stat.done': 'STAT: Done',
  'stat.failed': 'STAT: Failed',
  'ping.start': 'PING: Starting request',
  'ping.done': 'PING: Done',
  'ping.failed': 'PING: Failed',
} as const;

/** The stages of a server's operations, with the message of each. */
export const SERVER_STAGES = {
  'get.received': 'GET: Request received',
  'get.lookup': 'GET: Looking up key',
  'get.found': 'GET: Found value',
  'get.transfer.created': 'GET: Created transfer request',
  'get.write.submitted': 'GET: Submitted RDMA write',
  'get.write.completed': 'GET: Transfer completed',
  'get.done': 'GET: Transferred value',
  'get.fallback.inline': 'GET: Falling back to inline',
  'get.failed': 'GET: Failed',
  'put.received': 'PUT: Request received',
  'put.allocated': 'PUT: Allocated extents',
  'put.granted': 'PUT: Granted extents for writing',
  'put.commit.received': 'PUT: Commit received',
  'put.verified': 'PUT: Verified CRC-32C',
  'put.published': 'PUT: Published value',
  'put.done': 'PUT: Stored value',
  'put.fallback.inline': 'PUT: Falling back to inline',
  'put.failed': 'PUT: Failed',
  'delete.received': 'DELETE: Request received',
  'delete.done': 'DELETE: Done',
  'delete.failed': 'DELETE: Failed',
  'exists.received': 'EXISTS: Request received',
  'exists.done': 'EXISTS: Done',
  'exists.failed': 'EXISTS: Failed',
  'stat.received': 'STAT: Request received',
  'stat.done': 'STAT: Done',
  'stat.failed': 'STAT: Failed',
  'ping.received': 'PING: Request received',
  'ping.done': 'PING: Done',
  'ping.failed': 'PING: Failed',
} as const;

/** Any stage of either side. */
export type Stage = keyof typeof CLIENT_STAGES | keyof typeof SERVER_STAGES;

/** An operation as its stages name it. */
export type OperationKind = 'get' | 'put' | 'delete' | 'exists' | 'stat' | 'ping';

/** Fields of a stage's log line beside those that every line has. */
export interface StageFields {
  readonly path?: 'rdma' | 'inline';
  readonly [field: string]: string | number | boolean | undefined;
}

/** What all operations of one session share in their log lines. */
export interface TraceContext {
  readonly side: 'client' | 'server';
  readonly logger: Logger;
  readonly formatKey: KeyFormatter;
  /** Whose operations they are: the client's id, as it begins request ids. */
  readonly requestIdPrefix: string;
  /** The other side, as people would look for it. */
  readonly peer: string;
  /** The provider of the session's data plane; undefined when it is inline-only. */
  readonly provider: string | undefined;
}

/** Transfers of at least this length have their last stage logged at info. */
const LARGE_BYTES = 1024 * 1024;

/**
 * The trace of one operation: where it is, since when, and the log lines of its stages. Costs some assignments a stage while
 * debug logging is off; what is at debug when an operation begins is so until it ends.
 */
export class OperationTrace {
  stage: Stage;
  /** When {@link stage} began, on performance.now()'s clock. */
  stageSinceMs: number;
  /** Bytes of the value, once known. */
  bytes: number | undefined;
  /** It reads one of many ranges of a value: its last stage is no news by itself, and logged at debug. */
  isRange = false;
  readonly startedAtMs: number;
  private readonly isDebug: boolean;

  constructor(
    private readonly context: TraceContext,
    readonly op: OperationKind,
    /** On the wire, of its current request. */
    public operationId: number,
    readonly key: Uint8Array | undefined,
    first: Stage,
  ) {
    this.isDebug = context.logger.isLevelEnabled('debug');
    this.startedAtMs = this.nowMs();
    this.stage = first;
    this.stageSinceMs = this.startedAtMs;
    if (this.isDebug) this.log('debug', undefined);
  }

  /** `clientId-operationId`, the same on both sides. */
  get requestId(): string {
    return `${this.context.requestIdPrefix}-${this.operationId}`;
  }

  /** The operation has reached a stage. */
  mark(stage: Stage, fields?: StageFields): void {
    this.stage = stage;
    this.stageSinceMs = this.nowMs();
    if (this.isDebug) this.log('debug', fields);
  }

  /** The operation's last stage: at info for a large transfer, at debug for a small one. */
  finish(stage: Stage, fields?: StageFields): void {
    const isLarge = (this.bytes ?? 0) >= LARGE_BYTES && !this.isRange;
    this.stage = stage;
    this.stageSinceMs = isLarge ? performance.now() : this.nowMs();
    if (isLarge || this.isDebug) this.log(isLarge ? 'info' : 'debug', fields);
  }

  /** The operation has failed at its current stage, which the error keeps. */
  fail(stage: Stage, error: { readonly code: string; readonly message: string }): void {
    const failedAt = this.stage;
    this.stage = stage;
    this.stageSinceMs = performance.now();
    this.log((this.bytes ?? 0) >= LARGE_BYTES ? 'warn' : 'debug', {
      code: error.code,
      error: error.message,
      failedAtStage: failedAt,
    });
  }

  /** Exactly where it is logged. */
  private nowMs(): number {
    return this.isDebug ? performance.now() : turnNowMs();
  }

  private log(level: 'debug' | 'info' | 'warn', fields: StageFields | undefined): void {
    const { logger, side, formatKey, peer, provider } = this.context;
    if (!logger.isLevelEnabled(level)) return;
    const messages: Readonly<Partial<Record<Stage, string>>> = side === 'client' ? CLIENT_STAGES : SERVER_STAGES;
    logger[level](
      {
        requestId: this.requestId,
        op: this.op,
        stage: this.stage,
        key: this.key === undefined ? undefined : formatKey(this.key),
        bytes: this.bytes,
        provider,
        rail: provider === undefined ? undefined : 0,
        peer,
        elapsedUs: Math.round((this.stageSinceMs - this.startedAtMs) * 1000),
        ...fields,
      },
      messages[this.stage] ?? this.stage,
    );
  }
}
