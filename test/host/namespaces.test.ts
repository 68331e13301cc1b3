import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { Child } from '../support/child.js';
import { type ClientRun, runClient, startServer, type TestServer } from '../support/commands.js';
import { FULL, roomyDirectory, SETTLE_SLACK_MS, withoutNamespaces } from '../support/mode.js';
import { type Host, NetworkPair } from '../support/network-pair.js';
import { ROOT } from '../support/paths.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { crcTextOfFile, writeValueFile } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
const SIZES = FULL
  ? [0, 1, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, MIB + 7, 16 * MIB + 1, 100 * MIB, GIB]
  : [0, 1, 32 * KIB + 1, 16 * MIB + 1];
const FEW_SIZES = [1, 16 * MIB + 1];

describe('server and client on two hosts', { skip: withoutNamespaces() }, () => {
  let pair: NetworkPair;
  let dir: TempDir;

  before(async () => {
    dir = await tempDir({ parent: roomyDirectory() });
    pair = await NetworkPair.make();
  });
  after(async () => {
    await pair?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  const serverAt = (listenAddr: string, args: readonly string[] = []): Promise<TestServer> =>
    startServer({
      args: ['--listen-addr', listenAddr, '--memory', FULL ? '1088MiB' : '64MiB', ...args],
      prefix: pair.server.prefix,
    });

  function client(addr: string, args: readonly string[]): Promise<ClientRun> {
    return runClient(['--server-addr', addr, '--json', '--provider', 'tcp', ...args], { prefix: pair.client.prefix });
  }

  /** The address with the server's port, as a client on the other host reaches it. */
  function addrFrom(server: TestServer, ip: string): string {
    const port = server.addr.slice(server.addr.lastIndexOf(':') + 1);
    return ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`;
  }

  /** Values of each size there and back, by RDMA where there is a byte to move, over the wire between the two. */
  async function matrix(addr: string, sizes = SIZES): Promise<void> {
    for (const length of sizes) {
      const [source, target] = [dir.file('source'), dir.file('target')];
      await writeValueFile(source, length, length + 3);
      const crc32c = await crcTextOfFile(source);
      const expected = { path: length === 0 ? 'inline' : 'rdma', bytes: length, crc32c };
      const wireBytes = async (host: Host, move: () => Promise<ClientRun>): Promise<void> => {
        const before = await pair.receivedBytes(host);
        const run = await move();
        assert.equal(run.code, 0, run.stderr);
        const { path, bytes, crc32c: crc } = run.json() as Record<string, unknown>;
        assert.deepEqual({ path, bytes, crc32c: crc }, expected);
        const moved = (await pair.receivedBytes(host)) - before;
        assert.ok(moved >= length, `${moved} bytes over the wire for a value of ${length}`);
      };
      await wireBytes(pair.server, () => client(addr, ['put', 'value', '--file', source, '--inline-threshold', '0']));
      await wireBytes(pair.client, () => client(addr, ['get', 'value', '--out', target, '--inline-threshold', '0']));
      const compared = await new Child('cmp', { args: [source, target] }).waitForEnd(30_000);
      assert.equal(compared.code, 0, compared.stderr);
      if (FULL || length > MIB) {
        const inline = await client(addr, ['get', 'value', '--out', target, '--inline-threshold', 'max']);
        assert.equal((inline.json() as Record<string, unknown>)['path'], 'inline');
        assert.equal((await new Child('cmp', { args: [source, target] }).waitForEnd(30_000)).code, 0);
      }
      assert.equal((await client(addr, ['delete', 'value'])).code, 0);
    }
  }

  test('the server listens on its address', async () => {
    await using server = await serverAt(`${pair.server.ipv4}:0`);
    assert.deepEqual(server.listening['fabricAddrs'], [pair.server.ipv4]);
    await matrix(server.addr);
  });

  test('the server listens on 0.0.0.0, without a default route', async () => {
    await using server = await serverAt('0.0.0.0:0');
    assert.deepEqual(server.listening['fabricAddrs'], [pair.server.ipv4]);
    assert.equal(server.listening['advertiseAddr'], addrFrom(server, pair.server.ipv4));
    await matrix(addrFrom(server, pair.server.ipv4), FULL ? SIZES : FEW_SIZES);
  });

  test('over IPv6', async () => {
    await using server = await serverAt(`[${pair.server.ipv6}]:0`);
    await matrix(server.addr, FULL ? SIZES : FEW_SIZES);
  });

  test('the data plane may have an address of its own', async () => {
    await using server = await serverAt('127.0.0.1:0', ['--fabric-addr', pair.server.ipv4]);
    assert.deepEqual(server.listening['fabricAddrs'], [pair.server.ipv4]);
    const local = ['--server-addr', server.addr, '--json', '--provider', 'tcp', '--inline-threshold', '0'];
    const put = await runClient([...local, '--fabric-addr', pair.server.ipv4, 'put', 'k', 'v'], {
      prefix: pair.server.prefix,
    });
    assert.equal(put.code, 0, put.stderr);
    assert.equal((put.json() as Record<string, unknown>)['path'], 'rdma');
  });

  test('a firewall that lets gRPC pass and not the fabric: inline works, RDMA fails in time and says where', async () => {
    await using server = await serverAt(`${pair.server.ipv4}:0`);
    const { addr } = server;
    const source = dir.file('source');
    await writeValueFile(source, 4 * MIB, 1);
    const put = await client(addr, ['put', 'value', '--file', source]);
    assert.equal(put.code, 0, put.stderr);
    await pair.dropAllBut(pair.client, Number(addr.slice(addr.lastIndexOf(':') + 1)));
    try {
      const seen = server.records.length;
      const timeoutMs = 1500;
      const limited = ['--timeout', `${timeoutMs}ms`, '--inline-threshold'];
      const get = await client(addr, ['get', 'value', ...limited, '0']);
      assert.ok(get.code === 5 || get.code === 6, `exit code ${get.code}: ${get.stderr}`);
      const { error } = JSON.parse(get.stderr) as { error: Record<string, unknown> };
      assert.match(String(error['stage']), /^get\./);
      assert.equal(error['peer'], addr);
      assert.ok(get.ms < timeoutMs + SETTLE_SLACK_MS + 3000, `it took ${get.ms} ms`);
      const stages = server.records.slice(seen).flatMap(({ stage }) => stage ?? []);
      assert.ok(stages.includes('get.write.submitted') && !stages.includes('get.write.completed'), stages.join(' '));

      const inline = await client(addr, ['get', 'value', '--inline-threshold', 'max', '--out', dir.file('target')]);
      assert.equal(inline.code, 0, inline.stderr);
      assert.equal((inline.json() as Record<string, unknown>)['path'], 'inline');
      const putAgain = await client(addr, ['put', 'value', '--file', source, ...limited, '0']);
      assert.ok(putAgain.code === 5 || putAgain.code === 6, `exit code ${putAgain.code}: ${putAgain.stderr}`);
      assert.equal((JSON.parse(putAgain.stderr) as { error: Record<string, unknown> }).error['outcome'], 'not-applied');
    } finally {
      await pair.dropNothing(pair.client);
    }
    const healed = await client(addr, ['get', 'value', '--inline-threshold', '0', '--out', dir.file('target')]);
    assert.equal(healed.code, 0, healed.stderr);
    assert.equal((healed.json() as Record<string, unknown>)['path'], 'rdma');
  });

  const debugScript = `${ROOT}scripts/test-rdma-debug.sh`;
  test('scripts/test-rdma-debug.sh, its two halves on the two hosts', {
    skip: existsSync(debugScript) ? false : 'scripts/test-rdma-debug.sh does not exist yet',
  }, async () => {
    let serverText = '';
    // A log of their own: where they look for it by themselves belongs to whoever else runs them on this machine.
    const env = { FABRICKV_SERVER_LOG: dir.file('server.log'), FABRICKV_MEMORY: '64MiB' };
    await using server = new Child(debugScript, {
      args: ['server'],
      prefix: pair.server.prefix,
      cwd: ROOT,
      env,
      onStdout: (chunk) => {
        serverText += chunk.toString();
      },
    });
    await waitFor(() => /Listening/.test(serverText + server.stderr), {
      what: 'the server half to listen',
      timeoutMs: 30_000,
    });
    await using half = new Child(debugScript, {
      args: ['client', pair.server.ipv4],
      prefix: pair.client.prefix,
      cwd: ROOT,
      env,
    });
    const ended = await half.waitForEnd(90_000);
    const text = `${ended.stdout.toString()}${ended.stderr}`;
    assert.equal(ended.code, 0, `${text}\nserver:\n${serverText}${server.stderr}`);
    assert.match(text, /GET: Sent gRPC request/);
    assert.match(text, /GET: Submitted RDMA write/, "the server's stages are shown too");
    assert.match(text, /VERDICT/);
    server.kill('SIGINT');
    const stopped = await server.waitForEnd(20_000);
    assert.ok(stopped.code === 0 || stopped.code === 130, stopped.stderr);
  });
});
