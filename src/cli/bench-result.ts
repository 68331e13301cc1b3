/**
 * What kv-client bench tells.
 */

import type { ClientCounters, ConnectionInfo } from '../client/index.js';
import type { FabricKvError } from '../protocol/errors.js';
import { formatDuration, formatSize } from '../protocol/units.js';
import type { LatencySummary, WorkloadResult } from '../workload/workload.js';
import type { BenchOptions } from './bench-options.js';
import { createTable } from './table.js';

/** What was measured. */
export interface Measured {
  readonly result: WorkloadResult;
  /** Ctrl-C ended it early. */
  readonly interrupted: boolean;
  /** Of this process, all threads. */
  readonly cpuSeconds: number;
  readonly client: { readonly before: ClientCounters; readonly after: ClientCounters };
  /** `after` is undefined when the server did not tell. */
  readonly server: {
    readonly before: Readonly<Record<string, number>>;
    readonly after: Readonly<Record<string, number>> | undefined;
  };
}

/** What became of the keys. */
export interface KeysLeft {
  readonly deleted: number;
  /** Why they were not all deleted. */
  readonly failure: FabricKvError | undefined;
}

/** The server's counters that only go up: the difference of a gauge would mean nothing. */
const SERVER_COUNTERS = [
  'getsInline',
  'getsRdma',
  'getsMissing',
  'rangesRead',
  'putsInline',
  'putsRdma',
  'putsIntoSessionWindows',
  'putsAborted',
  'bytesReadInline',
  'bytesReadRdma',
  'bytesWrittenInline',
  'bytesWrittenRdma',
  'failures',
  'transfers',
  'transferRetries',
  'windowsOpened',
  'railWritesPosted',
  'railWritesFailed',
  'railRegistrations',
  'railProofs',
] as const;

/** How often values took which path, as the client counted. */
interface Paths {
  readonly inline: number;
  readonly rdma: number;
}

/** The result for programs. */
export function benchObject(
  { result, interrupted, cpuSeconds, client, server }: Measured,
  left: KeysLeft,
  options: BenchOptions,
  connection: ConnectionInfo,
): Readonly<Record<string, unknown>> {
  const paths = pathsOf(client);
  return {
    serverAddr: connection.serverAddr,
    provider: connection.provider ?? null,
    keys: options.keys,
    valueBytes: options['value-size'],
    concurrency: options.concurrency,
    readRatio: options.ratio,
    distribution: options.distribution,
    ratePerSecond: options.rate ?? null,
    durationMs: options.duration,
    warmupMs: options.warmup,
    interrupted,
    seconds: rounded(result.seconds),
    operations: result.operations,
    operationsPerSecond: rounded(perSecond(result.operations, result)),
    bytes: result.bytes,
    MBps: rounded(perSecond(result.bytes, result) / 1e6),
    gets: result.gets,
    puts: result.puts,
    misses: result.misses,
    overdue: result.overdue,
    latency: {
      all: latencyObject(result.latency),
      get: latencyObject(result.getLatency),
      put: latencyObject(result.putLatency),
    },
    paths,
    clientRetries: client.after.retries - client.before.retries,
    clientCpuSeconds: rounded(cpuSeconds),
    serverCounters: differences(server) ?? null,
    keysDeleted: left.deleted,
    keysKept: options.keep,
    deleteError: left.failure?.message ?? null,
  };
}

/** The result in words and a table. */
export function benchText(
  { result, interrupted, cpuSeconds, client, server }: Measured,
  left: KeysLeft,
  options: BenchOptions,
  connection: ConnectionInfo,
): string {
  const paths = pathsOf(client);
  const putBytes = result.puts * options['value-size'];
  const row = (name: string, count: number, bytes: number, latency: LatencySummary | undefined, path: Paths) => [
    name,
    grouped(count),
    grouped(perSecond(count, result)),
    (perSecond(bytes, result) / 1e6).toFixed(1),
    ...[latency?.p50Us, latency?.p99Us, latency?.p999Us, latency?.maxUs].map((us) =>
      us === undefined ? '-' : us.toFixed(1),
    ),
    grouped(path.inline),
    grouped(path.rdma),
  ];
  const all: Paths = { inline: paths.get.inline + paths.put.inline, rdma: paths.get.rdma + paths.put.rdma };
  const table = createTable(
    ['', 'operations', 'per second', 'MB/s', 'p50 us', 'p99 us', 'p99.9 us', 'max us', 'inline', 'rdma'],
    [
      row('GET', result.gets, result.bytes - putBytes, result.getLatency, paths.get),
      row('PUT', result.puts, putBytes, result.putLatency, paths.put),
      row('all', result.operations, result.bytes, result.latency, all),
    ],
  );
  const load =
    options.rate === undefined ? `${options.concurrency} in flight` : `${grouped(options.rate)} a second due`;
  const counted = Object.entries(differences(server) ?? {});
  return [
    `${connection.serverAddr}, data plane ${connection.provider ?? 'none'}: ${grouped(options.keys)} keys of ` +
      `${formatSize(options['value-size'])}, ${options.distribution}, ${percent(options.ratio)} GETs, ${load}`,
    `measured for ${result.seconds.toFixed(2)} s${interrupted ? `, then interrupted (of ${formatDuration(options.duration)})` : ''}`,
    table.trimEnd(),
    ...(result.misses > 0
      ? [`${grouped(result.misses)} GETs found nothing: their keys were deleted by somebody else`]
      : []),
    ...(result.overdue > 0
      ? [
          `${grouped(result.overdue)} operations were due and never begun: this rate is more than the store keeps up with`,
        ]
      : []),
    `client CPU   ${cpuSeconds.toFixed(2)} s`,
    `keys         ${keysText(left, options)}`,
    ...(counted.length > 0 ? ['server counted'] : []),
    ...counted.map(([name, count]) => `  ${name.padEnd(24)} ${count}`),
  ].join('\n');
}

function keysText({ deleted, failure }: KeysLeft, { keep, prefix, keys }: BenchOptions): string {
  if (keep) return `${grouped(keys)} stay, beginning with "${prefix}"`;
  const some = `${grouped(deleted)} deleted`;
  return failure === undefined ? some : `${some}, then it failed: ${failure.code}: ${failure.message}`;
}

function pathsOf({ before, after }: Measured['client']): { readonly get: Paths; readonly put: Paths } {
  return {
    get: { inline: after.getsInline - before.getsInline, rdma: after.getsRdma - before.getsRdma },
    put: { inline: after.putsInline - before.putsInline, rdma: after.putsRdma - before.putsRdma },
  };
}

/** What the server counted meanwhile, of all its clients; what did not change is left out. */
function differences({ before, after }: Measured['server']): Readonly<Record<string, number>> | undefined {
  if (after === undefined) return undefined;
  const changed = SERVER_COUNTERS.map((name) => [name, (after[name] ?? 0) - (before[name] ?? 0)] as const);
  return Object.fromEntries(changed.filter(([, count]) => count !== 0));
}

function latencyObject(latency: LatencySummary | undefined): Readonly<Record<string, number>> | null {
  if (latency === undefined) return null;
  return Object.fromEntries(Object.entries(latency).map(([name, number]) => [name, rounded(number)]));
}

function perSecond(count: number, { seconds }: WorkloadResult): number {
  return seconds > 0 ? count / seconds : 0;
}

function rounded(number: number): number {
  return Number(number.toFixed(3));
}

function percent(share: number): string {
  return `${Number((share * 100).toFixed(2))}%`;
}

function grouped(count: number): string {
  return Math.round(count).toLocaleString('en-US');
}
