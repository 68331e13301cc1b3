import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { type Child, type Finished, type LogRecord, parseRecords } from '../support/child.js';
import { spawnClient, startServer, type TestServer } from '../support/commands.js';
import { inTheMiddle } from '../support/in-the-middle.js';
import { FULL, PROCESS_SLACK_MS, roomyDirectory, SETTLE_SLACK_MS } from '../support/mode.js';
import { makeZeros, storeLarge } from '../support/store-large.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';

const MIB = 1024 * 1024;
const LENGTH = FULL ? 1024 * MIB : 512 * MIB;
const TIMEOUT_MS = 2000;
const LOG = ['--log-level', 'debug', '--log-format', 'json'];

describe('the server is killed with -9 in the middle of a large transfer', () => {
  let dir: TempDir;
  before(async () => {
    dir = await tempDir({ parent: roomyDirectory() });
    await makeZeros(dir.file('value'), LENGTH);
  });
  after(() => dir?.[Symbol.asyncDispose]());

  async function serverWithValue(): Promise<TestServer> {
    const server = await startServer({ args: ['--memory', `${LENGTH / MIB + 16}MiB`] });
    await storeLarge(server.addr, 'value', LENGTH);
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
    const records = parseRecords(stderr);
    const [begin, end] = [`${op}.start`, `${op}.failed`].map((stage) =>
      records.find((record) => record.stage === stage),
    );
    assert.ok(begin !== undefined && end !== undefined, stderr);
    assert.ok(
      timeOf(end) - timeOf(begin) <= deadlineMs + frozenMs,
      `the operation took ${timeOf(end) - timeOf(begin)} ms`,
    );
    // The time limit is the operation's; reading a file beforehand is not part of it.
    const processMs = Date.now() - timeOf(begin);
    assert.ok(
      processMs <= deadlineMs + PROCESS_SLACK_MS + frozenMs,
      `the process ended ${processMs} ms after ${op}.start`,
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

  for (const [path, at] of [
    ['RDMA', 'get.write.submitted'],
    ['inline', 'get.transfer.created'],
  ] as const) {
    test(`GET ${path}`, (t) =>
      inTheMiddle(async () => {
        await using server = await serverWithValue();
        const threshold = path === 'RDMA' ? '0' : 'max';
        const out = dir.file('out');
        const client = start(server, ['get', 'value', '--out', out, '--inline-threshold', threshold]);
        await server.waitForRecord(({ stage }) => stage === at);
        server.kill('SIGKILL');
        await server.child.ended;
        const ended = await client.waitForEnd(TIMEOUT_MS * 10);
        if (ended.code === 0) return false;
        const error = checkEnd(ended, 'get', server.addr);
        t.diagnostic(`${error['code']} at ${error['stage']}: ${error['message']}`);
        assert.ok(!existsSync(out), 'a half-received value was left as a file');
        return true;
      }));
  }

  for (const [path, at] of [
    ['RDMA', 'put.write.submitted'],
    ['inline', 'put.grant.received'],
  ] as const) {
    test(`PUT ${path}`, (t) =>
      inTheMiddle(async () => {
        await using server = await startServer({ args: ['--memory', `${LENGTH / MIB + 16}MiB`] });
        const threshold = path === 'RDMA' ? '0' : 'max';
        const client = start(server, ['put', 'value', '--file', dir.file('value'), '--inline-threshold', threshold]);
        await client.waitForRecord(({ stage }) => stage === at);
        server.kill('SIGKILL');
        await server.child.ended;
        const ended = await client.waitForEnd(TIMEOUT_MS * 10);
        if (server.stages().includes('put.commit.received')) return false;
        const error = checkEnd(ended, 'put', server.addr);
        t.diagnostic(`${error['code']} at ${error['stage']}: ${error['message']}`);
        assert.equal(error['outcome'], 'not-applied');
        return true;
      }));
  }
});

function timeOf(record: LogRecord): number {
  return Date.parse(String(record['time']));
}
