/**
 * `kv-client get`.
 */

import { isUtf8 } from 'node:buffer';
import type { ValueStream } from '../client/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { unlessAborted } from './interruption.js';
import { writeAll } from './io.js';
import { type OutputFile, type Pieces, prepareOutput } from './local-files.js';
import { createProgress, type Progress } from './progress.js';
import { type Transfer, transferObject, transferText } from './transfer-result.js';

/** With --json and no --out, values up to this length are part of the object. */
const SHOWN_BYTES_MAX = 64 * 1024;

/** A value that is replaced more often than this while the connection is lost is not fetched. */
const ATTEMPTS_MAX = 3;

/** Fetches a value, in constant memory; it is always verified, if it was stored with a CRC-32C. */
export const getCommand: Command = {
  async prepare({ out }, _values, interruption) {
    const output = out === undefined || out === '-' ? undefined : await prepareOutput(out, interruption.onForcedExit);
    return {
      run: (context) => get({ out, output }, context),
      [Symbol.asyncDispose]: async () => undefined,
    };
  },
};

interface Target {
  readonly out: string | undefined;
  readonly output: OutputFile | undefined;
}

async function get({ out, output }: Target, context: TaskContext): Promise<TaskResult> {
  const { io, interruption, keyText, values } = context;
  if (output !== undefined) {
    const transfer = await fetchAnew(output, context);
    return {
      exitCode: 0,
      object: { ...transferObject(transfer, context), out },
      text: `got ${keyText} into ${out}: ${transfer.bytes} bytes ${transferText(transfer, context)}`,
    };
  }
  if (values.json && out === undefined) {
    const shown: Uint8Array[] = [];
    const transfer = await fetchValue(context, async (pieces, { length }) => {
      // A longer one is fetched too: what is told of it has been seen.
      for await (const piece of pieces) if (length <= SHOWN_BYTES_MAX) shown.push(Buffer.from(piece));
    });
    return {
      exitCode: 0,
      object: { ...transferObject(transfer, context), ...shownValue(transfer.bytes, shown) },
      text: undefined,
    };
  }
  const transfer = await fetchValue(context, async (pieces) => {
    for await (const piece of pieces) await unlessAborted(interruption.signal, writeAll(io.stdout, piece));
  });
  return { exitCode: 0, object: transferObject(transfer, context), text: undefined, stdoutIsTaken: true };
}

/** Into a file: one that is whole or not at all may be begun again when the version that was being fetched is gone. */
async function fetchAnew(output: OutputFile, context: TaskContext): Promise<Transfer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await fetchValue(context, (pieces) => output.write(pieces));
    } catch (error) {
      const isGone = error instanceof FabricKvError && error.code === 'ERR_FABRICKV_VERSION_CHANGED';
      if (!isGone || !output.startsAnew || attempt === ATTEMPTS_MAX) throw error;
    }
  }
}

/** Fetches the value piece by piece; the last one comes only when all of them were right. */
async function fetchValue(
  context: TaskContext,
  consume: (pieces: Pieces, stream: ValueStream) => Promise<void>,
): Promise<Transfer> {
  const { client, key, io, interruption } = context;
  const progress: Progress = await createProgress('get', io);
  const startedAtMs = performance.now();
  try {
    const stream = await client.getStream(key, { ...context.callOptions(), onProgress: progress.onProgress });
    if (stream === undefined) throw notThere(context);
    await consume(untilAborted(stream.pieces(), interruption.signal), stream);
    const { path, length: bytes, version, crc32c } = stream;
    return { path, bytes, version, crc32c, ms: performance.now() - startedAtMs };
  } finally {
    progress.end();
  }
}

function notThere({ keyText, client, values }: TaskContext): FabricKvError {
  const where = values.namespace === 0 ? '' : ` in namespace ${values.namespace}`;
  return new FabricKvError('ERR_FABRICKV_NOT_FOUND', `no value is stored under "${keyText}"${where}`, {
    peer: client.connection.serverAddr,
  });
}

async function* untilAborted(pieces: Pieces, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) {
    signal.throwIfAborted();
    yield piece;
  }
  signal.throwIfAborted();
}

/** The value as part of a JSON object: text where it is text, Base64 where it is not, and not at all when it is long. */
function shownValue(length: number, pieces: readonly Uint8Array[]): Readonly<Record<string, unknown>> {
  if (length > SHOWN_BYTES_MAX) return { valueOmitted: 'over 64 KiB: use --out FILE, or --out - for standard output' };
  const bytes = Buffer.concat(pieces);
  return isUtf8(bytes) ? { value: bytes.toString('utf8') } : { valueBase64: bytes.toString('base64') };
}
