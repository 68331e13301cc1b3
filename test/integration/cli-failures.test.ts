import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Server } from 'node:net';
import { describe, it } from 'node:test';
import { openFabric } from '../../src/fabric/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import type { Finished } from '../support/child.js';
import { runClient, spawnClient, startServer } from '../support/commands.js';
import { FakeServer } from '../support/fake-server.js';
import { SETTLE_SLACK_MS } from '../support/mode.js';
import { freePort } from '../support/ports.js';
import { tempDir } from '../support/temp-dir.js';

const MIB = 1024 * 1024;
const END_MS = 30_000;

/** Long enough to connect on a busy machine, short enough to wait for. */
const TIMEOUT_MS = 1500;

/** The error that a command with `--json` has told, after checking how it ended. */
function errorOf(run: Finished, exitCode: number): Record<string, unknown> {
  assert.deepEqual([run.code, run.signal], [exitCode, null], run.stderr);
  assert.equal(run.stdout.length, 0);
  // The log, where it was asked for, comes before.
  const last = run.stderr.trimEnd().split('\n').at(-1) ?? '';
  const { error } = JSON.parse(last) as { error: Record<string, unknown> };
  assert.equal(error['exitCode'], exitCode);
  assert.ok(String(error['remedy']).length > 5, run.stderr);
  return error;
}

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return address.port;
}

describe('kv-client ends with 3', () => {
  it('when nobody listens', async () => {
    const addr = `127.0.0.1:${await freePort()}`;
    const error = errorOf(await runClient(['--server-addr', addr, 'get', 'k', '--json']), 3);
    assert.deepEqual([error['code'], error['peer']], ['ERR_FABRICKV_CONNECT', addr]);
    assert.match(String(error['message']), /refused/);
  });

  it('when the name does not resolve', async () => {
    const error = errorOf(await runClient(['--server-addr', 'no-such-host.invalid:1', 'ping', '--json']), 3);
    assert.equal(error['code'], 'ERR_FABRICKV_CONNECT');
    assert.match(String(error['message']), /no-such-host\.invalid/);
  });

  it('when the Unix socket is not there', async () => {
    const error = errorOf(await runClient(['--server-addr', 'unix:/nowhere/kv.sock', 'ping', '--json']), 3);
    assert.equal(error['code'], 'ERR_FABRICKV_CONNECT');
  });

  it('in time, when who listens never answers', async () => {
    const silent = createServer(() => undefined);
    const addr = `127.0.0.1:${await listen(silent)}`;
    try {
      const run = await runClient(['--server-addr', addr, 'get', 'k', '--timeout', '1s', '--json']);
      assert.equal(errorOf(run, 3)['peer'], addr);
      // Without --timeout it would have waited for 5 s.
      assert.ok(run.ms < 4500, `it took ${run.ms} ms`);
    } finally {
      silent.close();
    }
  });

  it('when a web server answers', async () => {
    const web = createHttpServer((_, response) => response.end('hello'));
    const addr = `127.0.0.1:${await listen(web)}`;
    try {
      const error = errorOf(await runClient(['--server-addr', addr, 'get', 'k', '--json', '--timeout', '3s']), 3);
      assert.equal(error['code'], 'ERR_FABRICKV_NOT_FABRICKV');
    } finally {
      web.closeAllConnections();
      web.close();
    }
  });

  it('when the server speaks a future version of the protocol', async () => {
    await using refusing = await FakeServer.start({
      refuse: new FabricKvError('ERR_FABRICKV_PROTOCOL_VERSION', 'the server speaks 7 to 9, the client 1 to 1'),
    });
    const error = errorOf(await runClient(['--server-addr', refusing.addr, 'get', 'k', '--json']), 3);
    assert.equal(error['code'], 'ERR_FABRICKV_PROTOCOL_VERSION');
    assert.match(String(error['message']), /7 to 9/);

    // One that does not even ask.
    await using future = await FakeServer.start({ welcome: { version: 7 } });
    const second = errorOf(await runClient(['--server-addr', future.addr, 'get', 'k', '--json']), 3);
    assert.equal(second['code'], 'ERR_FABRICKV_PROTOCOL_VERSION');
  });
});

