/**
 * The last step of a PUT that came in pieces or by RDMA: its bytes are checked and become the value.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt } from '../protocol/wire.js';
import { remember } from './mutations.js';
import type { OperationHost } from './operation.js';
import type { Publication } from './store/store.js';

/** What is published, and how it came. */
export interface VerifiedPut extends Publication {
  readonly path: 'INLINE' | 'RDMA';
}

/** Publishes a value, remembers the result for retries, and sends it. */
export function publishPut(
  host: OperationHost,
  operationId: number,
  trace: OperationTrace,
  { path, ...publication }: VerifiedPut,
): void {
  const { context } = host;
  const { counters } = context;
  const value = context.store.publish(publication);
  trace.mark('put.published');
  const result: Result = { put: { version: fromBigInt(value.version), path } };
  if (path === 'RDMA') {
    counters.putsRdma += 1;
    counters.bytesWrittenRdma += publication.length;
  } else {
    counters.putsInline += 1;
    counters.bytesWrittenInline += publication.length;
  }
  remember(context, host.clientId, operationId, result);
  host.send(operationId, { result });
  trace.finish('put.done', { path: path === 'RDMA' ? 'rdma' : 'inline' });
}

/** The mutation was applied on another session: that result is this one's too. */
export function replayPut(host: OperationHost, operationId: number, trace: OperationTrace, result: Result): void {
  host.context.counters.replayedResults += 1;
  host.send(operationId, { result });
  trace.finish('put.done', { replayed: true });
}

/** The bytes that arrived are others than the client meant. */
export function checksumError(length: number, found: number, announced: number): FabricKvError {
  return new FabricKvError(
    'ERR_FABRICKV_CHECKSUM',
    `CRC-32C of the ${length} bytes that arrived is ${hex32(found)}, announced was ${hex32(announced)}`,
  );
}

function hex32(value: number): string {
  return value.toString(16).padStart(8, '0');
}
