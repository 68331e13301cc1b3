/**
 * What the handling of every operation has in common.
 */

import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import type { OperationTrace } from '../protocol/stages.js';
import type { OperationTable } from './operation.js';

/** Does a piece of work; what it throws is the operation's failure. */
export function attempt(session: OperationTable, operationId: number, trace: OperationTrace, work: () => void): void {
  try {
    work();
  } catch (error) {
    failAttempt(session, operationId, trace, error);
  }
}

/** Answers an operation with the error that was thrown as it was begun. */
export function failAttempt(session: OperationTable, operationId: number, trace: OperationTrace, error: unknown): void {
  const failed = toFabricKvError(error).with({
    stage: trace.stage,
    outcome: trace.op === 'put' || trace.op === 'delete' ? 'not-applied' : undefined,
  });
  session.context.counters.failures += 1;
  trace.fail(`${trace.op}.failed`, failed);
  session.fail(operationId, failed);
}

/** @throws ERR_FABRICKV_SHUTTING_DOWN */
export function refuseWhenStopping(session: OperationTable): void {
  if (session.context.stopping !== undefined) throw session.context.stopping;
}

/** @throws ERR_FABRICKV_PROTOCOL when there is an operation with the same id */
export function refuseDuplicate(session: OperationTable, operationId: number): void {
  if (session.operation(operationId) !== undefined) {
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `operation ${operationId} is in flight already`);
  }
}

/** Answers with the first result of a mutation that was asked for before; or does it, when that changed nothing. */
export function replay(session: OperationTable, operationId: number, again: () => void): boolean {
  const crowd = session.context.history.crowd(session.clientId, operationId);
  if (crowd !== undefined) {
    session.context.counters.failures += 1;
    session.fail(operationId, crowd);
    return true;
  }
  return session.context.history.find(session.clientId, operationId, (result) => {
    // A session that has ended meanwhile starts nothing: its client asks again on another one.
    if (session.ended) return;
    if (result === undefined) {
      again();
      return;
    }
    session.context.counters.replayedResults += 1;
    session.send(operationId, { result });
  });
}
