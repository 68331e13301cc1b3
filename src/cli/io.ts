/**
 * What a command works with beside its arguments.
 */

import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';

/** The process's streams and environment; tests of the parts give others. */
export interface CommandIo {
  readonly stdin: Readable;
  readonly stdout: Writable;
  readonly stderr: Writable & { readonly isTTY?: boolean };
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Those of this process. */
export const processIo: CommandIo = {
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
};

/** The reader of standard output has gone, as in `kv-client get big | head -c 10`: nothing is wrong, and nothing is left to do. */
export class OutputClosed extends Error {
  override readonly name = 'OutputClosed';
}

const WRITE_BYTES_MAX = 256 * 1024;

/**
 * Writes all bytes and waits until they are out, in pieces, so that a slow reader holds no more than one of them.
 *
 * @throws OutputClosed when the reader has gone
 */
export async function writeAll(stream: Writable, bytes: Uint8Array | string): Promise<void> {
  const buffer = typeof bytes === 'string' ? Buffer.from(bytes) : bytes;
  for (let offset = 0; offset < buffer.length; offset += WRITE_BYTES_MAX) {
    await writePiece(stream, buffer.subarray(offset, offset + WRITE_BYTES_MAX));
  }
}

async function writePiece(stream: Writable, piece: Uint8Array): Promise<void> {
  // Both the callback and the `error` event tell of a failure; without a listener the event would end the process.
  const failed = new AbortController();
  try {
    await Promise.race([
      new Promise<void>((resolve, reject) => {
        stream.write(piece, (error) => (error ? reject(error) : resolve()));
      }),
      once(stream, 'error', { signal: failed.signal }).then(([error]) => Promise.reject(error)),
    ]);
  } catch (error) {
    if (isNodeError(error) && (error.code === 'EPIPE' || error.code === 'ERR_STREAM_DESTROYED')) {
      throw new OutputClosed('the reader of the output has gone', { cause: error });
    }
    throw error;
  } finally {
    failed.abort();
  }
}

/** Whether an error is the system's or Node's own, with a `code`. */
export function isNodeError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'code' in error && typeof error.code === 'string';
}
