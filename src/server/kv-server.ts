/**
 * The server as a program embeds it.
 */

import { randomBytes } from 'node:crypto';
import { lookup } from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { hostname } from 'node:os';
import { type ConnectionInjector, Server, ServerCredentials, type UntypedServiceImplementation } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { HealthImplementation } from 'grpc-health-check';
import type { Logger } from 'pino';
import { defaultSourceAddress } from '../fabric/index.js';
import {
  type ControlAddress,
  formatControlAddress,
  isLoopback,
  isWildcard,
  parseControlAddress,
} from '../protocol/address.js';
import { serverSessionMethod } from '../protocol/codec.js';
import { FabricKvError } from '../protocol/errors.js';
import { displayKey, redactKey } from '../protocol/keys.js';
import {
  EXTENT_BYTES_MAX,
  FRAME_BYTES_MAX,
  GET_INLINE_THRESHOLD_DEFAULT,
  KEEPALIVE_TIME_MS,
  KEEPALIVE_TIMEOUT_MS,
  PUT_INLINE_THRESHOLD_DEFAULT,
} from '../protocol/limits.js';
import { HEALTH_SERVICE_NAME, methodOf, packageDefinition } from '../protocol/proto.js';
import { formatSize } from '../protocol/units.js';
import { ServerCounters } from './counters.js';
import { ServerDataPlane } from './data-plane.js';
import { type Listener, listen } from './listener.js';
import { MutationHistory } from './mutation-history.js';
import type { KvServerOptions, ServerSettings } from './options.js';
import { reportOf } from './report.js';
import type { ServerContext } from './server-context.js';
import { Sessions } from './sessions.js';
import { Arena } from './store/arena.js';
import { Store } from './store/store.js';
import { unaryHandlers } from './unary.js';

/** gRPC connections that are still open when the drain is over are cut after this. */
const SHUTDOWN_GRACE_MS = 500;

/** A running server. */
export class KvServer {
  private stopped: Promise<void> | undefined;

  private constructor(
    private readonly context: ServerContext,
    private readonly sessions: Sessions,
    private readonly listener: Listener,
    private readonly grpc: Server,
    private readonly injector: ConnectionInjector,
    private readonly health: HealthImplementation,
    /** Source addresses of the data plane. */
    readonly fabricAddrs: readonly string[],
  ) {}

  /**
   * Starts a server: opens the fabric, maps and prefaults the arena, listens.
   *
   * @throws ERR_FABRICKV_SETTING, ERR_FABRICKV_ADDRESS_IN_USE, ERR_FABRICKV_ADDRESS_UNAVAILABLE,
   *   ERR_FABRICKV_PROVIDER_MISSING, ERR_FABRICKV_LIBFABRIC_MISSING, ERR_FABRICKV_MEMORY, ERR_FABRICKV_REGISTRATION
   */
  static async start(options: KvServerOptions): Promise<KvServer> {
    const { logger } = options;
    const listener = await listen(parseControlAddress(options.listenAddr));
    try {
      return await startOn(listener, options, (...parts) => new KvServer(...parts));
    } catch (error) {
      await listener.close();
      logger.debug({ err: error }, 'Start failed');
      throw error;
    }
  }

  /** Where it listens, with the port that was really taken. */
  get boundAddr(): string {
    return formatControlAddress(this.listener.address);
  }

  /** The gRPC address that clients are told. */
  get advertiseAddr(): string {
    return this.context.advertiseAddr;
  }

  /** Counters and gauges by name; docs/operations.md describes each. */
  counters(): Record<string, number> {
    return this.context.report();
  }

  /**
   * Stops in order: health NOT_SERVING, GoAway, what is in flight ends (for at most `drainMs`), sessions end, memory is
   * given back. Idempotent.
   */
  stop(): Promise<void> {
    this.stopped ??= this.stopNow();
    return this.stopped;
  }

