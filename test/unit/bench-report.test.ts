import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseBenchArguments } from '../../bench/arguments.js';
import { DATA_PLANE_CASES, PRODUCT_TUNING, rawCase, storeCase, storedValues } from '../../bench/data-plane-cases.js';
import type { Measurement } from '../../bench/measurement.js';
import { UsageError } from '../../bench/option-values.js';
import { formatPairReport, type PairReport, pairRows, pairsOf, ratioSpread } from '../../bench/pair-report.js';
import { disturbedNote, median, reportRow } from '../../bench/report.js';
import { rotated, takeTurns } from '../../bench/rounds.js';

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
    const rows = pairRows({ name: 'get-1MiB-x8', rounds }, 'raw');
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

  test('a ratio is of the numbers before they were rounded, and none over a peer that is 0', () => {
    const row = { case: 'get-1MiB-x1', metric: 'cpu', unit: 's', digits: 0, value: 1.4, peer: 'raw', peerValue: 1.6 };
    assert.deepEqual(reportRow(row), {
      case: 'get-1MiB-x1',
      metric: 'cpu',
      unit: 's',
      value: 1,
      peer: 'raw',
      peerValue: 2,
      ratio: 0.875,
    });
    assert.equal(reportRow({ ...row, peerValue: 0 }).ratio, null);
  });

  test('the table has a row for each case, and says loudly what was disturbed', () => {
    const cases = [{ name: 'get-1MiB-x1', rounds: [{ ours: measured(3), peers: measured(4), othersShare: 0.25 }] }];
    const report: PairReport = {
      suite: 'data-plane',
      machine: 'a machine',
      provider: 'tcp;ofi_rxm',
      libfabric: '1.17',
      rounds: 1,
      cases: cases.flatMap((one) => pairRows(one, 'raw')),
    };
    const text = formatPairReport(report, cases);
    assert.match(text, /^a machine\ntcp;ofi_rxm, libfabric 1\.17; medians of 1 rounds\n/);
    assert.match(text, /│ get-1MiB-x1 │ 3\.00 │ 4\.00 │ +0\.75 │/);
    assert.match(text, /DISTURBED: .*up to 25 % of the CPUs.*: get-1MiB-x1\n$/);
  });

  test('what was disturbed is told by the median of its rounds, and counted when it is too much to name', () => {
    const one = (name: string, ...shares: number[]) => ({
      name,
      rounds: shares.map((othersShare) => ({ othersShare })),
    });
    assert.equal(disturbedNote([one('quiet', 0.9, 0.05, 0.02)]), '');
    assert.match(disturbedNote([one('quiet', 0), one('loud', 0.4, 0.3, 0)]), /up to 30 % .*: loud\n$/);
    const many = Array.from({ length: 20 }, (_, index) => one(`case-${index}`, 0.5));
    assert.match(disturbedNote(many), /case-0, .*, case-14 and 5 more of 20 cases\n$/);
  });
});

