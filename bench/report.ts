/**
 * What a suite found: medians over its rounds, ours beside a peer's, as one JSON object or as a table.
 */

import { createTable } from '../src/cli/table.js';
import type { Measurement } from './measurement.js';

/** One case of one round: the two sides, one right after the other. */
export interface Pair {
  readonly ours: Measurement;
  readonly peers: Measurement;
  /** The share of all CPUs that other processes used meanwhile, 0 to 1. */
  readonly othersShare: number;
}

/** Every round of one case. */
export interface CaseRounds {
  /** As in `get-1MiB-x8`: operation, size, in flight. */
  readonly name: string;
  readonly rounds: readonly Pair[];
}

/** One number of ours beside the same of a peer's. */
export interface ReportRow {
  readonly case: string;
  readonly metric: Metric;
  readonly unit: string;
  readonly value: number;
  readonly peer: string;
  readonly peerValue: number;
  /** Always ours over the peer's, whichever is better. */
  readonly ratio: number;
}

/** What `--json` prints. */
export interface Report {
  readonly suite: string;
  readonly machine: string;
  readonly provider: string;
  readonly libfabric: string;
  readonly rounds: number;
  readonly cases: readonly ReportRow[];
}

/** What is measured of a case. */
export type Metric = 'throughput' | 'p50' | 'p99' | 'p999' | 'cpuSeconds';

const GB = 1e9;

const METRICS: Readonly<
  Record<Metric, { readonly unit: string; readonly digits: number; of(measured: Measurement): number }>
> = {
  throughput: { unit: 'GB/s', digits: 3, of: ({ bytes, seconds }) => bytes / seconds / GB },
  p50: { unit: 'us', digits: 1, of: ({ p50Us }) => p50Us },
  p99: { unit: 'us', digits: 1, of: ({ p99Us }) => p99Us },
  p999: { unit: 'us', digits: 1, of: ({ p999Us }) => p999Us },
  cpuSeconds: { unit: 's/GB', digits: 3, of: ({ bytes, cpuSeconds }) => (cpuSeconds / bytes) * GB },
};

const METRIC_NAMES = Object.keys(METRICS) as Metric[];

/** The middle one, or the mean of the middle two. @throws RangeError for none */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)];
  const lower = sorted[Math.ceil(sorted.length / 2) - 1];
  if (upper === undefined || lower === undefined) throw new RangeError('the median of nothing');
  return (lower + upper) / 2;
}

/** The rows of a case, one per metric: medians of the rounds, and their ratio. */
export function reportRows({ name, rounds }: CaseRounds, peer: string): ReportRow[] {
  return METRIC_NAMES.map((metric) => {
    const { unit, digits, of } = METRICS[metric];
    const value = median(rounds.map(({ ours }) => of(ours)));
    const peerValue = median(rounds.map(({ peers }) => of(peers)));
    return {
      case: name,
      metric,
      unit,
      value: rounded(value, digits),
      peer,
      peerValue: rounded(peerValue, digits),
      ratio: rounded(value / peerValue, 3),
    };
  });
}

/** The lowest and the highest throughput ratio of a case's rounds: how much the machine let them differ. */
export function ratioSpread({ rounds }: CaseRounds): { readonly lowest: number; readonly highest: number } {
  const { of } = METRICS.throughput;
  const ratios = rounds.map(({ ours, peers }) => of(ours) / of(peers));
  return { lowest: Math.min(...ratios), highest: Math.max(...ratios) };
}

/** Others' share of the CPUs, from which on the ratios of a case mean little. */
const OTHERS_SHARE_MAX = 0.1;

/** The report as a table for people, with what it was measured on above it. */
export function formatReport(report: Report, cases: readonly CaseRounds[]): string {
  const { machine, provider, libfabric, rounds } = report;
  const peer = report.cases[0]?.peer ?? 'peer';
  const head = ['case', 'GB/s', peer, 'ratio', 'of rounds', 'p50 us', peer, 'p99 us', peer, 'CPU s/GB', peer];
  const table = createTable(
    head,
    cases.map((measured) => {
      const rows = new Map(report.cases.filter((row) => row.case === measured.name).map((row) => [row.metric, row]));
      const both = (metric: Metric, digits: number): string[] => {
        const row = rows.get(metric);
        return [row?.value, row?.peerValue].map((value) => value?.toFixed(digits) ?? '');
      };
      const { lowest, highest } = ratioSpread(measured);
      return [
        measured.name,
        ...both('throughput', 2),
        rows.get('throughput')?.ratio.toFixed(2) ?? '',
        `${lowest.toFixed(2)}-${highest.toFixed(2)}`,
        ...both('p50', 0),
        ...both('p99', 0),
        ...both('cpuSeconds', 2),
      ];
    }),
  );
  const disturbed = cases.filter((measured) => othersShare(measured) > OTHERS_SHARE_MAX);
  const share = Math.max(0, ...disturbed.map(othersShare)) * 100;
  const note =
    disturbed.length === 0
      ? ''
      : `DISTURBED: other processes used up to ${share.toFixed(0)} % of the CPUs; measure again: ${disturbed.map(({ name }) => name).join(', ')}\n`;
  return `${machine}\n${provider}, libfabric ${libfabric}; medians of ${rounds} rounds\n${table}${note}`;
}

function othersShare({ rounds }: CaseRounds): number {
  return median(rounds.map((pair) => pair.othersShare));
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
