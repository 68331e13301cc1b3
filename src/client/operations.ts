/**
 * The operations of a client that have not settled: to be listed, and to be ended with it.
 */

import { Bag } from '../collections/bag.js';
import type { FabricKvError } from '../protocol/errors.js';
import type { OperationKind, Stage } from '../protocol/stages.js';

/** An operation that has not settled, whatever it will give. */
export interface PendingOperation {
  /** Its place among the client's operations: theirs. */
  operationPlace: number;
  describe(): OperationDescription;
  fail(error: FabricKvError): void;
}

/** What a report of stalled operations says of one. */
export interface OperationDescription {
  readonly op: OperationKind;
  readonly key: string | undefined;
  readonly requestId: string;
  readonly stage: Stage;
  readonly stageAgeMs: number;
}

/** A client's operations that have not settled. */
export class Operations extends Bag<PendingOperation> {
  protected override placeOf(operation: PendingOperation): number {
    return operation.operationPlace;
  }

  protected override setPlace(operation: PendingOperation, place: number): void {
    operation.operationPlace = place;
  }
}
