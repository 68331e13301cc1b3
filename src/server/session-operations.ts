/**
 * What each message of an operation does.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage__Output } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Delete__Output } from '../protocol/generated/fabrickv/v1/Delete.js';
import type { Exists__Output } from '../protocol/generated/fabrickv/v1/Exists.js';
import type { Put__Output } from '../protocol/generated/fabrickv/v1/Put.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import type { Stat__Output } from '../protocol/generated/fabrickv/v1/Stat.js';
import { checkKey } from '../protocol/keys.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace, StageFields } from '../protocol/stages.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../protocol/wire.js';
import { attempt, failAttempt, refuseDuplicate, refuseWhenStopping, replay } from './attempt.js';
import { get } from './get.js';
import { InlinePut } from './inline-put.js';
import { checkLength, refuseOptions, remember } from './mutations.js';
import type { OperationTable } from './operation.js';
import { putCommit, putOpen, putWritten } from './put.js';
import { PutOperation } from './put-operation.js';
import type { Extent } from './store/arena.js';

/** Under one id for all, a mutation would be taken for a retry of the last one, and a PUT's pieces for another's. */
const NEED_AN_ID: ReadonlySet<string> = new Set(['get', 'put', 'putOpen', 'putCommit', 'putWritten', 'delete']);

/**
 * Does what a message asks for. What is wrong with the operation is its own failure; only what breaks the protocol is
 * thrown, and ends the session.
 */
export function handleOperation(session: OperationTable, operationId: number, message: ClientMessage__Output): void {
  if (operationId === 0 && message.body !== undefined && NEED_AN_ID.has(message.body)) {
    session.fail(0, new FabricKvError('ERR_FABRICKV_PROTOCOL', `${message.body} without an operation_id`));
    return;
  }
  if (message.body === 'get' && message.get) get(session, operationId, message.get);
  else if (message.body === 'put' && message.put) put(session, operationId, message.put);
  else handleOther(session, operationId, message);
}

function handleOther(session: OperationTable, operationId: number, message: ClientMessage__Output): void {
  const operation = session.operation(operationId);
  if (message.putOpen) putOpen(session, operationId, message.putOpen);
  else if (message.putCommit) putCommit(session, operationId, message.putCommit);
  else if (message.delete) remove(session, operationId, message.delete);
  else if (message.exists) exists(session, operationId, message.exists);
  else if (message.stat) stat(session, operationId, message.stat);
  else if (message.ping) ping(session, operationId);
  else if (message.putWritten) putWritten(session, operationId, message.putWritten);
  else if (message.putAbort || message.data || message.putProgress || message.putMore) {
    // For a PUT that has ended meanwhile they mean nothing.
    if (!(operation instanceof PutOperation)) return;
    if (message.data) operation.onData(message.data);
    else if (message.putProgress)
      operation.onProgress(toSafeInteger(message.putProgress.bytesWritten, 'bytes_written'));
    else if (message.putMore) operation.onMore(toSafeInteger(message.putMore.length, 'PutMore.length'));
    else operation.onAbort();
  } else if (message.leaseEnd) {
    session.leases.end(toBigInt(message.leaseEnd.leaseId));
  } else if (message.cancel) {
    if (operation === undefined) session.send(operationId, { quiesced: {} });
    else operation.stop({ kind: 'cancelled' });
  } else {
    // A message of a later version, or one that this server does not serve yet.
    session.fail(
      operationId,
      new FabricKvError('ERR_FABRICKV_UNIMPLEMENTED', `this server does not know the message ${message.body ?? ''}`),
    );
  }
}

const INLINE_PATH: StageFields = { path: 'inline' };

