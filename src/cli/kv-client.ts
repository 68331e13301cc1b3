/**
 * The command kv-client.
 */

import { type FabricKvError, toFabricKvError } from '../protocol/errors.js';
import { type ClientTask, parseClientArguments } from './client-arguments.js';
import { clientSettings } from './client-settings.js';
import { clientExitCode, EXIT } from './exit-codes.js';
import { type Interruption, listenForInterruption, unlessAborted } from './interruption.js';
import { type CommandIo, OutputClosed, processIo, writeAll } from './io.js';
import { errorObject, formatError } from './report-error.js';
import { runTask } from './run-task.js';
import { resolveSettings } from './settings.js';

/**
 * Runs kv-client to its end.
 *
 * @returns the exit code (design.md, section 9)
 */
export async function main(args: readonly string[], io: CommandIo = processIo): Promise<number> {
  const interruption = listenForInterruption();
  let task: ClientTask | undefined;
  // Until the settings have been read, the flag alone says how an error is to be shown.
  let json = args.includes('--json');
  try {
    task = await parseClientArguments(args);
    if (task === undefined) return EXIT.done;
    const { values } = resolveSettings(clientSettings, { flags: task.flags, env: io.env });
    json = values.json;
    return await runTask(task, values, io, interruption);
  } catch (error) {
    return interruption.exitCode() ?? (await reportFailure(error, { json, task, io, interruption }));
  } finally {
    interruption.end();
  }
}

interface FailureContext {
  readonly json: boolean;
  readonly task: ClientTask | undefined;
  readonly io: CommandIo;
  readonly interruption: Interruption;
}

async function reportFailure(error: unknown, { json, task, io, interruption }: FailureContext): Promise<number> {
  // As for every filter: who reads the output has had enough.
  if (error instanceof OutputClosed) return EXIT.done;
  const failure: FabricKvError = toFabricKvError(error);
  const exitCode = clientExitCode(failure.code);
  const text = json
    ? `${JSON.stringify({ op: task?.command, key: task?.key, error: errorObject(failure, exitCode) })}\n`
    : formatError('kv-client', failure);
  try {
    await unlessAborted(interruption.signal, writeAll(io.stderr, text));
  } catch (problem) {
    // Nobody reads stderr any more; the exit code still says it.
    if (!(problem instanceof OutputClosed)) return interruption.exitCode() ?? EXIT.defect;
  }
  return interruption.exitCode() ?? exitCode;
}
