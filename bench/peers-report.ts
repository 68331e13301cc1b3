/**
 * The report of the suite `peers`, as one JSON object or as a table: one row per case, metric and peer.
 */

import { createTable } from '../src/cli/table.js';
import type { ConnectedTarget, LoadMeasurement } from './load-messages.js';
import {
  BANDWIDTH_SIZE_BYTES,
  type FabricKvVariant,
  type PeerName,
  type PeersCase,
  variantName,
} from './peers-cases.js';
import { disturbedNote, median, type Report, type ReportRow, reportHeading, reportRow } from './report.js';
import { type CaseTurns, type Round, sideOf } from './rounds.js';

/** What is measured of a case. CPU time is of the client's and of the server's process, per operation and per byte. */
export type PeersMetric =
  | 'throughput'
  | 'p50'
  | 'p99'
  | 'p999'
  | 'clientCpuPerOperation'
  | 'serverCpuPerOperation'
  | 'clientCpuPerByte'
  | 'serverCpuPerByte';

/** One of those that were measured, with what it is. */
export interface Contender {
  readonly name: string;
  readonly server: string;
  readonly client: string;
}

/** What `--json` prints. */
export interface PeersReport extends Report<PeersMetric> {
  readonly contenders: readonly Contender[];
  /** What was left out, in sentences. */
  readonly notes: readonly string[];
}

/** What one side came to over all rounds of a case. */
export interface Summary {
  readonly operationsPerSecond: number;
  readonly bytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  readonly clientCpuSecondsPerOperation: number;
  readonly serverCpuSecondsPerOperation: number;
}

/** A case as we had it, one variant of ours beside every peer that took part. */
export interface CaseSummary {
  /** The case's, and the variant's suffix. */
  readonly name: string;
  readonly one: PeersCase;
  readonly variant: string;
  readonly ours: Summary;
  readonly peers: ReadonlyMap<PeerName, Summary>;
}

type PeersTurns = CaseTurns<PeersCase, LoadMeasurement>;

const GB = 1e9;
const GIB = 1024 ** 3;
const MILLION = 1e6;

const MICROSECONDS = { unit: 'us', digits: 1 } as const;
const PER_MILLION = { unit: 's/Mop', digits: 3 } as const;
const PER_GIB = { unit: 's/GiB', digits: 4 } as const;

interface Metric {
  readonly unit: string;
  readonly digits: number;
  of(summary: Summary): number;
}

/** The same for both sides of every row: only a rate's unit depends on the case. */
function metricsOf({ sizeBytes }: PeersCase): Readonly<Record<PeersMetric, Metric>> {
  const gib = sizeBytes / GIB;
  return {
    throughput:
      sizeBytes >= BANDWIDTH_SIZE_BYTES
        ? { unit: 'GB/s', digits: 3, of: ({ bytesPerSecond }) => bytesPerSecond / GB }
        : { unit: 'ops/s', digits: 0, of: ({ operationsPerSecond }) => operationsPerSecond },
    p50: { ...MICROSECONDS, of: ({ p50Us }) => p50Us },
    p99: { ...MICROSECONDS, of: ({ p99Us }) => p99Us },
    p999: { ...MICROSECONDS, of: ({ p999Us }) => p999Us },
    clientCpuPerOperation: { ...PER_MILLION, of: (side) => side.clientCpuSecondsPerOperation * MILLION },
    serverCpuPerOperation: { ...PER_MILLION, of: (side) => side.serverCpuSecondsPerOperation * MILLION },
    clientCpuPerByte: { ...PER_GIB, of: (side) => side.clientCpuSecondsPerOperation / gib },
    serverCpuPerByte: { ...PER_GIB, of: (side) => side.serverCpuSecondsPerOperation / gib },
  };
}

/** Medians of the rounds; CPU time over all of them together, because it comes in steps of 10 ms. */
export function summarize(rounds: readonly Round<LoadMeasurement>[], side: string): Summary {
  const measured = rounds.map((round) => sideOf(round, side));
  const total = (of: (one: LoadMeasurement) => number): number => measured.reduce((sum, one) => sum + of(one), 0);
  const operations = total(({ values }) => values);
  return {
    operationsPerSecond: median(measured.map(({ values, seconds }) => values / seconds)),
    bytesPerSecond: median(measured.map(({ bytes, seconds }) => bytes / seconds)),
    p50Us: median(measured.map(({ p50Us }) => p50Us)),
    p99Us: median(measured.map(({ p99Us }) => p99Us)),
    p999Us: median(measured.map(({ p999Us }) => p999Us)),
    clientCpuSecondsPerOperation: total(({ clientCpuSeconds }) => clientCpuSeconds) / operations,
    serverCpuSecondsPerOperation: total(({ serverCpuSeconds }) => serverCpuSeconds) / operations,
  };
}

