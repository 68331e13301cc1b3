/**
 * Files that a command reads values from and writes them to.
 */

import { randomBytes } from 'node:crypto';
import { constants, rmSync } from 'node:fs';
import { access, type FileHandle, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { FabricKvError } from '../protocol/errors.js';
import { isNodeError } from './io.js';

/** A local file that cannot be used: ERR_FABRICKV_FILE. */
function fileError(message: string, remedy: string, cause?: unknown): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_FILE', message, { remedy, ...(cause === undefined ? {} : { cause }) });
}

/** What the system says about a path, as an ERR_FABRICKV_FILE; anything else is thrown on as it is. */
function fromSystem(error: unknown, what: string): unknown {
  if (error instanceof FabricKvError || !isNodeError(error)) return error;
  const remedies: Readonly<Record<string, string>> = {
    ENOENT: 'check the path',
    ENOTDIR: 'check the path: a part of it is a file',
    EACCES: 'check the permissions of the file and of the directories above it',
    EISDIR: 'name a file, not a directory',
    ENOSPC: 'free space on that file system, or choose another',
    EROFS: 'choose a place that can be written to',
  };
  const remedy = remedies[error.code ?? ''] ?? 'check the path, its permissions and the free space';
  return fileError(`${what}: ${error.message}`, remedy, error);
}

/** A stream of local bytes that was to be put has failed: ERR_FABRICKV_FILE where the system says why. */
export function fromSource(error: FabricKvError, what: string): FabricKvError {
  const file = fromSystem(error.cause, `cannot read ${what}`);
  return file instanceof FabricKvError ? file.with(error) : error;
}

/** A file to read a value from. */
export interface InputFile extends AsyncDisposable {
  readonly handle: FileHandle;
  /** Undefined for what has no length beforehand: a pipe, a terminal, and what says 0, as files of /proc do, whatever is in them. */
  readonly sizeBytes: number | undefined;
}

/**
 * Opens a file for reading.
 *
 * @throws ERR_FABRICKV_FILE when it is missing, a directory, or may not be read
 */
export async function openInput(path: string): Promise<InputFile> {
  try {
    // A directory is told by its own name here: opening one works, and only reading fails.
    const kind = await stat(path);
    if (kind.isDirectory()) throw fileError(`"${path}" is a directory`, 'name a file');
    const handle = await open(path, 'r');
    return {
      handle,
      sizeBytes: kind.isFile() ? (await handle.stat()).size || undefined : undefined,
      [Symbol.asyncDispose]: () => handle.close(),
    };
  } catch (error) {
    throw fromSystem(error, `cannot read "${path}"`);
  }
}

/**
 * Reads a file's first bytes into memory, filling it.
 *
 * @throws ERR_FABRICKV_FILE when the file ends before that, as one does that is being rewritten
 */
export async function readFully(file: InputFile, target: Uint8Array, position: number): Promise<void> {
  let filled = 0;
  while (filled < target.length) {
    const { bytesRead } = await file.handle.read(target, filled, target.length - filled, position + filled);
    if (bytesRead === 0) {
      throw fileError(
        `the file became shorter while it was read: it had ${file.sizeBytes} bytes and ends at ${position + filled}`,
        'put it when nobody writes to it',
      );
    }
    filled += bytesRead;
  }
}

/** A file is read in pieces of this length. */
const READ_BYTES = 1024 * 1024;

/**
 * A file's first bytes, in pieces that are the receiver's.
 *
 * @throws ERR_FABRICKV_FILE when it ends before that, or cannot be read
 */
export async function* readPieces(file: InputFile, length: number): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < length; offset += READ_BYTES) {
    const piece = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, length - offset));
    try {
      await readFully(file, piece, offset);
    } catch (error) {
      throw fromSystem(error, 'cannot read the file');
    }
    yield piece;
  }
}

/** The bytes of a value, in order; each piece is written before the next is asked for. */
export type Pieces = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/** A place for a value: all of it appears there at once, or nothing does. */
export interface OutputFile {
  /** Whether {@link write} may be tried again after it failed: not where what was written stays written. */
  readonly startsAnew: boolean;
  /**
   * Writes the value.
   *
   * @throws ERR_FABRICKV_FILE; what the pieces throw. Nothing half-written is left
   */
  write(pieces: Pieces): Promise<void>;
}

/**
 * Checks that a value can be written to a path, before it is asked for. A regular file is replaced by renaming a
 * complete one over it; a device or a pipe is written to as it is.
 *
 * @param onForcedExit where to leave the removal of a half-written file, should the process have to end; answers with
 *   what takes it back
 * @throws ERR_FABRICKV_FILE
 */
export async function prepareOutput(
  path: string,
  onForcedExit: (cleanUp: () => void) => () => void,
): Promise<OutputFile> {
  const what = `cannot write "${path}"`;
  try {
    // The target of a symbolic link is replaced, not the link.
    const target = await realpath(path).catch((error: unknown) => {
      if (isNodeError(error) && error.code === 'ENOENT') return path;
      throw error;
    });
    const existing = await stat(target).catch((error: unknown) => {
      if (isNodeError(error) && error.code === 'ENOENT') return undefined;
      throw error;
    });
    if (existing?.isDirectory() === true) throw fileError(`"${path}" is a directory`, 'name a file');
    if (existing !== undefined && !existing.isFile()) {
      await access(target, constants.W_OK);
      return { startsAnew: false, write: (pieces) => writeTo(target, pieces, what) };
    }
    const directory = dirname(target);
    const parent = await stat(directory);
    if (!parent.isDirectory()) throw fileError(`"${directory}" is no directory`, 'check the path');
    await access(directory, constants.W_OK | constants.X_OK);
    const mode = existing === undefined ? undefined : existing.mode & 0o777;
    return { startsAnew: true, write: (pieces) => replace(target, mode, pieces, what, onForcedExit) };
  } catch (error) {
    throw fromSystem(error, what);
  }
}

async function writeTo(target: string, pieces: Pieces, what: string): Promise<void> {
  try {
    const handle = await open(target, 'w');
    try {
      for await (const piece of pieces) await handle.writeFile(piece);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw fromSystem(error, what);
  }
}

async function replace(
  target: string,
  mode: number | undefined,
  pieces: Pieces,
  what: string,
  onForcedExit: (cleanUp: () => void) => () => void,
): Promise<void> {
  const name = `.${basename(target).slice(0, 200)}.${process.pid}-${randomBytes(4).toString('hex')}.part`;
  const temporary = join(dirname(target), name);
  const settled = onForcedExit(() => rmSync(temporary, { force: true }));
  try {
    const handle = await open(temporary, 'wx');
    try {
      if (mode !== undefined) await handle.chmod(mode);
      for await (const piece of pieces) await handle.writeFile(piece);
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true });
    throw fromSystem(error, what);
  } finally {
    settled();
  }
}
