import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { main } from '../../src/cli/kv-client.js';
import { KvClient } from '../../src/index.js';
import { spawnClient, startServer, type TestServer } from '../support/commands.js';
import { waitFor } from '../support/wait-for.js';

const END_MS = 20_000;
const MIB = 1024 * 1024;

/** What `kv-client bench --json` printed, as far as these tests look at it. */
interface BenchObject {
  readonly operations: number;
  readonly operationsPerSecond: number;
  readonly seconds: number;
  readonly gets: number;
  readonly puts: number;
  readonly misses: number;
  readonly bytes: number;
  readonly interrupted: boolean;
  readonly latency: Readonly<Record<'all' | 'get' | 'put', Readonly<Record<string, number>> | null>>;
  readonly paths: Readonly<Record<'get' | 'put', { readonly inline: number; readonly rdma: number }>>;
  readonly clientCpuSeconds: number;
  readonly serverCounters: Readonly<Record<string, number>>;
  readonly keysDeleted: number;
}

describe('kv-client bench', () => {
  let server: TestServer;
  let observer: KvClient;
  const SHORT = ['--duration', '200ms', '--warmup', '50ms'];

  const keysStored = async (): Promise<number | undefined> => (await observer.ping()).counters['keys'];
  /** While keys are loaded the server counts no GETs: with the first one the measuring has begun. */
  const gets = async (client: KvClient): Promise<number> => (await client.ping()).counters['getsInline'] ?? 0;
  const connect = (to: TestServer): Promise<KvClient> => KvClient.connect({ serverAddr: to.addr, provider: 'none' });

  before(async () => {
    server = await startServer({ args: ['--memory', '64MiB', '--log-level', 'info'] });
    observer = await connect(server);
  });
  after(async () => {
    await observer.close();
    await server[Symbol.asyncDispose]();
  });

  it('counts what the server counts, and deletes its keys and no others', async () => {
    await observer.put('bench:other', 'mine');
    const run = await server.client(['bench', ...SHORT, '--keys', '100', '--ratio', '3:1', '--json']);
    assert.deepEqual([run.code, run.stderr], [0, '']);
    const bench = run.json() as BenchObject;
    const { gets, puts, paths, latency, serverCounters } = bench;
    assert.ok(gets > puts && puts > 0, `${gets} GETs, ${puts} PUTs`);
    assert.deepEqual([bench.operations, bench.misses, bench.bytes], [gets + puts, 0, 100 * (gets + puts)]);
    // Nothing of the loading or the warm-up is in them.
    assert.deepEqual(paths, { get: { inline: gets, rdma: 0 }, put: { inline: puts, rdma: 0 } });
    assert.deepEqual([serverCounters['getsInline'], serverCounters['putsInline']], [gets, puts]);
    assert.deepEqual(
      [latency.all?.['count'], latency.get?.['count'], latency.put?.['count']],
      [gets + puts, gets, puts],
    );
    assert.ok(bench.seconds >= 0.2 && bench.clientCpuSeconds > 0 && bench.operationsPerSecond > 0);
    assert.equal(bench.keysDeleted, 100);
    assert.equal(await keysStored(), 1);
    assert.ok(await observer.delete('bench:other'));
  });

  it('takes the RDMA path for large values, keeps the keys when told, and prints a table', async () => {
    const args = ['--keys', '4', '--value-size', '1MiB', '--concurrency', '2', '--prefix', 'large:', '--keep'];
    const run = await server.client(['bench', ...SHORT, ...args, '--ratio', '0.5', '--distribution', 'sequential']);
    assert.equal(run.code, 0, run.stderr);
    assert.match(run.text, /data plane tcp: 4 keys of 1MiB, sequential, 50% GETs, 2 in flight\n/);
    for (const operation of ['GET', 'PUT']) {
      // Operations, a second, MB/s, four latencies, none inline, and as many by RDMA as there were.
      assert.match(run.text, new RegExp(`│ ${operation} │ +([\\d,]+) │(?: +[\\d,.]+ │){6} +0 │ +\\1 │\n`));
    }
    assert.match(run.text, /^client CPU +\d+\.\d\d s$/m);
    assert.match(run.text, /^keys +4 stay, beginning with "large:"$/m);
    assert.equal((await observer.stat('large:3'))?.length, MIB);
    for (let key = 0; key < 4; key++) assert.ok(await observer.delete(`large:${key}`));
  });

  it('issues operations at a rate, of GETs only', async () => {
    const args = ['--keys', '10', '--rate', '100', '--ratio', '1', '--warmup', '0', '--provider', 'none'];
    const run = await server.client(['bench', '--duration', '200ms', ...args, '--json']);
    assert.equal(run.code, 0, run.stderr);
    const { operations, puts, latency } = run.json() as BenchObject;
    // 64 lanes, each of which would make thousands.
    assert.deepEqual([operations, puts, latency.put], [20, 0, null]);
  });

  it('says that the keys do not fit, and leaves none of them', async () => {
    const run = await server.client(['bench', ...SHORT, '--keys', '1000', '--value-size', '1MiB']);
    assert.deepEqual([run.code, run.text], [4, ''], run.stderr);
    assert.match(
      run.stderr,
      /^kv-client: ERR_FABRICKV_CAPACITY: 1000 keys of 1MiB do not fit into the server's memory: \d+ were stored, /,
    );
    assert.match(run.stderr, /\n {2}remedy {2}give fewer --keys/);
    assert.equal(await keysStored(), 0);
  });

  it('tells what there was when it is interrupted, deletes its keys, and ends with 130', async () => {
    const before = await gets(observer);
    const args = ['bench', '--duration', '1m', '--warmup', '0', '--keys', '500', '--provider', 'none', '--json'];
    await using child = spawnClient(['--server-addr', server.addr, ...args]);
    await waitFor(async () => (await gets(observer)) > before, { what: 'the load', timeoutMs: END_MS });
    child.kill('SIGINT');
    const ended = await child.waitForEnd(END_MS);
    assert.deepEqual([ended.code, ended.signal, ended.stderr], [130, null, '']);
    const bench = JSON.parse(ended.stdout.toString('utf8')) as BenchObject;
    assert.equal(bench.interrupted, true);
    assert.ok(bench.operations > 0 && bench.serverCounters['getsInline'] === bench.gets);
    assert.equal(bench.keysDeleted, 500);
    assert.equal(await keysStored(), 0);
  });

  it('tells what there was also when the server answers nothing any more', async () => {
    await using stuck = await startServer({ args: ['--log-level', 'info'] });
    await using watcher = await connect(stuck);
    const args = ['bench', '--duration', '1m', '--warmup', '0', '--keys', '10', '--provider', 'none', '--json'];
    await using child = spawnClient(['--server-addr', stuck.addr, ...args]);
    await waitFor(async () => (await gets(watcher)) > 0, { what: 'the load', timeoutMs: END_MS });
    await watcher.close();
    stuck.kill('SIGSTOP');
    child.kill('SIGINT');
    const ended = await child.waitForEnd(END_MS);
    assert.equal(ended.code, 130, ended.stderr);
    const bench = JSON.parse(ended.stdout.toString('utf8')) as BenchObject & { readonly deleteError: string | null };
    assert.ok(bench.operations > 0);
    assert.deepEqual([bench.serverCounters, bench.keysDeleted, typeof bench.deleteError], [null, 0, 'string']);
  });

  it('refuses what it does not understand before it asks the server', async () => {
    for (const [args, message] of [
      [['--keys', '0'], /keys \(from --keys\): "0" is less than 1/],
      [['--keys', '2000000'], /"2000000" is more than 1000000/],
      [['--value-size', '1XB'], /value-size \(from --value-size\): "1XB" is not a size/],
      [['--ratio', '1.5'], /ratio \(from --ratio\): "1.5" is more than 1\n/],
      [['--ratio', '0:0'], /the parts of "0:0" make no whole/],
      [['--duration', '10'], /"10" has no unit/],
      [['--rate', '5', '--rate', '6'], /it is given 2 times/],
      [['--distribution', 'zipf'], /"zipf" is none of uniform, zipfian, sequential/],
      [['--prefix', 'x'.repeat(1001)], /it has 1001 bytes, more than 1000/],
      [['key'], /unexpected argument "key"/],
      [['--concurency', '1'], /unknown flag --concurency\n {2}remedy {2}did you mean --concurrency\?/],
    ] as const) {
      const { code, stderr } = await refusal(args);
      assert.equal(code, 2, stderr);
      assert.match(stderr, message);
    }
  });
});

/** In this process: eleven of its own would take longer than all the rest. */
async function refusal(args: readonly string[]): Promise<{ readonly code: number; readonly stderr: string }> {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  // Nobody listens at this address.
  const code = await main(['--server-addr', '127.0.0.1:1', 'bench', ...args], { stdin, stdout, stderr, env: {} });
  stderr.end();
  return { code, stderr: await text(stderr) };
}