/** Every case of every variant that took part in it, in the order of the cases. */
export function summarizeCases(
  turns: readonly PeersTurns[],
  variants: readonly FabricKvVariant[],
  peers: readonly PeerName[],
): CaseSummary[] {
  return turns.flatMap(({ one, rounds }) => {
    const tookPart = (name: string): boolean => rounds[0]?.measured.has(name) ?? false;
    const theirs = new Map(peers.filter(tookPart).map((peer) => [peer, summarize(rounds, peer)]));
    return variants
      .filter((variant) => tookPart(variantName(variant)))
      .map((variant) => ({
        name: variant.suffix === '' ? one.name : `${one.name}-${variant.suffix}`,
        one,
        variant: variantName(variant),
        ours: summarize(rounds, variantName(variant)),
        peers: theirs,
      }));
  });
}

/** The rows of a case: one per metric and peer. */
export function peersRows({ name, one, ours, peers }: CaseSummary): ReportRow<PeersMetric>[] {
  const metrics = Object.entries(metricsOf(one)) as [PeersMetric, Metric][];
  return [...peers].flatMap(([peer, theirs]) =>
    metrics.map(([metric, { unit, digits, of }]) =>
      reportRow({ case: name, metric, unit, digits, value: of(ours), peer, peerValue: of(theirs) }),
    ),
  );
}

/** What {@link peersReport} is made of. */
export interface PeersReportParts {
  readonly machine: string;
  readonly rounds: number;
  readonly cases: readonly CaseSummary[];
  /** What each side is connected to, by its name. */
  readonly sides: ReadonlyMap<string, ConnectedTarget>;
  readonly notes: readonly string[];
}

/** The whole report. @throws Error when none of the sides is FabricKV */
export function peersReport({ machine, rounds, cases, sides, notes }: PeersReportParts): PeersReport {
  const [ours] = sides.values();
  if (ours === undefined) throw new Error('nobody was measured');
  return {
    suite: 'peers',
    machine,
    provider: ours.provider,
    libfabric: ours.libfabric,
    rounds,
    cases: cases.flatMap(peersRows),
    contenders: [...sides].map(([name, { server, client }]) => ({ name, server, client })),
    notes,
  };
}

/** The Redis client with the higher rate; undefined when there was none. */
export function bestRedis({ peers }: CaseSummary): PeerName | undefined {
  const clients = (['redis-auto', 'redis'] as const).filter((name) => peers.has(name));
  const rate = (name: PeerName): number => peers.get(name)?.operationsPerSecond ?? 0;
  return clients.toSorted((a, b) => rate(b) - rate(a))[0];
}

/** Ours over a peer's rate; undefined when the peer took no part. */
export function rateRatio({ ours, peers }: CaseSummary, peer: PeerName): number | undefined {
  const theirs = peers.get(peer);
  return theirs === undefined ? undefined : ours.operationsPerSecond / theirs.operationsPerSecond;
}

/** A side's rate as people read it, as in `312,000 ops/s` and `1.23 GB/s`. */
export function formatRate(one: PeersCase, summary: Summary): string {
  const { unit, of } = metricsOf(one).throughput;
  const value = of(summary);
  return `${unit === 'GB/s' ? value.toFixed(2) : Math.round(value).toLocaleString('en-US')} ${unit}`;
}

/** Microseconds, with a tenth where it matters. */
export function formatUs(us: number): string {
  return us.toFixed(us < 100 ? 1 : 0);
}

/** The report as a table for people: ratios of the rates, ours over each peer's. */
export function formatPeersReport(
  report: PeersReport,
  cases: readonly CaseSummary[],
  turns: readonly PeersTurns[],
): string {
  const peers = [...new Set(cases.flatMap((one) => [...one.peers.keys()]))];
  const isRedisCompared = peers.includes('redis') && peers.includes('redis-auto');
  const head = ['case', 'FabricKV', 'p50 us', ...peers.map((peer) => `/ ${peer}`)];
  if (isRedisCompared) head.push('best Redis client');
  const rows = cases.map((one) => {
    const ratios = peers.map((peer) => rateRatio(one, peer)?.toFixed(2) ?? '-');
    const row = [one.name, formatRate(one.one, one.ours), formatUs(one.ours.p50Us), ...ratios];
    const best = bestRedis(one);
    return isRedisCompared ? [...row, best ?? ''] : row;
  });
  const sides = report.contenders.map(({ name, server, client }) => `${name}: ${server}; ${client}\n`).join('');
  const notes = report.notes.map((note) => `${note}\n`).join('');
  const disturbed = disturbedNote(turns.map(({ one, rounds }) => ({ name: one.name, rounds })));
  return `${reportHeading(report)}${sides}${createTable(head, rows)}${notes}${disturbed}`;
}
