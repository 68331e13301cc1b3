import assert from 'node:assert/strict';
import { chmod, lstat, mkdir, readdir, readFile, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { openInput, prepareOutput, readFully, readPieces } from '../../src/cli/local-files.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { tempDir } from '../support/temp-dir.js';

const keep = (): (() => void) => () => undefined;

async function fileError(promise: Promise<unknown>): Promise<FabricKvError> {
  const error: unknown = await promise.then(
    () => assert.fail('it did not throw'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof FabricKvError, String(error));
  assert.equal(error.code, 'ERR_FABRICKV_FILE');
  return error;
}

const isRoot = process.getuid?.() === 0;

describe('input files', () => {
  it('opens a file, knows its size and reads it whole', async () => {
    await using dir = await tempDir();
    await writeFile(dir.file('a'), 'hello');
    await using file = await openInput(dir.file('a'));
    assert.equal(file.sizeBytes, 5);
    const bytes = Buffer.alloc(4);
    await readFully(file, bytes, 1);
    assert.equal(bytes.toString(), 'ello');
    assert.match((await fileError(readFully(file, bytes, 2))).message, /became shorter/);
  });

  it('does not take 0 for a length: files of /proc say that, whatever is in them', async () => {
    await using file = await openInput('/proc/cpuinfo');
    assert.equal(file.sizeBytes, undefined);
  });

  it('gives its bytes in pieces, as often as it is asked to, and says so when the file becomes shorter', async () => {
    await using dir = await tempDir();
    const value = Buffer.alloc(2_500_000, 'abc');
    await writeFile(dir.file('a'), value);
    await using file = await openInput(dir.file('a'));
    for (let round = 0; round < 2; round++) {
      const pieces: Uint8Array[] = [];
      for await (const piece of readPieces(file, value.length)) pieces.push(piece);
      assert.ok(Buffer.concat(pieces).equals(value), 'pieces are not written over');
    }
    const rest = readPieces(file, value.length);
    assert.equal((await rest.next()).done, false);
    await truncate(dir.file('a'), 1_500_000);
    const reading = async (): Promise<void> => {
      for await (const _piece of rest) await Promise.resolve();
    };
    assert.match((await fileError(reading())).message, /had 2500000 bytes and ends at 1500000/);
  });

  it('says what is wrong with a missing file, a directory and a part that is no directory', async () => {
    await using dir = await tempDir();
    await writeFile(dir.file('a'), '');
    assert.match((await fileError(openInput(dir.file('b')))).message, /cannot read .*ENOENT/);
    assert.match((await fileError(openInput(dir.path))).message, /is a directory/);
    assert.match((await fileError(openInput(dir.file('a/b')))).message, /ENOTDIR/);
    assert.match((await fileError(openInput('/dev/null/x'))).message, /ENOTDIR/);
  });

  it('has no size for a device', async () => {
    await using file = await openInput('/dev/null');
    assert.equal(file.sizeBytes, undefined);
  });

  it('says so when a file may not be read', { skip: isRoot ? 'root reads everything' : false }, async () => {
    await using dir = await tempDir();
    await writeFile(dir.file('a'), 'x');
    await chmod(dir.file('a'), 0);
    assert.match((await fileError(openInput(dir.file('a')))).message, /EACCES/);
  });
});

describe('output files', () => {
  it('appears whole, under its name only, with the mode that it had', async () => {
    await using dir = await tempDir();
    const output = await prepareOutput(dir.file('a'), keep);
    assert.deepEqual(await readdir(dir.path), [], 'nothing is there before it is written');
    await output.write([Buffer.from('one'), Buffer.from('two')]);
    assert.equal(await readFile(dir.file('a'), 'utf8'), 'onetwo');
    assert.deepEqual(await readdir(dir.path), ['a']);

    await chmod(dir.file('a'), 0o640);
    await (await prepareOutput(dir.file('a'), keep)).write([Buffer.from('three')]);
    assert.equal(await readFile(dir.file('a'), 'utf8'), 'three');
    assert.equal((await stat(dir.file('a'))).mode & 0o777, 0o640);
  });

  it('leaves the old file and nothing else when writing breaks off', async () => {
    await using dir = await tempDir();
    await writeFile(dir.file('a'), 'old');
    function* broken(): Generator<Uint8Array> {
      yield Buffer.from('half');
      throw new Error('broken off');
    }
    const output = await prepareOutput(dir.file('a'), keep);
    await assert.rejects(output.write(broken()), /broken off/);
    assert.equal(await readFile(dir.file('a'), 'utf8'), 'old');
    assert.deepEqual(await readdir(dir.path), ['a']);
  });

  it('leaves the removal of what is half-written for an exit that cannot wait', async () => {
    await using dir = await tempDir();
    const pending = new Set<() => void>();
    const output = await prepareOutput(dir.file('a'), (cleanUp) => {
      pending.add(cleanUp);
      return () => pending.delete(cleanUp);
    });
    function* interrupted(): Generator<Uint8Array> {
      yield Buffer.from('half');
      assert.equal(pending.size, 1);
      for (const cleanUp of pending) cleanUp();
      throw new Error('interrupted');
    }
    await assert.rejects(output.write(interrupted()), /interrupted/);
    assert.deepEqual(await readdir(dir.path), []);
    assert.equal(pending.size, 0);
  });

  it('replaces what a symbolic link points to, not the link', async () => {
    await using dir = await tempDir();
    await mkdir(dir.file('real'));
    await symlink(dir.file('real/a'), dir.file('link'));
    await writeFile(dir.file('real/a'), 'old');
    await (await prepareOutput(dir.file('link'), keep)).write([Buffer.from('new')]);
    assert.ok((await lstat(dir.file('link'))).isSymbolicLink());
    assert.equal(await readFile(dir.file('real/a'), 'utf8'), 'new');
  });

  it('writes to a device as it is', async () => {
    await (await prepareOutput('/dev/null', keep)).write([Buffer.from('gone')]);
    assert.ok((await stat('/dev/null')).isCharacterDevice());
  });

  it('says what is wrong before anything is written', async () => {
    await using dir = await tempDir();
    assert.match((await fileError(prepareOutput(dir.path, keep))).message, /is a directory/);
    assert.match((await fileError(prepareOutput(dir.file('no/such/a'), keep))).message, /ENOENT/);
    await writeFile(dir.file('a'), '');
    assert.match((await fileError(prepareOutput(dir.file('a/b'), keep))).message, /ENOTDIR|is no directory/);
  });
});
