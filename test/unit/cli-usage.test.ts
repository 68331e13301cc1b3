import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { describe, it } from 'node:test';
import type { CommandIo } from '../../src/cli/io.js';
import { main as kvClient } from '../../src/cli/kv-client.js';
import { main as kvServer } from '../../src/cli/kv-server.js';
import { tempDir } from '../support/temp-dir.js';

/** What a command, called as its bin calls it, answered and wrote. */
interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function run(
  main: (args: readonly string[], io: CommandIo) => Promise<number>,
  args: readonly string[],
): Promise<Run> {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  stdin.end();
  const code = await main(args, { stdin, stdout, stderr, env: {} });
  stdout.end();
  stderr.end();
  return { code, stdout: await text(stdout), stderr: await text(stderr) };
}

function checkRefusal({ code, stdout, stderr }: Run, start: string, message: RegExp): void {
  assert.deepEqual([code, stdout], [2, ''], stderr);
  assert.ok(stderr.startsWith(start), stderr);
  assert.match(stderr, message);
  assert.match(stderr, /\n {2}remedy {2}\S/, stderr);
  assert.doesNotMatch(stderr, /\n {4}at /, 'no stack trace');
}

describe('usage', () => {
  it('kv-server refuses what it does not understand, with code, message and remedy', async () => {
    await using dir = await tempDir();
    await writeFile(dir.file('bad.json'), '{"memroy": 1}');
    for (const [args, message] of [
      [['serve'], /unknown command "serve"/],
      [['confg'], /unknown command "confg"\n {2}remedy {2}did you mean kv-server config\?/],
      [['config', 'memory'], /unexpected argument "memory"/],
      [['--memroy', '1GiB'], /unknown flag --memroy\n {2}remedy {2}did you mean --memory\?/],
      [['--eviction', 'lru'], /unknown flag --eviction/],
      [['--memory'], /--memory has no value/],
      [['--memory', '12XB'], /memory \(from --memory\): "12XB" is not a size/],
      [['--memory', '1KiB'], /"1KiB" is less than 1MiB/],
      [['--memory', '1GiB', '--memory', '2GiB'], /it is given 2 times/],
      [['--listen-addr', 'localhost'], /"localhost" is not an address/],
      [['--listen-addr', '127.0.0.1:65536'], /ports go up to 65535/],
      [['--listen-addr', '::1:50051'], /is not an address/],
      [['--advertise-addr', 'host:0'], /has no port from 1/],
      [['--fabric-addr', 'eth0'], /"eth0" is not an IP address/],
      [['--provider', 'shm'], /"shm" is none of auto, efa, verbs, tcp, none/],
      [['--inline-threshold', '-1'], /inline-threshold/],
      [['--inline-threshold', 'everything'], /is neither a size nor max/],
      [['--max-value', '2GiB', '--memory', '1GiB'], /2GiB is more than --memory/],
      [['--max-quarantine', '2GiB', '--memory', '1GiB'], /max-quarantine .*2GiB is more than --memory/],
      [['--max-quarantine', '0'], /"0" is less than 1B/],
      [['--rails', '0'], /rails \(from --rails\): "0" is less than 1/],
      [['--rails', '65'], /"65" is more than 64/],
      [['--rails', 'eth0,,eth1'], /has an empty entry/],
      [['--rails', 'eth0,eth0'], /"eth0" is named twice/],
      [['--rails', 'eth 0'], /"eth 0" is neither the name of a rail nor an address/],
      [['--spin-us', 'long'], /"long" is not a whole number, and not auto/],
      [['--spin-us', '100001'], /"100001" is more than 100000/],
      [['--progress-cpus', '1,x'], /"x" is neither a CPU nor a range of CPUs/],
      [['--progress-cpus', '3-1'], /"3-1" runs backwards/],
      [['--progress-cpus', '1-3,2'], /CPU 2 is named twice/],
      [['--progress-cpus', '0-100000000'], /CPU 100000000 is more than 8191/],
      [['--numa-node', '-1'], /numa-node/],
      [['--numa-node', '1024'], /"1024" is more than 1023/],
      [['--max-sessions', '0'], /"0" is less than 1/],
      [['--drain', '10'], /"10" has no unit/],
      [['--fabric-option', 'FI_VERBS_GID_IDX'], /is not NAME=VALUE/],
      [['--log-level', 'loud'], /is none of trace/],
      [['--config', dir.file('none.json')], /cannot read/],
      [['--config', dir.file('bad.json')], /unknown entry "memroy"\n {2}remedy {2}is it "memory"\?/],
    ] as const) {
      checkRefusal(await run(kvServer, args), 'kv-server: ERR_FABRICKV_SETTING: ', message);
    }
  });

  it('kv-client refuses what it does not understand, with code, message and remedy', async () => {
    for (const [args, code, message] of [
      [[], 'SETTING', /no command/],
      [['gte', 'k'], 'SETTING', /unknown command "gte"\n {2}remedy {2}did you mean get\?/],
      [['frobnicate'], 'SETTING', /unknown command "frobnicate"\n {2}remedy {2}the commands are put/],
      [['get'], 'SETTING', /too few arguments/],
      [['get', 'k', 'extra'], 'SETTING', /unexpected argument "extra"/],
      [['put', 'k'], 'SETTING', /put has no value/],
      [['put', 'k', 'v', '--file', 'f'], 'SETTING', /both a value and --file/],
      [['put', 'k', 'v', 'w'], 'SETTING', /unexpected argument "w"/],
      [['get', 'k', '--file', 'f'], 'SETTING', /unknown flag --file/],
      [['get', 'k', '--timout', '5s'], 'SETTING', /unknown flag --timout\n {2}remedy {2}did you mean --timeout\?/],
      [['get', 'k', '-x'], 'SETTING', /unknown flag -x/],
      [['get', 'k', '--no-fallback'], 'SETTING', /unknown flag --no-fallback/],
      [['get', 'k', '--timeout', '5'], 'SETTING', /"5" has no unit/],
      [['get', 'k', '--timeout', '0'], 'SETTING', /"0" is less than 1ms/],
      [['get', 'k', '--inline-threshold', '1XB'], 'SETTING', /neither a size nor max/],
      [['get', 'k', '--namespace', '-1'], 'SETTING', /namespace/],
      [['get', 'k', '--namespace', '4294967296'], 'SETTING', /is more than 4294967295/],
      [['get', 'k', '--fabric-addr', 'localhost'], 'SETTING', /is not an IP address/],
      [['get', 'k', '--provider', 'shm'], 'SETTING', /is none of/],
      [['get', 'k', '--out', 'a', '--out', 'b'], 'SETTING', /is given 2 times/],
      [['get', ''], 'INVALID_KEY', /the key is empty/],
      [['put', '', 'v'], 'INVALID_KEY', /the key is empty/],
      [['put', 'x'.repeat(1025), 'v'], 'INVALID_KEY', /1025 bytes; the most is 1024/],
      [['delete', 'é'.repeat(513)], 'INVALID_KEY', /1026 bytes/],
    ] as const) {
      checkRefusal(await run(kvClient, args), `kv-client: ERR_FABRICKV_${code}: `, message);
    }
  });

  it('kv-client says what is wrong with a local file before it asks the server', async () => {
    await using dir = await tempDir();
    for (const args of [
      ['put', 'k', '--file', dir.file('missing')],
      ['put', 'k', '--file', dir.path],
      ['put', 'k', '--file', dir.file('missing/x')],
      ['get', 'k', '--out', dir.path],
      ['get', 'k', '--out', dir.file('missing/x')],
    ]) {
      // Nobody listens at this address: the file must be found wanting first.
      const { code, stderr } = await run(kvClient, ['--server-addr', '127.0.0.1:1', ...args, '--json']);
      assert.equal(code, 2, stderr);
      const { error } = JSON.parse(stderr) as { error: Record<string, unknown> };
      assert.equal(error['code'], 'ERR_FABRICKV_FILE', args.join(' '));
      assert.ok(String(error['remedy']).length > 5);
    }
  });
});
