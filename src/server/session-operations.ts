/**
 * What each message of an operation does.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import type { ClientMessage__Output } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Delete__Output } from '../protocol/generated/fabrickv/v1/Delete.js';
import type { Exists__Output } from '../protocol/generated/fabrickv/v1/Exists.js';
import type { Get__Output } from '../protocol/generated/fabrickv/v1/Get.js';
import type { Put__Output } from '../protocol/generated/fabrickv/v1/Put.js';
import type { PutCommit__Output } from '../protocol/generated/fabrickv/v1/PutCommit.js';
import type { PutOpen__Output } from '../protocol/generated/fabrickv/v1/PutOpen.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import type { Stat__Output } from '../protocol/generated/fabrickv/v1/Stat.js';
import { checkKey } from '../protocol/keys.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt, toBigInt, toSafeInteger, toThreshold } from '../protocol/wire.js';
import { InlineGet, RdmaGet, type ResolvedSink } from './get-operation.js';
import { allocateExtents, checkLength, refuseOptions, remember } from './mutations.js';
import type { OperationTable } from './operation.js';
import { PutOperation } from './put-operation.js';
import type { Extent } from './store/arena.js';
import type { StoredValue } from './store/store.js';

/** Under one id for all, a mutation would be taken for a retry of the last one, and a PUT's pieces for another's. */
const NEED_AN_ID: ReadonlySet<string> = new Set(['get', 'put', 'putOpen', 'putCommit', 'delete']);

/**
 * Does what a message asks for. What is wrong with the operation is its own failure; only what breaks the protocol is
 * thrown, and ends the session.
 */
export function handleOperation(session: OperationTable, operationId: number, message: ClientMessage__Output): void {
  const operation = session.operation(operationId);
  if (operationId === 0 && message.body !== undefined && NEED_AN_ID.has(message.body)) {
    session.fail(0, new FabricKvError('ERR_FABRICKV_PROTOCOL', `${message.body} without an operation_id`));
    return;
  }
  if (message.get) get(session, operationId, message.get);
  else if (message.put) put(session, operationId, message.put);
  else if (message.putOpen) putOpen(session, operationId, message.putOpen);
  else if (message.putCommit) putCommit(session, operationId, message.putCommit);
  else if (message.delete) remove(session, operationId, message.delete);
  else if (message.exists) exists(session, operationId, message.exists);
  else if (message.stat) stat(session, operationId, message.stat);
  else if (message.ping) ping(session, operationId);
  else if (message.putAbort || message.data || message.putProgress) {
    // For a PUT that has ended meanwhile they mean nothing. How far an RDMA write has come, nothing depends on: the CRC
    // is computed at the commit.
    if (!(operation instanceof PutOperation)) return;
    if (message.data) operation.onData(message.data);
    else if (message.putAbort) operation.onAbort();
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

function get(session: OperationTable, operationId: number, request: Get__Output): void {
  const { context } = session;
  const trace = session.trace('get', operationId, request.key, 'get.received');
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    if (
      request.hold ||
      toBigInt(request.leaseId) !== 0n ||
      toBigInt(request.rangeLength) !== 0n ||
      toBigInt(request.rangeOffset) !== 0n
    ) {
      throw new FabricKvError('ERR_FABRICKV_UNIMPLEMENTED', 'this server serves whole values only');
    }
    trace.mark('get.lookup');
    const value = context.store.lookup(request.namespace, request.key);
    if (value === undefined) {
      context.counters.getsMissing += 1;
      session.send(operationId, { result: { get: { found: false } } });
      trace.finish('get.done', { found: false });
      return;
    }
    trace.bytes = value.length;
    trace.mark('get.found');
    const inline = value.length === 0 || value.length <= toThreshold(request.inlineMax);
    if (inline && value.length <= DATA_BYTES_MAX) {
      getInOneMessage(session, operationId, trace, value);
      return;
    }
    const sink = inline ? undefined : resolveSink(session, request, value.length);
    if (!inline && (sink === undefined || session.peer === undefined)) {
      session.send(operationId, {
        result: {
          sinkTooSmall: { length: value.length, version: fromBigInt(value.version), crc32c: value.crc32c },
        },
      });
      // The client asks again: the operation goes on with that.
      return;
    }
    refuseWhenStopping(session);
    refuseDuplicate(session, operationId);
    const timeoutMs = session.timeoutMs(request.deadlineMs);
    const operation =
      sink === undefined || session.peer === undefined
        ? new InlineGet(session, operationId, trace, value, timeoutMs)
        : new RdmaGet(session, operationId, trace, value, timeoutMs, session.peer, sink);
    session.started(operationId, operation);
    operation.start();
  });
}

function getInOneMessage(
  session: OperationTable,
  operationId: number,
  trace: OperationTrace,
  value: StoredValue,
): void {
  const { counters, store } = session.context;
  // Copied, because the frame is encoded later in this turn, and the extent may have been freed by then.
  const bytes = Buffer.from(store.arena.read(value.extents, 0, value.length));
  const whole = bytes.length === value.length ? bytes : Buffer.concat([...pieces(session, value)]);
  session.send(
    operationId,
    {
      result: {
        get: {
          found: true,
          length: value.length,
          version: fromBigInt(value.version),
          crc32c: value.crc32c,
          path: 'INLINE',
          value: whole,
        },
      },
    },
    64 + value.length,
  );
  counters.getsInline += 1;
  counters.bytesReadInline += value.length;
  trace.finish('get.done', { path: 'inline' });
}

