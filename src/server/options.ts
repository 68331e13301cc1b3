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
  /** Values up to it travel inline, Infinity for all; 32 KiB by default. */
  readonly inlineThreshold?: number | undefined;
  /** The longest value; by default the arena's size. */
  readonly maxValueBytes?: number | undefined;
  /** The most sessions; 1,024 by default. */
  readonly maxSessions?: number | undefined;
  /** Transfers of one session in flight, past which further ones wait; 1,024 by default. */
  readonly maxInFlight?: number | undefined;
  /** Transfers of one session that wait, past which further ones are refused; 4,096 by default. */
  readonly maxWaiting?: number | undefined;
  /** For tests: limits of all sessions together, in place of {@link SERVER_LIMITS}. */
  readonly limits?: Partial<ServerLimits> | undefined;
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
  readonly limits: ServerLimits;
}

/** What all sessions together may have. docs/operations.md says what happens past each. */
export interface ServerLimits {
  /** Transfers in flight; past it a session has 16, and further ones wait. */
  readonly transfersInFlightMax: number;
  /** Transfers that wait; past it a session has 16, and further ones are refused. */
  readonly transfersWaitingMax: number;
  /** Answers that the transport has not taken; past it a session may have one frame of them. */
  readonly queuedBytesMax: number;
  /** Requests that have been received and not handled; past it a session may have one frame of them. */
  readonly receivedBytesShared: number;
  /** The same; past it the session that has most of them is ended. */
  readonly receivedBytesMax: number;
  /** How long the last words of a session may take, before its connection is cut; milliseconds. */
  readonly lingerMs: number;
}

const MIB = 1024 * 1024;

/** The limits of every server. */
export const SERVER_LIMITS: ServerLimits = {
  transfersInFlightMax: 16_384,
  transfersWaitingMax: 16_384,
  queuedBytesMax: 64 * MIB,
  receivedBytesShared: 64 * MIB,
  receivedBytesMax: 256 * MIB,
  lingerMs: 10_000,
};

/** Connections beyond one for each session: of those who call the unary methods, look at the health, or come back. */
export const CONNECTIONS_BESIDE_SESSIONS = 256;

/** Calls at a time on one connection; HTTP/2 makes further ones wait at the client. */
export const CALLS_PER_CONNECTION_MAX = 64;

/** Regions that one session may introduce. */
export const REGIONS_PER_SESSION_MAX = 1024;
