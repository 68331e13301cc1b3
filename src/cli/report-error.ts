/**
 * Errors as the commands show them: on stderr, in words or as one JSON object.
 */

import type { FabricKvError } from '../protocol/errors.js';

/** An error in words: one line that says what, and one line for each thing that is known. */
export function formatError(command: string, error: FabricKvError): string {
  const facts: readonly (readonly [string, string | undefined])[] = [
    ['stage', error.stage],
    ['peer', error.peer],
    ['request', error.requestId],
    ['outcome', error.outcome],
    ['cause', causeOf(error)],
    ['remedy', error.remedy],
  ];
  const lines = facts.flatMap(([name, text]) => (text === undefined ? [] : [`  ${name.padEnd(8)}${text}`]));
  return `${[`${command}: ${error.code}: ${error.message}`, ...lines].join('\n')}\n`;
}

/** An error as an object for programs. */
export function errorObject(error: FabricKvError, exitCode: number): Readonly<Record<string, unknown>> {
  return {
    code: error.code,
    message: error.message,
    stage: error.stage,
    peer: error.peer,
    requestId: error.requestId,
    outcome: error.outcome,
    retryable: error.retryable,
    remedy: error.remedy,
    cause: causeOf(error),
    details: error.details,
    exitCode,
  };
}

/** The innermost cause's message, unless the error says it already. */
function causeOf(error: FabricKvError): string | undefined {
  let cause: unknown = error.cause;
  while (cause instanceof Error && cause.cause instanceof Error) cause = cause.cause;
  if (!(cause instanceof Error) || error.message.includes(cause.message)) return undefined;
  return cause.message;
}