/** The extents of a small value in a fragmented arena. */
function* pieces(session: OperationTable, value: StoredValue): Iterable<Buffer> {
  for (const extent of value.extents) yield session.context.store.arena.view(extent);
}

function resolveSink(session: OperationTable, { sink }: Get__Output, length: number): ResolvedSink | undefined {
  if (sink === null) return undefined;
  const region = session.region(sink.regionId);
  if (region === undefined) throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `no region ${sink.regionId}`);
  const offset = toSafeInteger(sink.offset, 'Sink.offset');
  const sinkLength = toSafeInteger(sink.length, 'Sink.length');
  if (offset + sinkLength > region.length) {
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      `the sink ends beyond its region of ${region.length} bytes`,
    );
  }
  return sinkLength < length ? undefined : { region, offset };
}

function put(session: OperationTable, operationId: number, request: Put__Output): void {
  const { context, clientId } = session;
  const trace = session.trace('put', operationId, request.key, 'put.received');
  trace.bytes = request.value.length;
  if (replay(session, operationId, () => put(session, operationId, request))) return;
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    refuseOptions(request.options);
    refuseWhenStopping(session);
    checkLength(context, request.value.length);
    if (request.value.length > DATA_BYTES_MAX) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `Put carries up to ${DATA_BYTES_MAX} bytes; use PutOpen`);
    }
    const extents = context.store.arena.allocate(request.value.length);
    if (extents !== undefined) {
      storeInline(session, operationId, request, extents, trace);
      return;
    }
    // The rest of the arena may be in quarantine.
    context.history.begin(clientId, operationId);
    void allocateExtents(context, request.value.length, () => true).then(
      (reclaimed) =>
        attempt(session, operationId, trace, () => storeInline(session, operationId, request, reclaimed, trace)),
      (error: unknown) => {
        context.history.settle(clientId, operationId, undefined);
        attempt(session, operationId, trace, () => {
          throw error;
        });
      },
    );
  });
}

function storeInline(
  session: OperationTable,
  operationId: number,
  { namespace, key, value, crc32c: announced }: Put__Output,
  extents: readonly Extent[],
  trace: OperationTrace,
): void {
  const { context, clientId } = session;
  const crc = crc32c(value);
  if (crc !== announced) {
    context.store.arena.release(extents);
    context.history.settle(clientId, operationId, undefined);
    throw new FabricKvError('ERR_FABRICKV_CHECKSUM', undefined, { outcome: 'not-applied' });
  }
  trace.mark('put.verified');
  context.store.arena.write(extents, 0, value);
  const stored = context.store.publish({ namespace, key, extents, length: value.length, crc32c: crc });
  trace.mark('put.published');
  const result: Result = { put: { version: fromBigInt(stored.version), path: 'INLINE' } };
  remember(context, clientId, operationId, result);
  context.counters.putsInline += 1;
  context.counters.bytesWrittenInline += value.length;
  session.send(operationId, { result });
  trace.finish('put.done', { path: 'inline' });
}

function putOpen(session: OperationTable, operationId: number, request: PutOpen__Output): void {
  const { context } = session;
  const trace = session.trace('put', operationId, request.key, 'put.received');
  if (replay(session, operationId, () => putOpen(session, operationId, request))) return;
  attempt(session, operationId, trace, () => {
    checkKey(request.key);
    const length = toSafeInteger(request.length, 'PutOpen.length');
    checkLength(context, length);
    refuseWhenStopping(session);
    refuseDuplicate(session, operationId);
    const { path } = request;
    if (path === 'PATH_UNSPECIFIED') throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'PutOpen without a path');
    const operation = new PutOperation(session, operationId, trace, {
      namespace: request.namespace,
      key: request.key,
      length,
      path,
      timeoutMs: session.timeoutMs(request.deadlineMs),
    });
    session.started(operationId, operation);
    operation.start();
  });
}

function putCommit(session: OperationTable, operationId: number, commit: PutCommit__Output): void {
  const operation = session.operation(operationId);
  if (operation instanceof PutOperation) {
    operation.onCommit(commit);
    return;
  }
  const grantEnded = (): void =>
    session.fail(operationId, new FabricKvError('ERR_FABRICKV_GRANT_ENDED', undefined, { outcome: 'not-applied' }));
  if (!replay(session, operationId, grantEnded)) grantEnded();
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
                crc32c: value.crc32c,
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
  session.send(
    operationId,
    {
      result: {
        pong: {
          serverVersion: context.version,
          uptimeMs: Math.round(performance.now() - context.startedAtMs),
          sessions: counters['sessions'] ?? 0,
          counters,
        },
      },
    },
    1024,
  );
  trace.finish('ping.done');
}

/** Answers with the first result of a mutation that was asked for before; or does it, when that changed nothing. */
function replay(session: OperationTable, operationId: number, again: () => void): boolean {
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

/** Does a piece of work; what it throws is the operation's failure. */
function attempt(session: OperationTable, operationId: number, trace: OperationTrace, work: () => void): void {
  try {
    work();
  } catch (error) {
    const failed = toFabricKvError(error).with({
      stage: trace.stage,
      outcome: trace.op === 'put' || trace.op === 'delete' ? 'not-applied' : undefined,
    });
    session.context.counters.failures += 1;
    trace.fail(`${trace.op}.failed`, failed);
    session.fail(operationId, failed);
  }
}

function refuseWhenStopping(session: OperationTable): void {
  if (session.context.stopping !== undefined) throw session.context.stopping;
}

function refuseDuplicate(session: OperationTable, operationId: number): void {
  if (session.operation(operationId) !== undefined) {
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `operation ${operationId} is in flight already`);
  }
}
