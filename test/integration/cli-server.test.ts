import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { describe, it } from 'node:test';
import { runServer, spawnServer, startServer } from '../support/commands.js';
import { ROOT } from '../support/paths.js';
import { tempDir } from '../support/temp-dir.js';
import { waitFor } from '../support/wait-for.js';

const END_MS = 20_000;

describe('kv-server config', () => {
  it('prints each setting with its value and where that comes from', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    await writeFile(config, '{"memory": "2GiB", "max-sessions": 5}');
    const rails = ['--rails', '10.0.0.1, 10.0.1.1'];
    const args = [
      'config',
      '--listen-addr',
      '127.0.0.1:7000',
      '--inline-threshold',
      'max',
      ...rails,
      '--config',
      config,
    ];
    const env = { FABRICKV_MAX_SESSIONS: '6', FABRICKV_PROVIDER: 'none', FABRICKV_PROGRESS_CPUS: '2,8-9' };

    const table = await runServer(args, { env });
    assert.equal(table.code, 0, table.stderr);
    assert.equal(table.stderr, '');
    for (const [setting, value, source] of [
      ['--listen-addr', '127.0.0.1:7000', '--listen-addr'],
      ['--memory', '2GiB', `"memory" in ${config}`],
      ['--max-sessions', '6', 'FABRICKV_MAX_SESSIONS'],
      ['--provider', 'none', 'FABRICKV_PROVIDER'],
      ['--inline-threshold', 'max', '--inline-threshold'],
      ['--max-inflight', '1024', 'default'],
      ['--max-value', '(as much as --memory)', 'default'],
      ['--rails', '10.0.0.1,10.0.1.1', '--rails'],
      ['--spin-us', 'auto', 'default'],
      ['--progress-cpus', '2,8,9', 'FABRICKV_PROGRESS_CPUS'],
      ['--max-quarantine', '(a quarter of --memory)', 'default'],
    ] as const) {
      const row = table.text.split('\n').find((line) => line.startsWith(`│ ${setting} `));
      const cells = row?.split('│').map((cell) => cell.trim());
      assert.deepEqual(cells?.slice(1, 4), [setting, value, source]);
    }

    const json = await runServer([...args, '--json'], { env });
    const settings = json.json() as Record<string, { value: unknown; source: string; from: string }>;
    assert.deepEqual(settings['max-sessions'], { value: '6', source: 'variable', from: 'FABRICKV_MAX_SESSIONS' });
    assert.deepEqual(settings['memory'], { value: '2GiB', source: 'file', from: `"memory" in ${config}` });
    assert.equal(settings['max-value']?.value, null);
  });

  it('tells what is wrong instead, and with --json as an object', async () => {
    const run = await runServer(['config', '--memory', 'lots', '--json']);
    assert.equal(run.code, 2);
    assert.equal(run.text, '');
    const { error } = JSON.parse(run.stderr) as { error: Record<string, unknown> };
    assert.equal(error['code'], 'ERR_FABRICKV_SETTING');
    assert.deepEqual(error['details'], { setting: 'memory', source: '--memory' });
  });
});

