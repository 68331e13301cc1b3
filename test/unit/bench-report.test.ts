import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseBenchArguments, UsageError } from '../../bench/arguments.js';
import { DATA_PLANE_CASES, PRODUCT_TUNING, rawCase, storeCase, storedValues } from '../../bench/data-plane-cases.js';
import type { Measurement } from '../../bench/measurement.js';
import { formatReport, median, type Report, ratioSpread, reportRows } from '../../bench/report.js';

const DURATION = { seconds: 1, warmupSeconds: 0 };
const MIB = 1024 * 1024;

function measured(gigabytesPerSecond: number, p50Us = 10): Measurement {
  return {
    values: 100,
    bytes: gigabytesPerSecond * 2e9,
    seconds: 2,
    p50Us,
    p99Us: 2 * p50Us,
    p999Us: 3 * p50Us,
    cpuSeconds: gigabytesPerSecond,
  };
}

describe('the report of a benchmark', () => {
  test('a median is the middle, or the mean of the middle two, whatever the order', () => {
    assert.equal(median([7]), 7);
    assert.equal(median([9, 1, 5]), 5);
    assert.equal(median([10, 2, 4, 8]), 6);
    assert.throws(() => median([]), RangeError);
  });

  test('rows are medians of the rounds, and the ratio is always ours over the peer', () => {
    const rounds = [
      { ours: measured(4, 20), peers: measured(5, 10), othersShare: 0 },
      { ours: measured(1, 99), peers: measured(8, 10), othersShare: 0 },
      { ours: measured(6, 30), peers: measured(6, 10), othersShare: 0 },
    ];
    const rows = reportRows({ name: 'get-1MiB-x8', rounds }, 'raw');
    assert.deepEqual(
      rows.map(({ metric }) => metric),
      ['throughput', 'p50', 'p99', 'p999', 'cpuSeconds'],
    );
    assert.deepEqual(rows[0], {
      case: 'get-1MiB-x8',
      metric: 'throughput',
      unit: 'GB/s',
      value: 4,
      peer: 'raw',
      peerValue: 6,
      ratio: 0.667,
    });
    assert.deepEqual(
      rows.slice(1).map(({ unit, value, peerValue, ratio }) => [unit, value, peerValue, ratio]),
      [
        ['us', 30, 10, 3],
        ['us', 60, 20, 3],
        ['us', 90, 30, 3],
        ['s/GB', 0.5, 0.5, 1],
      ],
    );
    assert.deepEqual(ratioSpread({ name: '', rounds }), { lowest: 0.125, highest: 1 });
  });

  test('the table has a row for each case, and says loudly what was disturbed', () => {
    const cases = [{ name: 'get-1MiB-x1', rounds: [{ ours: measured(3), peers: measured(4), othersShare: 0.25 }] }];
    const report: Report = {
      suite: 'data-plane',
      machine: 'a machine',
      provider: 'tcp;ofi_rxm',
      libfabric: '1.17',
      rounds: 1,
      cases: cases.flatMap((one) => reportRows(one, 'raw')),
    };
    const text = formatReport(report, cases);
    assert.match(text, /^a machine\ntcp;ofi_rxm, libfabric 1\.17; medians of 1 rounds\n/);
    assert.match(text, /│ get-1MiB-x1 │ 3\.00 │ 4\.00 │ +0\.75 │/);
    assert.match(text, /DISTURBED: .*up to 25 % of the CPUs.*: get-1MiB-x1\n$/);
  });
});

describe('the cases of data-plane', () => {
  test('have names of their own, and the raw side goes through as much memory as the store', () => {
    assert.equal(new Set(DATA_PLANE_CASES.map(({ name }) => name)).size, DATA_PLANE_CASES.length);
    const stored = storedValues(DATA_PLANE_CASES);
    for (const one of DATA_PLANE_CASES) {
      const raw = rawCase(one, PRODUCT_TUNING.tcp, DURATION);
      const { keys, inFlight, sizeBytes } = storeCase(one, DURATION);
      const inFlightBytes = inFlight * sizeBytes;
      if (one.operation === 'put') {
        assert.equal(raw.sourceBytes, inFlightBytes, one.name);
      } else {
        assert.ok(keys >= inFlight && keys <= (stored.get(sizeBytes) ?? 0), one.name);
        assert.deepEqual([raw.sourceBytes, raw.sinkBytes], [keys * sizeBytes, inFlightBytes], one.name);
        assert.ok(raw.sourceBytes >= 128 * MIB, one.name);
      }
    }
  });
});

describe('the command line of the benchmarks', () => {
  test('is checked before anything is started', async () => {
    for (const [args, message] of [
      [[], /which suite/],
      [['redis'], /redis/],
      [['data-plane', '--rounds', '0'], /--rounds is "0"/],
      [['data-plane', '--time', '600'], /--time is "600"/],
      [['data-plane', '--case', 'get-3MiB'], /no case has "get-3MiB"/],
      [['data-plane', '--address', 'localhost'], /--address is "localhost"/],
      [['data-plane', '--provider', 'shm'], /provider/],
      [['data-plane', '--round', '3'], /round/],
    ] as const) {
      await assert.rejects(parseBenchArguments(args), (error: unknown) => {
        assert.ok(error instanceof UsageError, String(error));
        assert.match(error.message, message);
        return true;
      });
    }
  });

  test('chooses cases by parts of their names', async () => {
    const task = await parseBenchArguments([
      'data-plane',
      '--case',
      'get-1MiB',
      '--case',
      'put-64MiB',
      '--time',
      '50ms',
    ]);
    assert.deepEqual(
      task?.cases.map(({ name }) => name),
      ['get-1MiB-x1', 'get-1MiB-x8', 'put-64MiB-x1', 'put-64MiB-x1-nocrc'],
    );
    assert.equal(task?.seconds, 0.05);
    assert.equal((await parseBenchArguments(['data-plane']))?.cases.length, DATA_PLANE_CASES.length);
  });
});
