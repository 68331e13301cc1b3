import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { Child } from '../support/child.js';
import { FULL } from '../support/mode.js';
import { ROOT } from '../support/paths.js';
import { freePort } from '../support/ports.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';

const NPM = ['--no-audit', '--no-fund', '--prefer-offline', '--loglevel', 'error'];
const NPM_TIMEOUT_MS = 120_000;

interface Packed {
  readonly filename: string;
  readonly unpackedSize: number;
  readonly files: readonly { readonly path: string }[];
}

const SMOKE = `
import { KvClient } from 'fabrickv';
import { KvClient as FromClient } from 'fabrickv/client';
import { KvServer } from 'fabrickv/server';
import { ERRORS, FabricKvError } from 'fabrickv/errors';
import { pino } from 'pino';
if (KvClient !== FromClient) throw new Error('two KvClients');
const provider = process.argv[2];
const server = await KvServer.start({
  listenAddr: '127.0.0.1:0',
  memoryBytes: 64 * 1024 * 1024,
  provider,
  logger: pino({ level: 'silent' }),
});
const client = await KvClient.connect({ serverAddr: server.boundAddr, provider });
const value = Buffer.alloc(3_000_000, 'fabrickv');
const { path } = await client.put('key', value);
const got = await client.get('key', { verify: true });
if (got === undefined || !got.bytes.equals(value)) throw new Error('not the same bytes');
const error = await client.put('', 'x').catch((e) => e);
if (!(error instanceof FabricKvError) || !(error.code in ERRORS)) throw new Error(String(error));
console.log(path);
await client.close();
await server.stop();
`;

const TYPED = `
import { KvClient } from 'fabrickv';
import { KvServer } from 'fabrickv/server';
import { FabricKvError, type ErrorCode } from 'fabrickv/errors';
const client: KvClient = await KvClient.connect({ serverAddr: '127.0.0.1:1', timeoutMs: 1000, provider: 'tcp' });
const value = await client.get('key', { verify: true, inlineThreshold: 0 });
const bytes: Buffer | undefined = value?.bytes;
const version: bigint | undefined = value?.version;
const path: 'inline' | 'rdma' | undefined = value?.path;
const region = await client.allocate(1024);
const info = await client.getInto('key', region);
const length: number | undefined = info?.length;
try {
  await client.put('key', region, { signal: AbortSignal.timeout(5) });
} catch (error) {
  if (error instanceof FabricKvError) {
    const code: ErrorCode = error.code;
    const outcome: 'not-applied' | 'unknown' | undefined = error.outcome;
    process.stdout.write(code + String(outcome));
  }
}
// @ts-expect-error a timeout is a number of milliseconds
await client.get('key', { timeoutMs: '1s' });
// @ts-expect-error there is no such provider
await KvClient.connect({ provider: 'mock' });
process.stdout.write(String([bytes, version, path, length, KvServer]));
export {};
`;

const TSCONFIG = {
  compilerOptions: {
    target: 'es2023',
    lib: ['es2023', 'esnext.disposable'],
    module: 'nodenext',
    strict: true,
    exactOptionalPropertyTypes: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
    typeRoots: [`${ROOT}node_modules/@types`],
  },
  files: ['typed.ts'],
};

describe('the package', () => {
  let dir: TempDir;
  let packed: Packed;

  async function run(command: string, args: readonly string[], timeoutMs = 30_000): Promise<string> {
    const ended = await new Child(command, { args, cwd: dir.path }).waitForEnd(timeoutMs);
    assert.equal(ended.code, 0, `${command} ${args.join(' ')}: ${ended.stdout.toString()}${ended.stderr}`);
    return ended.stdout.toString();
  }

  before(async () => {
    dir = await tempDir();
    const pack = await new Child('npm', {
      args: ['pack', '--json', '--ignore-scripts', '--pack-destination', dir.path, ...NPM],
      cwd: ROOT,
    }).waitForEnd(NPM_TIMEOUT_MS);
    assert.equal(pack.code, 0, pack.stderr);
    const [first] = JSON.parse(pack.stdout.toString()) as Packed[];
    assert.ok(first !== undefined);
    packed = first;
    await writeFile(dir.file('package.json'), JSON.stringify({ name: 'somebody', private: true, type: 'module' }));
    await run('npm', ['install', '--ignore-scripts', ...NPM, dir.file(packed.filename)], NPM_TIMEOUT_MS);
  });
  after(() => dir?.[Symbol.asyncDispose]());

  test('has what it needs and no more', () => {
    const paths = packed.files.map(({ path }) => path);
    for (const needed of [
      ...['package.json', 'README.md', 'LICENSE', 'CHANGELOG.md', 'bin/kv-server.js', 'bin/kv-client.js'],
      ...['dist/src/index.js', 'dist/src/index.d.ts', 'dist/src/server/index.d.ts', 'dist/src/protocol/errors.d.ts'],
      ...['proto/fabrickv/v1/fabrickv.proto', 'native/CMakeLists.txt', 'scripts/install-native.mjs'],
    ]) {
      assert.ok(paths.includes(needed), `${needed} is missing`);
    }
    const unwanted = paths.filter((path) =>
      /^(dist\/test|test|node_modules|native\/build|native\/test|\.ci)/.test(path),
    );
    assert.deepEqual(unwanted, []);
    assert.ok(packed.unpackedSize < 5 * 1024 * 1024, `${packed.unpackedSize} bytes unpacked`);
  });

  test('works inline where nothing was compiled, from every entry point', async () => {
    await writeFile(dir.file('smoke.mjs'), SMOKE);
    assert.equal(await run(process.execPath, ['smoke.mjs', 'none']), 'inline\n');
    assert.equal(await run(process.execPath, ['smoke.mjs', 'auto']), 'inline\n');
  });

  test('has types', async () => {
    await writeFile(dir.file('typed.ts'), TYPED);
    await writeFile(dir.file('tsconfig.json'), JSON.stringify(TSCONFIG));
    await run(`${ROOT}node_modules/.bin/tsc`, ['-p', 'tsconfig.json']);
  });

  test('has both commands', async () => {
    const listenAddr = `127.0.0.1:${await freePort()}`;
    const bin = (name: string): string => dir.file(`node_modules/.bin/${name}`);
    const { version } = JSON.parse(await readFile(`${ROOT}package.json`, 'utf8')) as { version: string };
    assert.match(await run(bin('kv-server'), ['--version']), new RegExp(version.replaceAll('.', '\\.')));
    await using server = new Child(bin('kv-server'), {
      args: ['--listen-addr', listenAddr, '--memory', '16MiB', '--log-format', 'json'],
    });
    await server.waitForRecord(({ msg }) => msg === 'Listening');
    await run(bin('kv-client'), ['--server-addr', listenAddr, 'put', 'greeting', 'hello']);
    assert.equal(await run(bin('kv-client'), ['--server-addr', listenAddr, 'get', 'greeting']), 'hello');
    server.kill('SIGTERM');
    assert.equal((await server.waitForEnd(10_000)).code, 0, server.stderr);
  });

  test('builds its addon where there is a compiler, and then moves values by RDMA', {
    skip: FULL ? false : 'takes a minute of compiling: FABRICKV_TEST_FULL=1 runs it',
  }, async () => {
    await run('npm', ['rebuild', 'fabrickv', '--foreground-scripts', ...NPM], 300_000);
    assert.equal(await run(process.execPath, ['smoke.mjs', 'tcp']), 'rdma\n');
  });
});