describe('kv-server', () => {
  it('prints help and version', async () => {
    const help = await runServer(['--help']);
    assert.equal(help.code, 0);
    for (const name of ['--listen-addr', '--memory', 'FABRICKV_MEMORY', 'kv-server config', '1GiB', 'Exit codes']) {
      assert.ok(help.text.includes(name), name);
    }
    const version = await runServer(['--version']);
    const { version: expected } = JSON.parse(readFileSync(`${ROOT}package.json`, 'utf8')) as { version: string };
    assert.equal(version.text, `${expected}\n`);
  });

  it('refuses what it does not understand, and ends with 2 (the rest is in unit/cli-usage)', async () => {
    for (const [args, message] of [
      [['--memroy', '1GiB'], /SETTING: unknown flag --memroy\n {2}remedy {2}did you mean --memory\?/],
      [['--memory', '12XB'], /SETTING: memory \(from --memory\): "12XB" is not a size/],
      [['--listen-addr', 'localhost'], /SETTING: .*"localhost" is not an address/],
    ] as const) {
      const run = await runServer(args);
      assert.deepEqual([run.code, run.text], [2, ''], run.stderr);
      assert.match(run.stderr, message);
    }
  });

  it('ends with 2 and says which port is taken', async () => {
    await using first = await startServer({ args: ['--provider', 'none'] });
    const second = await spawnServer({ args: ['--provider', 'none', '--listen-addr', first.addr] }).waitForEnd(END_MS);
    assert.equal(second.code, 2);
    assert.match(second.stderr, /^kv-server: ERR_FABRICKV_ADDRESS_IN_USE: /m);
    assert.ok(second.stderr.includes(first.addr.split(':')[1] ?? '?'));
    assert.match(second.stderr, /remedy {2}/);
    assert.equal((await first.stop()).code, 0, 'the first one is not disturbed');

    // By something else than a server of ours.
    const other = createServer();
    await new Promise<void>((resolve) => {
      other.listen(0, '127.0.0.1', resolve);
    });
    const address = other.address();
    assert.ok(typeof address === 'object' && address !== null);
    const third = spawnServer({ args: ['--provider', 'none', '--listen-addr', `127.0.0.1:${address.port}`] });
    const ended = await third.waitForEnd(END_MS);
    other.close();
    assert.equal(ended.code, 2);
    assert.match(ended.stderr, /ERR_FABRICKV_ADDRESS_IN_USE/);
  });

  it('ends with 2 when the address is not of this machine, or no such host exists', async () => {
    for (const address of ['203.0.113.7:0', 'no-such-host.invalid:0', '[2001:db8::7]:0']) {
      const run = await spawnServer({ args: ['--provider', 'none', '--listen-addr', address] }).waitForEnd(END_MS);
      assert.equal(run.code, 2, run.stderr);
      assert.match(run.stderr, /^kv-server: ERR_FABRICKV_ADDRESS_UNAVAILABLE: /m, address);
    }
  });

  it('ends with 2 when the arena cannot be mapped', async () => {
    const run = await spawnServer({ args: ['--provider', 'none', '--memory', '100TiB'] }).waitForEnd(END_MS);
    assert.equal(run.code, 2, run.stderr);
    assert.match(run.stderr, /^kv-server: ERR_FABRICKV_MEMORY: /m);
    assert.match(run.stderr, /remedy {2}.*--memory/);
  });

  it('ends with 2 when a provider that was named is missing', async () => {
    const run = await spawnServer({ args: ['--provider', 'efa'] }).waitForEnd(END_MS);
    assert.equal(run.code, 2, run.stderr);
    assert.match(run.stderr, /^kv-server: ERR_FABRICKV_PROVIDER_MISSING: /m);
    assert.match(run.stderr, /remedy {2}/);
  });

  it('ends with 2 when a rail or a CPU that was named is not there, with any provider', async () => {
    for (const [args, message] of [
      [['--rails', 'no-such-rail'], /PROVIDER_MISSING: .*there is no rail "no-such-rail"; there is .*127\.0\.0\.1/],
      [['--rails', '127.0.0.1,203.0.113.7'], /PROVIDER_MISSING: .*203\.0\.113\.7/],
      [['--progress-cpus', '8191'], /SETTING: .*CPU 8191/],
    ] as const) {
      for (const provider of ['tcp', 'auto']) {
        const run = await spawnServer({ args: ['--provider', provider, ...args] }).waitForEnd(END_MS);
        assert.equal(run.code, 2, run.stderr);
        assert.match(run.stderr, message);
        assert.match(run.stderr, /remedy {2}\S/);
      }
    }
  });

  it('opens a rail for each address, and tells them', async () => {
    const addresses = ['--fabric-addr', '127.0.0.1', '--fabric-addr', '127.0.0.2'];
    const shape = ['--progress-cpus', '0', '--spin-us', '0', '--max-quarantine', '1MiB'];
    await using both = await startServer({ args: ['--provider', 'tcp', ...addresses, ...shape] });
    const addressesOf = ({ listening }: typeof both): (string | undefined)[] =>
      (listening['rails'] as { provider: string; address: string }[]).map(({ address }) => address.split(':')[0]);
    assert.deepEqual(addressesOf(both), ['127.0.0.1', '127.0.0.2']);
    await using dir = await tempDir();
    await writeFile(dir.file('value'), Buffer.alloc(3 * 1024 ** 2 + 1, 'rails'));
    const put = await both.client(['put', 'k', '--file', dir.file('value')]);
    assert.equal(put.code, 0, put.stderr);
    const get = await both.client(['get', 'k']);
    assert.ok(get.stdout.equals(await readFile(dir.file('value'))), get.stderr);
    await using first = await startServer({ args: ['--provider', 'tcp', ...addresses, '--rails', '1'] });
    assert.deepEqual(addressesOf(first), ['127.0.0.1']);
    await using named = await startServer({ args: ['--provider', 'tcp', '--rails', '127.0.0.3'] });
    assert.deepEqual(addressesOf(named), ['127.0.0.3']);
    await using more = await startServer({ args: ['--provider', 'tcp', ...addresses, '--rails', '3'] });
    assert.ok(more.records.some(({ level, msg }) => level === 'warn' && msg?.startsWith('Fewer rails') === true));
  });

  it('stops with 0 when asked by SIGTERM or SIGINT', async () => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      await using server = await startServer();
      const ended = await server.stop(signal);
      assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
      assert.ok(ended.stderr.includes('Asked to stop'));
    }
  });

  it('stops at once at a second signal', async () => {
    await using server = await startServer();
    // Both arrive while it cannot run, so that neither can be missed.
    server.kill('SIGSTOP');
    server.kill('SIGTERM');
    server.kill('SIGINT');
    server.kill('SIGCONT');
    const ended = await server.child.waitForEnd(END_MS);
    assert.ok(ended.code === 130 || ended.code === 143, `${ended.code} ${ended.signal} ${ended.stderr}`);
  });

  it('tells in one record where it listens', async () => {
    await using server = await startServer({ args: ['--provider', 'none'] });
    assert.equal(server.listening.level, 'info');
    assert.match(server.addr, /^127\.0\.0\.1:\d+$/);
    assert.equal(server.listening['pid'], server.pid);
    assert.equal(server.records.filter(({ msg }) => msg === 'Listening').length, 1);
  });

  it('listens on a Unix socket', async () => {
    await using dir = await tempDir();
    const address = `unix:${dir.file('kv.sock')}`;
    await using server = await startServer({ args: ['--listen-addr', address, '--provider', 'none'] });
    assert.equal(server.addr, address);
    const put = await server.client(['put', 'a', 'b']);
    assert.equal(put.code, 0, put.stderr);
  });

  it('warns when it listens beyond this machine, and not otherwise', async () => {
    const warning = /without authentication/;
    await using wide = await startServer({ args: ['--listen-addr', '0.0.0.0:0', '--provider', 'none'] });
    assert.ok(wide.records.some(({ level, msg }) => level === 'warn' && warning.test(msg ?? '')));
    await using narrow = await startServer({ args: ['--provider', 'none'] });
    assert.ok(!narrow.records.some(({ msg }) => warning.test(msg ?? '')));
  });

  it('takes its settings from variables, and warns of those that are misspelt', async () => {
    await using server = await startServer({ env: { FABRICKV_PROVIDER: 'none', FABRICKV_MEMROY: '2GiB' } });
    const record = await server.waitForRecord(({ msg }) => msg?.includes('FABRICKV_MEMROY') === true);
    assert.equal(record.level, 'warn');
    assert.equal(record['meant'], 'FABRICKV_MEMORY');
  });

  it('logs in JSON when nobody watches, and prettily when asked', async () => {
    await using pretty = spawnServer({ args: ['--log-format', 'pretty', '--provider', 'none'] });
    await waitFor(() => pretty.stderr.includes('Listening'), { what: 'the server to listen', timeoutMs: END_MS });
    assert.match(pretty.stderr, /INFO.*Listening/);
    assert.equal(pretty.records.length, 0);
    await using auto = await startServer({ args: ['--log-format', 'auto', '--provider', 'none'] });
    assert.ok(auto.records.length > 0);
  });

  it('keeps keys out of its log with --redact-keys', async () => {
    await using server = await startServer({ args: ['--redact-keys'] });
    const key = 'patient-4711';
    assert.equal((await server.client(['put', key, 'x'])).code, 0);
    assert.equal((await server.client(['get', key])).text, 'x');
    const { stderr } = await server.stop();
    assert.ok(stderr.includes('get.done'));
    assert.ok(!stderr.includes(key), 'the key is in the log');
    assert.match(stderr, /sha256:/);
  });
});
