/**
 * What the suite `inline-threshold` found: the sizes from which on RDMA is the faster path, and a plot of both.
 */

import { formatSize } from '../src/protocol/units.js';
import { IN_FLIGHT, type InlineThresholdCase } from './inline-threshold-cases.js';
import { type ChartSeries, chartRow, lineChart } from './line-chart.js';
import type { PairReport } from './pair-report.js';
import type { ReportRow } from './report.js';

/** Where the paths cross for one operation and so many in flight. */
export interface Crossing {
  readonly operation: 'get' | 'put';
  readonly inFlight: number;
  /** From this measured size on RDMA is the faster one, at every size; null when it is not at the largest. */
  readonly fasterFromBytes: number | null;
  /**
   * Where both are equally fast, between the size before and that one, rates taken as straight lines in a plot with two
   * logarithmic axes; null when no measured size lies on the other side.
   */
  readonly crossingBytes: number | null;
}

/** What `--json` prints. */
export interface InlineThresholdReport extends PairReport {
  readonly crossings: readonly Crossing[];
}

/** A size and RDMA's rate over that of the inline path. */
interface Point {
  readonly sizeBytes: number;
  readonly ratio: number;
}

/** Where the paths cross, for each operation and in-flight count that was measured. */
export function crossings(cases: readonly InlineThresholdCase[], rows: PairReport['cases']): Crossing[] {
  return groupsOf(cases).map(({ operation, inFlight, members }) => {
    const points = members.flatMap(({ name, sizeBytes }) => {
      const ratio = throughputOf(rows, name)?.ratio;
      return ratio === undefined || ratio === null ? [] : [{ sizeBytes, ratio }];
    });
    return { operation, inFlight, ...crossingOf(points) };
  });
}

/** Of points in ascending order of size. */
export function crossingOf(points: readonly Point[]): Pick<Crossing, 'fasterFromBytes' | 'crossingBytes'> {
  const lastSlower = points.findLastIndex(({ ratio }) => ratio <= 1);
  const before = points[lastSlower];
  const first = points[lastSlower + 1];
  if (first === undefined) return { fasterFromBytes: null, crossingBytes: null };
  if (before === undefined) return { fasterFromBytes: first.sizeBytes, crossingBytes: null };
  const share = -Math.log(before.ratio) / (Math.log(first.ratio) - Math.log(before.ratio));
  const crossingBytes = Math.round(before.sizeBytes * (first.sizeBytes / before.sizeBytes) ** share);
  return { fasterFromBytes: first.sizeBytes, crossingBytes };
}

/** The crossings in sentences, a line each. */
export function formatCrossings(found: readonly Crossing[]): string {
  return found.map((crossing) => `${sentenceOf(crossing)}\n`).join('');
}

function sentenceOf({ operation, inFlight, fasterFromBytes, crossingBytes }: Crossing): string {
  const what = `${operation.toUpperCase()}, ${inFlight} in flight`;
  if (fasterFromBytes === null) return `${what}: RDMA is not faster at the largest size measured.`;
  const from = `RDMA is faster from ${formatSize(fasterFromBytes)} on`;
  if (crossingBytes === null) return `${what}: ${from}, the smallest size measured.`;
  return `${what}: ${from}; the paths cross at about ${formatSize(roundedSize(crossingBytes))}.`;
}

/** To a tenth of a KiB, or a hundredth of a MiB: more would say more than was measured. */
function roundedSize(bytes: number): number {
  const step = bytes >= 1024 ** 2 ? 1024 ** 2 / 100 : 1024 / 10;
  return Math.round(bytes / step) * step;
}

const COLOURS = { rdma: '#0072b2', inline: '#d55e00' } as const;

/** A plot of the throughput over size, a panel for GET and one for PUT, as a whole SVG document. */
export function plotInlineThreshold(report: InlineThresholdReport, cases: readonly InlineThresholdCase[]): string {
  const panels = (['get', 'put'] as const).map((operation) => {
    const groups = groupsOf(cases).filter((group) => group.operation === operation);
    return lineChart({
      title: `${operation.toUpperCase()}: GB/s by value size`,
      formatX: formatSize,
      formatY: String,
      series: groups.flatMap(({ inFlight, members }) => {
        const line = (path: 'rdma' | 'inline', numberOf: (row: ReportRow) => number): ChartSeries => ({
          name: `${path}, ${inFlight} in flight`,
          colour: COLOURS[path],
          dashed: inFlight !== IN_FLIGHT[0],
          points: members.flatMap(({ name, sizeBytes }) => {
            const row = throughputOf(report.cases, name);
            return row === undefined ? [] : [{ x: sizeBytes, y: numberOf(row) }];
          }),
        });
        return [line('rdma', ({ value }) => value), line('inline', ({ peerValue }) => peerValue)];
      }),
    });
  });
  return chartRow(panels, `${report.machine}; ${report.provider}, libfabric ${report.libfabric}`);
}

interface Group {
  readonly operation: 'get' | 'put';
  readonly inFlight: number;
  /** In ascending order of size. */
  readonly members: readonly InlineThresholdCase[];
}

function groupsOf(cases: readonly InlineThresholdCase[]): Group[] {
  return (['get', 'put'] as const).flatMap((operation) =>
    IN_FLIGHT.flatMap((inFlight) => {
      const members = cases
        .filter((one) => one.operation === operation && one.inFlight === inFlight)
        .toSorted((a, b) => a.sizeBytes - b.sizeBytes);
      return members.length === 0 ? [] : [{ operation, inFlight, members }];
    }),
  );
}

function throughputOf(rows: PairReport['cases'], name: string): ReportRow | undefined {
  return rows.find((row) => row.case === name && row.metric === 'throughput');
}
