/**
 * The options of a client and of its calls, checked once, at the edge.
 */

import { type Logger, pino } from 'pino';
import { z } from 'zod';
import type { ProviderChoice, RailChoice } from '../fabric/index.js';
import { type ControlAddress, formatControlAddress, parseControlAddress } from '../protocol/address.js';
import { FabricKvError } from '../protocol/errors.js';
import { EVENT_LOOP_SPIN_US_MAX, OPERATION_TIMEOUT_MS_DEFAULT, OPERATION_TIMEOUT_MS_MAX } from '../protocol/limits.js';

/** Options of `KvClient.connect`. */
export interface KvClientOptions {
  /** `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`; `127.0.0.1:50051` by default. */
  readonly serverAddr?: string;
  /** How the server's logs name this client; the process title and pid by default. */
  readonly clientName?: string;
  /** The data plane: `auto` (the default) takes the best there is, `none` has none, a name demands it. */
  readonly provider?: ProviderChoice;
  /**
   * Local addresses of the data plane, one per rail; by default that of the route to the server. EFA has a rail per network card, and
   * ignores them.
   */
  readonly fabricAddr?: string | readonly string[];
  /**
   * Which rails to open: `auto` (the default) all of them, a number the first so many, a list the domains or local addresses that it
   * names. Like {@link spinUs} and {@link cpus} it holds for all clients of the process that ask for the same.
   */
  readonly rails?: RailChoice;
  /** How long progress threads spin before they sleep; microseconds, or `auto` (the default), which is measured for the provider. */
  readonly spinUs?: number | 'auto';
  /**
   * Microseconds for which the event loop spins, instead of sleeping, while exactly one operation is pending: its answer then
   * waits for no CPU to wake up. One core is busy for as long as such an operation takes, at most for this. 0, the default,
   * is never; 100 to 200 is enough for small values. See docs/operations.md.
   */
  readonly eventLoopSpinUs?: number;
  /** CPUs to bind the progress threads to: rail i to the one at i modulo their number. None by default. */
  readonly cpus?: readonly number[];
  /** libfabric's own variables, set before it is loaded; the first client of a process decides. */
  readonly fabricOptions?: Readonly<Record<string, string>>;
  /**
   * Values up to this length travel inside gRPC messages; bytes. By default the server's thresholds, one for GET and one
   * for PUT. 0: nothing but empty values; Infinity: everything.
   */
  readonly inlineThreshold?: number;
  /** Time that each call has unless it says otherwise; milliseconds, 30,000 by default, at most a day. */
  readonly timeoutMs?: number;
  /** Time that one attempt to connect has; milliseconds, 5,000 by default. */
  readonly connectTimeoutMs?: number;
  /**
   * Registered memory for values on their way and for results that the caller has not released; bytes, 256 MiB by
   * default, at least 1 MiB. It is address space until it is used.
   */
  readonly receiveMemory?: number;
  /** Namespace of each call unless it says otherwise; a uint32, 0 by default. */
  readonly namespace?: number;
  /** Operations that may be in flight, 1,024 by default, at most 4,096; past it calls wait. */
  readonly maxInFlight?: number;
  /** Operations that may wait, 16,384 by default; past it calls fail with ERR_FABRICKV_RESOURCE_EXHAUSTED. */
  readonly maxWaiting?: number;
  /** A pino logger; none by default. */
  readonly logger?: Logger;
  /** Write a digest of each key to the log instead of the key; false by default. */
  readonly redactKeys?: boolean;
}

/** Options of every call. */
export interface CallOptions {
  /** Milliseconds until the call fails with ERR_FABRICKV_DEADLINE; the client's by default. */
  readonly timeoutMs?: number;
  /** Aborting it rejects the call at once with ERR_FABRICKV_CANCELLED. */
  readonly signal?: AbortSignal;
  /** As in {@link KvClientOptions.inlineThreshold}, for this call. */
  readonly inlineThreshold?: number;
  /** A uint32; the client's by default. */
  readonly namespace?: number;
  /**
   * Called as the value's bytes move, and once at the end; not for values that fit one message. Of a stream of unknown length `bytesTotal`
   * is Infinity.
   */
  readonly onProgress?: (bytesDone: number, bytesTotal: number) => void;
}

