/**
 * The unary calls: the store for any gRPC client, inline, values up to 1 MiB.
 */

import type { handleUnaryCall, ServerUnaryCall, UntypedServiceImplementation } from '@grpc/grpc-js';
import { crc32c } from '../fabric/index.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import type { DeleteRequest__Output } from '../protocol/generated/fabrickv/v1/DeleteRequest.js';
import type { DeleteResponse } from '../protocol/generated/fabrickv/v1/DeleteResponse.js';
import type { ExistsRequest__Output } from '../protocol/generated/fabrickv/v1/ExistsRequest.js';
import type { ExistsResponse } from '../protocol/generated/fabrickv/v1/ExistsResponse.js';
import type { GetRequest__Output } from '../protocol/generated/fabrickv/v1/GetRequest.js';
import type { GetResponse } from '../protocol/generated/fabrickv/v1/GetResponse.js';
import type { PutRequest__Output } from '../protocol/generated/fabrickv/v1/PutRequest.js';
import type { PutResponse } from '../protocol/generated/fabrickv/v1/PutResponse.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import type { StatRequest__Output } from '../protocol/generated/fabrickv/v1/StatRequest.js';
import type { StatResponse } from '../protocol/generated/fabrickv/v1/StatResponse.js';
import { checkKey } from '../protocol/keys.js';
import { OPERATION_TIMEOUT_MS_DEFAULT, UNARY_VALUE_BYTES_MAX } from '../protocol/limits.js';
import { toStatus } from '../protocol/rpc-errors.js';
import { type OperationKind, OperationTrace, type Stage } from '../protocol/stages.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../protocol/wire.js';
import { MemoryWait } from './memory-wait.js';
import type { MutationHistory } from './mutation-history.js';
import { checkLength, remember } from './mutations.js';
import { OperationGate } from './operation-gate.js';
import type { ServerContext } from './server-context.js';
import type { Extent } from './store/arena.js';
import type { StoredValue } from './store/store.js';

/** The five handlers, over one store. */
export function unaryHandlers(context: ServerContext): UntypedServiceImplementation {
  // PUTs of all callers together that wait for memory: there is no session to bound them.
  const gate = new OperationGate(context.settings.maxInFlight, context.settings.maxWaiting);
  return {
    Get: handler('get', context, (request: GetRequest__Output): GetResponse => {
      const value = find(context, request, () => {
        context.counters.getsMissing += 1;
      });
      if (value.length > UNARY_VALUE_BYTES_MAX) throw tooLarge(value.length);
      const bytes = context.store.arena.copy(value.extents, 0, value.length);
      context.counters.getsInline += 1;
      context.counters.bytesReadInline += value.length;
      return {
        value: bytes,
        version: fromBigInt(value.version),
        crc32c: value.crc32c ?? 0,
        withoutCrc: value.crc32c === undefined,
      };
    }),
    Put: handler('put', context, async (request: PutRequest__Output): Promise<PutResponse> => {
      const { namespace, key, value } = request;
      if (value.length > UNARY_VALUE_BYTES_MAX) throw tooLarge(value.length);
      checkLength(context, value.length);
      const result = await once(context, request, async () => {
        const extents =
          context.store.arena.allocate(value.length) ?? (await waitForMemory(context, gate, value.length));
        context.store.arena.write(extents, 0, value);
        const stored = context.store.publish({ namespace, key, extents, length: value.length, crc32c: crc32c(value) });
        context.counters.putsInline += 1;
        context.counters.bytesWrittenInline += value.length;
        return { put: { version: fromBigInt(stored.version), path: 'INLINE' } };
      });
      return { version: result.put?.version ?? 0 };
    }),
    Delete: handler('delete', context, async (request: DeleteRequest__Output): Promise<DeleteResponse> => {
      const result = await once(context, request, async () => {
        const version = context.store.remove(request.namespace, request.key);
        context.counters.deletes += version === undefined ? 0 : 1;
        return { delete: { deleted: version !== undefined, version: fromBigInt(version ?? 0n) } };
      });
      return { deleted: result.delete?.deleted ?? false, version: result.delete?.version ?? 0 };
    }),
    Exists: handler('exists', context, (request: ExistsRequest__Output): ExistsResponse => {
      return { exists: context.store.lookup(request.namespace, request.key) !== undefined };
    }),
    Stat: handler('stat', context, (request: StatRequest__Output): StatResponse => {
      const { length, version, crc32c: crc, storedUnixMs } = find(context, request);
      return { length, version: fromBigInt(version), crc32c: crc ?? 0, storedUnixMs, withoutCrc: crc === undefined };
    }),
  };
}

interface KeyedRequest {
  readonly key: Buffer;
  readonly namespace: number;
}

