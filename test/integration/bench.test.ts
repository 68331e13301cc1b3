import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { PRODUCT_TUNING } from '../../bench/data-plane-cases.js';
import { buildRawPair, RawPair } from '../../bench/raw-pair.js';
import { Child } from '../support/child.js';
import { FULL } from '../support/mode.js';
import { ROOT } from '../support/paths.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const MAIN = `${ROOT}dist/bench/main.js`;

/** Nothing here says how fast anything must be: that depends on the machine. */
describe('the benchmark of the data plane', { timeout: 240_000 }, () => {
  before(() => buildRawPair());

  test('the raw pair writes whole values, and serves one case after the other', async () => {
    await using raw = await RawPair.start({
      provider: 'tcp;ofi_rxm',
      sourceAddress: '127.0.0.1',
      memoryBytes: 32 * MIB,
    });
    assert.equal(raw.fabric.provider, 'tcp;ofi_rxm');
    assert.match(raw.fabric.libfabric, /^\d+\.\d+$/);
    for (const [sizeBytes, inFlight] of [
      [64 * KIB, 8],
      // Neither whole chunks nor whole cache lines.
      [3 * MIB + 1, 2],
    ] as const) {
      const measured = await raw.measure({
        ...PRODUCT_TUNING.tcp,
        sizeBytes,
        inFlight,
        sourceBytes: 16 * MIB,
        sinkBytes: 16 * MIB,
        seconds: 0.1,
        warmupSeconds: 0,
      });
      assert.ok(measured.values >= inFlight);
      assert.equal(measured.bytes, measured.values * sizeBytes);
      assert.ok(measured.seconds >= 0.1);
      assert.ok(0 < measured.p50Us && measured.p50Us <= measured.p99Us && measured.p99Us <= measured.p999Us);
    }
  });

  test('the raw pair refuses a case that does not fit into its memory', async () => {
    await using raw = await RawPair.start({ provider: 'tcp;ofi_rxm', sourceAddress: '127.0.0.1', memoryBytes: MIB });
    const what = { ...PRODUCT_TUNING.tcp, sizeBytes: 2 * MIB, inFlight: 1, sourceBytes: 0, sinkBytes: 0 };
    await assert.rejects(raw.measure({ ...what, seconds: 0, warmupSeconds: 0 }), /raw_write has ended/);
  });

  test('prints one JSON object with a row per metric, each a ratio to raw', async () => {
    const args = [
      MAIN,
      'data-plane',
      '--json',
      '--rounds',
      '1',
      '--time',
      '50ms',
      '--warmup',
      '0',
      '--provider',
      'tcp',
    ];
    const ended = await new Child(process.execPath, { args: [...args, '--case', 'get-64KiB-x8'] }).waitForEnd(120_000);
    assert.equal(ended.code, 0, ended.stderr);
    const report = JSON.parse(ended.stdout.toString()) as Record<string, unknown>;
    assert.deepEqual(Object.keys(report), ['suite', 'machine', 'provider', 'libfabric', 'rounds', 'cases']);
    assert.deepEqual([report['suite'], report['provider'], report['rounds']], ['data-plane', 'tcp;ofi_rxm', 1]);
    const rows = report['cases'] as Record<string, unknown>[];
    assert.deepEqual(
      rows.map((row) => row['metric']),
      ['throughput', 'p50', 'p99', 'p999', 'cpuSeconds'],
    );
    for (const row of rows) {
      assert.deepEqual(Object.keys(row), ['case', 'metric', 'unit', 'value', 'peer', 'peerValue', 'ratio']);
      assert.deepEqual([row['case'], row['peer']], ['get-64KiB-x8', 'raw']);
    }
    const [throughput] = rows;
    assert.ok(Number(throughput?.['value']) > 0 && Number(throughput?.['ratio']) > 0);
  });

  test('ends with 2 and a remedy when the arguments make no sense', async () => {
    const ended = await new Child(process.execPath, { args: [MAIN, 'data-plane', '--rounds', 'many'] }).waitForEnd(
      20_000,
    );
    assert.equal(ended.code, 2);
    assert.match(ended.stderr, /--rounds is "many".*\n {2}remedy/);
    assert.equal(ended.stdout.length, 0);
  });

  test('says before it measures that a page cannot be written', async () => {
    const args = [MAIN, 'peers', '--html', `${ROOT}package.json/report.html`];
    const ended = await new Child(process.execPath, { args }).waitForEnd(20_000);
    assert.equal(ended.code, 2);
    assert.match(ended.stderr, /--html cannot be written: ENOTDIR/);
  });

  test('Ctrl-C ends every process that it has started', async () => {
    // kv-server, the client, raw_write and its target.
    await endsWhatItStarted(['data-plane', '--provider', 'tcp', '--case', 'get-64KiB'], 4);
  });
});

/** Servers that are not there are no failure, but no test either. */
const peersMissing = ['redis-server', 'memcached']
  .filter((command) => spawnSync(command, ['--version']).error !== undefined)
  .map((command) => `${command} is not installed: npm run bench -- peers installs it`);

