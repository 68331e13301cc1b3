/**
 * What a Get asks for, and the first turn of answering it: which version, which part of it, which way.
 */

import type { Long } from '@grpc/proto-loader';
import { FabricKvError } from '../protocol/errors.js';
import type { Get__Output } from '../protocol/generated/fabrickv/v1/Get.js';
import { checkKey } from '../protocol/keys.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import type { OperationTrace, StageFields } from '../protocol/stages.js';
import { fromBigInt, toBigInt, toSafeInteger, toThreshold } from '../protocol/wire.js';
import { failAttempt, refuseDuplicate, refuseWhenStopping } from './attempt.js';
import { countGet, type GetRequest, getResult, InlineGet, RdmaGet, type ResolvedSink } from './get-operation.js';
import type { Lease } from './leases.js';
import type { OperationTable } from './operation.js';
import type { Range } from './store/extent-allocator.js';
import type { StoredValue } from './store/store.js';

const FOUND_NOTHING: StageFields = { found: false };
const INLINE_PATH: StageFields = { path: 'inline' };

/** Serves a Get. */
export function get(session: OperationTable, operationId: number, request: Get__Output): void {
  const trace = session.trace('get', operationId, request.key, 'get.received');
  try {
    const named = namedLease(session, request);
    trace.mark('get.lookup');
    const value = named?.value ?? lookUp(session, request);
    if (value === undefined) missing(session, operationId, trace);
    else if (isSmallWhole(request, value)) sendSmall(session, operationId, trace, value);
    else getValue(session, operationId, request, trace, value, named);
  } catch (error) {
    failAttempt(session, operationId, trace, error);
  }
}

function missing(session: OperationTable, operationId: number, trace: OperationTrace): void {
  session.context.counters.getsMissing += 1;
  session.send(operationId, { result: { get: { found: false } } });
  trace.finish('get.done', FOUND_NOTHING);
}

/** Whether all of the value is wanted, without a lease, and goes into one message: most of all requests, answered with as little ado as can be. */
function isSmallWhole(
  { rangeOffset, rangeLength, hold, leaseId, inlineMax }: Get__Output,
  value: StoredValue,
): boolean {
  const { length } = value;
  return (
    length <= DATA_BYTES_MAX &&
    !hold &&
    isZero(leaseId) &&
    isZero(rangeOffset) &&
    isZero(rangeLength) &&
    (inlineMax.high !== 0 || length <= inlineMax.low >>> 0)
  );
}

function sendSmall(session: OperationTable, operationId: number, trace: OperationTrace, value: StoredValue): void {
  const { counters, store } = session.context;
  const { length, crc32c } = value;
  trace.bytes = length;
  trace.mark('get.found');
  session.send(operationId, {
    result: {
      get: {
        found: true,
        length,
        version: fromBigInt(value.version),
        crc32c: crc32c ?? 0,
        path: 'INLINE',
        // Not copied: it is encoded in this call.
        value: store.arena.whole(value.extents, 0, length),
        rangeLength: length,
        withoutCrc: crc32c === undefined,
      },
    },
  });
  counters.getsInline += 1;
  counters.bytesReadInline += length;
  trace.finish('get.done', INLINE_PATH);
}

function getValue(
  session: OperationTable,
  operationId: number,
  request: Get__Output,
  trace: OperationTrace,
  value: StoredValue,
  named: Lease | undefined,
): void {
  const range = rangeOf(request, value.length);
  trace.bytes = range.length;
  trace.isRange = range.length < value.length;
  if (range.length === value.length) trace.mark('get.found');
  else trace.mark('get.found', { rangeOffset: range.offset, valueBytes: value.length });
  // Under a lease that is named, whatever the answer is, its time begins anew.
  named?.enter();
  try {
    serve(session, operationId, request, trace, { value, range, named });
  } finally {
    named?.leave();
  }
}

interface Found {
  readonly value: StoredValue;
  readonly range: Range;
  readonly named: Lease | undefined;
}

