/**
 * `kv-client put`.
 */

import type { Readable } from 'node:stream';
import type { KvClient, Region } from '../client/index.js';
import { FabricKvError } from '../protocol/errors.js';
import { formatSize } from '../protocol/units.js';
import { usageError } from './arguments.js';
import type { ClientTask } from './client-arguments.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { unlessAborted } from './interruption.js';
import { type InputFile, openInput, readFully } from './local-files.js';
import { createProgress } from './progress.js';
import { transferObject, transferText } from './transfer-result.js';

/** Files up to this length are put from a Buffer: they cost a copy, but no memory of their own to register. */
const BUFFERED_BYTES_MAX = 64 * 1024;

/** A file is read into registered memory in pieces of this length. */
const READ_BYTES = 8 * 1024 * 1024;

/** Where the value comes from. */
type Source =
  | { readonly kind: 'text'; readonly bytes: Uint8Array }
  | { readonly kind: 'stdin' }
  | { readonly kind: 'file'; readonly file: InputFile };

/** Stores a value. */
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
  const { client, key, keyText, io } = context;
  const value = await unlessAborted(context.interruption.signal, load(source, context));
  const progress = await createProgress('put', io);
  const startedAtMs = performance.now();
  try {
    const stored = await client.put(key, value, { ...context.callOptions(), onProgress: progress.onProgress });
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

/** The value, in memory from which it can be sent. */
async function load(source: Source, { client, io, interruption }: TaskContext): Promise<Uint8Array | Region> {
  switch (source.kind) {
    case 'text':
      return source.bytes;
    case 'stdin':
      return collect(io.stdin, client, interruption.signal);
    case 'file': {
      const { file } = source;
      if (file.sizeBytes === undefined) {
        return collect(file.handle.createReadStream({ autoClose: false }), client, interruption.signal);
      }
      refuseTooLong(file.sizeBytes, client, 'the file has');
      if (file.sizeBytes <= BUFFERED_BYTES_MAX) {
        const bytes = Buffer.alloc(file.sizeBytes);
        await readFully(file, bytes, 0);
        return bytes;
      }
      const region = await client.allocate(file.sizeBytes);
      for (let offset = 0; offset < file.sizeBytes; offset += READ_BYTES) {
        interruption.signal.throwIfAborted();
        await readFully(file, region.view(offset, Math.min(READ_BYTES, file.sizeBytes - offset)), offset);
      }
      return region;
    }
  }
}

/** Reads a stream to its end, but no further than the longest value that the server takes. */
async function collect(stream: Readable, client: KvClient, signal: AbortSignal): Promise<Uint8Array | Region> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream) {
    signal.throwIfAborted();
    const bytes = chunk as Buffer;
    chunks.push(bytes);
    length += bytes.length;
    refuseTooLong(length, client, 'standard input has already given');
  }
  if (length <= BUFFERED_BYTES_MAX) return Buffer.concat(chunks);
  const region = await client.allocate(length);
  let offset = 0;
  for (const chunk of chunks) {
    chunk.copy(region.view(offset, chunk.length));
    offset += chunk.length;
  }
  return region;
}

/** Reading on what the server will refuse would only cost time and memory. */
function refuseTooLong(length: number, client: KvClient, what: string): void {
  const max = client.connection.maxValueBytes;
  if (length <= max) return;
  throw new FabricKvError(
    'ERR_FABRICKV_VALUE_TOO_LARGE',
    `${what} ${length} bytes; the server takes values of at most ${max} (${formatSize(max)})`,
    {
      outcome: 'not-applied',
      peer: client.connection.serverAddr,
      stage: 'put.start',
      details: { length: String(length), maxValueBytes: String(max) },
    },
  );
}
