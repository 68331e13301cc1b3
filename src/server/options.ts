/**
 * What a server is started with, and what it works with afterwards.
 */

import type { Logger } from 'pino';
import type { ProviderChoice, RailChoice } from '../fabric/index.js';

/** Options of {@link KvServer.start}. */
export interface KvServerOptions {
  /** `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`; port 0 takes any free one. */
  readonly listenAddr: string;
  /** The gRPC address told to clients; by default the listen address, with a wildcard the fabric address and port. */
  readonly advertiseAddr?: string | undefined;
  /** Source addresses of the data plane; by default the listen address, with a wildcard the default route's. */
  readonly fabricAddrs?: readonly string[] | undefined;
  /** Size of the arena, in bytes. */
  readonly memoryBytes: number;
  readonly provider: ProviderChoice;
  /** NICs of the data plane: all, the first so many, or domain names and numeric addresses; `auto` by default. */
  readonly rails?: RailChoice | undefined;
  /** Microseconds for which a progress thread spins before it sleeps; `auto` by default. */
  readonly spinUs?: number | 'auto' | undefined;
  /** Microseconds for which the event loop spins after a lone request, instead of sleeping; 0, never, by default. */
  readonly eventLoopSpinUs?: number | undefined;
  /** CPUs that the progress threads are bound to, one each, in turn; none by default. */
  readonly progressCpus?: readonly number[] | undefined;
  /** The NUMA node that the arena's memory is to be on. */
  readonly numaNode?: number | undefined;
  /**
   * Freed memory, in bytes, that may wait for the proof that no write can land in it, before rails that cannot give it
   * are opened anew; a quarter of the arena by default.
   */
  readonly maxQuarantineBytes?: number | undefined;
  /** For tests: rails behave as where only closing the endpoint proves anything. */
  readonly forceQuiescence?: 'close-endpoint' | undefined;
  /** libfabric's own variables, set before it loads. */
  readonly fabricOptions?: Readonly<Record<string, string>> | undefined;
  /** Values up to it travel inline, Infinity for all; by default 16 KiB for GET and 32 KiB for PUT. */
  readonly inlineThreshold?: number | undefined;
  /** The longest value; by default the arena's size. */
  readonly maxValueBytes?: number | undefined;
  /** The most sessions; 1,024 by default. */
  readonly maxSessions?: number | undefined;
  /** Transfers of one session in flight, past which further ones wait; 1,024 by default. */
  readonly maxInFlight?: number | undefined;
  /** Transfers of one session that wait, past which further ones are refused; 4,096 by default. */
  readonly maxWaiting?: number | undefined;
  /** How long {@link KvServer.stop} lets operations in flight end; 10,000 by default. */
  readonly drainMs?: number | undefined;
  readonly logger: Logger;
  /** Keys appear in logs as hashes. */
  readonly redactKeys?: boolean | undefined;
}

/** {@link KvServerOptions} with every default filled in. */
export interface ServerSettings {
  readonly getInlineThreshold: number;
  readonly putInlineThreshold: number;
  readonly maxValueBytes: number;
  readonly maxSessions: number;
  readonly maxInFlight: number;
  readonly maxWaiting: number;
  readonly drainMs: number;
}

/** Regions that one session may introduce. */
export const REGIONS_PER_SESSION_MAX = 1024;
