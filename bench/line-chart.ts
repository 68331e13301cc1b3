/**
 * Line charts with two logarithmic axes, as SVG that needs nothing from anywhere else.
 */

/** One line. */
export interface ChartSeries {
  readonly name: string;
  /** As CSS writes it. */
  readonly colour: string;
  readonly dashed?: boolean;
  /** In the order in which they are joined; what is not above 0 has no place on a logarithmic axis and is left out. */
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

/** Options of {@link lineChart}. */
export interface LineChartOptions {
  readonly title: string;
  readonly series: readonly ChartSeries[];
  readonly formatX: (x: number) => string;
  readonly formatY: (y: number) => string;
}

const WIDTH = 480;
/** Of the part above the legend. */
const HEIGHT = 300;
const MARGIN = { top: 30, right: 24, bottom: 38, left: 56 } as const;
const CAPTION_HEIGHT = 22;
/** More labels than this run into each other. */
const X_LABELS_MAX = 7;
const LEGEND_COLUMNS = 2;
const LEGEND_ROW = 14;

const TEXT = 'font-family="system-ui, sans-serif" font-size="11" fill="#333"';

interface Axis {
  readonly ticks: readonly number[];
  /** Where a value lies; pixels. */
  readonly at: (value: number) => number;
}

/** A chart with its legend, as one `<svg>` element. */
export function lineChart({ title, series, formatX, formatY }: LineChartOptions): string {
  const lines = series.map((one) => ({ ...one, points: one.points.filter(({ x, y }) => x > 0 && y > 0) }));
  const points = lines.flatMap((line) => line.points);
  const legendHeight = Math.ceil(lines.length / LEGEND_COLUMNS) * LEGEND_ROW;
  const height = HEIGHT + legendHeight;
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img">`;
  const heading = `<title>${escapeXml(title)}</title><rect width="100%" height="100%" fill="#fff"/>${label(WIDTH / 2, 18, title, 'middle', 'font-weight="600"')}`;
  if (points.length === 0) return `${head}${heading}${label(WIDTH / 2, HEIGHT / 2, 'not measured', 'middle')}</svg>`;
  const xAxis = axis(sizesOf(points), MARGIN.left, WIDTH - MARGIN.right);
  const yAxis = axis(decades(points.map(({ y }) => y)), HEIGHT - MARGIN.bottom, MARGIN.top);
  const parts = [
    head,
    heading,
    ...yAxis.ticks.map((y) => gridLine(MARGIN.left, yAxis.at(y), WIDTH - MARGIN.right, yAxis.at(y))),
    ...yAxis.ticks.map((y) => label(MARGIN.left - 6, yAxis.at(y) + 4, formatY(y), 'end')),
    ...everyOther(xAxis.ticks).map((x) => gridLine(xAxis.at(x), MARGIN.top, xAxis.at(x), HEIGHT - MARGIN.bottom)),
    ...everyOther(xAxis.ticks).map((x) => label(xAxis.at(x), HEIGHT - MARGIN.bottom + 16, formatX(x), 'middle')),
    ...lines.map((line) => linePath(line, xAxis, yAxis)),
    ...lines.flatMap((line) =>
      line.points.map(
        ({ x, y }) =>
          `<circle cx="${px(xAxis.at(x))}" cy="${px(yAxis.at(y))}" r="2.5" fill="${escapeXml(line.colour)}"><title>${escapeXml(`${line.name}: ${formatX(x)}, ${formatY(Number(y.toPrecision(3)))}`)}</title></circle>`,
      ),
    ),
    ...lines.map(legendEntry),
    '</svg>',
  ];
  return parts.join('\n');
}

/** Charts beside each other with a line below them, as one `<svg>` element: a document of its own. */
export function chartRow(charts: readonly string[], caption: string): string {
  const heights = charts.map((chart) => Number(/ height="(\d+)"/.exec(chart)?.[1] ?? HEIGHT));
  const height = Math.max(HEIGHT, ...heights) + CAPTION_HEIGHT;
  const width = WIDTH * charts.length;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
    '<rect width="100%" height="100%" fill="#fff"/>',
    ...charts.map((chart, index) => chart.replace('<svg ', `<svg x="${index * WIDTH}" `)),
    label(10, height - 8, caption, 'start'),
    '</svg>\n',
  ].join('\n');
}

/** Text for an element or an attribute of XML and HTML. */
export function escapeXml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
}

function axis(ticks: readonly number[], from: number, to: number): Axis {
  const lowest = Math.log(Math.min(...ticks));
  const span = Math.log(Math.max(...ticks)) - lowest;
  // A single value lies in the middle.
  const at = (value: number): number =>
    span === 0 ? (from + to) / 2 : from + ((Math.log(value) - lowest) / span) * (to - from);
  return { ticks, at };
}

function sizesOf(points: readonly { readonly x: number }[]): number[] {
  return [...new Set(points.map(({ x }) => x))].toSorted((a, b) => a - b);
}

/** Powers of ten around the values; with 2 and 5 between them where they span little. */
function decades(values: readonly number[]): number[] {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const steps = last - first <= 2 ? [1, 2, 5] : [1];
  const ticks: number[] = [];
  for (let power = first; power <= last; power += 1) {
    for (const step of steps) ticks.push(Number(`${step}e${power}`));
  }
  const from = ticks.findLastIndex((tick) => tick <= low);
  const to = ticks.findIndex((tick) => tick >= high);
  const needed = ticks.slice(Math.max(0, from), to + 1);
  return needed.length > 1 ? needed : ticks.slice(Math.max(0, from), to + 2);
}

function everyOther(ticks: readonly number[]): number[] {
  const step = Math.ceil(ticks.length / X_LABELS_MAX);
  return ticks.filter((_, index) => index % step === 0);
}

function linePath({ colour, dashed = false, points }: ChartSeries, xAxis: Axis, yAxis: Axis): string {
  const path = points.map(({ x, y }) => `${px(xAxis.at(x))},${px(yAxis.at(y))}`).join(' ');
  return `<polyline points="${path}" fill="none" stroke="${escapeXml(colour)}" stroke-width="1.8"${dashed ? ' stroke-dasharray="5 3"' : ''}/>`;
}

function legendEntry({ name, colour, dashed = false }: ChartSeries, index: number): string {
  const x = MARGIN.left + (index % LEGEND_COLUMNS) * ((WIDTH - MARGIN.left) / LEGEND_COLUMNS);
  const y = HEIGHT + Math.floor(index / LEGEND_COLUMNS) * LEGEND_ROW;
  const line = `<line x1="${px(x)}" y1="${px(y)}" x2="${px(x + 22)}" y2="${px(y)}" stroke="${escapeXml(colour)}" stroke-width="2"${dashed ? ' stroke-dasharray="5 3"' : ''}/>`;
  return `${line}${label(x + 28, y + 4, name, 'start')}`;
}

function gridLine(x1: number, y1: number, x2: number, y2: number): string {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}" stroke="#ddd"/>`;
}

function label(x: number, y: number, text: string, anchor: 'start' | 'middle' | 'end', more = ''): string {
  return `<text x="${px(x)}" y="${px(y)}" text-anchor="${anchor}" ${TEXT} ${more}>${escapeXml(text)}</text>`;
}

function px(value: number): string {
  return value.toFixed(1);
}
