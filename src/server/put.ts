/**
 * The messages that begin and end a PUT of a value too large for one message.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { PutCommit__Output } from '../protocol/generated/fabrickv/v1/PutCommit.js';
import type { PutOpen__Output } from '../protocol/generated/fabrickv/v1/PutOpen.js';
import type { PutWritten__Output } from '../protocol/generated/fabrickv/v1/PutWritten.js';
import { checkKey } from '../protocol/keys.js';
import { toSafeInteger } from '../protocol/wire.js';
import { attempt, refuseDuplicate, refuseWhenStopping, replay } from './attempt.js';
import { checkLength, refuseOptions } from './mutations.js';
import type { OperationTable } from './operation.js';
import { PutOperation } from './put-operation.js';
import { WrittenPut } from './put-written.js';

/** Begins a PUT that asks for room. */
export function putOpen(session: OperationTable, operationId: number, request: PutOpen__Output): void {
  const { context } = session;
  const trace = session.trace('put', operationId, request.key, 'put.received');
  if (replay(session, operationId, () => putOpen(session, operationId, request))) return;
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    const length = toSafeInteger(request.length, 'PutOpen.length');
    checkLength(context, length);
    refuseWhenStopping(session);
    refuseDuplicate(session, operationId);
    const { path, streamed } = request;
    if (path === 'PATH_UNSPECIFIED') throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'PutOpen without a path');
    if (streamed && (path !== 'RDMA' || length !== 0)) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'a streamed PutOpen has no length, and path RDMA');
    }
    const operation = new PutOperation(session, operationId, trace, {
      namespace: request.namespace,
      key: request.key,
      length,
      path,
      streamed,
      withoutCrc: request.withoutCrc,
      timeoutMs: session.timeoutMs(request.deadlineMs),
    });
    session.started(operationId, operation);
    operation.start();
  });
}

/** Ends a PUT that has its room. */
export function putCommit(session: OperationTable, operationId: number, commit: PutCommit__Output): void {
  const operation = session.operation(operationId);
  if (operation instanceof PutOperation) {
    operation.onCommit(commit);
    return;
  }
  const grantEnded = (): void =>
    session.fail(operationId, new FabricKvError('ERR_FABRICKV_GRANT_ENDED', undefined, { outcome: 'not-applied' }));
  if (!replay(session, operationId, grantEnded)) grantEnded();
}

/** A whole PUT: the value lies in the session window already. */
export function putWritten(session: OperationTable, operationId: number, request: PutWritten__Output): void {
  const trace = session.trace('put', operationId, request.key, 'put.received');
  if (replay(session, operationId, () => putWritten(session, operationId, request))) return;
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    refuseOptions(request.options);
    const length = toSafeInteger(request.length, 'PutWritten.length');
    checkLength(session.context, length);
    refuseWhenStopping(session);
    refuseDuplicate(session, operationId);
    const { windows } = session;
    if (windows === undefined) throw new FabricKvError('ERR_FABRICKV_DATA_PLANE', 'the session has no data plane');
    const operation = new WrittenPut(session, windows, operationId, trace, {
      namespace: request.namespace,
      key: request.key,
      windowId: request.windowId,
      windowOffset: toSafeInteger(request.windowOffset, 'PutWritten.window_offset'),
      length,
      crc32c: request.withoutCrc ? undefined : request.crc32c,
      timeoutMs: session.timeoutMs(request.deadlineMs),
    });
    session.started(operationId, operation);
    operation.start();
  });
}