function serve(
  session: OperationTable,
  operationId: number,
  request: Get__Output,
  trace: OperationTrace,
  { value, range, named }: Found,
): void {
  const { peer } = session;
  const inline = range.length === 0 || range.length <= toThreshold(request.inlineMax);
  const sink = inline ? undefined : resolveSink(session, request, range.length);
  if (!inline && (sink === undefined || peer === undefined)) {
    session.send(operationId, {
      result: {
        sinkTooSmall: {
          length: value.length,
          version: fromBigInt(value.version),
          crc32c: value.crc32c ?? 0,
          withoutCrc: value.crc32c === undefined,
          rangeLength: range.length,
        },
      },
    });
    // The client asks again: the operation goes on with that.
    return;
  }
  const inOneMessage = inline && range.length <= DATA_BYTES_MAX;
  if (!inOneMessage) {
    // What is read under a lease was begun before.
    if (named === undefined) refuseWhenStopping(session);
    refuseDuplicate(session, operationId);
  }
  const holds = named === undefined && request.hold;
  const lease = holds ? session.leases.open(value) : named;
  const asked: GetRequest = { value, range, lease, holds, timeoutMs: session.timeoutMs(request.deadlineMs) };
  if (inOneMessage) {
    sendInOneMessage(session, operationId, trace, asked);
    return;
  }
  const operation =
    sink === undefined || peer === undefined
      ? new InlineGet(session, operationId, trace, asked)
      : new RdmaGet(session, operationId, trace, asked, peer, sink);
  session.started(operationId, operation);
  operation.start();
}

/** @throws ERR_FABRICKV_LEASE_EXPIRED */
function namedLease(session: OperationTable, { leaseId }: Get__Output): Lease | undefined {
  return isZero(leaseId) ? undefined : session.leases.find(toBigInt(leaseId));
}

/** @throws ERR_FABRICKV_INVALID_KEY, ERR_FABRICKV_VERSION_CHANGED */
function lookUp({ context }: OperationTable, { namespace, key, onlyVersion }: Get__Output): StoredValue | undefined {
  checkKey(key);
  const value = context.store.lookup(namespace, key);
  if (isZero(onlyVersion)) return value;
  if (value?.version === toBigInt(onlyVersion)) return value;
  throw new FabricKvError(
    'ERR_FABRICKV_VERSION_CHANGED',
    value === undefined ? 'the value was deleted' : 'the value was replaced by another version',
  );
}

/** The part of a value that a request asks for: what lies beyond the value's end is left out. */
function rangeOf({ rangeOffset, rangeLength }: Get__Output, length: number): Range {
  // 2^64-1 is a way to say "to the end", so nothing here is too large; nor can a sum overflow, for there is none.
  const offset = Math.min(roughly(rangeOffset), length);
  const asked = roughly(rangeLength);
  return { offset, length: Math.min(asked === 0 ? Number.POSITIVE_INFINITY : asked, length - offset) };
}

function isZero({ low, high }: Long): boolean {
  return low === 0 && high === 0;
}

/** Exact up to 2^53, and beyond that more than any value's length. */
function roughly({ low, high }: Long): number {
  return (high >>> 0) * 0x1_0000_0000 + (low >>> 0);
}

/** @throws ERR_FABRICKV_INVALID_ARGUMENT, ERR_FABRICKV_PROTOCOL */
function resolveSink(session: OperationTable, { sink }: Get__Output, length: number): ResolvedSink | undefined {
  if (sink === null) return undefined;
  const { regionId } = sink;
  const region = session.region(regionId);
  if (region === undefined) throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `no region ${regionId}`);
  const offset = toSafeInteger(sink.offset, 'Sink.offset');
  const sinkLength = toSafeInteger(sink.length, 'Sink.length');
  if (offset + sinkLength > region.length) {
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      `the sink ends beyond its region of ${region.length} bytes`,
    );
  }
  return sinkLength < length ? undefined : { regionId, region, offset };
}

function sendInOneMessage(
  session: OperationTable,
  operationId: number,
  trace: OperationTrace,
  request: GetRequest,
): void {
  const { counters, store } = session.context;
  const { value, range } = request;
  const result = getResult(request, 'INLINE');
  // Not copied: it is encoded in this call.
  result.value = store.arena.whole(value.extents, range.offset, range.length);
  session.send(operationId, { result: { get: result } });
  countGet(counters, request, 'INLINE');
  trace.finish('get.done', INLINE_PATH);
}
