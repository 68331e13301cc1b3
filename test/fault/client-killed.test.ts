import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { spawnClient, startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet, type ServerCounters } from '../support/counters.js';
import { inTheMiddle } from '../support/in-the-middle.js';
import { FULL, roomyDirectory } from '../support/mode.js';
import { makeZeros, storeLarge } from '../support/store-large.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { makeValue } from '../support/values.js';

const MIB = 1024 * 1024;
const LENGTH = FULL ? 1024 * MIB : 512 * MIB;
const OTHER_LENGTH = 4 * MIB;

describe('a client is killed with -9 in the middle of a large transfer', () => {
  let server: TestServer;
  let other: KvClient;
  let dir: TempDir;
  const value = makeValue(OTHER_LENGTH, 3);

  before(async () => {
    dir = await tempDir({ parent: roomyDirectory() });
    await makeZeros(dir.file('value'), LENGTH);
    server = await startServer({ args: ['--memory', `${(LENGTH / MIB) * 2 + 32}MiB`] });
    other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: 5000 });
    await other.put('other', value);
    await storeLarge(server.addr, 'large', LENGTH);
  });
  after(async () => {
    await other?.close();
    await server?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  const settled = (): Promise<ServerCounters> =>
    // The one peer that is left is away for a moment while the server proves that its own old windows are safe.
    countersWhen(
      async () => (await other.ping()).counters,
      (now) => isQuiet(now) && now['railPeers'] === 1,
      {
        what: "the dead client's session, operations and quarantine to end",
      },
    );

  /** Another client is served while the dead one is cleaned up. */
  async function serveOthers(): Promise<void> {
    for (let count = 0; count < 20; count++) {
      const got = await other.get('other', {
        verify: true,
        inlineThreshold: count % 2 === 0 ? 0 : Number.POSITIVE_INFINITY,
      });
      assert.ok(got?.bytes.equals(value));
      got?.release();
      await other.put('mine', value);
    }
    await other.delete('mine');
  }

  const memoryOf = (counters: ServerCounters): unknown => ({
    used: counters['memoryUsedBytes'],
    free: counters['memoryFreeBytes'],
    keys: counters['keys'],
    valueBytes: counters['valueBytes'],
    windowsOpen: counters['windowsOpen'],
    regionsOpen: counters['railRegionsOpen'],
    peers: counters['railPeers'],
  });

  const cases = [
    { op: 'get', path: 'RDMA', threshold: '0', serverAt: 'get.write.submitted', clientAt: undefined },
    { op: 'get', path: 'inline', threshold: 'max', serverAt: 'get.transfer.created', clientAt: undefined },
    { op: 'put', path: 'RDMA', threshold: '0', serverAt: undefined, clientAt: 'put.write.submitted' },
    { op: 'put', path: 'inline', threshold: 'max', serverAt: undefined, clientAt: 'put.grant.received' },
  ] as const;
  for (const { op, path, threshold, serverAt, clientAt } of cases) {
    test(`${op} ${path}`, () =>
      inTheMiddle(async () => {
        const before = await settled();
        const stat = await other.stat('large');
        const seen = server.records.length;
        const args =
          op === 'get' ? ['get', 'large', '--out', '/dev/null'] : ['put', 'large', '--file', dir.file('value')];
        const client = spawnClient([
          ...['--server-addr', server.addr, '--inline-threshold', threshold],
          ...['--log-level', 'debug', '--log-format', 'json', ...args],
        ]);
        if (clientAt !== undefined) await client.waitForRecord(({ stage }) => stage === clientAt);
        else await server.waitForRecord(({ stage }) => stage === serverAt, undefined, seen);
        client.kill('SIGKILL');
        const ended = await client.ended;
        assert.equal(ended.signal, 'SIGKILL', ended.stderr);
        await serveOthers();
        const stages = server.records.slice(seen).filter((record) => record['key'] === 'large');
        const done = stages.some(({ stage }) => stage === 'get.done' || stage === 'put.published');
        if (done) return false;
        const after = await settled();
        assert.deepEqual(memoryOf(after), memoryOf(before));
        assert.deepEqual(await other.stat('large'), stat, 'a half-written PUT is visible');
        if (op === 'put') {
          assert.equal((after['putsAborted'] ?? 0) - (before['putsAborted'] ?? 0), 1);
        }
        // That the whole of it is still what it was, its CRC tells.
        const region = await other.allocate(LENGTH);
        const info = await other.getInto('large', region, { verify: true });
        assert.equal(info?.version, stat?.version);
        await region.release();
        return true;
      }));
  }

  test('a PUT of a new key that was cut off does not exist', async () => {
    const client = spawnClient([
      ...['--server-addr', server.addr, '--log-level', 'debug', '--log-format', 'json'],
      ...['put', 'never there', '--file', dir.file('value')],
    ]);
    await client.waitForRecord(({ stage }) => stage === 'put.write.submitted');
    assert.equal(await other.exists('never there'), false);
    client.kill('SIGKILL');
    await client.ended;
    await settled();
    assert.equal(await other.exists('never there'), false);
    assert.equal(await other.get('never there'), undefined);
  });
});
