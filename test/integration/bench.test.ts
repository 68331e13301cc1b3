import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { PRODUCT_TUNING } from '../../bench/data-plane-cases.js';
import { buildRawPair, RawPair } from '../../bench/raw-pair.js';
import { Child } from '../support/child.js';
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

  test('Ctrl-C ends every process that it has started', async () => {
    const args = [MAIN, 'data-plane', '--rounds', '50', '--provider', 'tcp', '--case', 'get-64KiB'];
    await using bench = new Child(process.execPath, { args });
    const deadline = performance.now() + 60_000;
    while (!bench.stderr.includes('round 1 of 50')) {
      assert.ok(performance.now() < deadline && bench.process.exitCode === null, bench.stderr);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const pids = await descendants(bench.pid);
    // kv-server, the client, raw_write and its target.
    assert.ok(pids.length >= 4, String(pids));
    bench.kill('SIGINT');
    assert.equal((await bench.waitForEnd(10_000)).code, 130);
    while (pids.some(isAlive)) {
      assert.ok(performance.now() < deadline, `still alive: ${pids.filter(isAlive).join(' ')}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });
});

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