/** Options of `get` and `getInto`. */
export interface GetOptions extends CallOptions {
  /**
   * Check the CRC-32C of what arrived, and fail with ERR_FABRICKV_CHECKSUM when it differs; false by default. RDMA results of
   * over 256 KiB are checked on a worker thread.
   */
  readonly verify?: boolean;
}

/** Options of `put`. */
export interface PutOptions extends CallOptions {
  /**
   * Compute the CRC-32C of the value, and have the server verify it before it publishes; true by default. Without it the value is
   * stored unverified, and says so whenever it is read. What travels in one message (up to 64 KiB, inline) always has one.
   */
  readonly checksum?: boolean;
}

/** Options of `mdelete` and `mexists`: of each key's call. The time and the signal are those of the whole batch. */
export type BatchOptions = Omit<CallOptions, 'onProgress'>;

/** Options of `mget`; as {@link BatchOptions}. */
export type BatchGetOptions = Omit<GetOptions, 'onProgress'>;

/** Options of `mput`; as {@link BatchOptions}. */
export type BatchPutOptions = Omit<PutOptions, 'onProgress'>;

/** Options of `putStream`. */
export interface PutStreamOptions extends PutOptions {
  /** Of the value, if it is known; bytes. The stream must then have exactly so many. */
  readonly length?: number;
}

/** {@link KvClientOptions}, checked and complete. */
export interface ClientSettings {
  readonly server: ControlAddress;
  /** The same in words, and as gRPC takes it. */
  readonly serverAddr: string;
  readonly clientName: string;
  readonly provider: ProviderChoice;
  readonly fabricAddrs: readonly string[];
  readonly rails: RailChoice;
  readonly spinUs: number | 'auto';
  readonly eventLoopSpinUs: number;
  readonly cpus: readonly number[];
  readonly fabricOptions: Readonly<Record<string, string>>;
  readonly inlineThreshold: number | undefined;
  readonly timeoutMs: number;
  readonly connectTimeoutMs: number;
  readonly receiveMemory: number;
  readonly namespace: number;
  readonly maxInFlight: number;
  readonly maxWaiting: number;
  readonly logger: Logger;
  readonly redactKeys: boolean;
}

/** {@link CallOptions}, checked and complete. */
export interface CallSettings {
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly inlineThreshold: number | undefined;
  readonly namespace: number;
  readonly onProgress: ((bytesDone: number, bytesTotal: number) => void) | undefined;
  readonly verify: boolean;
  readonly checksum: boolean;
}

const MIB = 1024 * 1024;
const UINT32_MAX = 0xffff_ffff;

const timeout = z.number().positive().max(OPERATION_TIMEOUT_MS_MAX);
const threshold = z.union([z.number().int().nonnegative(), z.literal(Number.POSITIVE_INFINITY)]);

const optionsSchema = z.strictObject({
  serverAddr: z.string().default('127.0.0.1:50051'),
  clientName: z.string().max(256).optional(),
  provider: z.enum(['auto', 'none', 'efa', 'verbs', 'tcp']).default('auto'),
  fabricAddr: z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]).optional(),
  rails: z.union([z.literal('auto'), z.number().int().min(1), z.array(z.string().min(1)).min(1)]).default('auto'),
  spinUs: z.union([z.literal('auto'), z.number().nonnegative()]).default('auto'),
  eventLoopSpinUs: z.number().min(0).max(EVENT_LOOP_SPIN_US_MAX).default(0),
  cpus: z.array(z.number().int().nonnegative()).default([]),
  fabricOptions: z.record(z.string(), z.string()).default({}),
  inlineThreshold: threshold.optional(),
  timeoutMs: timeout.default(OPERATION_TIMEOUT_MS_DEFAULT),
  connectTimeoutMs: timeout.default(5000),
  receiveMemory: z
    .number()
    .int()
    .min(MIB)
    .default(256 * MIB),
  namespace: z.number().int().nonnegative().max(UINT32_MAX).default(0),
  maxInFlight: z.number().int().min(1).max(4096).default(1024),
  maxWaiting: z.number().int().nonnegative().default(16_384),
  logger: z
    .custom<Logger>((value) => value instanceof Object && 'isLevelEnabled' in value, 'not a pino logger')
    .optional(),
  redactKeys: z.boolean().default(false),
});

