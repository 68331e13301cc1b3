/**
 * Errors of the fabric layer as operations see them.
 */

import { FabricError } from '../fabric/index.js';
import { type FabricKvError, type FabricKvErrorDetails, fromFabricError, toFabricKvError } from '../protocol/errors.js';

/** Any thrown thing as a FabricKvError; a FabricError becomes its cause and lends its hint. */
export function toClientError(error: unknown, more: FabricKvErrorDetails = {}): FabricKvError {
  return error instanceof FabricError ? fromFabricError(error, more) : toFabricKvError(error).with(more);
}
