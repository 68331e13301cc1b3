/**
 * kv-server and kv-client over verbs;ofi_rxm: values, and processes that are killed in the middle of a transfer. To start
 * Node.js takes several seconds in a software processor, so what can be done from this process is.
 */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { FabricKvError, KvClient } from '../../src/index.js';
import { type Finished, parseRecords } from '../support/child.js';
import { spawnClient, startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { inTheMiddle } from '../support/in-the-middle.js';
import { FULL } from '../support/mode.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { ADDRESS, WITHOUT_DEVICE } from './place.js';

const MIB = 1024 * 1024;
/** A software device moves some 0.1 GB/s there, so this takes most of a second. */
const LARGE = 64 * MIB;
const LOG = ['--log-level', 'debug', '--log-format', 'json'];
const PROCESS_TIMEOUT_MS = 60_000;
const NO_TIME = 'no time for it in the short form: FABRICKV_TEST_FULL=1 runs it';
const run = promisify(execFile);

/** Bytes in a period that no page, chunk or extent divides, so that one in the wrong place shows; made in no time. */
const makeValue = (length: number): Buffer => Buffer.alloc(length, randomBytes(4099));

describe('kv-server and kv-client over verbs', { skip: WITHOUT_DEVICE }, () => {
  let server: TestServer;
  /** Keeps this process's rail open, which is slow to open there. */
  let client: KvClient;
  let dir: TempDir;
  /** What the server has under "value". */
  let value: Buffer;

  before(async () => {
    dir = await tempDir();
    server = await startServer({
      args: ['--listen-addr', `${ADDRESS}:0`, '--fabric-addr', ADDRESS, '--provider', 'verbs', '--memory', '224MiB'],
      readyTimeoutMs: PROCESS_TIMEOUT_MS,
    });
    client = await connect();
    await writeFile(dir.file('large'), makeValue(LARGE));
  });
  after(async () => {
    await client?.close();
    await server?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  const connect = (): Promise<KvClient> =>
    KvClient.connect({
      serverAddr: server.addr,
      provider: 'verbs',
      connectTimeoutMs: 20_000,
      timeoutMs: 20_000,
      receiveMemory: 96 * MIB,
    });

  test('a file goes and comes by kv-client', async () => {
    await writeFile(dir.file('in'), makeValue(16 * MIB + 1));
    const get = ['get', 'file', '--out', dir.file('out')];
    for (const args of [['put', 'file', '--file', dir.file('in')], ...(FULL ? [get] : [])]) {
      const ended = await server.client([...args, '--json']);
      assert.equal(ended.code, 0, ended.stderr);
      const { path, provider } = ended.json() as { path: string; provider: string };
      assert.deepEqual({ path, provider }, { path: 'rdma', provider: 'verbs' });
    }
    if (FULL) {
      await run('cmp', [dir.file('in'), dir.file('out')]);
      return;
    }
    // To start another kv-client takes as long as half of the others.
    const got = await client.get('file', { verify: true });
    assert.equal(got?.path, 'rdma');
    assert.ok(got?.bytes.equals(await readFile(dir.file('in'))));
    got?.release();
  });

  for (const [name, length] of [
    ['1 MiB + 7', MIB + 7],
    ['64 MiB', LARGE],
  ] as const) {
    test(`a value of ${name} comes back as it was`, async () => {
      value = makeValue(length);
      assert.equal((await client.put('value', value)).path, 'rdma');
      const got = await client.get('value', { verify: true });
      assert.ok(got !== undefined);
      assert.equal(got.path, 'rdma');
      assert.ok(got.bytes.equals(value));
      got.release();
    });
  }

  /** A new client is served, and nothing of the dead one's is left. */
  async function checkThatAllIsWell(): Promise<void> {
    await using other = await connect();
    const small = makeValue(4 * MIB);
    assert.equal((await other.put('other', small)).path, 'rdma');
    const got = await other.get('other', { verify: true });
    assert.ok(got !== undefined);
    assert.equal(got.path, 'rdma');
    assert.ok(got.bytes.equals(small));
    got.release();
    await other.delete('other');
    await countersWhen(
      async () => (await other.ping()).counters,
      (now) => isQuiet(now, 2),
      {
        what: "the dead client's session, operations and quarantine to end",
      },
    );
  }

  for (const [op, done] of [
    ['put', 'put.published'],
    ['get', 'get.done'],
  ] as const) {
    const skip = op === 'put' || FULL ? false : NO_TIME;
    test(`a client that is killed in the middle of a ${op.toUpperCase()} leaves nothing behind`, { skip }, () =>
      inTheMiddle(async () => {
        const seen = server.records.length;
        const file = op === 'put' ? ['--file', dir.file('large')] : ['--out', '/dev/null'];
        const doomed = spawnClient(['--server-addr', server.addr, ...LOG, op, 'value', ...file]);
        const submitted = ({ stage }: { readonly stage?: string }): boolean => stage === `${op}.write.submitted`;
        if (op === 'put') await doomed.waitForRecord(submitted, PROCESS_TIMEOUT_MS);
        else await server.waitForRecord(submitted, PROCESS_TIMEOUT_MS, seen);
        doomed.kill('SIGKILL');
        assert.equal((await doomed.ended).signal, 'SIGKILL');
        await checkThatAllIsWell();
        return !server.records.slice(seen).some(({ key, stage }) => key === 'value' && stage === done);
      }),
    );
  }

  test('the value is what it was, after all that', async () => {
    const got = await client.get('value', { verify: true });
    assert.ok(got !== undefined);
    assert.ok(got.bytes.equals(value));
    got.release();
  });

  /** It ended with an error that names stage and peer, and the exit code of a connection or a data plane that is lost. */
  function checkEnd({ code, stderr }: Finished): void {
    assert.ok(code === 3 || code === 5 || code === 6, `${code}: ${stderr}`);
    const error = parseRecords(stderr).find((record) => typeof record['error'] === 'object')?.['error'];
    const { stage, peer, remedy } = error as Record<string, unknown>;
    assert.match(String(stage), /^get\./);
    assert.equal(peer, server.addr);
    assert.ok(String(remedy).length > 20);
  }

  // On two slow cores it alone takes as long as half of the others.
  test('a server that is killed in the middle of a GET and a PUT is told as such', {
    skip: FULL ? false : NO_TIME,
  }, async (t) => {
    const putting = (async (): Promise<unknown> => {
      try {
        for (;;) await client.put('again and again', value.subarray(0, LARGE / 2), { timeoutMs: 4000 });
      } catch (error) {
        return error;
      }
    })();
    const seen = server.records.length;
    const getting = spawnClient([
      ...['--server-addr', server.addr, '--timeout', '4s', '--json', ...LOG],
      ...['get', 'value', '--out', dir.file('never')],
    ]);
    await server.waitForRecord(({ stage }) => stage === 'get.write.submitted', PROCESS_TIMEOUT_MS, seen);
    server.kill('SIGKILL');
    checkEnd(await getting.waitForEnd(PROCESS_TIMEOUT_MS));
    assert.ok(!existsSync(dir.file('never')), 'a half-received value was left as a file');
    const error = await putting;
    assert.ok(error instanceof FabricKvError);
    t.diagnostic(`PUT: ${error.code} at ${error.stage}, ${error.outcome}`);
    assert.match(String(error.stage), /^put\./);
    assert.equal(error.peer, server.addr);
  });
});
