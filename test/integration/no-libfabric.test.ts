import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { runClient, spawnServer, startServer } from '../support/commands.js';
import { makeValue } from '../support/values.js';

const MIB = 1024 * 1024;
/** FABRICKV_LIBFABRIC, when set, is the only place tried: so this is a machine without libfabric. */
const WITHOUT = { FABRICKV_LIBFABRIC: '/nonexistent/libfabric.so.1' };
const INSTALL = /apt-get install libfabric1/;

describe('without libfabric', () => {
  test('the server starts inline-only and says what to install; everything works inline', async () => {
    await using server = await startServer({ env: WITHOUT });
    const notice = server.records.find(({ msg }) => msg === 'No data plane: all values travel inline');
    assert.equal(notice?.level, 'warn');
    assert.match(String(notice['reason']), /\/nonexistent\/libfabric\.so\.1/);
    assert.match(String(notice['remedy']), INSTALL);
    assert.equal(server.listening['provider'], undefined);
    const value = makeValue(20 * MIB + 3, 1);
    const put = await server.client(['put', 'large', '-', '--json'], { stdin: value });
    assert.equal(put.code, 0, put.stderr);
    assert.deepEqual(pick(put.json(), 'path', 'provider', 'bytes'), {
      path: 'inline',
      provider: null,
      bytes: value.length,
    });
    const get = await server.client(['get', 'large']);
    assert.ok(get.stdout.equals(value));
    assert.equal((await server.client(['exists', 'large'])).code, 0);
    assert.equal((await server.client(['delete', 'large'])).code, 0);
    const ping = await server.client(['ping', '--json']);
    const { provider, inlineOnlyReason } = ping.json() as Record<string, unknown>;
    assert.equal(provider, null);
    assert.match(String(inlineOnlyReason), /libfabric/);
    const counters = await server.counters();
    const { bytesReadInline, getsRdma, memoryUsedBytes } = counters;
    assert.deepEqual(
      { bytesReadInline, getsRdma, memoryUsedBytes },
      { bytesReadInline: value.length, getsRdma: 0, memoryUsedBytes: 0 },
    );
    assert.equal((await server.stop()).code, 0);
  });

  test('a provider that is demanded is an error: the server ends with 2 and the remedy', async () => {
    const ended = await spawnServer({ args: ['--provider', 'tcp'], env: WITHOUT }).waitForEnd(20_000);
    assert.equal(ended.code, 2, ended.stderr);
    assert.match(ended.stderr, /ERR_FABRICKV_LIBFABRIC_MISSING/);
    assert.match(ended.stderr, /\/nonexistent\/libfabric\.so\.1/);
    assert.match(ended.stderr, INSTALL);
    assert.equal(ended.stdout.length, 0);
  });

  test('--provider none never looks for it', async () => {
    await using server = await startServer({ env: WITHOUT, args: ['--provider', 'none'] });
    assert.ok(!server.records.some(({ level }) => level === 'warn' || level === 'error'), server.child.stderr);
  });

  test('a client without it works inline with a server that has it, and both sides say why', async () => {
    await using server = await startServer();
    const value = makeValue(3 * MIB, 2);
    const put = await server.client(['put', 'v', '-', '--json'], { stdin: value, env: WITHOUT });
    assert.equal(put.code, 0, put.stderr);
    assert.deepEqual(pick(put.json(), 'path', 'provider'), { path: 'inline', provider: null });
    const opened = await server.waitForRecord(({ msg }) => msg === 'Session opened, inline only');
    assert.match(String(opened['inlineOnlyReason']), /the client has no data plane/);
    const get = await server.client(['get', 'v', '--inline-threshold', '0'], { env: WITHOUT });
    assert.equal(get.code, 0, get.stderr);
    assert.ok(get.stdout.equals(value));
    const ping = await server.client(['ping'], { env: WITHOUT });
    assert.match(ping.text, /data plane\s+none: .*libfabric/);
    const withIt = await server.client(['get', 'v', '--json', '--out', '/dev/null']);
    assert.deepEqual(pick(withIt.json(), 'path', 'provider'), { path: 'rdma', provider: 'tcp' });
  });

  test('a client that demands a provider ends with 2 and the remedy', async () => {
    await using server = await startServer();
    const run = await runClient(['--server-addr', server.addr, '--provider', 'tcp', 'ping', '--json'], {
      env: WITHOUT,
    });
    assert.equal(run.code, 2, run.stderr);
    const { error } = JSON.parse(run.stderr) as { error: Record<string, unknown> };
    assert.equal(error['code'], 'ERR_FABRICKV_LIBFABRIC_MISSING');
    assert.match(String(error['remedy']), INSTALL);
  });

  test('a provider that libfabric does not have here is told apart, with the remedy', async () => {
    const ended = await spawnServer({ args: ['--provider', 'efa'] }).waitForEnd(20_000);
    assert.equal(ended.code, 2, ended.stderr);
    assert.match(ended.stderr, /ERR_FABRICKV_PROVIDER_MISSING/);
    assert.match(ended.stderr, /efa/);
    assert.match(ended.stderr, /remedy/);
  });
});

function pick(value: unknown, ...names: readonly string[]): Record<string, unknown> {
  const from = value as Record<string, unknown>;
  return Object.fromEntries(names.map((name) => [name, from[name]]));
}
