import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS, STREAM_SILENCE_MS_MAX } from '../../src/protocol/limits.js';
import { Child } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { PAUSING_LENGTH, PAUSING_SEED } from '../support/put-pausing-stream.js';
import { crc32cOf, makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const PUT_PAUSING_STREAM = fileURLToPath(new URL('../support/put-pausing-stream.js', import.meta.url));
const PATHS = ['rdma', 'inline'] as const;
const VALUE_CRC = crc32cOf(makeValue(PAUSING_LENGTH, PAUSING_SEED));

/** A process that puts a stream, which is silent by now. */
class PausingPut implements AsyncDisposable {
  #printed = '';
  readonly child: Child;

  private constructor(addr: string, key: string, path: string, source: string) {
    this.child = new Child(process.execPath, {
      args: [PUT_PAUSING_STREAM, addr, key, path, source],
      stdin: 'open',
      onStdout: (chunk) => {
        this.#printed += chunk.toString();
      },
    });
  }

  static async start(server: TestServer, key: string, path: string, source: string): Promise<PausingPut> {
    const put = new PausingPut(server.addr, key, path, source);
    await waitFor(() => put.#printed.includes('silent\n'), { what: 'the silence', timeoutMs: 20_000 });
    // Its beginning has to be there, or it would not be room that is held.
    await server.waitForRecord(({ stage, key: of }) => stage === 'put.granted' && of === key);
    return put;
  }

  /** The source goes on. Answers with what the process says in the end. */
  async goOn(): Promise<string> {
    this.child.process.stdin?.end();
    const ended = await this.child.waitForEnd(20_000);
    assert.equal(ended.code, 0, ended.stderr);
    return this.#printed.replace('silent\n', '').trim();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.child[Symbol.asyncDispose]();
  }
}

const skip = FULL ? false : 'takes over a minute, because its times are real: FABRICKV_TEST_FULL=1 runs it';

describe('a stream that is silent in its middle', { skip, concurrency: true }, () => {
  test('is stored when it goes on, however long that takes: its client has kept its room', async () => {
    await using server = await startServer({ args: ['--memory', '64MiB'] });
    await using rdma = await PausingPut.start(server, 'rdma', 'rdma', 'once');
    await using inline = await PausingPut.start(server, 'inline', 'inline', 'once');
    // Longer than the room is kept for, and than a connection without answers lives.
    await sleep(2.5 * STREAM_SILENCE_MS_MAX);
    assert.ok(!server.stages().includes('put.failed'));
    assert.deepEqual(await Promise.all([rdma.goOn(), inline.goOn()]), [`${VALUE_CRC} 1`, `${VALUE_CRC} 1`]);
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    for (const key of PATHS) assert.equal((await client.get(key, { verify: true }))?.crc32c, VALUE_CRC);
  });

  for (const { source, outlived } of [
    { source: 'once', outlived: false },
    { source: 'again', outlived: false },
    { source: 'once', outlived: true },
    { source: 'again', outlived: true },
  ]) {
    const what = source === 'again' ? 'is stored anew, of a function' : 'fails when it goes on';
    const long = outlived ? ' for longer than its session lives' : '';
    test(`and whose client is stopped (SIGSTOP)${long} loses its room, and ${what}`, async () => {
      await using server = await startServer({ args: ['--memory', '64MiB'] });
      await using other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
      for (const key of PATHS) await other.put(key, 'old');
      const before = (await other.ping()).counters;
      await using rdma = await PausingPut.start(server, 'rdma', 'rdma', source);
      await using inline = await PausingPut.start(server, 'inline', 'inline', source);
      const held = (await other.ping()).counters;
      assert.ok((held['memoryFreeBytes'] ?? 0) < (before['memoryFreeBytes'] ?? 0) - PAUSING_LENGTH);
      rdma.child.kill('SIGSTOP');
      inline.child.kill('SIGSTOP');
      const failed = await Promise.all(
        PATHS.map((path) =>
          server.waitForRecord(
            ({ stage, key }) => stage === 'put.failed' && key === path,
            KEEPALIVE_TIME_MS + KEEPALIVE_TIMEOUT_MS + 20_000,
          ),
        ),
      );
      // Not because the connection was lost, which takes longer.
      assert.deepEqual(
        failed.map(({ code }) => code),
        Array(2).fill('ERR_FABRICKV_DEADLINE'),
      );
      // All that was free before can be had: also what the stopped client could write to.
      await countersWhen(
        async () => (await other.ping()).counters,
        (counters) => counters['memoryFreeBytes'] === before['memoryFreeBytes'],
        { what: 'the room of the stopped clients' },
      );
      for (const key of PATHS) assert.equal((await other.get(key))?.bytes.toString(), 'old');
      if (outlived) {
        await countersWhen(
          async () => (await other.ping()).counters,
          ({ sessions }) => sessions === 1,
          { what: 'the end of the sessions', timeoutMs: KEEPALIVE_TIME_MS + KEEPALIVE_TIMEOUT_MS },
        );
      }
      rdma.child.kill('SIGCONT');
      inline.child.kill('SIGCONT');
      const said = await Promise.all([rdma.goOn(), inline.goOn()]);
      for (const [i, key] of PATHS.entries()) {
        const got = await other.get(key, { verify: true });
        if (source === 'again') {
          assert.deepEqual([said[i], got?.crc32c], [`${VALUE_CRC} 2`, VALUE_CRC]);
        } else {
          // What the server said last may be read before the end of the connection, or be lost with it.
          const codes = outlived ? ['GRANT_ENDED', 'CONNECTION_LOST'] : ['GRANT_ENDED'];
          assert.ok(codes.map((code) => `ERR_FABRICKV_${code} not-applied`).includes(said[i] ?? ''), said[i]);
          assert.equal(got?.bytes.toString(), 'old');
        }
        got?.release();
        assert.equal(await other.delete(key), true);
      }
      const counters = await countersWhen(async () => (await other.ping()).counters, isQuiet, {
        what: 'the sessions and the quarantine to end',
      });
      assert.equal(counters['memoryUsedBytes'], 0);
    });
  }
});
