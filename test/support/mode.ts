import { execFileSync } from 'node:child_process';
import { accessSync, constants, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';

/** FABRICKV_TEST_FULL=1: the lines as they are written, instead of the short form of them. */
export const FULL = process.env['FABRICKV_TEST_FULL'] === '1';

/** I1: every operation settles by its deadline and this much. */
export const SETTLE_SLACK_MS = 100;

/**
 * What a process may take to start and to end, beside what it does: Node.js itself, our modules and libfabric, on two
 * cores that others use too. It is added where a whole process is measured, never where an operation is.
 */
export const PROCESS_SLACK_MS = 2500;

const GIB = 1024 ** 3;

/** Where files of a gigabyte go: memory, if there is enough of it, because a slow disk proves nothing here. */
export function roomyDirectory(): string {
  const memory = '/dev/shm';
  try {
    accessSync(memory, constants.W_OK);
    const { bavail, bsize } = statfsSync(memory);
    if (bavail * bsize > 6 * GIB) return memory;
  } catch (error) {
    if (!(error instanceof Error && 'code' in error)) throw error;
  }
  return tmpdir();
}

/** Why tests that change the machine's network cannot run here, or false when they can: found out by making one. */
export function withoutNamespaces(): string | false {
  if (process.getuid?.() !== 0) return 'needs root, to make network namespaces';
  const name = `fabrickv-try-${process.pid}`;
  try {
    execFileSync('ip', ['netns', 'add', name], { stdio: 'pipe' });
    try {
      execFileSync('ip', ['netns', 'exec', name, 'true'], { stdio: 'pipe' });
    } finally {
      execFileSync('ip', ['netns', 'delete', name], { stdio: 'pipe' });
    }
    return false;
  } catch (error) {
    return `cannot make a network namespace here: ${error instanceof Error ? error.message.split('\n').join(' ') : String(error)}`;
  }
}
