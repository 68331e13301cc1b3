/**
 * The report of a suite with two sides, ours and one peer's, as one JSON object or as a table.
 */

import { createTable } from '../src/cli/table.js';
import type { Measurement } from './measurement.js';
import { disturbedNote, median, type Report, type ReportRow, reportHeading, reportRow } from './report.js';
import { type Round, sideOf } from './rounds.js';

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

/** What is measured of a case. */
export type PairMetric = 'throughput' | 'p50' | 'p99' | 'p999' | 'cpuSeconds';

/** What `--json` prints. */
export type PairReport = Report<PairMetric>;

const GB = 1e9;

const SMALL = 0.1;
const SMALL_DIGITS = 2;

const METRICS: Readonly<
  Record<PairMetric, { readonly unit: string; readonly digits: number; of(measured: Measurement): number }>
> = {
  // To a kilobyte: a value of 1 KiB at a time comes to a few megabytes a second.
  throughput: { unit: 'GB/s', digits: 6, of: ({ bytes, seconds }) => bytes / seconds / GB },
  p50: { unit: 'us', digits: 1, of: ({ p50Us }) => p50Us },
  p99: { unit: 'us', digits: 1, of: ({ p99Us }) => p99Us },
  p999: { unit: 'us', digits: 1, of: ({ p999Us }) => p999Us },
  cpuSeconds: { unit: 's/GB', digits: 3, of: ({ bytes, cpuSeconds }) => (cpuSeconds / bytes) * GB },
};

const METRIC_NAMES = Object.keys(METRICS) as PairMetric[];

/** The rounds of a case as pairs of two of its sides. @throws Error when one has not taken part */
export function pairsOf(
  name: string,
  rounds: readonly Round<Measurement>[],
  sides: { readonly ours: string; readonly peer: string },
): CaseRounds {
  return {
    name,
    rounds: rounds.map((round) => ({
      ours: sideOf(round, sides.ours),
      peers: sideOf(round, sides.peer),
      othersShare: round.othersShare,
    })),
  };
}

/** The rows of a case, one per metric: medians of the rounds, and their ratio. */
export function pairRows({ name, rounds }: CaseRounds, peer: string): ReportRow<PairMetric>[] {
  return METRIC_NAMES.map((metric) => {
    const { unit, digits, of } = METRICS[metric];
    const value = median(rounds.map(({ ours }) => of(ours)));
    const peerValue = median(rounds.map(({ peers }) => of(peers)));
    return reportRow({ case: name, metric, unit, digits, value, peer, peerValue });
  });
}

/** The lowest and the highest throughput ratio of a case's rounds: how much the machine let them differ. */
export function ratioSpread({ rounds }: CaseRounds): { readonly lowest: number; readonly highest: number } {
  const { of } = METRICS.throughput;
  const ratios = rounds.map(({ ours, peers }) => of(ours) / of(peers));
  return { lowest: Math.min(...ratios), highest: Math.max(...ratios) };
}

/** The report as a table for people, with what it was measured on above it. */
export function formatPairReport(report: PairReport, cases: readonly CaseRounds[], ours = ''): string {
  const peer = report.cases[0]?.peer ?? 'peer';
  const titled = (title: string): string => (ours === '' ? title : `${ours} ${title}`);
  const head = [
    'case',
    titled('GB/s'),
    peer,
    'ratio',
    'of rounds',
    titled('p50 us'),
    peer,
    titled('p99 us'),
    peer,
    'CPU s/GB',
    peer,
  ];
  const table = createTable(
    head,
    cases.map((measured) => {
      const rows = new Map(report.cases.filter((row) => row.case === measured.name).map((row) => [row.metric, row]));
      const both = (metric: PairMetric, digits: number): string[] => {
        const row = rows.get(metric);
        return [row?.value, row?.peerValue].map((value) => (value === undefined ? '' : fixed(value, digits)));
      };
      const { lowest, highest } = ratioSpread(measured);
      return [
        measured.name,
        ...both('throughput', 2),
        rows.get('throughput')?.ratio?.toFixed(2) ?? '',
        `${lowest.toFixed(2)}-${highest.toFixed(2)}`,
        ...both('p50', 0),
        ...both('p99', 0),
        ...both('cpuSeconds', 2),
      ];
    }),
  );
  return `${reportHeading(report)}${table}${disturbedNote(cases)}`;
}

/** With more digits where these would show next to nothing. */
function fixed(value: number, digits: number): string {
  return value.toFixed(value > 0 && value < SMALL ? digits + SMALL_DIGITS : digits);
}