describe('kv-client ends with 2', () => {
  it('when the provider that was named is missing here', async () => {
    await using server = await FakeServer.start();
    const efa = errorOf(await runClient(['--server-addr', server.addr, 'get', 'k', '--provider', 'efa', '--json']), 2);
    assert.equal(efa['code'], 'ERR_FABRICKV_PROVIDER_MISSING');
    const run = await runClient(['--server-addr', server.addr, 'get', 'k', '--provider', 'tcp', '--json'], {
      env: { FABRICKV_LIBFABRIC: '/nowhere/libfabric.so.1' },
    });
    const missing = errorOf(run, 2);
    assert.equal(missing['code'], 'ERR_FABRICKV_LIBFABRIC_MISSING');
    assert.match(String(missing['remedy']), /install/i);
  });
});

describe('kv-client ends with 4', () => {
  it('when the server refuses', async () => {
    await using server = await FakeServer.start({
      answer: ({ operationId, get }) =>
        get === undefined || get === null
          ? []
          : [
              {
                operationId,
                result: {
                  failure: { code: 'ERR_FABRICKV_RESOURCE_EXHAUSTED', message: '4096 operations wait already' },
                },
              },
            ],
    });
    const error = errorOf(await runClient(['--server-addr', server.addr, 'get', 'k', '--json']), 4);
    assert.equal(error['code'], 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.match(String(error['message']), /4096 operations wait/);
  });
});

describe('kv-client ends with 5', () => {
  it('when the data plane does not work and the control plane does', async () => {
    // A real endpoint, in which nothing is registered: whatever is written there is turned away.
    const fabric = await openFabric({ choice: 'tcp', sourceAddresses: ['127.0.0.1'], environment: {} });
    const rails = fabric.providers.flatMap((provider) =>
      provider.rails.map(({ info }) => ({ address: info.address, format: info.addressFormat })),
    );
    const length = 65_536;
    await using server = await FakeServer.start({
      welcome: { provider: 'tcp', rails, inlineOnlyReason: '' },
      answer: ({ operationId, putOpen }) =>
        putOpen === undefined || putOpen === null
          ? []
          : [
              { operationId: 0, windowOffer: { windowId: 1, length, rails: [{ address: 0, rkey: 1 }] } },
              {
                operationId,
                result: { grant: { extents: [{ windowId: 1, windowOffset: 0, length }], expiresInMs: 60_000 } },
              },
            ],
    });
    const run = await runClient(['--server-addr', server.addr, 'put', 'k', '-', '--timeout', '4s', '--json'], {
      stdin: randomBytes(length),
    });
    const error = errorOf(run, 5);
    assert.equal(error['code'], 'ERR_FABRICKV_DATA_PLANE');
    assert.deepEqual([error['peer'], error['stage']], [server.addr, 'put.write.submitted']);
    assert.match(String(error['remedy']), /firewall|security group/);
    await fabric.close();
  });

  it('when the bytes that arrive are not the ones that were announced', async () => {
    await using dir = await tempDir();
    await using server = await FakeServer.start({
      answer: ({ operationId, get }) =>
        get === undefined || get === null
          ? []
          : [
              {
                operationId,
                result: {
                  get: {
                    found: true,
                    length: 5,
                    version: 1,
                    crc32c: 0xdead_beef,
                    path: 'INLINE',
                    value: Buffer.from('hello'),
                    rangeLength: 5,
                  },
                },
              },
            ],
    });
    await writeFile(dir.file('out'), 'what was there');
    const args = ['--server-addr', server.addr, 'get', 'k', '--json'];
    const error = errorOf(await runClient([...args, '--out', dir.file('out')]), 5);
    assert.equal(error['code'], 'ERR_FABRICKV_CHECKSUM');
    assert.equal(await readFile(dir.file('out'), 'utf8'), 'what was there');
    assert.deepEqual(await readdir(dir.path), ['out']);
    assert.equal(errorOf(await runClient(args), 5)['code'], 'ERR_FABRICKV_CHECKSUM', 'to standard output neither');
  });
});

describe('kv-client ends with 6', () => {
  it('when the deadline passes, naming the stage and the peer', async () => {
    await using server = await FakeServer.start();
    for (const args of [['get', 'k'], ['put', 'k', 'v'], ['delete', 'k'], ['stat', 'k'], ['exists', 'k'], ['ping']]) {
      const log = ['--log-level', 'debug', '--log-format', 'json'];
      const run = await runClient([
        '--server-addr',
        server.addr,
        ...args,
        '--timeout',
        `${TIMEOUT_MS}ms`,
        '--json',
        ...log,
      ]);
      const error = errorOf(run, 6);
      assert.equal(error['code'], 'ERR_FABRICKV_DEADLINE');
      assert.equal(error['peer'], server.addr);
      assert.match(String(error['stage']), new RegExp(`^${args[0]}\\.`));
      // I1, by the operation's own clock: the start of a process on a busy machine is not the operation's.
      const failed = run.records.find(({ stage }) => stage === `${args[0]}.failed`);
      const ms = Number(failed?.['elapsedUs']) / 1000;
      assert.ok(ms <= TIMEOUT_MS + SETTLE_SLACK_MS, `${args[0]} took ${ms} ms`);
    }
  });
});

describe('kv-client is interrupted', () => {
  it('ends with 130, 143 or 129 while it waits for the server', async () => {
    await using server = await FakeServer.start();
    for (const [signal, code] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
      ['SIGHUP', 129],
    ] as const) {
      const log = ['--log-level', 'debug', '--log-format', 'json'];
      await using child = spawnClient(['--server-addr', server.addr, 'get', 'k', ...log]);
      await child.waitForRecord(({ stage }) => stage === 'get.request.sent');
      child.kill(signal);
      const ended = await child.waitForEnd(END_MS);
      assert.deepEqual([ended.code, ended.signal], [code, null], ended.stderr);
    }
  });

  it('ends with 130 while it reads standard input, and while it connects', async () => {
    await using server = await FakeServer.start();
    const log = ['--log-level', 'debug', '--log-format', 'json'];
    await using reading = spawnClient(['--server-addr', server.addr, 'put', 'k', '-', ...log], { stdin: 'open' });
    await reading.waitForRecord((record) => record['sessionId'] !== undefined);
    reading.kill('SIGINT');
    assert.equal((await reading.waitForEnd(END_MS)).code, 130, reading.stderr);

    const silent = createServer();
    const connected = once(silent, 'connection');
    const addr = `127.0.0.1:${await listen(silent)}`;
    try {
      await using connecting = spawnClient(['--server-addr', addr, 'get', 'k']);
      await connected;
      connecting.kill('SIGINT');
      assert.equal((await connecting.waitForEnd(END_MS)).code, 130, connecting.stderr);
    } finally {
      silent.close();
    }
  });

  it('leaves nothing half-written', async () => {
    await using dir = await tempDir();
    await using server = await startServer({ args: ['--memory', '256MiB'] });
    const put = await server.client(['put', 'big', '-'], { stdin: randomBytes(128 * MIB) });
    assert.equal(put.code, 0, put.stderr);
    await writeFile(dir.file('out'), 'what was there');
    for (const threshold of ['0', 'max']) {
      const args = [
        '--server-addr',
        server.addr,
        'get',
        'big',
        '--out',
        dir.file('out'),
        '--inline-threshold',
        threshold,
      ];
      await using child = spawnClient([...args, '--log-level', 'debug', '--log-format', 'json']);
      await child.waitForRecord(({ stage }) => stage === 'get.request.sent');
      child.kill('SIGINT');
      const ended = await child.waitForEnd(END_MS);
      // It may have been done before the signal came.
      assert.ok(ended.code === 130 || ended.code === 0, `${ended.code} ${ended.stderr}`);
      assert.deepEqual(await readdir(dir.path), ['out']);
      const { length } = await readFile(dir.file('out'));
      assert.equal(length, ended.code === 0 ? 128 * MIB : 'what was there'.length);
    }
    assert.equal((await server.client(['stat', 'big'])).code, 0, 'the server goes on');
  });
});
