import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { spawnClient, startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { storeLarge } from '../support/store-large.js';
import { crc32cOf, makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';

const PUT_REGION = fileURLToPath(new URL('../support/put-region.js', import.meta.url));
const MIB = 1024 * 1024;
const LENGTH = FULL ? 1024 * MIB : 256 * MIB;
const PIECE = 16 * MIB;

describe('I2, I3: a client is stopped (SIGSTOP) in the middle of a transfer', () => {
  test('a PUT past its grant is not published, and its late writes land in nobody else’s values', async () => {
    await using server = await startServer({ args: ['--memory', `${LENGTH / MIB + 16}MiB`] });
    await using other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: 10_000 });
    await other.put('value', 'old');
    const before = (await other.ping()).counters;

    await using client = new Child(process.execPath, {
      args: [PUT_REGION, server.addr, 'value', String(LENGTH), '1000'],
    });
    await client.waitForRecord(({ stage }) => stage === 'put.write.submitted');
    client.kill('SIGSTOP');
    await server.waitForRecord(({ stage, key }) => stage === 'put.failed' && key === 'value');
    assert.ok(!server.stages().includes('put.commit.received'), 'it was stopped too late; the value is too small');

    // The memory of the grant is needed: it is given to others only when the stopped client cannot write to it.
    const values = new Map<string, number>();
    for (let index = 0; index < LENGTH / PIECE; index++) {
      const piece = makeValue(PIECE, 100 + index);
      const { crc32c } = await other.put(`piece-${index}`, piece);
      assert.equal(crc32c, crc32cOf(piece));
      values.set(`piece-${index}`, crc32c);
    }
    client.kill('SIGCONT');
    const ended = await client.waitForEnd(10_000);
    assert.equal(ended.code, 1, ended.stderr);
    assert.match(ended.stdout.toString(), /^ERR_FABRICKV_(DEADLINE|GRANT_ENDED|DATA_PLANE|CONNECTION_LOST)$/);
    assert.equal((await other.get('value'))?.bytes.toString(), 'old');
    for (const [key, crc32c] of values) {
      const got = await other.get(key, { verify: true });
      assert.ok(got !== undefined && crc32cOf(got.bytes) === crc32c, `${key} has changed`);
      got?.release();
      assert.equal(await other.delete(key), true);
    }
    const counters = await countersWhen(async () => (await other.ping()).counters, isQuiet, {
      what: 'the quarantine to drain',
    });
    for (const name of ['memoryUsedBytes', 'memoryFreeBytes', 'windowsOpen', 'keys', 'operationsInFlight']) {
      assert.equal(counters[name], before[name], name);
    }
  });

  test('a GET to a stopped client ends by its deadline on the server, and others are served meanwhile', async () => {
    const value = makeValue(64 * MIB, 1);
    await using server = await startServer({ args: ['--memory', `${LENGTH / MIB + 160}MiB`] });
    await using other = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', timeoutMs: 5000 });
    await storeLarge(server.addr, 'large', LENGTH);
    await using client = spawnClient([
      ...['--server-addr', server.addr, '--timeout', '1500ms', '--json', 'get', 'large', '--out', '/dev/null'],
    ]);
    await server.waitForRecord(({ stage, key }) => stage === 'get.write.submitted' && key === 'large');
    client.kill('SIGSTOP');
    const others = (async () => {
      for (let count = 0; count < 10; count++) {
        await other.put('value', value);
        const got = await other.get('value', { verify: true });
        assert.ok(got?.bytes.equals(value));
        got?.release();
      }
    })();
    await server.waitForRecord(({ stage, key }) => stage === 'get.failed' && key === 'large');
    await others;
    const failed = server.records.find(({ stage, key }) => stage === 'get.failed' && key === 'large');
    assert.equal(failed?.['failedAtStage'], 'get.write.submitted');
    await waitFor(async () => (await other.ping()).counters['operationsInFlight'] === 0, {
      what: 'the write to the stopped client to end',
    });
    client.kill('SIGCONT');
    const ended = await client.waitForEnd(10_000);
    assert.equal(ended.code, 6, ended.stderr);
    assert.equal(await other.delete('large'), true);
    assert.equal(await other.delete('value'), true);
    const counters = await countersWhen(async () => (await other.ping()).counters, isQuiet, {
      what: 'the session and the quarantine to end',
    });
    assert.equal(counters['memoryFreeBytes'], counters['memoryTotalBytes']);
  });
});
