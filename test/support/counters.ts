import { setTimeout as sleep } from 'node:timers/promises';

/** A server's counters and gauges by name. */
export type ServerCounters = Readonly<Record<string, number>>;

/** Options of {@link countersWhen}. */
export interface CountersOptions {
  /** What is waited for, for the error. */
  readonly what: string;
  /** Default 10 s. */
  readonly timeoutMs?: number;
}

/**
 * Asks for counters until something holds of them, and answers with those.
 *
 * @throws when the time is over, with the last ones
 */
export async function countersWhen(
  ask: () => Promise<ServerCounters>,
  holds: (counters: ServerCounters) => boolean,
  { what, timeoutMs = 10_000 }: CountersOptions,
): Promise<ServerCounters> {
  const untilMs = performance.now() + timeoutMs;
  for (;;) {
    const counters = await ask();
    if (holds(counters)) return counters;
    if (performance.now() > untilMs) {
      throw new Error(`waited ${timeoutMs} ms in vain for ${what}: ${JSON.stringify(counters)}`);
    }
    await sleep(20);
  }
}

/** Nothing is under way: only the sessions of who asks; no operation, no window, no byte in quarantine. */
export function isQuiet(counters: ServerCounters, sessions = 1): boolean {
  return (
    counters['sessions'] === sessions &&
    counters['operationsInFlight'] === 0 &&
    counters['windowsOpen'] === 0 &&
    counters['memoryQuarantinedBytes'] === 0
  );
}
