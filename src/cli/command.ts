/**
 * What a kv-client command is made of; run-task.ts runs them.
 */

import type { KvClient, KvClientOptions } from '../client/index.js';
import type { ClientTask } from './client-arguments.js';
import type { clientSettings } from './client-settings.js';
import type { Interruption } from './interruption.js';
import type { CommandIo } from './io.js';
import type { SettingValues } from './settings.js';

/** The values of kv-client's settings. */
export type ClientValues = SettingValues<typeof clientSettings>;

/** What a command works with. */
export interface TaskContext {
  readonly client: KvClient;
  readonly key: Uint8Array;
  /** The key as it is shown. */
  readonly keyText: string;
  readonly values: ClientValues;
  readonly io: CommandIo;
  readonly interruption: Interruption;
  /** For an operation that starts now: what connecting has left of --timeout, and Ctrl-C. */
  callOptions(): { readonly timeoutMs: number; readonly signal: AbortSignal };
}

/** How a command ends. */
export interface TaskResult {
  readonly exitCode: number;
  /** For --json. */
  readonly object: Readonly<Record<string, unknown>>;
  /** In words; undefined when there is nothing to say. */
  readonly text: string | undefined;
  /** Standard output carries the value, so that the object goes to stderr; otherwise it goes to stdout. */
  readonly stdoutIsTaken?: boolean;
  /** It is printed also when the command was interrupted: it tells what there was until then. */
  readonly isPartial?: boolean;
}

/** A command: `prepare` finds what is wrong here before the server is troubled. */
export interface Command {
  prepare(task: ClientTask, values: ClientValues, interruption: Interruption): Promise<PreparedCommand>;
}

/** A command that can be run, and holds files that are to be closed. */
export interface PreparedCommand extends AsyncDisposable {
  /** What it needs of its client beside the settings. */
  readonly clientOptions?: Pick<KvClientOptions, 'maxInFlight' | 'receiveMemory'>;
  run(context: TaskContext): Promise<TaskResult>;
}
