/**
 * How late the server's event loop is: what every operation waits for before it is looked at.
 */

import { monitorEventLoopDelay } from 'node:perf_hooks';

/** The loop is looked at this often; a delay is what passes beyond it. */
const RESOLUTION_MS = 10;

/** Delays since the start, in whole microseconds. */
export interface EventLoopDelays {
  readonly eventLoopDelayP50Us: number;
  readonly eventLoopDelayP99Us: number;
  readonly eventLoopDelayMaxUs: number;
}

/** Watches the loop until it is stopped. */
export class EventLoopWatch {
  private readonly histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });

  constructor() {
    this.histogram.enable();
  }

  get delays(): EventLoopDelays {
    const { histogram } = this;
    return {
      eventLoopDelayP50Us: beyondResolution(histogram.percentile(50)),
      eventLoopDelayP99Us: beyondResolution(histogram.percentile(99)),
      eventLoopDelayMaxUs: beyondResolution(histogram.max),
    };
  }

  stop(): void {
    this.histogram.disable();
  }
}

/** The histogram counts the interval itself; before the first sample it holds nothing that means anything. */
function beyondResolution(nanoseconds: number): number {
  const us = nanoseconds / 1000 - RESOLUTION_MS * 1000;
  return Number.isFinite(us) && us < 1e12 ? Math.max(0, Math.round(us)) : 0;
}
