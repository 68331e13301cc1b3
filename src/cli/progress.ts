/**
 * The progress bar of a large value, on a terminal only.
 */

import type { SingleBar } from 'cli-progress';
import { formatSize } from '../protocol/units.js';
import type { CommandIo } from './io.js';

/** Smaller values are done before anybody has looked. */
const SHOWN_FROM_BYTES = 8 * 1024 * 1024;

/** What an operation tells of its progress, and the bar that shows it. */
export interface Progress {
  /** For CallOptions.onProgress. */
  readonly onProgress: (bytesDone: number, bytesTotal: number) => void;
  /** Takes the bar away, so that what is written next stands alone. */
  end(): void;
}

/** A bar for one transfer; it appears when its length is known and large. */
export async function createProgress(label: string, { stderr }: CommandIo): Promise<Progress> {
  if (stderr.isTTY !== true) return { onProgress: () => undefined, end: () => undefined };
  const { SingleBar: Bar } = await import('cli-progress');
  let bar: SingleBar | undefined;
  const startedAtMs = performance.now();
  return {
    onProgress: (bytesDone, bytesTotal) => {
      if (bytesTotal < SHOWN_FROM_BYTES) return;
      if (bar === undefined) {
        bar = new Bar({
          stream: stderr,
          format: `${label} {bar} {percentage}% | {done} of {all} | {rate}`,
          hideCursor: false,
          clearOnComplete: true,
          fps: 10,
          gracefulExit: false,
        });
        bar.start(bytesTotal, 0, { done: formatSize(0), all: formatSize(bytesTotal), rate: '' });
      }
      const seconds = (performance.now() - startedAtMs) / 1000;
      bar.update(bytesDone, {
        done: formatSize(bytesDone),
        rate: seconds > 0 ? `${(bytesDone / seconds / 1e9).toFixed(2)} GB/s` : '',
      });
    },
    end: () => bar?.stop(),
  };
}
