/**
 * The report of the suite `peers` as one HTML page that needs nothing from anywhere else: charts, then every ratio.
 */

import { formatSize } from '../src/protocol/units.js';
import { escapeXml, lineChart } from './line-chart.js';
import { IN_FLIGHT } from './peers-cases.js';
import { type CaseSummary, formatRate, formatUs, type PeersReport, rateRatio, type Summary } from './peers-report.js';

/** Told apart also by those who see no red or green (Okabe and Ito). */
const COLOURS: readonly string[] = ['#0072b2', '#d55e00', '#e69f00', '#009e73', '#cc79a7', '#56b4e9'];

const MB = 1e6;

const STYLE = `
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 12px; }
.charts svg { max-width: 100%; height: auto; border: 1px solid #e4e4e4; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #999; }
.better { background: #e3f1fb; } .worse { background: #fdeadd; }
code { background: #f3f3f3; padding: 1px 4px; border-radius: 3px; }
`;

/** What the page says beside the report. */
export interface PeersPage {
  readonly report: PeersReport;
  readonly cases: readonly CaseSummary[];
  /** As it was run. */
  readonly command: string;
  readonly date: Date;
  /** The line that says what was disturbed; empty when nothing was. */
  readonly disturbed: string;
}

interface Column {
  readonly title: string;
  readonly of: (summary: Summary) => string;
}

const DETAILS: readonly Column[] = [
  { title: 'p50 us', of: ({ p50Us }) => formatUs(p50Us) },
  { title: 'p99 us', of: ({ p99Us }) => formatUs(p99Us) },
  { title: 'p99.9 us', of: ({ p999Us }) => formatUs(p999Us) },
  { title: 'client CPU s/Mop', of: (side) => (side.clientCpuSecondsPerOperation * 1e6).toFixed(2) },
  { title: 'server CPU s/Mop', of: (side) => (side.serverCpuSecondsPerOperation * 1e6).toFixed(2) },
];

/** The page. */
export function peersHtml({ report, cases, command, date, disturbed }: PeersPage): string {
  const title = 'FabricKV beside its peers';
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeXml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escapeXml(title)}</h1>
<p>${escapeXml(report.machine)}. FabricKV's data plane: ${escapeXml(report.provider)}, libfabric ${escapeXml(report.libfabric)}.
Medians of ${report.rounds} rounds, all in turns on this machine; ${date.toISOString().slice(0, 10)}.</p>
<p><code>${escapeXml(command)}</code></p>
${table(
  ['side', 'server', 'client'],
  report.contenders.map(({ name, server, client }) => [name, server, client].map((text) => cell(text))),
)}
${[...report.notes, disturbed]
  .filter((note) => note !== '')
  .map((note) => `<p>${escapeXml(note)}</p>`)
  .join('\n')}
${chartSection('Throughput by size', 'MB/s', cases, (summary) => summary.bytesPerSecond / MB)}
${chartSection('Median latency by size', 'p50 in us', cases, ({ p50Us }) => p50Us)}
<h2>Ratios</h2>
<p>FabricKV's rate over each peer's: above 1, FabricKV does more.</p>
${ratioTable(cases)}
<h2>Everything else</h2>
<p>CPU seconds are per million operations.</p>
${detailTable(cases)}
</body>
</html>
`;
}

/** A chart for each operation and each number in flight. */
function chartSection(
  heading: string,
  unit: string,
  cases: readonly CaseSummary[],
  numberOf: (summary: Summary) => number,
): string {
  const colours = coloursOf(cases);
  const charts = IN_FLIGHT.flatMap((inFlight) =>
    (['get', 'put'] as const).flatMap((operation) => {
      const members = cases.filter(({ one }) => one.operation === operation && one.inFlight === inFlight);
      if (members.length === 0) return [];
      const series = [...colours].flatMap(([name, colour]) => {
        const points = members.flatMap((member) => {
          const summary = sidesOf(member).get(name);
          return summary === undefined ? [] : [{ x: member.one.sizeBytes, y: numberOf(summary) }];
        });
        return points.length === 0 ? [] : [{ name, colour, points }];
      });
      const title = `${operation.toUpperCase()}, ${inFlight} in flight: ${unit}`;
      return [lineChart({ title, series, formatX: formatSize, formatY: formatShort })];
    }),
  );
  return charts.length === 0
    ? ''
    : `<h2>${escapeXml(heading)}</h2>\n<div class="charts">\n${charts.join('\n')}\n</div>`;
}

/** As in `1.5K`: an axis has little room. */
function formatShort(value: number): string {
  return value.toLocaleString('en-US', { notation: 'compact', maximumSignificantDigits: 3 });
}

function ratioTable(cases: readonly CaseSummary[]): string {
  const peers = [...new Set(cases.flatMap((one) => [...one.peers.keys()]))];
  return table(
    ['case', 'FabricKV', 'p50 us', ...peers.flatMap((peer) => [peer, 'ratio'])],
    cases.map((one) => [
      cell(one.name),
      cell(formatRate(one.one, one.ours)),
      cell(formatUs(one.ours.p50Us)),
      ...peers.flatMap((peer) => {
        const theirs = one.peers.get(peer);
        return [cell(theirs === undefined ? '-' : formatRate(one.one, theirs)), ratioCell(rateRatio(one, peer))];
      }),
    ]),
  );
}

function detailTable(cases: readonly CaseSummary[]): string {
  return table(
    ['case', 'side', ...DETAILS.map(({ title }) => title)],
    cases.flatMap((one) =>
      [...sidesOf(one)].map(([name, summary]) => [
        cell(one.name),
        cell(name),
        ...DETAILS.map(({ of }) => cell(of(summary))),
      ]),
    ),
  );
}

/** Everyone who took part in a case, ours first. */
function sidesOf({ variant, ours, peers }: CaseSummary): Map<string, Summary> {
  return new Map<string, Summary>([[variant, ours], ...peers]);
}

function coloursOf(cases: readonly CaseSummary[]): Map<string, string> {
  const names = new Set(cases.flatMap((one) => [...sidesOf(one).keys()]));
  return new Map([...names].map((name, index) => [name, COLOURS[index % COLOURS.length] ?? '#000']));
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const heading = head.map((title) => `<th>${escapeXml(title)}</th>`).join('');
  const body = rows.map((row) => `<tr>${row.join('')}</tr>`).join('\n');
  return `<div class="wide"><table><thead><tr>${heading}</tr></thead>\n<tbody>\n${body}\n</tbody></table></div>`;
}

function cell(text: string): string {
  return `<td>${escapeXml(text)}</td>`;
}

function ratioCell(ratio: number | undefined): string {
  if (ratio === undefined) return cell('-');
  return `<td class="${ratio >= 1 ? 'better' : 'worse'}">${ratio.toFixed(2)}</td>`;
}
