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
import { defaultSourceAddress, EventLoopSpin, type RailTuning } from '../fabric/index.js';
import {
  type ControlAddress,
  formatControlAddress,
  isLoopback,
  isWildcard,
  parseControlAddress,
} from '../protocol/address.js';
import { FabricKvError } from '../protocol/errors.js';
import { displayKey, redactKey } from '../protocol/keys.js';
import {
  EXTENT_BYTES_MAX,
  FRAME_BYTES_MAX,
  INLINE_THRESHOLD_DEFAULT,
  KEEPALIVE_TIME_MS,
  KEEPALIVE_TIMEOUT_MS,
} from '../protocol/limits.js';
import { HEALTH_SERVICE_NAME, methodOf, packageDefinition } from '../protocol/proto.js';
import { formatSize } from '../protocol/units.js';
import { ServerCounters } from './counters.js';
import { ServerDataPlane } from './data-plane.js';
import { EventLoopWatch } from './event-loop-delay.js';
import { growReceiveWindows } from './http2-windows.js';
import { type Listener, listen } from './listener.js';
import { MutationHistory } from './mutation-history.js';
import {
  CALLS_PER_CONNECTION_MAX,
  CONNECTIONS_BESIDE_SESSIONS,
  type KvServerOptions,
  SERVER_LIMITS,
  type ServerSettings,
} from './options.js';
import { reportOf } from './report.js';
import type { ServerContext } from './server-context.js';
import { sessionMethod } from './session-inbox.js';
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
    private readonly serving: Serving,
    private readonly listener: Listener,
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
    const address = parseControlAddress(options.listenAddr);
    // A port in use is told at once, not after the seconds that mapping the arena takes. Until that is done nobody is
    // accepted: a client that is refused knows more than one that waits.
    await (await listen(address)).close();
    const host = await hostAddress(address);
    const fabricAddrs = await fabricAddresses(host, options);
    const counters = new ServerCounters();
    const dataPlane = await ServerDataPlane.open({
      memoryBytes: options.memoryBytes,
      choice: options.provider,
      sourceAddresses: fabricAddrs,
      rails: options.rails,
      cpus: options.progressCpus,
      numaNode: options.numaNode,
      maxQuarantineBytes: options.maxQuarantineBytes,
      tuning: tuningOf(options),
      environment: options.fabricOptions ?? {},
      counters,
      logger,
    });
    let listener: Listener | undefined;
    try {
      listener = await listen(address);
      const advertiseAddr = await advertisedAddress(listener.address, host, fabricAddrs, options);
      const server = serve(listener, dataPlane, counters, advertiseAddr, options);
      logStart(logger, listener, dataPlane, options, { advertiseAddr, fabricAddrs, host });
      return new KvServer(server, listener, fabricAddrs);
    } catch (error) {
      await listener?.close();
      await dataPlane.close();
      throw error;
    }
  }

  /** Where it listens, with the port that was really taken. */
  get boundAddr(): string {
    return formatControlAddress(this.listener.address);
  }

  /** The gRPC address that clients are told. */
  get advertiseAddr(): string {
    return this.serving.context.advertiseAddr;
  }

  /** Counters and gauges by name; docs/operations.md describes each. */
  counters(): Record<string, number> {
    return this.serving.context.report();
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
    const { context, sessions, grpc, injector, health } = this.serving;
    context.logger.info('Stopping');
    context.stopping = new FabricKvError('ERR_FABRICKV_SHUTTING_DOWN', undefined, { outcome: 'not-applied' });
    health.setStatus('', 'NOT_SERVING');
    health.setStatus(HEALTH_SERVICE_NAME, 'NOT_SERVING');
    const closed = this.listener.close();
    await sessions.drain(context.settings.drainMs);
    // Every connection hears GOAWAY and closes with its last call. (tryShutdown does not wait for those that close already.)
    injector.drain(SHUTDOWN_GRACE_MS);
    const timer = setTimeout(() => this.listener.cut(), SHUTDOWN_GRACE_MS);
    await closed;
    clearTimeout(timer);
    injector.destroy();
    grpc.forceShutdown();
    await context.dataPlane.close();
    context.eventLoop.stop();
    context.logger.info('Stopped');
  }
}