  private async stopNow(): Promise<void> {
    const { context } = this;
    context.logger.info('Stopping');
    context.stopping = new FabricKvError('ERR_FABRICKV_SHUTTING_DOWN', undefined, { outcome: 'not-applied' });
    this.health.setStatus('', 'NOT_SERVING');
    this.health.setStatus(HEALTH_SERVICE_NAME, 'NOT_SERVING');
    const closed = this.listener.close();
    await this.sessions.drain(context.settings.drainMs);
    this.injector.drain(SHUTDOWN_GRACE_MS);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => {
        this.grpc.forceShutdown();
        resolve();
      }, SHUTDOWN_GRACE_MS);
      this.grpc.tryShutdown(() => {
        clearTimeout(timer);
        resolve();
      });
    });
    this.injector.destroy();
    this.listener.cut();
    await closed;
    await context.dataPlane.close();
    context.logger.info('Stopped');
  }
}

type Construct = (
  ...parts: [ServerContext, Sessions, Listener, Server, ConnectionInjector, HealthImplementation, readonly string[]]
) => KvServer;

async function startOn(listener: Listener, options: KvServerOptions, construct: Construct): Promise<KvServer> {
  const { logger } = options;
  const host = await hostAddress(listener.address);
  const fabricAddrs = await fabricAddresses(host, options);
  const advertiseAddr = await advertisedAddress(listener.address, host, fabricAddrs, options);
  const counters = new ServerCounters();
  const dataPlane = await ServerDataPlane.open({
    memoryBytes: options.memoryBytes,
    choice: options.provider,
    sourceAddresses: fabricAddrs,
    environment: options.fabricOptions ?? {},
    counters,
    logger,
  });
  const store = new Store(new Arena(dataPlane.memory, EXTENT_BYTES_MAX));
  const context: ServerContext = {
    settings: settingsOf(options),
    store,
    dataPlane,
    history: new MutationHistory(),
    counters,
    logger,
    formatKey: options.redactKeys === true ? redactKey : displayKey,
    serverEpoch: randomBytes(8).readBigUInt64LE() | 1n,
    nodeId: `${hostname()}/${formatControlAddress(listener.address)}`,
    advertiseAddr,
    startedAtMs: performance.now(),
    version: packageVersion(),
    stopping: undefined,
    report: () => reportOf(context, sessions),
  };
  const sessions = new Sessions(context);
  const grpc = new Server({
    'grpc.max_receive_message_length': FRAME_BYTES_MAX,
    'grpc.keepalive_time_ms': KEEPALIVE_TIME_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
  });
  const health = addServices(grpc, context, sessions);
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  listener.accept({
    onConnection: (socket) => injector.injectConnection(socket),
    // Connections come and go; what breaks one is seen by its sessions.
    onError: (error) => logger.debug({ err: error }, 'A connection broke'),
  });
  logStart(logger, listener, dataPlane, options, { advertiseAddr, fabricAddrs, host });
  return construct(context, sessions, listener, grpc, injector, health, fabricAddrs);
}

function addServices(grpc: Server, context: ServerContext, sessions: Sessions): HealthImplementation {
  const implementation: UntypedServiceImplementation = { ...unaryHandlers(context), Session: sessions.handler };
  grpc.addService(
    {
      Session: serverSessionMethod,
      Get: methodOf('Get'),
      Put: methodOf('Put'),
      Delete: methodOf('Delete'),
      Exists: methodOf('Exists'),
      Stat: methodOf('Stat'),
    },
    implementation,
  );
  const health = new HealthImplementation({ '': 'SERVING', [HEALTH_SERVICE_NAME]: 'SERVING' });
  health.addToServer(grpc);
  new ReflectionService(packageDefinition).addToServer(grpc);
  return health;
}

