/**
 * `kv-client delete`, `exists` and `stat`.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { EXIT } from './exit-codes.js';
import { crcOrNull, roundMs } from './transfer-result.js';

/** A command that needs nothing but the connection. */
export function simple(run: (context: TaskContext) => Promise<TaskResult>): Command {
  return { prepare: async () => ({ run, [Symbol.asyncDispose]: async () => undefined }) };
}

/** Removes a value. */
export const deleteCommand: Command = simple(async ({ client, key, keyText, callOptions }) => {
  const startedAtMs = performance.now();
  const deleted = await client.delete(key, callOptions());
  return {
    exitCode: deleted ? EXIT.done : EXIT.notFound,
    object: { key: keyText, deleted, ms: roundMs(performance.now() - startedAtMs) },
    text: deleted ? `deleted ${keyText}` : `nothing is stored under ${keyText}`,
  };
});

/** Tells whether there is a value. */
export const existsCommand: Command = simple(async ({ client, key, keyText, callOptions }) => {
  const startedAtMs = performance.now();
  const exists = await client.exists(key, callOptions());
  return {
    exitCode: exists ? EXIT.done : EXIT.notFound,
    object: { key: keyText, exists, ms: roundMs(performance.now() - startedAtMs) },
    text: String(exists),
  };
});

/** Tells what there is to know of a value. */
export const statCommand: Command = simple(async ({ client, key, keyText, callOptions }) => {
  const startedAtMs = performance.now();
  const stat = await client.stat(key, callOptions());
  if (stat === undefined) {
    throw new FabricKvError('ERR_FABRICKV_NOT_FOUND', `no value is stored under "${keyText}"`, {
      peer: client.connection.serverAddr,
    });
  }
  const { length, version, storedAt } = stat;
  const crc32c = crcOrNull(stat.crc32c);
  return {
    exitCode: EXIT.done,
    object: {
      key: keyText,
      bytes: length,
      version: String(version),
      crc32c,
      storedAt: storedAt.toISOString(),
      ms: roundMs(performance.now() - startedAtMs),
    },
    text: [
      `key      ${keyText}`,
      `length   ${length}`,
      `version  ${version}`,
      `crc32c   ${crc32c ?? 'none: it was stored without'}`,
      `stored   ${storedAt.toISOString()}`,
    ].join('\n'),
  };
});
