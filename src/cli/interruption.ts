/**
 * Ctrl-C and its relatives: the command gives up what it does, cleans up after itself, and ends with 128 + the signal.
 */

import { SIGNAL_EXIT } from './exit-codes.js';

/** How long cleaning up may take before the process ends regardless. */
const CLEAN_UP_MS = 1500;

/** The state of being interrupted. */
export interface Interruption {
  /** Aborted by the first signal. */
  readonly signal: AbortSignal;
  /** 130, 143 or 129 once a signal has come. */
  exitCode(): number | undefined;
  /** Run, synchronously, when the process must end before its promises have; answers with what takes it back. */
  onForcedExit(cleanUp: () => void): () => void;
  /** Cleaning up takes longer: after a signal the process ends only when this much time has gone from now on. */
  allow(ms: number): void;
  end(): void;
}

/** Listens for SIGINT, SIGTERM and SIGHUP until {@link Interruption.end}. */
export function listenForInterruption(): Interruption {
  const controller = new AbortController();
  const cleanUps = new Set<() => void>();
  let exitCode: number | undefined;
  let timer: NodeJS.Timeout | undefined;

  const exitNow = (): void => {
    for (const cleanUp of cleanUps) cleanUp();
    process.exit(exitCode);
  };
  const names = Object.keys(SIGNAL_EXIT) as (keyof typeof SIGNAL_EXIT)[];
  const listeners = names.map((name) => {
    const listener = (): void => {
      if (exitCode !== undefined) exitNow();
      exitCode = SIGNAL_EXIT[name];
      timer = setTimeout(exitNow, CLEAN_UP_MS);
      controller.abort(new Error(name));
    };
    process.on(name, listener);
    return { name, listener };
  });
  return {
    signal: controller.signal,
    exitCode: () => exitCode,
    onForcedExit: (cleanUp) => {
      cleanUps.add(cleanUp);
      return () => cleanUps.delete(cleanUp);
    },
    allow: (ms) => {
      if (exitCode === undefined) return;
      clearTimeout(timer);
      timer = setTimeout(exitNow, ms);
    },
    end: () => {
      clearTimeout(timer);
      for (const { name, listener } of listeners) process.off(name, listener);
    },
  };
}

/** A promise's outcome, or a rejection as soon as the signal is aborted; whatever the promise does then is ignored. */
export async function unlessAborted<Value>(signal: AbortSignal, promise: Promise<Value>): Promise<Value> {
  let onAbort: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    signal.throwIfAborted();
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
    aborted.catch(() => undefined);
  }
}
