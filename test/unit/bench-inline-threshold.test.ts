import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { INLINE_THRESHOLD_CASES } from '../../bench/inline-threshold-cases.js';
import {
  crossingOf,
  crossings,
  formatCrossings,
  type InlineThresholdReport,
  plotInlineThreshold,
} from '../../bench/inline-threshold-report.js';
import { chartRow, escapeXml, lineChart } from '../../bench/line-chart.js';
import { reportRow } from '../../bench/report.js';

const KIB = 1024;

describe('the cases of inline-threshold', () => {
  test('are the powers of two from 1 KiB to 4 MiB, 1 and 16 in flight', () => {
    assert.equal(INLINE_THRESHOLD_CASES.length, 2 * 2 * 13);
    const sizes = [...new Set(INLINE_THRESHOLD_CASES.map(({ sizeBytes }) => sizeBytes))];
    assert.deepEqual(
      sizes,
      Array.from({ length: 13 }, (_, power) => KIB * 2 ** power),
    );
    const names = INLINE_THRESHOLD_CASES.map(({ name }) => name);
    assert.ok(names.includes('get-1KiB-x1') && names.includes('put-4MiB-x16'));
  });
});

describe('where the paths cross', () => {
  test('is between the last size at which inline is as fast and the next one', () => {
    const points = [0.5, 1.2, 0.5, 2, 4].map((ratio, index) => ({ sizeBytes: KIB * 2 ** index, ratio }));
    // From 4 KiB at a half to 8 KiB at twice: half way on a logarithmic scale. What was at 2 KiB does not last.
    assert.deepEqual(crossingOf(points), {
      fasterFromBytes: 8 * KIB,
      crossingBytes: Math.round(4 * KIB * Math.SQRT2),
    });
  });

  test('is nowhere when one path is always the faster one, or nothing was measured', () => {
    const at = (...ratios: number[]) => ratios.map((ratio, index) => ({ sizeBytes: KIB * 2 ** index, ratio }));
    assert.deepEqual(crossingOf(at(2, 3)), { fasterFromBytes: KIB, crossingBytes: null });
    assert.deepEqual(crossingOf(at(2, 0.9)), { fasterFromBytes: null, crossingBytes: null });
    assert.deepEqual(crossingOf([]), { fasterFromBytes: null, crossingBytes: null });
  });

  test('is told for each operation and in-flight count that was measured, in a sentence', () => {
    const cases = INLINE_THRESHOLD_CASES.filter(({ name }) => /^get-(16|32)KiB-x1$|^put-16KiB-x16$/.test(name));
    const rows = cases.map(({ name, sizeBytes }) => throughputRow(name, sizeBytes > 16 * KIB ? 2 : 0.5));
    const found = crossings(cases, rows);
    assert.deepEqual(found, [
      { operation: 'get', inFlight: 1, fasterFromBytes: 32 * KIB, crossingBytes: Math.round(16 * KIB * Math.SQRT2) },
      { operation: 'put', inFlight: 16, fasterFromBytes: null, crossingBytes: null },
    ]);
    assert.equal(
      formatCrossings(found),
      'GET, 1 in flight: RDMA is faster from 32KiB on; the paths cross at about 22.6KiB.\n' +
        'PUT, 16 in flight: RDMA is not faster at the largest size measured.\n',
    );
  });
});

describe('a chart', () => {
  test('escapes what it is told to say, in elements and in attributes', () => {
    assert.equal(escapeXml(`<a b="c" d='e'>&amp;`), '&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;amp;');
    const chart = lineChart({
      title: '<title> & more',
      series: [{ name: '"<b>"', colour: 'red" onload="x', points: [{ x: 1, y: 1 }] }],
      formatX: () => '<x>',
      formatY: () => '<y>',
    });
    assert.ok(chart.includes('&lt;title&gt; &amp; more') && chart.includes('&lt;x&gt;') && chart.includes('&lt;y&gt;'));
    assert.doesNotMatch(chart, /<b>|<x>|<y>|red" onload/);
  });

  test('has logarithmic axes, and leaves out what has no place on one', () => {
    const points = [1, 10, 100].map((x) => ({ x, y: 10 * x }));
    const series = [{ name: 'a', colour: '#000', points: [...points, { x: 1000, y: 0 }] }];
    const chart = lineChart({ title: 't', series, formatX: String, formatY: String });
    const places = (/<polyline points="([^"]*)"/.exec(chart)?.[1] ?? '')
      .split(' ')
      .map((at) => at.split(',').map(Number));
    assert.equal(places.length, 3);
    const [[x0 = 0, y0 = 0] = [], [x1 = 0, y1 = 0] = [], [x2 = 0, y2 = 0] = []] = places;
    assert.ok(x0 < x1 && y0 > y1);
    assert.ok(Math.abs(x1 - x0 - (x2 - x1)) < 0.2 && Math.abs(y0 - y1 - (y1 - y2)) < 0.2);
    assert.doesNotMatch(chart, /NaN|Infinity/);
  });

  test('can do with one point, with equal ones, and with none', () => {
    const draw = (...points: { x: number; y: number }[]): string =>
      lineChart({ title: 't', series: [{ name: 'a', colour: '#000', points }], formatX: String, formatY: String });
    for (const chart of [draw({ x: 5, y: 5 }), draw({ x: 1, y: 10 }, { x: 2, y: 10 }), draw({ x: 1, y: 3e6 })]) {
      assert.doesNotMatch(chart, /NaN|Infinity/);
      assert.match(chart, /<circle /);
    }
    assert.match(draw(), /not measured/);
  });

  test('stands beside others in one document', () => {
    const chart = lineChart({ title: 't', series: [], formatX: String, formatY: String });
    const row = chartRow([chart, chart], 'machine & provider');
    assert.equal(row.match(/<svg /g)?.length, 3);
    assert.match(row, /^<svg xmlns="[^"]+" width="960"/);
    assert.ok(row.includes('<svg x="0" ') && row.includes('<svg x="480" ') && row.includes('machine &amp; provider'));
  });

  test('of the paths has a panel for GET and one for PUT, with both paths at each in-flight count', () => {
    const report: InlineThresholdReport = {
      suite: 'inline-threshold',
      machine: 'a machine',
      provider: 'tcp;ofi_rxm',
      libfabric: '1.17',
      rounds: 1,
      cases: INLINE_THRESHOLD_CASES.map(({ name }) => throughputRow(name, 2)),
      crossings: [],
    };
    const plot = plotInlineThreshold(report, INLINE_THRESHOLD_CASES);
    assert.equal(plot.match(/<polyline /g)?.length, 2 * 2 * 2);
    assert.ok(plot.includes('GET: GB/s') && plot.includes('PUT: GB/s') && plot.includes('4MiB'));
  });
});

function throughputRow(name: string, ratio: number) {
  const row = { case: name, metric: 'throughput', unit: 'GB/s', peer: 'inline' } as const;
  return reportRow({ ...row, digits: 3, value: ratio, peerValue: 1 });
}
