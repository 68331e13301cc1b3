/**
 * How kv-client bench comes along: a bar, on a terminal only.
 */

import type { SingleBar } from 'cli-progress';
import type { WorkloadProgress } from '../workload/workload.js';
import type { CommandIo } from './io.js';

const LOADING_INTERVAL_MS = 200;

/** The phases of a bench as they are shown. */
export interface BenchProgress {
  /** Keys are put; `done` tells how many. */
  loading(keys: number, done: () => number): void;
  /** The load runs, first the warm-up and then for so long. */
  measuring(seconds: number): void;
  readonly onProgress: (progress: WorkloadProgress) => void;
  /** Takes the bar away, so that what is written next stands alone. */
  end(): void;
}

/** Shows nothing when stderr is no terminal. */
export async function createBenchProgress({ stderr }: CommandIo): Promise<BenchProgress> {
  const nothing = (): void => undefined;
  if (stderr.isTTY !== true) return { loading: nothing, measuring: nothing, onProgress: nothing, end: nothing };
  const { SingleBar: Bar } = await import('cli-progress');
  let bar: SingleBar | undefined;
  let timer: NodeJS.Timeout | undefined;
  const end = (): void => {
    clearInterval(timer);
    bar?.stop();
  };
  const begin = (total: number, format: string, payload: object): SingleBar => {
    end();
    bar = new Bar({
      stream: stderr,
      format,
      hideCursor: false,
      clearOnComplete: true,
      fps: 10,
      gracefulExit: false,
    });
    bar.start(total, 0, payload);
    return bar;
  };
  let before = { operations: 0, bytes: 0, seconds: 0 };
  return {
    loading: (keys, done) => {
      const shown = begin(keys, 'bench: storing keys {bar} {value} of {total}', {});
      timer = setInterval(() => shown.update(done()), LOADING_INTERVAL_MS);
    },
    measuring: (seconds) => {
      begin(seconds, 'bench {bar} {elapsed} s of {total} s | {rates}', { elapsed: '0', rates: 'warming up' });
    },
    onProgress: (progress) => {
      const seconds = progress.seconds - before.seconds;
      const perSecond = (progress.operations - before.operations) / seconds;
      const megabytes = (progress.bytes - before.bytes) / seconds / 1e6;
      before = progress;
      bar?.update(progress.seconds, {
        elapsed: progress.seconds.toFixed(0),
        rates: `${Math.round(perSecond)}/s | ${megabytes.toFixed(1)} MB/s | p99 ${Math.round(progress.p99Us)} us`,
      });
    },
    end,
  };
}
