/**
 * What all sessions of one server share.
 */

import type { Logger } from 'pino';
import type { EventLoopSpin } from '../fabric/index.js';
import type { FabricKvError } from '../protocol/errors.js';
import type { KeyFormatter } from '../protocol/keys.js';
import type { ServerCounters } from './counters.js';
import type { ServerDataPlane } from './data-plane.js';
import type { EventLoopWatch } from './event-loop-delay.js';
import type { MutationHistory } from './mutation-history.js';
import type { ServerSettings } from './options.js';
import type { Store } from './store/store.js';

/** Built once at start. */
export interface ServerContext {
  readonly settings: ServerSettings;
  readonly store: Store;
  readonly dataPlane: ServerDataPlane;
  readonly history: MutationHistory;
  readonly counters: ServerCounters;
  readonly eventLoop: EventLoopWatch;
  /** Keeps the event loop awake after a frame of one message. */
  readonly spin: EventLoopSpin;
  /** Messages in the last frame, of whichever session. */
  lastFrameMessages: number;
  readonly logger: Logger;
  readonly formatKey: KeyFormatter;
  /** Changes whenever the process does. */
  readonly serverEpoch: bigint;
  readonly nodeId: string;
  readonly advertiseAddr: string;
  readonly startedAtMs: number;
  readonly version: string;
  /** Set while the server stops: nothing new is started. */
  stopping: FabricKvError | undefined;
  /** The counters and gauges that Pong carries, by name. */
  report(): Record<string, number>;
}
