/**
 * What every suite's report is made of: rows that put ours beside a peer's, and what is said about the machine.
 */

/** One number of ours beside the same of a peer's. */
export interface ReportRow<Metric extends string = string> {
  /** As in `get-1MiB-x8`: operation, size, in flight. */
  readonly case: string;
  readonly metric: Metric;
  readonly unit: string;
  readonly value: number;
  readonly peer: string;
  readonly peerValue: number;
  /** Always ours over the peer's, whichever is better; null when the peer's is 0. */
  readonly ratio: number | null;
}

/** What `--json` prints. */
export interface Report<Metric extends string = string> {
  readonly suite: string;
  readonly machine: string;
  readonly provider: string;
  readonly libfabric: string;
  readonly rounds: number;
  readonly cases: readonly ReportRow<Metric>[];
}

/** A {@link ReportRow} before its numbers are rounded. */
export type MeasuredRow<Metric extends string> = Omit<ReportRow<Metric>, 'ratio'> & { readonly digits: number };

const RATIO_DIGITS = 3;

/** Others' share of the CPUs, from which on the ratios of a case mean little. */
const OTHERS_SHARE_MAX = 0.1;

const DISTURBED_NAMES_MAX = 15;

/** The middle one, or the mean of the middle two. @throws RangeError for none */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)];
  const lower = sorted[Math.ceil(sorted.length / 2) - 1];
  if (upper === undefined || lower === undefined) throw new RangeError('the median of nothing');
  return (lower + upper) / 2;
}

/** Rounds a row's numbers to so many digits, and its ratio, which is of the numbers as they were. */
export function reportRow<Metric extends string>({ digits, ...row }: MeasuredRow<Metric>): ReportRow<Metric> {
  const { case: name, metric, unit, value, peer, peerValue } = row;
  return {
    case: name,
    metric,
    unit,
    value: rounded(value, digits),
    peer,
    peerValue: rounded(peerValue, digits),
    ratio: peerValue === 0 ? null : rounded(value / peerValue, RATIO_DIGITS),
  };
}

/** The lines above a table: what it was measured on. */
export function reportHeading({ machine, provider, libfabric, rounds }: Report): string {
  return `${machine}\n${provider}, libfabric ${libfabric}; medians of ${rounds} rounds\n`;
}

/** A line that says loudly which cases were measured beside others' work; empty when none was. */
export function disturbedNote(
  cases: readonly { readonly name: string; readonly rounds: readonly { readonly othersShare: number }[] }[],
): string {
  const shares = cases.map(({ name, rounds }) => ({ name, share: median(rounds.map((round) => round.othersShare)) }));
  const disturbed = shares.filter(({ share }) => share > OTHERS_SHARE_MAX);
  if (disturbed.length === 0) return '';
  const percent = (Math.max(...disturbed.map(({ share }) => share)) * 100).toFixed(0);
  const named = disturbed.slice(0, DISTURBED_NAMES_MAX).map(({ name }) => name);
  const more = disturbed.length - named.length;
  const which = `${named.join(', ')}${more === 0 ? '' : ` and ${more} more of ${cases.length} cases`}`;
  return `DISTURBED: other processes used up to ${percent} % of the CPUs; measure again: ${which}\n`;
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
