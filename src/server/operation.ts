/**
 * An operation that takes longer than the turn in which it was asked for.
 */

import type { FabricKvError } from '../protocol/errors.js';
import type { DataSource } from '../protocol/frame-writer.js';
import type { ServerMessage } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import type { OperationKind, OperationTrace, Stage } from '../protocol/stages.js';
import type { LeaseTable } from './leases.js';
import type { OperationGate } from './operation-gate.js';
import type { Peer, PeerRegion } from './peers.js';
import type { ServerContext } from './server-context.js';
import type { SessionWindows } from './session-windows.js';

/** Why an operation is stopped before it is done. */
export type StopCause =
  /** The client asked; it is answered with Quiesced. */
  | { readonly kind: 'cancelled' }
  /** The session has ended; nobody listens any more. */
  | { readonly kind: 'session-ended' };

/** What a session keeps of an operation in flight. */
export interface ActiveOperation {
  readonly trace: OperationTrace;
  /** Ends it as soon as no write of ours is in flight. Idempotent. */
  stop(cause: StopCause): void;
}

/** What operations need of the session that they belong to. */
export interface OperationHost {
  readonly context: ServerContext;
  readonly gate: OperationGate;
  readonly clientId: bigint;
  /** The data plane of this session, unless it is inline-only. */
  readonly peer: Peer | undefined;
  /** Its write windows; undefined when it is inline-only. */
  readonly windows: SessionWindows | undefined;
  region(regionId: number): PeerRegion | undefined;
  trace(op: OperationKind, operationId: number, key: Uint8Array | undefined, first: Stage): OperationTrace;
  /** The message is the session's from then on. */
  send(operationId: number, message: ServerMessage): void;
  sendData(source: DataSource<ServerMessage>): void;
  fail(operationId: number, error: FabricKvError, sinkBusy?: boolean): void;
  /** The operation is over: forget it. */
  finished(operationId: number): void;
}

/** What the handling of a session's messages needs of it, beside what its operations need. */
export interface OperationTable extends OperationHost {
  readonly leases: LeaseTable;
  /** An operation in flight. */
  operation(operationId: number): ActiveOperation | undefined;
  /** An operation goes on beyond this turn. */
  started(operationId: number, operation: ActiveOperation): void;
  /** The time that an operation asks for, within bounds. */
  timeoutMs(deadlineMs: number): number;
  /** Whether the session has ended: then nothing new is begun. */
  readonly ended: boolean;
}