interface MutationRequest extends KeyedRequest {
  readonly clientId: PutRequest__Output['clientId'];
  readonly operationId: PutRequest__Output['operationId'];
}

/** Unary calls have no request id of their own: they are numbered. */
let calls = 0;

function handler<Request extends KeyedRequest, Response>(
  op: OperationKind,
  context: ServerContext,
  serve: (request: Request) => Response | Promise<Response>,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const trace = startTrace(op, context, call);
    const run = async (): Promise<Response> => {
      checkKey(call.request.key);
      if (context.stopping !== undefined) throw context.stopping;
      return serve(call.request);
    };
    run().then(
      (response) => {
        trace.finish(`${op}.done`, { path: 'inline' });
        callback(null, response);
      },
      (error: unknown) => {
        const failed = toFabricKvError(error).with({
          stage: trace.stage,
          outcome: op === 'put' || op === 'delete' ? 'not-applied' : undefined,
        });
        context.counters.failures += 1;
        if (failed.code === 'ERR_FABRICKV_INTERNAL') context.logger.error({ err: failed }, 'Internal error');
        trace.fail(`${op}.failed`, failed);
        callback(toStatus(failed));
      },
    );
  };
}

function startTrace<Request extends KeyedRequest, Response>(
  op: OperationKind,
  context: ServerContext,
  call: ServerUnaryCall<Request, Response>,
): OperationTrace {
  calls += 1;
  const first: Stage = `${op}.received`;
  return new OperationTrace(
    {
      side: 'server',
      requestIdPrefix: 'unary',
      logger: context.logger,
      formatKey: context.formatKey,
      peer: call.getPeer(),
      provider: undefined,
    },
    op,
    calls,
    call.request.key,
    first,
  );
}

/** @throws ERR_FABRICKV_NOT_FOUND */
function find(
  context: ServerContext,
  { namespace, key }: KeyedRequest,
  onMissing: () => void = () => undefined,
): StoredValue {
  const value = context.store.lookup(namespace, key);
  if (value !== undefined) return value;
  onMissing();
  throw new FabricKvError('ERR_FABRICKV_NOT_FOUND', `nothing is stored under ${context.formatKey(key)}`);
}

/** @throws ERR_FABRICKV_CAPACITY, ERR_FABRICKV_DEADLINE, ERR_FABRICKV_RESOURCE_EXHAUSTED, ERR_FABRICKV_SHUTTING_DOWN */
async function waitForMemory(context: ServerContext, gate: OperationGate, length: number): Promise<readonly Extent[]> {
  const extents = await new Promise<readonly Extent[]>((onMemory, onFailed) =>
    new MemoryWait({ context, gate, length, timeoutMs: OPERATION_TIMEOUT_MS_DEFAULT, onMemory, onFailed }).start(),
  );
  if (context.stopping === undefined) return extents;
  // Nobody waits for this call, and the memory itself may be gone.
  context.store.arena.release(extents);
  throw context.stopping;
}

/** Applies a mutation once for each pair of client id and operation id; without both, each time. */
async function once(context: ServerContext, request: MutationRequest, apply: () => Promise<Result>): Promise<Result> {
  const { history, counters } = context;
  const clientId = toBigInt(request.clientId);
  const operationId = toSafeInteger(request.operationId, 'operation_id');
  if (clientId === 0n || operationId === 0) return apply();
  for (;;) {
    // Looked for and begun in one turn, or two calls with the same ids would both find nothing.
    const crowd = history.crowd(clientId, operationId);
    if (crowd !== undefined) throw crowd;
    const earlier = earlierResult(history, clientId, operationId);
    if (earlier === undefined) break;
    const result = await earlier;
    if (result === undefined) continue;
    counters.replayedResults += 1;
    return result;
  }
  history.begin(clientId, operationId);
  try {
    const result = await apply();
    remember(context, clientId, operationId, result);
    return result;
  } catch (error) {
    history.settle(clientId, operationId, undefined);
    throw error;
  }
}

/** The result of an earlier request with the same ids, once it is known; undefined when there was none. */
function earlierResult(
  history: MutationHistory,
  clientId: bigint,
  operationId: number,
): Promise<Result | undefined> | undefined {
  let resolve: (result: Result | undefined) => void = () => undefined;
  const result = new Promise<Result | undefined>((settle) => {
    resolve = settle;
  });
  return history.find(clientId, operationId, resolve) ? result : undefined;
}

function tooLarge(length: number): FabricKvError {
  return new FabricKvError(
    'ERR_FABRICKV_TOO_LARGE_FOR_UNARY',
    `the value has ${length} bytes; a unary call carries up to ${UNARY_VALUE_BYTES_MAX}`,
    { details: { length: String(length) } },
  );
}
