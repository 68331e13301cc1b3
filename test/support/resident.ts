import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const SAMPLE_MS = 100;

/** Memory of a process that is resident now, in bytes. */
export function residentBytes(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(line?.[1]) * 1024;
}

/** What a process has of it for some time: a sample every 100 ms. */
export async function residentFor(pid: number, ms: number): Promise<number[]> {
  const samples: number[] = [];
  const untilMs = performance.now() + ms;
  do {
    samples.push(residentBytes(pid));
    await sleep(SAMPLE_MS);
  } while (performance.now() < untilMs);
  return samples;
}
