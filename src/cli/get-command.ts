/**
 * `kv-client get`.
 */

import { isUtf8 } from 'node:buffer';
import type { Region } from '../client/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { unlessAborted } from './interruption.js';
import { writeAll } from './io.js';
import { type OutputFile, prepareOutput } from './local-files.js';
import { createProgress } from './progress.js';
import { type Transfer, transferObject, transferText } from './transfer-result.js';

/** A value is written out in pieces of this length, so that Ctrl-C is heard between them. */
const WRITE_BYTES = 4 * 1024 * 1024;

/** With --json and no --out, values up to this length are part of the object. */
const SHOWN_BYTES_MAX = 64 * 1024;

/** A value that changes its length more often than this while it is being fetched is not fetched. */
const ATTEMPTS_MAX = 3;

/** Fetches a value; it is always verified. */
export const getCommand: Command = {
  async prepare({ out }, _values, interruption) {
    const output = out === undefined || out === '-' ? undefined : await prepareOutput(out, interruption.onForcedExit);
    return {
      run: (context) => get({ out, output }, context),
      [Symbol.asyncDispose]: async () => undefined,
    };
  },
};

/** A value that has arrived, with its bytes in pieces. */
interface Received {
  readonly info: Omit<Transfer, 'ms'>;
  pieces(): Iterable<Uint8Array>;
}

interface Target {
  readonly out: string | undefined;
  readonly output: OutputFile | undefined;
}

async function get({ out, output }: Target, context: TaskContext): Promise<TaskResult> {
  const { io, interruption, keyText, values } = context;
  const progress = await createProgress('get', io);
  const startedAtMs = performance.now();
  const { info, pieces } = await receive(context, progress.onProgress).finally(progress.end);
  const transfer = { ...info, ms: performance.now() - startedAtMs };

  const object = transferObject(transfer, context);
  if (output !== undefined) {
    await output.write(untilAborted(pieces(), interruption.signal));
    return {
      exitCode: 0,
      object: { ...object, out },
      text: `got ${keyText} into ${out}: ${info.bytes} bytes ${transferText(transfer, context)}`,
    };
  }
  if (values.json && out === undefined) {
    return { exitCode: 0, object: { ...object, ...shown(info.bytes, pieces()) }, text: undefined };
  }
  for (const piece of pieces()) await unlessAborted(interruption.signal, writeAll(io.stdout, piece));
  return { exitCode: 0, object, text: undefined, stdoutIsTaken: true };
}

async function receive(context: TaskContext, onProgress: (done: number, total: number) => void): Promise<Received> {
  const { client, key } = context;
  const options = { ...context.callOptions(), onProgress, verify: true };
  try {
    const value = await client.get(key, options);
    if (value === undefined) throw notThere(context);
    const { bytes, path, version, crc32c } = value;
    return {
      info: { path, bytes: bytes.length, version, crc32c },
      pieces: () => piecesOf(bytes.length, (offset, length) => bytes.subarray(offset, offset + length)),
    };
  } catch (error) {
    if (!(error instanceof FabricKvError && error.code === 'ERR_FABRICKV_TOO_LARGE_FOR_BUFFER')) throw error;
    return await receiveIntoRegion(context, options);
  }
}

/** For values that are longer than a Buffer can be. */
async function receiveIntoRegion(
  context: TaskContext,
  options: Parameters<TaskContext['client']['getInto']>[2],
): Promise<Received> {
  const { client, key } = context;
  const stat = await client.stat(key, context.callOptions());
  if (stat === undefined) throw notThere(context);
  let wantedBytes = stat.length;
  for (let attempt = 1; ; attempt++) {
    const region: Region = await client.allocate(wantedBytes);
    try {
      const value = await client.getInto(key, region, options);
      if (value === undefined) throw notThere(context);
      const { path, length: bytes, version, crc32c } = value;
      return { info: { path, bytes, version, crc32c }, pieces: () => piecesOf(bytes, region.view.bind(region)) };
    } catch (error) {
      await region.release();
      // A longer value was stored since we asked for the length.
      const isTooSmall = error instanceof FabricKvError && error.code === 'ERR_FABRICKV_SINK_TOO_SMALL';
      const length = isTooSmall ? Number(error.details['length']) : Number.NaN;
      if (attempt === ATTEMPTS_MAX || !Number.isSafeInteger(length)) throw error;
      wantedBytes = length;
    }
  }
}

function notThere({ keyText, client, values }: TaskContext): FabricKvError {
  const where = values.namespace === 0 ? '' : ` in namespace ${values.namespace}`;
  return new FabricKvError('ERR_FABRICKV_NOT_FOUND', `no value is stored under "${keyText}"${where}`, {
    peer: client.connection.serverAddr,
  });
}

function* piecesOf(length: number, piece: (offset: number, length: number) => Uint8Array): Generator<Uint8Array> {
  for (let offset = 0; offset < length; offset += WRITE_BYTES) {
    yield piece(offset, Math.min(WRITE_BYTES, length - offset));
  }
}

function* untilAborted(pieces: Iterable<Uint8Array>, signal: AbortSignal): Generator<Uint8Array> {
  for (const piece of pieces) {
    signal.throwIfAborted();
    yield piece;
  }
  signal.throwIfAborted();
}

/** The value as part of a JSON object: text where it is text, Base64 where it is not, and not at all when it is long. */
function shown(length: number, pieces: Iterable<Uint8Array>): Readonly<Record<string, unknown>> {
  if (length > SHOWN_BYTES_MAX) return { valueOmitted: 'over 64 KiB: use --out FILE, or --out - for standard output' };
  const bytes = Buffer.concat([...pieces]);
  return isUtf8(bytes) ? { value: bytes.toString('utf8') } : { valueBase64: bytes.toString('base64') };
}