function put(session: OperationTable, operationId: number, request: Put__Output): void {
  const { context } = session;
  const trace = session.trace('put', operationId, request.key, 'put.received');
  trace.bytes = request.value.length;
  if (replay(session, operationId, () => put(session, operationId, request))) return;
  try {
    checkKey(request.key);
    refuseOptions(request.options);
    refuseWhenStopping(session);
    checkLength(context, request.value.length);
    if (request.value.length > DATA_BYTES_MAX) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `Put carries up to ${DATA_BYTES_MAX} bytes; use PutOpen`);
    }
    if (crc32c(request.value) !== request.crc32c) {
      throw new FabricKvError('ERR_FABRICKV_CHECKSUM', undefined, { outcome: 'not-applied' });
    }
    trace.mark('put.verified');
    const { length } = request.value;
    const free = context.store.arena.allocate(length);
    if (free !== undefined) {
      storeInline(session, operationId, request, free, trace);
      return;
    }
    const store = (extents: readonly Extent[]): void => storeInline(session, operationId, request, extents, trace);
    refuseDuplicate(session, operationId);
    const timeoutMs = session.timeoutMs(request.deadlineMs);
    new InlinePut(session, operationId, trace, { length, timeoutMs, store }).start();
  } catch (error) {
    failAttempt(session, operationId, trace, error);
  }
}

function storeInline(
  session: OperationTable,
  operationId: number,
  { namespace, key, value, crc32c: crc }: Put__Output,
  extents: readonly Extent[],
  trace: OperationTrace,
): void {
  const { context, clientId } = session;
  context.store.arena.write(extents, 0, value);
  const stored = context.store.publish({ namespace, key, extents, length: value.length, crc32c: crc });
  trace.mark('put.published');
  const result: Result = { put: { version: fromBigInt(stored.version), path: 'INLINE' } };
  remember(context, clientId, operationId, result);
  context.counters.putsInline += 1;
  context.counters.bytesWrittenInline += value.length;
  session.send(operationId, { result });
  trace.finish('put.done', INLINE_PATH);
}

function remove(session: OperationTable, operationId: number, request: Delete__Output): void {
  const { context, clientId } = session;
  const trace = session.trace('delete', operationId, request.key, 'delete.received');
  if (replay(session, operationId, () => remove(session, operationId, request))) return;
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    if (toBigInt(request.ifVersion) !== 0n) {
      throw new FabricKvError('ERR_FABRICKV_UNIMPLEMENTED', 'this server takes no if_version', {
        outcome: 'not-applied',
      });
    }
    refuseWhenStopping(session);
    const version = context.store.remove(request.namespace, request.key);
    const result: Result = { delete: { deleted: version !== undefined, version: fromBigInt(version ?? 0n) } };
    remember(context, clientId, operationId, result);
    context.counters.deletes += version === undefined ? 0 : 1;
    session.send(operationId, { result });
    trace.finish('delete.done', { deleted: version !== undefined });
  });
}

function exists(session: OperationTable, operationId: number, request: Exists__Output): void {
  const trace = session.trace('exists', operationId, request.key, 'exists.received');
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    const found = session.context.store.lookup(request.namespace, request.key) !== undefined;
    session.send(operationId, { result: { exists: { exists: found } } });
    trace.finish('exists.done', { exists: found });
  });
}

function stat(session: OperationTable, operationId: number, request: Stat__Output): void {
  const trace = session.trace('stat', operationId, request.key, 'stat.received');
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    const value = session.context.store.lookup(request.namespace, request.key);
    session.send(operationId, {
      result: {
        stat:
          value === undefined
            ? { found: false }
            : {
                found: true,
                length: value.length,
                version: fromBigInt(value.version),
                crc32c: value.crc32c ?? 0,
                withoutCrc: value.crc32c === undefined,
                storedUnixMs: value.storedUnixMs,
              },
      },
    });
    trace.finish('stat.done', { found: value !== undefined });
  });
}

function ping(session: OperationTable, operationId: number): void {
  const { context } = session;
  const trace = session.trace('ping', operationId, undefined, 'ping.received');
  const counters = context.report();
  session.send(operationId, {
    result: {
      pong: {
        serverVersion: context.version,
        uptimeMs: Math.round(performance.now() - context.startedAtMs),
        sessions: counters['sessions'] ?? 0,
        counters,
      },
    },
  });
  trace.finish('ping.done');
}
