import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseBenchArguments } from '../../bench/arguments.js';
import { storedBytes, storedKeys, turnOf } from '../../bench/load-cases.js';
import type { LoadMeasurement } from '../../bench/load-messages.js';
import { FABRICKV_VARIANTS, PEER_NAMES, PEERS_CASES, type PeersCase, takes } from '../../bench/peers-cases.js';
import { peersHtml } from '../../bench/peers-html.js';
import {
  bestRedis,
  formatPeersReport,
  type PeersReport,
  peersReport,
  peersRows,
  summarizeCases,
} from '../../bench/peers-report.js';
import type { CaseTurns, Round } from '../../bench/rounds.js';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

function caseNamed(name: string): PeersCase {
  const found = PEERS_CASES.find((one) => one.name === name);
  assert.ok(found !== undefined, name);
  return found;
}

function measured(one: PeersCase, operationsPerSecond: number, seconds = 1): LoadMeasurement {
  const values = operationsPerSecond * seconds;
  return {
    values,
    bytes: values * one.sizeBytes,
    seconds,
    p50Us: 1e6 / operationsPerSecond,
    p99Us: 2e6 / operationsPerSecond,
    p999Us: 3e6 / operationsPerSecond,
    cpuSeconds: 0.75 * seconds,
    clientCpuSeconds: 0.5 * seconds,
    serverCpuSeconds: 0.25 * seconds,
  };
}

function round(one: PeersCase, rates: Readonly<Record<string, number>>): Round<LoadMeasurement> {
  const sides = Object.entries(rates).map(([side, rate]) => [side, measured(one, rate)] as const);
  return { measured: new Map(sides), othersShare: 0 };
}

const SIDE = { server: 'a server 1.0', client: 'a <client>', provider: 'tcp;ofi_rxm', libfabric: '1.17' };

function reportOf(turns: readonly CaseTurns<PeersCase, LoadMeasurement>[]) {
  const cases = summarizeCases(turns, FABRICKV_VARIANTS, PEER_NAMES);
  const sides = new Map(['fabrickv', ...PEER_NAMES].map((name) => [name, SIDE]));
  const report: PeersReport = peersReport({ machine: 'A&B CPUs', rounds: 1, cases, sides, notes: ['a note'] });
  return { cases, report };
}