describe('the rounds of a benchmark', () => {
  test('measure every case on every side that takes part, and begin with another side each time', async () => {
    assert.deepEqual(
      [0, 1, 2, 3].map((round) => rotated(['a', 'b', 'c'], round)[0]),
      ['a', 'b', 'c', 'a'],
    );
    const asked: string[] = [];
    const started: number[] = [];
    const turns = await takeTurns({
      cases: ['small', 'large'],
      rounds: 2,
      sidesOf: (one) => (one === 'small' ? ['ours', 'peer', 'other'] : ['ours', 'peer']),
      measure: (one, side) => {
        asked.push(`${one} ${side}`);
        return Promise.resolve(asked.length);
      },
      warmUp: (one, side) => {
        asked.push(`(${one} ${side})`);
        return Promise.resolve();
      },
      onCase: (index) => started.push(index),
    });
    assert.deepEqual(asked, [
      ...['(small ours)', '(small peer)', '(small other)'],
      ...['small ours', 'small peer', 'small other', 'small peer', 'small other', 'small ours'],
      ...['(large ours)', '(large peer)', 'large ours', 'large peer', 'large peer', 'large ours'],
    ]);
    assert.deepEqual(started, [0, 1]);
    assert.deepEqual(
      turns.map(({ one, rounds }) => [one, rounds.map(({ measured: sides }) => sides.get('peer'))]),
      [
        ['small', [5, 7]],
        ['large', [13, 14]],
      ],
    );
  });

  test('become pairs of the sides that are named', () => {
    const round = {
      measured: new Map([
        ['rdma', measured(3)],
        ['inline', measured(2)],
      ]),
      othersShare: 0.5,
    };
    const pairs = pairsOf('get-1KiB-x1', [round], { ours: 'rdma', peer: 'inline' });
    assert.deepEqual(pairs, {
      name: 'get-1KiB-x1',
      rounds: [{ ours: measured(3), peers: measured(2), othersShare: 0.5 }],
    });
    assert.throws(() => pairsOf('', [round], { ours: 'rdma', peer: 'raw' }), /raw was not measured/);
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
      [[], /which suite.*data-plane, peers, inline-threshold/],
      [['redis'], /redis/],
      [['data-plane', '--rounds', '0'], /--rounds is "0"/],
      [['data-plane', '--time', '600'], /--time is "600"/],
      [['data-plane', '--case', 'get-3MiB'], /no case has "get-3MiB"/],
      [['data-plane', '--address', 'localhost'], /--address is "localhost"/],
      [['data-plane', '--provider', 'shm'], /provider/],
      [['data-plane', '--round', '3'], /round/],
      [['data-plane', '--html', 'report.html'], /html/],
      [['peers', '--peer', 'keydb'], /keydb/],
      [['peers', '--case', 'get-2MiB'], /no case has "get-2MiB"/],
      [['peers', '--case', 'get-64MiB', '--peer', 'memcached'], /memcached takes no values/],
      [['inline-threshold', '--case', 'get-16B'], /no case has "get-16B"/],
      [['inline-threshold', '--peer', 'redis'], /peer/],
    ] as const) {
      await assert.rejects(parseBenchArguments(args), (error: unknown) => {
        assert.ok(error instanceof UsageError, String(error));
        assert.match(error.message, message);
        return true;
      });
    }
  });

  test('chooses cases by parts of their names', async () => {
    const parts = ['--case', 'get-1MiB', '--case', 'put-64MiB'];
    const task = await parseBenchArguments(['data-plane', ...parts, '--time', '50ms']);
    assert.deepEqual(
      task?.cases.map(({ name }) => name),
      ['get-1MiB-x1', 'get-1MiB-x8', 'put-64MiB-x1', 'put-64MiB-x1-nocrc'],
    );
    assert.equal(task?.seconds, 0.05);
    assert.equal((await parseBenchArguments(['data-plane']))?.cases.length, DATA_PLANE_CASES.length);
  });

  test('takes a whole name for that case alone, although others begin with it', async () => {
    const task = await parseBenchArguments(['peers', '--case', 'get-100B-x1', '--case', 'put-16B-x']);
    assert.deepEqual(
      task?.cases.map(({ name }) => name),
      ['get-100B-x1', 'put-16B-x1', 'put-16B-x8', 'put-16B-x64', 'put-16B-x1024'],
    );
  });

  test('chooses peers, and leaves out the cases that none of them takes part in', async () => {
    const all = await parseBenchArguments(['peers']);
    const memcached = await parseBenchArguments(['peers', '--peer', 'memcached']);
    assert.ok(all?.suite === 'peers' && memcached?.suite === 'peers');
    assert.deepEqual(all.peers, ['redis-auto', 'redis', 'memcached']);
    assert.deepEqual(memcached.peers, ['memcached']);
    assert.ok(all.cases.some(({ name }) => name === 'put-64MiB-x1'));
    assert.ok(!memcached.cases.some(({ name }) => name.includes('64MiB')));
    assert.ok(memcached.cases.some(({ name }) => name === 'put-4MiB-x64'));
  });
});
