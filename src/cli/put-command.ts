/**
 * `kv-client put`.
 */

import type { PutInfo } from '../client/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { formatSize } from '../protocol/units.js';
import { usageError } from './arguments.js';
import type { ClientTask } from './client-arguments.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { fromSource, type InputFile, openInput, readPieces } from './local-files.js';
import { createProgress } from './progress.js';
import { transferObject, transferText } from './transfer-result.js';

/** Where the value comes from. */
type Source =
  | { readonly kind: 'text'; readonly bytes: Uint8Array }
  | { readonly kind: 'stdin' }
  | { readonly kind: 'file'; readonly file: InputFile };

/** Stores a value; what is read from a file or a pipe is stored in constant memory. */
export const putCommand: Command = {
  async prepare(task) {
    const source = await sourceOf(task);
    return {
      run: (context) => put(source, context),
      [Symbol.asyncDispose]: async () => {
        if (source.kind === 'file') await source.file[Symbol.asyncDispose]();
      },
    };
  },
};

async function sourceOf({ value, file }: ClientTask): Promise<Source> {
  if (value !== undefined && file !== undefined) {
    throw usageError('both a value and --file are given', 'give VALUE, or --file FILE, or - for standard input');
  }
  if (value === '-' || file === '-') return { kind: 'stdin' };
  if (file !== undefined) return { kind: 'file', file: await openInput(file) };
  if (value === undefined) {
    throw usageError('put has no value', 'give VALUE, or --file FILE, or - for standard input');
  }
  return { kind: 'text', bytes: Buffer.from(value, 'utf8') };
}

async function put(source: Source, context: TaskContext): Promise<TaskResult> {
  const { keyText, io } = context;
  const progress = await createProgress('put', io);
  const startedAtMs = performance.now();
  try {
    const stored = await store(source, context, progress.onProgress);
    const transfer = {
      path: stored.path,
      bytes: stored.length,
      ms: performance.now() - startedAtMs,
      version: stored.version,
      crc32c: stored.crc32c,
    };
    return {
      exitCode: 0,
      object: transferObject(transfer, context),
      text: `stored ${keyText}: ${stored.length} bytes ${transferText(transfer, context)}`,
    };
  } finally {
    progress.end();
  }
}

async function store(
  source: Source,
  context: TaskContext,
  onProgress: (bytesDone: number, bytesTotal: number) => void,
): Promise<PutInfo> {
  const { client, key, io } = context;
  const options = { ...context.callOptions(), onProgress };
  if (source.kind === 'text') return client.put(key, source.bytes, options);
  try {
    if (source.kind === 'stdin') return await client.putStream(key, io.stdin, options);
    const { file } = source;
    const { sizeBytes: length } = file;
    if (length === undefined) {
      return await client.putStream(key, file.handle.createReadStream({ autoClose: false }), options);
    }
    refuseTooLong(length, context);
    // A function: what a lost connection interrupts is read again from the beginning.
    return await client.putStream(key, () => readPieces(file, length), { ...options, length });
  } catch (error) {
    const isSource = error instanceof FabricKvError && error.code === 'ERR_FABRICKV_SOURCE';
    throw isSource ? fromSource(error, source.kind === 'stdin' ? 'standard input' : 'the file') : error;
  }
}

/** Opening a stream that the server will refuse would only cost time. */
function refuseTooLong(length: number, { client }: TaskContext): void {
  const max = client.connection.maxValueBytes;
  if (length <= max) return;
  throw new FabricKvError(
    'ERR_FABRICKV_VALUE_TOO_LARGE',
    `the file has ${length} bytes; the server takes values of at most ${max} (${formatSize(max)})`,
    {
      outcome: 'not-applied',
      peer: client.connection.serverAddr,
      stage: 'put.start',
      details: { length: String(length), maxValueBytes: String(max) },
    },
  );
}