/**
 * Checks a client's options and fills in the defaults.
 *
 * @throws ERR_FABRICKV_SETTING naming the option
 */
export function parseClientOptions(options: KvClientOptions): ClientSettings {
  const parsed = optionsSchema.safeParse(options);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `${issue.path.join('.') || 'options'}: ${issue.message}`);
    throw new FabricKvError('ERR_FABRICKV_SETTING', problems.join('; '), { cause: parsed.error });
  }
  const { clientName, logger, fabricAddr = [], ...rest } = parsed.data;
  const server = parseControlAddress(rest.serverAddr);
  return {
    ...rest,
    server,
    serverAddr: formatControlAddress(server),
    clientName: clientName ?? `${process.title}-${process.pid}`,
    fabricAddrs: typeof fabricAddr === 'string' ? [fabricAddr] : fabricAddr,
    inlineThreshold: rest.inlineThreshold,
    logger: logger ?? pino({ level: 'silent' }),
  };
}

/** What {@link parseCallOptions} needs of the client. */
export type CallDefaults = Pick<ClientSettings, 'timeoutMs' | 'inlineThreshold' | 'namespace'>;

/**
 * Checks a call's options and fills in the client's defaults. Written by hand: a schema would cost more than the call.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT naming the option
 */
export function parseCallOptions(options: (GetOptions & PutOptions) | undefined, defaults: CallDefaults): CallSettings {
  if (options === undefined) {
    return {
      timeoutMs: defaults.timeoutMs,
      signal: undefined,
      inlineThreshold: defaults.inlineThreshold,
      namespace: defaults.namespace,
      onProgress: undefined,
      verify: false,
      checksum: true,
    };
  }
  const { timeoutMs, signal, inlineThreshold, namespace, onProgress, verify, checksum } = options;
  if (timeoutMs !== undefined && !(timeoutMs > 0 && timeoutMs <= OPERATION_TIMEOUT_MS_MAX)) {
    refuse('timeoutMs', timeoutMs, `a number of milliseconds over 0, at most ${OPERATION_TIMEOUT_MS_MAX}`);
  }
  if (
    inlineThreshold !== undefined &&
    !(inlineThreshold === Number.POSITIVE_INFINITY || (Number.isSafeInteger(inlineThreshold) && inlineThreshold >= 0))
  ) {
    refuse('inlineThreshold', inlineThreshold, 'a number of bytes, or Infinity');
  }
  if (namespace !== undefined && !(Number.isInteger(namespace) && namespace >= 0 && namespace <= UINT32_MAX)) {
    refuse('namespace', namespace, 'an integer from 0 to 2^32-1');
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) refuse('signal', signal, 'an AbortSignal');
  if (checksum !== undefined && typeof checksum !== 'boolean') refuse('checksum', checksum, 'true or false');
  if (onProgress !== undefined && typeof onProgress !== 'function') refuse('onProgress', onProgress, 'a function');
  return {
    timeoutMs: timeoutMs ?? defaults.timeoutMs,
    signal,
    inlineThreshold: inlineThreshold ?? defaults.inlineThreshold,
    namespace: namespace ?? defaults.namespace,
    onProgress,
    verify: verify ?? false,
    checksum: checksum ?? true,
  };
}

function refuse(name: string, value: unknown, wanted: string): never {
  throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `${name} is ${String(value)}; it must be ${wanted}`);
}
