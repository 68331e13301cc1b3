/**
 * How much of the machine others use while something is measured: a ratio from a busy machine says little, because the
 * store has more threads than the raw pair, and so more that can be kept waiting.
 */

import { readdir, readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';

/** Linux counts CPU time for user space in these, whatever the kernel's own clock. */
export const CLOCK_TICKS_PER_SECOND = 100;

interface Sample {
  readonly atMs: number;
  /** Of all processes, and of this one with its descendants; clock ticks since their start. */
  readonly all: number;
  readonly own: number;
}

/** Watches from its start. */
export class LoadMeter {
  private constructor(private readonly before: Sample) {}

  static async start(): Promise<LoadMeter> {
    return new LoadMeter(await sample());
  }

  /** The share of all CPUs that others have used since the start, 0 to 1. */
  async othersShare(): Promise<number> {
    const { before } = this;
    const after = await sample();
    const ticks = ((after.atMs - before.atMs) / 1000) * CLOCK_TICKS_PER_SECOND * availableParallelism();
    const others = after.all - before.all - (after.own - before.own);
    return Math.min(1, Math.max(0, others / ticks));
  }
}

async function sample(): Promise<Sample> {
  const [own, stat] = await Promise.all([ticksOfTree(process.pid), readFile('/proc/stat', 'utf8')]);
  // proc(5): user nice system idle iowait irq softirq steal; what guests use is in user already.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = (stat.split('\n')[0] ?? '')
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return { atMs: performance.now(), all: user + nice + system + irq + softirq + steal, own };
}

/** CPU time of a process and its descendants that live; clock ticks. */
async function ticksOfTree(root: number): Promise<number> {
  const names = await readdir('/proc');
  const pids = names.filter((name) => /^\d+$/.test(name));
  const processes = new Map<number, { readonly parent: number; readonly ticks: number }>();
  await Promise.all(
    pids.map(async (pid) => {
      const fields = await statFields(pid).catch(() => undefined);
      // It has ended meanwhile.
      if (fields === undefined) return;
      const [, parent = 0] = fields;
      processes.set(Number(pid), { parent, ticks: ticksOf(fields) });
    }),
  );
  const isOurs = (pid: number): boolean => {
    const parent = processes.get(pid)?.parent;
    return pid === root || (parent !== undefined && parent > 0 && isOurs(parent));
  };
  return [...processes].reduce((sum, [pid, { ticks }]) => (isOurs(pid) ? sum + ticks : sum), 0);
}

/** CPU time of one process, its ended threads included; seconds, in steps of 10 ms. */
export async function cpuSecondsOf(pid: number): Promise<number> {
  return ticksOf(await statFields(String(pid))) / CLOCK_TICKS_PER_SECOND;
}

/** The fields of /proc/PID/stat from the third one on: the second, the name, may hold blanks, but ends with the last ")". */
async function statFields(pid: string): Promise<number[]> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  return stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
}

/** utime and stime: fields 14 and 15 of proc(5). */
function ticksOf(fields: readonly number[]): number {
  const [utime = 0, stime = 0] = fields.slice(11, 13);
  return utime + stime;
}