/** What answers on the listening socket. */
interface Serving {
  readonly context: ServerContext;
  readonly sessions: Sessions;
  readonly grpc: Server;
  readonly injector: ConnectionInjector;
  readonly health: HealthImplementation;
}

function serve(
  listener: Listener,
  dataPlane: ServerDataPlane,
  counters: ServerCounters,
  advertiseAddr: string,
  options: KvServerOptions,
): Serving {
  const { logger } = options;
  const arena = new Arena(dataPlane.memory, EXTENT_BYTES_MAX);
  dataPlane.attach(arena);
  const context: ServerContext = {
    settings: settingsOf(options),
    store: new Store(arena),
    dataPlane,
    history: new MutationHistory(),
    counters,
    eventLoop: new EventLoopWatch(),
    // Where more comes at a time the loop has work, and the progress threads need the core.
    spin: new EventLoopSpin(options.eventLoopSpinUs ?? 0, () => context.lastFrameMessages === 1),
    lastFrameMessages: 0,
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
  const sessions = new Sessions(context, (peer) => listener.cutPeer(peer));
  const grpc = new Server({
    'grpc.max_concurrent_streams': CALLS_PER_CONNECTION_MAX,
    'grpc.max_receive_message_length': FRAME_BYTES_MAX,
    'grpc.keepalive_time_ms': KEEPALIVE_TIME_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
  });
  const health = addServices(grpc, context, sessions);
  const growConnections = growReceiveWindows(grpc, logger);
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  growConnections();
  listener.accept({
    onConnection: (socket) => injector.injectConnection(socket),
    // Connections come and go; what breaks one is seen by its sessions.
    onError: (error) => logger.debug({ err: error }, 'A connection broke'),
    connectionsMax: context.settings.maxSessions + CONNECTIONS_BESIDE_SESSIONS,
    onRefused: () => {
      counters.connectionsRefused += 1;
      logger.debug('A connection was refused: there are too many');
    },
  });
  return { context, sessions, grpc, injector, health };
}

function addServices(grpc: Server, context: ServerContext, sessions: Sessions): HealthImplementation {
  const implementation: UntypedServiceImplementation = { ...unaryHandlers(context), Session: sessions.handler };
  grpc.addService(
    {
      Session: sessionMethod,
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
  new ReflectionService(packageDefinition()).addToServer(grpc);
  return health;
}

function settingsOf(options: KvServerOptions): ServerSettings {
  return {
    getInlineThreshold: options.inlineThreshold ?? INLINE_THRESHOLD_DEFAULT,
    putInlineThreshold: options.inlineThreshold ?? INLINE_THRESHOLD_DEFAULT,
    maxValueBytes: options.maxValueBytes ?? options.memoryBytes,
    maxSessions: options.maxSessions ?? 1024,
    maxInFlight: options.maxInFlight ?? 1024,
    maxWaiting: options.maxWaiting ?? 4096,
    drainMs: options.drainMs ?? 10_000,
    limits: { ...SERVER_LIMITS, ...options.limits },
  };
}

function tuningOf({ spinUs, forceQuiescence }: KvServerOptions): RailTuning {
  return {
    ...(spinUs === undefined ? {} : { spinUs }),
    ...(forceQuiescence === undefined ? {} : { forceQuiescence }),
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
    if (typeof options.rails === 'number' && best !== undefined && best.rails.length < options.rails) {
      logger.warn(
        { asked: options.rails, rails: best.rails.length, provider: best.name },
        best.name === 'tcp'
          ? 'Fewer rails than --rails asks for: tcp has one for each --fabric-addr'
          : 'Fewer rails than --rails asks for: there are no more NICs',
      );
    }
    for (const remark of best?.rails[0]?.info.efa?.remarks ?? []) logger.warn({ provider: best?.name }, remark);
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
      rails: fabric.providers.flatMap(({ name, rails }) =>
        rails.map(({ info }) => ({ provider: name, domain: info.domain, address: info.addressText })),
      ),
      memory: formatSize(options.memoryBytes),
    },
    'Listening',
  );
}

function packageVersion(): string {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  const parsed: unknown = JSON.parse(text);
  return typeof parsed === 'object' && parsed !== null && 'version' in parsed ? String(parsed.version) : 'unknown';
}