function settingsOf(options: KvServerOptions): ServerSettings {
  return {
    getInlineThreshold: options.inlineThreshold ?? GET_INLINE_THRESHOLD_DEFAULT,
    putInlineThreshold: options.inlineThreshold ?? PUT_INLINE_THRESHOLD_DEFAULT,
    maxValueBytes: options.maxValueBytes ?? options.memoryBytes,
    maxSessions: options.maxSessions ?? 1024,
    maxInFlight: options.maxInFlight ?? 1024,
    maxWaiting: options.maxWaiting ?? 4096,
    drainMs: options.drainMs ?? 10_000,
  };
}

/** The listen address as an IP address; undefined for a Unix socket. */
async function hostAddress(address: ControlAddress): Promise<string | undefined> {
  if (address.kind === 'unix') return undefined;
  if (isIP(address.host) !== 0) return address.host;
  return (await lookup(address.host)).address;
}

async function fabricAddresses(
  host: string | undefined,
  { fabricAddrs, provider }: KvServerOptions,
): Promise<readonly string[]> {
  if (provider === 'none') return [];
  if (fabricAddrs !== undefined && fabricAddrs.length > 0) return fabricAddrs;
  if (host === undefined) return ['127.0.0.1'];
  return [isWildcard(host) ? await defaultSourceAddress() : host];
}

async function advertisedAddress(
  listening: ControlAddress,
  host: string | undefined,
  fabricAddrs: readonly string[],
  { advertiseAddr, logger }: KvServerOptions,
): Promise<string> {
  const beyondLoopback = host !== undefined && !isLoopback(host);
  if (advertiseAddr === undefined) {
    if (listening.kind === 'unix' || host === undefined || !isWildcard(host)) return formatControlAddress(listening);
    const reachable = fabricAddrs[0] ?? (await defaultSourceAddress());
    return formatControlAddress({ kind: 'tcp', host: reachable, port: listening.port });
  }
  const advertised = parseControlAddress(advertiseAddr);
  if (advertised.kind === 'unix' || !beyondLoopback) return formatControlAddress(advertised);
  const resolved = await lookup(advertised.host).catch(() => undefined);
  if (resolved !== undefined && isLoopback(resolved.address)) {
    throw new FabricKvError(
      'ERR_FABRICKV_SETTING',
      `--advertise-addr ${advertiseAddr} is ${resolved.address}, which other machines would look for on themselves`,
      { remedy: 'Advertise an address that clients can reach, or leave --advertise-addr out.' },
    );
  }
  if (resolved === undefined) logger.warn({ advertiseAddr }, 'The advertised name does not resolve on this machine');
  return formatControlAddress(advertised);
}

function logStart(
  logger: Logger,
  listener: Listener,
  { fabric }: ServerDataPlane,
  options: KvServerOptions,
  {
    advertiseAddr,
    fabricAddrs,
    host,
  }: { advertiseAddr: string; fabricAddrs: readonly string[]; host: string | undefined },
): void {
  const [best] = fabric.providers;
  if (options.provider !== 'none') {
    const level = best === undefined ? 'warn' : 'info';
    logger[level](
      {
        provider: best?.name,
        libfabric: fabric.libfabric?.version,
        considered: fabric.considered,
        reason: fabric.missing?.message,
        remedy: fabric.missing?.hint,
      },
      best === undefined ? 'No data plane: all values travel inline' : 'Provider chosen',
    );
  }
  if (host !== undefined && !isLoopback(host)) {
    logger.warn('Listening beyond loopback without authentication: whoever reaches this address can read and write');
  }
  logger.info(
    {
      boundAddr: formatControlAddress(listener.address),
      advertiseAddr,
      fabricAddrs: best === undefined ? [] : fabricAddrs,
      fabricAddress: best?.rails.map((rail) => rail.info.addressText),
      provider: best?.name,
      memory: formatSize(options.memoryBytes),
      pid: process.pid,
    },
    'Listening',
  );
}

function packageVersion(): string {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  const parsed: unknown = JSON.parse(text);
  return typeof parsed === 'object' && parsed !== null && 'version' in parsed ? String(parsed.version) : 'unknown';
}
