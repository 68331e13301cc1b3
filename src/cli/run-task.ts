/**
 * One kv-client command, from its settings to its exit code.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { KvClient } from '../client/index.js';
import { checkKey, redactKey } from '../protocol/keys.js';
import { usageError } from './arguments.js';
import { benchCommand } from './bench-command.js';
import type { ClientTask } from './client-arguments.js';
import type { ClientValues, Command, TaskResult } from './command.js';
import { getCommand } from './get-command.js';
import { type Interruption, unlessAborted } from './interruption.js';
import { type CommandIo, writeAll } from './io.js';
import { createLogger } from './logging.js';
import { pingCommand } from './ping-command.js';
import { putCommand } from './put-command.js';
import { deleteCommand, existsCommand, statCommand } from './small-commands.js';

/** The first connection must be there within this, or within --timeout if that is less. */
const CONNECT_TIMEOUT_MS_MAX = 5000;

/** Saying goodbye must not hold a command that is done. */
const CLOSE_TIMEOUT_MS = 1000;

const COMMANDS: Readonly<Record<ClientTask['command'], Command>> = {
  put: putCommand,
  get: getCommand,
  delete: deleteCommand,
  exists: existsCommand,
  stat: statCommand,
  ping: pingCommand,
  bench: benchCommand,
};

/**
 * Does what the command line asks for, and prints the outcome.
 *
 * @returns the exit code
 * @throws FabricKvError, OutputClosed
 */
export async function runTask(
  task: ClientTask,
  values: ClientValues,
  io: CommandIo,
  interruption: Interruption,
): Promise<number> {
  const key = task.key === undefined ? new Uint8Array() : keyOf(task.key, values['hex-key']);
  if (task.key !== undefined) checkKey(key);
  await using prepared = await COMMANDS[task.command].prepare(task, values, interruption);
  const log = await createLogger({
    name: 'kv-client',
    level: values['log-level'],
    format: values['log-format'],
    isTerminal: io.stderr.isTTY === true,
    sync: true,
  });
  const startedAtMs = performance.now();
  const client = await unlessAborted(
    interruption.signal,
    KvClient.connect({
      serverAddr: values['server-addr'],
      clientName: `kv-client-${process.pid}`,
      provider: values.provider,
      eventLoopSpinUs: values['event-loop-spin-us'],
      ...(values['fabric-addr'] === undefined ? {} : { fabricAddr: values['fabric-addr'] }),
      fabricOptions: values['fabric-option'],
      ...(values['inline-threshold'] === undefined ? {} : { inlineThreshold: values['inline-threshold'] }),
      timeoutMs: values.timeout,
      connectTimeoutMs: Math.min(CONNECT_TIMEOUT_MS_MAX, values.timeout),
      namespace: values.namespace,
      logger: log.logger,
      redactKeys: values['redact-keys'],
      ...prepared.clientOptions,
    }),
  );
  const leftMs = Math.max(1, Math.round(values.timeout - (performance.now() - startedAtMs)));
  try {
    const result = await prepared.run({
      client,
      key,
      keyText: keyText(key, values),
      values,
      io,
      interruption,
      callOptions: () => ({ timeoutMs: leftMs, signal: interruption.signal }),
    });
    await print(result, task, values, io, interruption);
    return result.exitCode;
  } finally {
    const closing = client.close().catch((error: unknown) => log.logger.debug({ err: error }, 'Closing failed'));
    await Promise.race([closing, sleep(CLOSE_TIMEOUT_MS)]);
    log.flush();
  }
}

async function print(
  { object, text, stdoutIsTaken, isPartial }: TaskResult,
  task: ClientTask,
  { json }: ClientValues,
  io: CommandIo,
  { signal }: Interruption,
): Promise<void> {
  const line = json ? JSON.stringify({ op: task.command, ...object }) : text;
  if (line === undefined) return;
  const written = writeAll(stdoutIsTaken === true ? io.stderr : io.stdout, `${line}\n`);
  await (isPartial === true ? written : unlessAborted(signal, written));
}

function keyOf(text: string, isHex: boolean): Uint8Array {
  if (!isHex) return Buffer.from(text, 'utf8');
  if (!/^(?:[0-9a-f]{2})*$/i.test(text)) {
    throw usageError(`the key "${text}" is not hexadecimal`, 'write two digits for each byte, or leave --hex-key out');
  }
  return Buffer.from(text, 'hex');
}

/** A key as results show it: text where it is text, and otherwise its bytes in hexadecimal. */
function keyText(key: Uint8Array, values: ClientValues): string {
  if (values['redact-keys']) return redactKey(key);
  const text = Buffer.from(key).toString('utf8');
  return !values['hex-key'] && Buffer.from(text, 'utf8').equals(key) ? text : `hex:${Buffer.from(key).toString('hex')}`;
}
