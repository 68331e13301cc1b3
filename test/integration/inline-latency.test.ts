import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { spawnClient, startServer } from '../support/commands.js';
import { roomyDirectory } from '../support/mode.js';
import { tempDir } from '../support/temp-dir.js';
import { percentile, writeValueFile } from '../support/values.js';

const GIB = 1024 ** 3;
const P99_MS_MAX = 50;
const SAMPLES_MIN = 100;

describe('a large inline value does not hold up small ones', () => {
  test('while 1 GiB travels inline each way, 100 B GETs of another session keep a p99 under 50 ms', async (t) => {
    await using dir = await tempDir({ parent: roomyDirectory() });
    await using server = await startServer({ args: ['--memory', '1088MiB', '--log-level', 'info'] });
    await writeValueFile(dir.file('big'), GIB, 1);
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    await client.put('small', Buffer.alloc(100, 1));

    for (const args of [
      ['put', 'big', '--file', dir.file('big')],
      ['get', 'big', '--out', dir.file('copy')],
    ]) {
      const large = spawnClient([
        ...['--server-addr', server.addr, '--inline-threshold', 'max', '--timeout', '2m', '--provider', 'none'],
        ...['--json', '--log-level', 'debug', '--log-format', 'json', ...args],
      ]);
      const begun = args[0] === 'put' ? 'put.grant.received' : 'get.request.sent';
      const done = args[0] === 'put' ? 'put.commit.sent' : 'get.done';
      await large.waitForRecord(({ stage }) => stage === begun);
      const samples: number[] = [];
      while (!large.records.some(({ stage }) => stage === done) && large.process.exitCode === null) {
        const startedAtMs = performance.now();
        const value = await client.get('small', { timeoutMs: 5000 });
        samples.push(performance.now() - startedAtMs);
        assert.equal(value?.length, 100);
      }
      const ended = await large.waitForEnd(120_000);
      assert.equal(ended.code, 0, ended.stderr);
      const result = JSON.parse(ended.stdout.toString()) as Record<string, unknown>;
      assert.deepEqual([result['path'], result['bytes']], ['inline', GIB]);
      assert.ok(samples.length >= SAMPLES_MIN, `only ${samples.length} GETs while the value travelled`);
      const [p50, p99] = [percentile(samples, 0.5), percentile(samples, 0.99)];
      t.diagnostic(
        `${args[0]} 1 GiB inline in ${result['ms']} ms; ${samples.length} small GETs: p50 ${p50.toFixed(2)} ms, ` +
          `p99 ${p99.toFixed(2)} ms, max ${Math.max(...samples).toFixed(2)} ms`,
      );
      assert.ok(p99 < P99_MS_MAX, `p99 ${p99} ms`);
    }
    const compared = await new Child('cmp', { args: [dir.file('big'), dir.file('copy')] }).waitForEnd(60_000);
    assert.equal(compared.code, 0, `cmp: ${compared.stdout.toString()}${compared.stderr}`);
  });
});