describe('the cases of peers', () => {
  test('are every size and in-flight count with at most 256 MiB in flight, and YCSB', () => {
    const names = PEERS_CASES.map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
    for (const { name, sizeBytes, inFlight } of PEERS_CASES) assert.ok(sizeBytes * inFlight <= 256 * MIB, name);
    const inFlightOf = (prefix: string): string[] => names.filter((name) => name.startsWith(prefix));
    assert.deepEqual(inFlightOf('get-256KiB-'), [
      'get-256KiB-x1',
      'get-256KiB-x8',
      'get-256KiB-x64',
      'get-256KiB-x1024',
    ]);
    assert.deepEqual(inFlightOf('get-1MiB-'), ['get-1MiB-x1', 'get-1MiB-x8', 'get-1MiB-x64']);
    assert.deepEqual(inFlightOf('put-4MiB-'), ['put-4MiB-x1', 'put-4MiB-x8', 'put-4MiB-x64']);
    assert.deepEqual(inFlightOf('put-16MiB-'), ['put-16MiB-x1', 'put-16MiB-x8']);
    assert.deepEqual(inFlightOf('get-64MiB-'), ['get-64MiB-x1']);
    assert.deepEqual(inFlightOf('ycsb-b'), ['ycsb-b-100B-x64', 'ycsb-b-4KiB-x64']);
    assert.equal(names.length, 80);
    const mixed = caseNamed('ycsb-b-4KiB-x64');
    assert.deepEqual([mixed.readRatio, mixed.distribution], [0.95, 'zipfian']);
    assert.deepEqual([caseNamed('put-16B-x1').readRatio, caseNamed('put-16B-x1').distribution], [0, 'uniform']);
  });

  test('have working sets with bounds, which the cases of one size share', () => {
    assert.equal(caseNamed('get-100B-x1').keys, 10_000);
    assert.equal(caseNamed('get-1MiB-x8').keys, 256);
    assert.equal(caseNamed('get-64MiB-x1').keys, 4);
    assert.deepEqual([...storedKeys([caseNamed('get-1MiB-x8'), caseNamed('put-1MiB-x1')])], [[MIB, 256]]);
    assert.ok(storedBytes(PEERS_CASES) < 2 * GIB);
  });

  test('leave memcached out where its item limit ends', () => {
    assert.ok(takes('memcached', caseNamed('get-4MiB-x1')));
    assert.ok(!takes('memcached', caseNamed('get-16MiB-x1')));
    assert.ok(takes('redis', caseNamed('get-64MiB-x1')));
  });

  test('end within 12 minutes with the defaults, half of which are for storing, warming up and huge values', async () => {
    const task = await parseBenchArguments(['peers']);
    assert.ok(task?.suite === 'peers');
    const sides = (one: PeersCase): number =>
      task.peers.filter((peer) => takes(peer, one)).length +
      FABRICKV_VARIANTS.filter((variant) => variant.takes(one)).length;
    const turns = task.cases.reduce((sum, one) => sum + sides(one), 0) * task.rounds;
    assert.ok(turns * (task.seconds + task.warmupSeconds) < 6 * 60);
  });

  test('have turns that are long enough for a few huge values, and no batch of them before it counts', () => {
    const asked = { seconds: 0.1, warmupSeconds: 0.02 };
    const small = caseNamed('get-100B-x1');
    assert.deepEqual(turnOf(small, asked, 10_000), { case: small, ...asked });
    const huge = caseNamed('get-64MiB-x1');
    assert.deepEqual(turnOf(huge, asked, 16), { case: huge, seconds: 0.5, warmupSeconds: 0 });
    assert.equal(turnOf(huge, asked, 0.01).seconds, 1.5);
  });
});

