import { setTimeout as sleep } from 'node:timers/promises';

/** Options of {@link waitFor}. */
export interface WaitOptions {
  /** What is waited for, for the error. */
  readonly what: string;
  /** Default 10 s. */
  readonly timeoutMs?: number;
  /** Between two looks; default 20 ms. */
  readonly intervalMs?: number;
}

/**
 * Looks until there is something other than undefined or false, and answers with it.
 *
 * @throws when the time is over, naming what was waited for
 */
export async function waitFor<Value>(
  look: () => Value | undefined | false | Promise<Value | undefined | false>,
  { what, timeoutMs = 10_000, intervalMs = 20 }: WaitOptions,
): Promise<Value> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen;
    if (performance.now() > until) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await sleep(intervalMs);
  }
}
