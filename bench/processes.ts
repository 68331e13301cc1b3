/**
 * The processes of a benchmark. None of them outlives it, whatever ends it.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

const STOP_TIMEOUT_MS = 10_000;

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Kills a process when this one ends; forgets it when it ends by itself. */
export function tie<Process extends ChildProcess>(child: Process): Process {
  running.add(child);
  child.once('exit', () => running.delete(child));
  child.once('error', () => running.delete(child));
  return child;
}

/** Waits for the end of a process that was asked to end, and kills it when it does not. */
export async function end(child: ChildProcess, signal?: NodeJS.Signals): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  if (signal !== undefined) child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await ended;
  clearTimeout(timer);
}

/**
 * Runs a command to its end, its output on this process's standard error.
 *
 * @throws Error when it cannot be started or fails
 */
export async function run(command: string, args: readonly string[], cwd: string): Promise<void> {
  const child = tie(spawn(command, args, { cwd, stdio: ['ignore', process.stderr, process.stderr] }));
  const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${code ?? signal}`);
}
