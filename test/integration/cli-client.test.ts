import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { Child } from '../support/child.js';
import { type ClientRun, runClient, startServer, type TestServer } from '../support/commands.js';
import { FULL } from '../support/mode.js';
import { BIN } from '../support/paths.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { crc32cOf } from '../support/values.js';

const KIB = 1024;
const MIB = KIB * KIB;

const crcText = (bytes: Uint8Array): string => crc32cOf(bytes).toString(16).padStart(8, '0');

/** The object that `--json` printed. */
function object(run: ClientRun): Record<string, unknown> {
  assert.equal(run.code, 0, run.stderr);
  return run.json() as Record<string, unknown>;
}

describe('kv-client', () => {
  let server: TestServer;
  let dir: TempDir;
  const client = (...args: string[]): Promise<ClientRun> => server.client(args);
  /** Without a data plane, which takes as long to open as all the rest: where only keys and small values count. */
  const inlineClient = (...args: string[]): Promise<ClientRun> => server.client([...args, '--provider', 'none']);
  const clientWith = (stdin: Uint8Array | string, ...args: string[]): Promise<ClientRun> =>
    server.client(args, { stdin });

  before(async () => {
    dir = await tempDir();
    server = await startServer({ args: ['--memory', '256MiB', '--max-value', '200MiB'] });
  });
  after(async () => {
    await server[Symbol.asyncDispose]();
    await dir[Symbol.asyncDispose]();
  });

  it('puts, gets, asks for and deletes a text', async () => {
    const put = await client('put', 'greeting', 'hello, wörld');
    assert.equal(put.code, 0, put.stderr);
    assert.match(put.text, /^stored greeting: 13 bytes by gRPC \(inline\) in [\d.]+ ms, CRC-32C [0-9a-f]{8}\n$/);
    assert.equal(put.stderr, '');

    const get = await client('get', 'greeting');
    assert.deepEqual([get.code, get.text, get.stderr], [0, 'hello, wörld', '']);

    const stat = await client('stat', 'greeting');
    assert.match(stat.text, /^length {3}13$/m);
    assert.match(stat.text, /^version {2}\d+$/m);
    assert.ok(stat.text.includes(`crc32c   ${crcText(Buffer.from('hello, wörld'))}\n`));

    const exists = await client('exists', 'greeting');
    assert.deepEqual([exists.code, exists.text], [0, 'true\n']);
    const removed = await client('delete', 'greeting');
    assert.deepEqual([removed.code, removed.text], [0, 'deleted greeting\n']);
    const gone = await client('exists', 'greeting');
    assert.deepEqual([gone.code, gone.text, gone.stderr], [1, 'false\n', '']);
  });

  it('ends with 1 when the key is not there', async () => {
    for (const command of ['get', 'stat']) {
      const run = await inlineClient(command, 'nothing here');
      assert.equal(run.code, 1);
      assert.equal(run.text, '');
      assert.match(run.stderr, /^kv-client: ERR_FABRICKV_NOT_FOUND: .*"nothing here"\n {2}peer .*\n {2}remedy /);
    }
    const removed = await inlineClient('delete', 'nothing here', '--json');
    assert.equal(removed.code, 1);
    assert.equal((removed.json() as { deleted: boolean }).deleted, false);
    const json = await inlineClient('get', 'nothing here', '--json');
    assert.deepEqual([json.code, json.text], [1, '']);
    const { op, key, error } = JSON.parse(json.stderr) as { op: string; key: string; error: Record<string, unknown> };
    assert.deepEqual([op, key, error['code'], error['exitCode']], ['get', 'nothing here', 'ERR_FABRICKV_NOT_FOUND', 1]);
  });

  it('tells with --json what it did, as one object', async () => {
    const put = object(await client('put', 'json', 'value', '--json'));
    assert.deepEqual(
      { ...put, ms: 0, GBps: 0, version: '' },
      {
        op: 'put',
        key: 'json',
        path: 'inline',
        provider: 'tcp',
        bytes: 5,
        ms: 0,
        GBps: 0,
        version: '',
        crc32c: crcText(Buffer.from('value')),
      },
    );
    assert.match(String(put['version']), /^\d{10,}$/);
    const get = object(await client('get', 'json', '--json'));
    assert.deepEqual([get['value'], get['version'], get['crc32c']], ['value', put['version'], put['crc32c']]);
    const stat = object(await client('stat', 'json', '--json'));
    assert.deepEqual([stat['bytes'], stat['version'], stat['crc32c']], [5, put['version'], put['crc32c']]);
    assert.ok(!Number.isNaN(Date.parse(String(stat['storedAt']))));
    assert.equal(object(await client('exists', 'json', '--json'))['exists'], true);
    await clientWith(Buffer.from([0xff, 0, 1]), 'put', 'bytes', '-');
    assert.equal(object(await client('get', 'bytes', '--json'))['valueBase64'], '/wAB');
  });

  it('pings', async () => {
    const ping = object(await client('ping', '--json'));
    assert.equal(ping['provider'], 'tcp');
    assert.equal(ping['serverAddr'], server.addr);
    assert.ok(Number(ping['ms']) > 0);
    assert.ok(Number((ping['counters'] as Record<string, number>)['memoryTotalBytes']) === 256 * MIB);
    const text = await client('ping');
    assert.match(text.text, /^data plane {3}tcp$/m);
  });

  it('takes the path that the threshold says, at its edges, and tells it', async () => {
    const edges = [
      [32 * KIB, 'inline', 'inline'],
      [32 * KIB + 1, 'rdma', 'rdma'],
    ] as const;
    const more = [
      [0, 'inline', 'inline'],
      [1, 'inline', 'inline'],
      [MIB + 7, 'rdma', 'rdma'],
    ] as const;
    for (const [length, putPath, getPath] of FULL ? [...edges, ...more] : edges) {
      const value = randomBytes(length);
      const put = object(await clientWith(value, 'put', `edge-${length}`, '-', '--json'));
      assert.deepEqual([put['path'], put['bytes'], put['crc32c']], [putPath, length, crcText(value)], `put ${length}`);
      const out = dir.file('edge');
      const get = object(await client('get', `edge-${length}`, '--out', out, '--json'));
      assert.deepEqual([get['path'], get['bytes']], [getPath, length], `get ${length}`);
      assert.ok(value.equals(await readFile(out)), `${length} bytes came back changed`);
    }
  });

  it('forces a path with --inline-threshold, which the server counts', async () => {
    const value = randomBytes(3 * MIB);
    for (const [threshold, path, gets, puts] of [
      ['max', 'inline', 'getsInline', 'putsInline'],
      ['0', 'rdma', 'getsRdma', 'putsRdma'],
    ] as const) {
      const counted = await server.counters();
      for (const bytes of [value, Buffer.from('x')]) {
        const put = await clientWith(bytes, 'put', 'forced', '--file', '-', '--inline-threshold', threshold, '--json');
        assert.equal(object(put)['path'], path);
        const get = await client('get', 'forced', '--inline-threshold', threshold, '--out', dir.file('f'), '--json');
        assert.equal(object(get)['path'], path);
        assert.ok(bytes.equals(await readFile(dir.file('f'))));
      }
      const counters = await server.counters();
      assert.deepEqual(
        [(counters[gets] ?? 0) - (counted[gets] ?? 0), (counters[puts] ?? 0) - (counted[puts] ?? 0)],
        [2, 2],
        threshold,
      );
    }
  });

  it('is good in pipes: raw bytes in, raw bytes out', async () => {
    const value = randomBytes(5 * MIB + 3);
    assert.equal((await clientWith(value, 'put', 'pipe', '-')).code, 0);
    const first = await client('get', 'pipe');
    assert.ok(value.equals(first.stdout));
    const second = await clientWith(first.stdout, 'put', 'pipe2', '-');
    assert.equal(second.code, 0, second.stderr);
    const json = await client('get', 'pipe2', '--out', '-', '--json');
    assert.ok(value.equals(json.stdout));
    assert.equal((JSON.parse(json.stderr) as { bytes: number }).bytes, value.length);
  });

  it('waits for a slow pipe beyond --timeout, and stores all of a file that says it has no length', async () => {
    const half = 'head -c 100000 /dev/zero';
    const pipe = `(${half}; sleep 2.5; ${half}) | "$0" --server-addr "$1" --timeout 1s put slow -`;
    await using put = new Child('/bin/sh', { args: ['-c', pipe, BIN['kv-client'], server.addr] });
    const ended = await put.waitForEnd(30_000);
    assert.equal(ended.code, 0, ended.stderr);
    assert.match(ended.stdout.toString(), /^stored slow: 200000 bytes/);

    const cpus = object(await client('put', 'cpus', '--file', '/proc/cpuinfo', '--json'));
    assert.ok(Number(cpus['bytes']) > 0, JSON.stringify(cpus));
    await client('delete', 'slow');
    await client('delete', 'cpus');
  });

  it('says that it is the input that fails, and ends with 2', async () => {
    // Nothing is at its beginning.
    const run = await client('put', 'key', '--file', '/proc/self/mem');
    assert.equal(run.code, 2, run.stderr);
    assert.match(run.stderr, /^kv-client: ERR_FABRICKV_FILE: cannot read the file: EIO/);
  });

  it('ends quietly when the reader of its output has had enough', async () => {
    assert.equal((await clientWith(randomBytes(8 * MIB), 'put', 'epipe', '-')).code, 0);
    const script = '"$0" "$1" --server-addr "$2" get epipe | head -c 5 | wc -c; echo "$PIPESTATUS"';
    await using shell = new Child('bash', { args: ['-c', script, process.execPath, BIN['kv-client'], server.addr] });
    const ended = await shell.waitForEnd(30_000);
    assert.equal(ended.stderr, '');
    assert.equal(ended.stdout.toString(), '5\n0\n');
  });

  it('takes keys and values that look like flags, numbers or nothing', async () => {
    for (const [key, value] of [
      ['007', '1e3'],
      ['a b', ''],
      ['ключ', 'значение'],
      ['x'.repeat(1024), 'longest key'],
    ] as const) {
      const put = await inlineClient('put', key, value);
      assert.equal(put.code, 0, put.stderr);
      assert.equal((await inlineClient('get', key)).text, value, key);
    }
    assert.equal((await inlineClient('put', '-5', '-6')).code, 2, 'without -- it is a flag');
    assert.equal((await server.client(['--provider', 'none', 'put', '--', '--flag', '-value'])).code, 0);
    assert.equal((await server.client(['--provider', 'none', 'get', '--', '--flag'])).text, '-value');
  });

  it('takes keys that are not text with --hex-key', async () => {
    assert.equal((await inlineClient('put', '00ff10', 'binary key', '--hex-key')).code, 0);
    const got = object(await inlineClient('get', '00FF10', '--hex-key', '--json'));
    assert.deepEqual([got['key'], got['value']], ['hex:00ff10', 'binary key']);
    const run = await inlineClient('get', 'xyz', '--hex-key');
    assert.deepEqual([run.code, run.text], [2, '']);
    assert.match(run.stderr, /not hexadecimal/);
  });

  it('keeps namespaces apart', async () => {
    assert.equal((await inlineClient('put', 'ns', 'zero')).code, 0);
    assert.equal((await inlineClient('put', 'ns', 'seven', '--namespace', '7')).code, 0);
    assert.equal((await inlineClient('get', 'ns')).text, 'zero');
    assert.equal((await inlineClient('get', 'ns', '--namespace', '7')).text, 'seven');
    assert.equal((await inlineClient('get', 'ns', '--namespace', '8')).code, 1);
  });

  it('writes --out whole or not at all', async () => {
    await using own = await tempDir();
    const value = randomBytes(2 * MIB);
    assert.equal((await clientWith(value, 'put', 'out', '-')).code, 0);
    const out = own.file('value');
    await writeFile(out, 'what was there');
    assert.equal((await client('get', 'nothing here', '--out', out)).code, 1);
    assert.equal(await readFile(out, 'utf8'), 'what was there');
    const got = await client('get', 'out', '--out', out);
    assert.equal(got.code, 0, got.stderr);
    assert.match(got.text, /^got out into .*value: 2097152 bytes by RDMA \(tcp\) in .* GB\/s, CRC-32C/);
    assert.ok(value.equals(await readFile(out)));
    assert.deepEqual(await readdir(own.path), ['value']);
  });

  it('refuses what it does not understand, and ends with 2 (the rest is in unit/cli-usage)', async () => {
    for (const [args, message] of [
      [['get', 'k', '--timout', '5s'], /SETTING: unknown flag --timout\n {2}remedy {2}did you mean --timeout\?/],
      [['get', 'k', '--timeout', '5'], /SETTING: .*"5" has no unit/],
      [['put', 'x'.repeat(1025), 'v'], /INVALID_KEY: .*1025 bytes; the most is 1024/],
    ] as const) {
      const run = await client(...args);
      assert.deepEqual([run.code, run.text], [2, ''], run.stderr);
      assert.match(run.stderr, message);
    }
  });

  it('ends with 4 when a value is over --max-value or over what is free, and nothing is lost', async () => {
    assert.equal((await clientWith(randomBytes(150 * MIB), 'put', 'filler', '-')).code, 0);
    await writeFile(dir.file('big'), '');
    await truncate(dir.file('big'), 150 * MIB);
    const full = await client('put', 'k', '--file', dir.file('big'), '--json');
    assert.equal(full.code, 4, full.stderr);
    const { error } = JSON.parse(full.stderr) as { error: Record<string, unknown> };
    assert.deepEqual([error['code'], error['outcome']], ['ERR_FABRICKV_CAPACITY', 'not-applied']);

    await truncate(dir.file('big'), 201 * MIB);
    const refused = (run: ClientRun): void => {
      assert.equal(run.code, 4, run.stderr);
      assert.match(run.stderr, /^kv-client: ERR_FABRICKV_VALUE_TOO_LARGE: .*209715200/);
      assert.match(run.stderr, /remedy {2}.*--max-value/);
    };
    refused(await client('put', 'k', '--file', dir.file('big')));
    // Nobody knows how long a pipe is before it ends: what is free runs out first.
    const piped = await clientWith(Buffer.alloc(201 * MIB), 'put', 'k', '-');
    assert.equal(piped.code, 4, piped.stderr);
    assert.match(piped.stderr, /^kv-client: ERR_FABRICKV_CAPACITY: /);
    assert.equal((await client('exists', 'k')).code, 1);
    assert.equal((await client('stat', 'filler')).code, 0, 'what was stored is still there');
    assert.equal((await client('delete', 'filler')).code, 0);
    refused(await clientWith(Buffer.alloc(201 * MIB), 'put', 'k', '-'));
    assert.equal((await client('exists', 'k')).code, 1);
  });

  it('shows every stage with --log-level debug, on stderr only', async () => {
    const run = await clientWith(
      randomBytes(MIB),
      'put',
      'staged',
      '-',
      '--log-level',
      'debug',
      '--log-format',
      'json',
    );
    assert.equal(run.code, 0, run.stderr);
    const stages = run.records.flatMap(({ stage }) => stage ?? []);
    assert.deepEqual([stages[0], stages.at(-1)], ['put.start', 'put.done']);
    assert.match(run.text, /^stored staged/);
    const hidden = await client(
      'get',
      'staged',
      '--out',
      '/dev/null',
      '--redact-keys',
      '--json',
      '--log-level',
      'debug',
    );
    assert.ok(!hidden.text.includes('staged') && !hidden.stderr.includes('"staged"'), 'the key is shown');
  });

  it('takes settings from variables and from a file', async () => {
    await writeFile(dir.file('client.json'), JSON.stringify({ 'server-addr': server.addr, json: true }));
    const put = await runClient(['put', 'configured', 'x', '--config', dir.file('client.json')]);
    assert.equal(object(put)['key'], 'configured');
    const get = await runClient(['get', 'configured'], { env: { FABRICKV_SERVER_ADDR: server.addr } });
    assert.equal(get.text, 'x');
  });

  it('prints help for itself and its commands', async () => {
    const help = await client('--help');
    assert.equal(help.code, 0);
    for (const text of ['put <key>', 'ping', '--server-addr', 'FABRICKV_TIMEOUT', '0 done, 1 key not there']) {
      assert.ok(help.text.includes(text), text);
    }
    assert.match((await client('get', '--help')).text, /--out +FILE/);
  });
});
