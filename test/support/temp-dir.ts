import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A directory that is removed with all that is in it: `await using dir = await tempDir()`. */
export interface TempDir extends AsyncDisposable {
  readonly path: string;
  /** A path inside it. */
  file(name: string): string;
}

/** Makes an empty directory under `parent`, by default the system's temporary one. */
export async function tempDir({ parent = tmpdir() }: { readonly parent?: string } = {}): Promise<TempDir> {
  const path = await mkdtemp(join(parent, 'fabrickv-test-'));
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}