describe('the benchmark of the peers', { timeout: 120_000, skip: peersMissing[0] ?? false }, () => {
  test('prints a row per case, metric and peer, and writes a page', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'fabrickv-bench-'));
    try {
      const html = join(directory, 'report.html');
      const report = await measureOnce(['peers', '--case', 'ycsb-a-100B', '--html', html]);
      const keys = ['suite', 'machine', 'provider', 'libfabric', 'rounds', 'cases', 'contenders', 'notes'];
      assert.deepEqual(Object.keys(report), keys);
      assert.deepEqual([report['suite'], report['rounds'], report['notes']], ['peers', 1, []]);
      const contenders = report['contenders'] as Record<string, string>[];
      assert.deepEqual(
        contenders.map(({ name, server }) => [name, server?.replace(/[\d.]+/, 'N')]),
        [
          ['fabrickv', 'FabricKV N'],
          ['redis-auto', 'Redis N'],
          ['redis', 'Redis N'],
          ['memcached', 'memcached N'],
        ],
      );
      const rows = report['cases'] as Record<string, unknown>[];
      const rates = rows.filter((row) => row['metric'] === 'throughput');
      assert.deepEqual(
        rates.map((row) => [row['case'], row['peer'], row['unit']]),
        ['redis-auto', 'redis', 'memcached'].map((peer) => ['ycsb-a-100B-x64', peer, 'ops/s']),
      );
      for (const row of rates) assert.ok(Number(row['value']) > 0 && Number(row['ratio']) > 0);
      const page = await readFile(html, 'utf8');
      assert.match(page, /^<!doctype html>[\s\S]*ycsb-a-100B-x64[\s\S]*<\/html>\n$/);
      assert.ok(page.includes('npm run bench -- peers --case ycsb-a-100B'));
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  const skip = FULL ? false : 'as for the suite data-plane: FABRICKV_TEST_FULL=1 runs it';
  test('Ctrl-C ends every process that it has started', { skip }, async () => {
    // kv-server, redis-server, and a client of either.
    await endsWhatItStarted(['peers', '--peer', 'redis', '--case', 'get-16B-x1'], 4);
  });
});

describe('the benchmark of the inline threshold', { timeout: 120_000 }, () => {
  test('compares both paths, says where they cross, and writes a plot', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'fabrickv-bench-'));
    try {
      const svg = join(directory, 'plot.svg');
      const cases = ['--case', 'get-1KiB-x16', '--case', 'put-256KiB-x16'];
      const report = await measureOnce(['inline-threshold', '--provider', 'tcp', ...cases, '--svg', svg]);
      assert.deepEqual([report['suite'], report['provider']], ['inline-threshold', 'tcp;ofi_rxm']);
      const rows = report['cases'] as Record<string, unknown>[];
      assert.deepEqual(
        rows.map((row) => [row['case'], row['metric'], row['peer']]).filter(([, metric]) => metric === 'throughput'),
        ['get-1KiB-x16', 'put-256KiB-x16'].map((name) => [name, 'throughput', 'inline']),
      );
      const found = report['crossings'] as Record<string, unknown>[];
      assert.deepEqual(
        found.map(({ operation, inFlight }) => [operation, inFlight]),
        [
          ['get', 16],
          ['put', 16],
        ],
      );
      assert.match(await readFile(svg, 'utf8'), /^<svg [\s\S]*GET: GB\/s[\s\S]*PUT: GB\/s[\s\S]*<\/svg>\n$/);
    } finally {
      await rm(directory, { recursive: true });
    }
  });
});

/** One short round; the report. */
async function measureOnce(args: readonly string[]): Promise<Record<string, unknown>> {
  const short = ['--json', '--rounds', '1', '--time', '20ms', '--warmup', '0'];
  const ended = await new Child(process.execPath, { args: [MAIN, ...args, ...short] }).waitForEnd(60_000);
  assert.equal(ended.code, 0, ended.stderr);
  return JSON.parse(ended.stdout.toString()) as Record<string, unknown>;
}

/** Interrupts a suite in its first round, when it has at least so many processes. */
async function endsWhatItStarted(args: readonly string[], processesMin: number): Promise<void> {
  await using bench = new Child(process.execPath, { args: [MAIN, ...args, '--rounds', '50', '--time', '100ms'] });
  const deadline = performance.now() + 60_000;
  while (!bench.stderr.includes('50 rounds each')) {
    assert.ok(performance.now() < deadline && bench.process.exitCode === null, bench.stderr);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const pids = await descendants(bench.pid);
  assert.ok(pids.length >= processesMin, String(pids));
  bench.kill('SIGINT');
  assert.equal((await bench.waitForEnd(10_000)).code, 130);
  while (pids.some(isAlive)) {
    assert.ok(performance.now() < deadline, `still alive: ${pids.filter(isAlive).join(' ')}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function descendants(pid: number): Promise<number[]> {
  const { stdout } = await new Child('ps', { args: ['-eo', 'pid=,ppid='] }).waitForEnd(10_000);
  const rows = stdout
    .toString()
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number));
  const found: number[] = [];
  const visit = (parent: number): void => {
    for (const [child = 0, of] of rows) {
      if (of !== parent) continue;
      found.push(child);
      visit(child);
    }
  };
  visit(pid);
  return found;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
