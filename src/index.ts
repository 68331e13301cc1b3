export * from './client/index.js';
export {
  ERRORS,
  type ErrorCode,
  FabricKvError,
  type FabricKvErrorDetails,
  type MutationOutcome,
} from './protocol/errors.js';