describe('the report of peers', () => {
  test('has a row per case, metric and peer, with the rates in operations or in bytes', () => {
    const small = caseNamed('get-100B-x8');
    const large = caseNamed('get-64KiB-x1');
    const { report } = reportOf([
      { one: small, rounds: [round(small, { fabrickv: 200, 'redis-auto': 100, redis: 50, memcached: 400 })] },
      { one: large, rounds: [round(large, { fabrickv: 100_000, redis: 50_000 })] },
    ]);
    const rates = report.cases.filter(({ metric }) => metric === 'throughput');
    assert.deepEqual(
      rates.map((row) => [row.case, row.peer, row.unit, row.value, row.peerValue, row.ratio]),
      [
        ['get-100B-x8', 'redis-auto', 'ops/s', 200, 100, 2],
        ['get-100B-x8', 'redis', 'ops/s', 200, 50, 4],
        ['get-100B-x8', 'memcached', 'ops/s', 200, 400, 0.5],
        ['get-64KiB-x1', 'redis', 'GB/s', 6.554, 3.277, 2],
      ],
    );
    assert.deepEqual(Object.keys(rates[0] ?? {}), ['case', 'metric', 'unit', 'value', 'peer', 'peerValue', 'ratio']);
    assert.equal(report.cases.length, 4 * 8);
    assert.deepEqual(Object.keys(report).slice(0, 6), ['suite', 'machine', 'provider', 'libfabric', 'rounds', 'cases']);
  });

  test('tells CPU time over all rounds, by process, per million operations and per GiB', () => {
    const one = caseNamed('get-1MiB-x1');
    const rounds = [100, 300].map((rate) => round(one, { fabrickv: rate, redis: rate }));
    const [summary] = summarizeCases([{ one, rounds }], FABRICKV_VARIANTS, ['redis']);
    assert.ok(summary !== undefined);
    const values = new Map(peersRows(summary).map(({ metric, value }) => [metric, value]));
    // A second of 100 operations and one of 300, half a second of CPU in the client in each, a quarter in the server.
    assert.equal(values.get('clientCpuPerOperation'), (1 / 400) * 1e6);
    assert.equal(values.get('serverCpuPerOperation'), (0.5 / 400) * 1e6);
    assert.equal(values.get('clientCpuPerByte'), (1 / 400) * 1024);
    assert.equal(values.get('serverCpuPerByte'), (0.5 / 400) * 1024);
    assert.equal(values.get('p50'), 6666.7);
  });

  test('measures another variant of ours as a case of its own, beside the same peers', () => {
    const one = caseNamed('get-100B-x1');
    const variants = [...FABRICKV_VARIANTS.slice(0, 1), variant('fast', () => true), variant('none', () => false)];
    const turns = [{ one, rounds: [round(one, { fabrickv: 100, 'fabrickv-fast': 300, redis: 200 })] }];
    const rows = summarizeCases(turns, variants, ['redis']).flatMap(peersRows);
    assert.deepEqual(
      rows.filter(({ metric }) => metric === 'throughput').map((row) => [row.case, row.value, row.ratio]),
      [
        ['get-100B-x1', 100, 0.5],
        ['get-100B-x1-fast', 300, 1.5],
      ],
    );
  });

  test('names the better Redis client in the table, and a dash for who took no part', () => {
    const one = caseNamed('get-64MiB-x1');
    const turns = [{ one, rounds: [round(one, { fabrickv: 20, 'redis-auto': 10, redis: 16 })] }];
    const small = caseNamed('put-100B-x64');
    turns.push({
      one: small,
      rounds: [round(small, { fabrickv: 300_000, 'redis-auto': 200_000, redis: 100_000, memcached: 100_000 })],
    });
    const { cases, report } = reportOf(turns);
    assert.deepEqual(cases.map(bestRedis), ['redis', 'redis-auto']);
    const text = formatPeersReport(report, cases, turns);
    assert.match(text, /│ get-64MiB-x1 +│ 1\.34 GB\/s +│ +50000 │ +2\.00 │ +1\.25 │ +- │ redis +│/);
    assert.match(text, /│ put-100B-x64 +│ 300,000 ops\/s │ +3\.3 │ +1\.50 │ +3\.00 │ +3\.00 │ redis-auto +│/);
    assert.match(text, /^A&B CPUs\n.*\nfabrickv: a server 1\.0; a <client>\n/);
    assert.match(text, /\na note\n$/);
  });

  test('is one HTML page that asks for nothing from anywhere, whatever is in its texts', () => {
    const one = caseNamed('get-1KiB-x8');
    const turns = [{ one, rounds: [round(one, { fabrickv: 20, redis: 10 })] }];
    const { cases, report } = reportOf(turns);
    const page = peersHtml({
      report,
      cases,
      command: 'npm run bench -- peers --case "</code><script>"',
      date: new Date('2026-01-02T03:04:05Z'),
      disturbed: 'DISTURBED: others',
    });
    assert.match(page, /^<!doctype html>/);
    assert.ok(page.includes('&lt;/code&gt;&lt;script&gt;') && !page.includes('<script'));
    assert.ok(page.includes('A&amp;B CPUs') && page.includes('a &lt;client&gt;'));
    assert.ok(page.includes('DISTURBED: others') && page.includes('2026-01-02'));
    // A namespace is a name, not an address.
    assert.doesNotMatch(page.replaceAll('xmlns="http://www.w3.org/2000/svg"', ''), /https?:|src=|href=|@import|url\(/);
    // GET with 8 in flight: its throughput and its latency, a line for each of two sides.
    assert.equal(page.match(/<svg /g)?.length, 2);
    assert.equal(page.match(/<polyline /g)?.length, 4);
    assert.ok(page.includes('<td class="better">2.00</td>'));
  });
});

function variant(suffix: string, takesPart: () => boolean) {
  return { suffix, clientOptions: {}, serverArgs: [], takes: takesPart };
}
