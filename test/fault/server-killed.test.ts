import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { type Child, type Finished, type LogRecord, parseRecords } from '../support/child.js';
import { spawnClient, startServer, type TestServer } from '../support/commands.js';
import { FULL, PROCESS_SLACK_MS, roomyDirectory, SETTLE_SLACK_MS } from '../support/mode.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { writeValueFile } from '../support/values.js';

const MIB = 1024 * 1024;
const LENGTH = FULL ? 1024 * MIB : 512 * MIB;
const TIMEOUT_MS = 3000;
const LOG = ['--log-level', 'debug', '--log-format', 'json'];

describe('the server is killed with -9 in the middle of a large transfer', () => {
  let dir: TempDir;
  before(async () => {
    dir = await tempDir({ parent: roomyDirectory() });
    await writeValueFile(dir.file('value'), LENGTH, 1);
  });
  after(() => dir?.[Symbol.asyncDispose]());

  async function serverWithValue(): Promise<TestServer> {
    const server = await startServer({ args: ['--memory', `${LENGTH / MIB + 16}MiB`] });
    const put = await server.client(['put', 'value', '--file', dir.file('value')]);
    assert.equal(put.code, 0, put.stderr);
    return server;
  }

  function start(server: TestServer, args: readonly string[]): Child {
    return spawnClient([...['--server-addr', server.addr, '--timeout', `${TIMEOUT_MS}ms`, '--json'], ...LOG, ...args]);
  }

  /** It ended in time, with an error that names stage and peer, and the right exit code. */
  function checkEnd(ended: Finished, op: 'get' | 'put', peer: string, frozenMs = 0): Record<string, unknown> {
    const { stderr } = ended;
    assert.equal(ended.signal, null, stderr);
    assert.ok(ended.code === 3 || ended.code === 5 || ended.code === 6, `exit code ${ended.code}: ${stderr}`);
    const deadlineMs = TIMEOUT_MS + SETTLE_SLACK_MS;
    assert.ok(ended.ms <= deadlineMs + PROCESS_SLACK_MS + frozenMs, `the process ran for ${ended.ms} ms`);
    const records = parseRecords(stderr);
    const [begin, end] = [`${op}.start`, `${op}.failed`].map((stage) =>
      records.find((record) => record.stage === stage),
    );
    assert.ok(begin !== undefined && end !== undefined, stderr);
    assert.ok(
      timeOf(end) - timeOf(begin) <= deadlineMs + frozenMs,
      `the operation took ${timeOf(end) - timeOf(begin)} ms`,
    );
    const line = records.find((record) => 'error' in record && typeof record['error'] === 'object');
    const error = line?.['error'] as Record<string, unknown>;
    assert.match(String(error['stage']), new RegExp(`^${op}\\.[a-z.]+$`));
    assert.equal(error['peer'], peer);
    assert.equal(error['exitCode'], ended.code);
    assert.equal(error['requestId'], end.requestId);
    assert.ok(String(error['remedy']).length > 20);
    return error;
  }

  test('GET by RDMA', async (t) => {
    await using server = await serverWithValue();
    const client = start(server, ['get', 'value', '--out', dir.file('out')]);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    server.kill('SIGKILL');
    await server.child.ended;
    assert.ok(!server.stages().includes('get.write.completed'), 'it was killed too late; the value is too small');
    const error = checkEnd(await client.waitForEnd(TIMEOUT_MS * 3), 'get', server.addr);
    t.diagnostic(`${error['code']} at ${error['stage']}: ${error['message']}`);
    assert.ok(!existsSync(dir.file('out')), 'a half-received value was left as a file');
  });

  test('GET by RDMA, surely in its middle, because the client was stopped meanwhile', async () => {
    await using server = await serverWithValue();
    const client = start(server, ['get', 'value', '--out', dir.file('out')]);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted');
    client.kill('SIGSTOP');
    server.kill('SIGKILL');
    await server.child.ended;
    client.kill('SIGCONT');
    checkEnd(await client.waitForEnd(TIMEOUT_MS * 3), 'get', server.addr);
    assert.ok(!existsSync(dir.file('out')));
  });

  test('GET inline', async () => {
    await using server = await serverWithValue();
    const client = start(server, ['get', 'value', '--out', dir.file('out'), '--inline-threshold', 'max']);
    await server.waitForRecord(({ stage }) => stage === 'get.transfer.created');
    server.kill('SIGKILL');
    await server.child.ended;
    checkEnd(await client.waitForEnd(TIMEOUT_MS * 3), 'get', server.addr);
    assert.ok(!existsSync(dir.file('out')));
  });

  for (const [path, at] of [
    ['RDMA', 'put.write.submitted'],
    ['inline', 'put.grant.received'],
  ] as const) {
    test(`PUT ${path}`, async () => {
      await using server = await startServer({ args: ['--memory', `${LENGTH / MIB + 16}MiB`] });
      const threshold = path === 'RDMA' ? '0' : 'max';
      const client = start(server, ['put', 'value', '--file', dir.file('value'), '--inline-threshold', threshold]);
      await client.waitForRecord(({ stage }) => stage === at);
      server.kill('SIGKILL');
      await server.child.ended;
      assert.ok(!server.stages().includes('put.commit.received'), 'it was killed too late; the value is too small');
      const error = checkEnd(await client.waitForEnd(TIMEOUT_MS * 3), 'put', server.addr);
      assert.equal(error['outcome'], 'not-applied');
    });
  }
});

function timeOf(record: LogRecord): number {
  return Date.parse(String(record['time']));
}
