import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { Child } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { FULL } from '../support/mode.js';
import { ROOT } from '../support/paths.js';
import { freePort } from '../support/ports.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';

const README = `${ROOT}README.md`;

interface Block {
  readonly language: string;
  readonly text: string;
}

/** The fenced blocks of a page, with their languages. */
function blocksOf(markdown: string): Block[] {
  return [...markdown.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(([, language = '', text = '']) => ({
    language,
    text,
  }));
}

/** A block's commands: one a line, comments taken off, continued lines joined. */
function commandsOf({ text }: Block): string[] {
  return text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .map((line) => line.replace(/(^|\s)#.*$/, '').trim())
    .filter((line) => line !== '');
}

/** `npx --no-install` finds the commands of a clone where scripts/setup.sh has linked them; else it would ask the registry. */
const withoutCommands = existsSync(`${ROOT}node_modules/.bin/kv-client`)
  ? false
  : 'scripts/setup.sh has not been run in this clone';

/** What is done about a command of the README: run here, or by a test elsewhere. */
type Treatment =
  | { readonly by: 'run' }
  | { readonly by: 'start' }
  | { readonly by: 'full'; readonly why: string }
  | { readonly by: 'elsewhere'; readonly where: string };

const TREATMENTS: readonly (readonly [RegExp, Treatment])[] = [
  [/^npx --no-install kv-server --listen-addr /, { by: 'start' }],
  [/^npx --no-install kv-server config$/, { by: 'run' }],
  [/^npx --no-install kv-client /, { by: 'run' }],
  [/^scripts\/demo\.sh$/, { by: 'full', why: 'it sets the clone up again' }],
  [/^scripts\/test\.sh$/, { by: 'elsewhere', where: 'it is what runs this test' }],
  [/^scripts\/test-rdma-debug\.sh (server|client [\d.]+)$/, { by: 'elsewhere', where: 'test/host/namespaces.test.ts' }],
];

function treatmentOf(command: string): Treatment | undefined {
  return TREATMENTS.find(([pattern]) => pattern.test(command))?.[1];
}

describe('README.md', () => {
  const blocks = existsSync(README) ? blocksOf(readFileSync(README, 'utf8')) : [];
  const commands = blocks.filter(({ language }) => /^(bash|sh|shell|console)$/.test(language)).flatMap(commandsOf);
  let server: TestServer;
  let dir: TempDir;

  before(async () => {
    dir = await tempDir();
    server = await startServer({ args: ['--memory', '512MiB', '--log-level', 'info'] });
  });
  after(async () => {
    await server?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  /** In the clone, as a reader would; the address is the test's own, given as the variable that the flag stands for. */
  const shell = (command: string): Child =>
    new Child('bash', {
      args: ['-euo', 'pipefail', '-c', command],
      cwd: ROOT,
      env: {
        FABRICKV_SERVER_ADDR: server.addr,
        // In a package's own clone npx first installs the package, as a link, into npm's cache: into one of the test's.
        npm_config_cache: dir.file('npm-cache'),
        FABRICKV_SKIP_NATIVE_BUILD: '1',
      },
    });

  test('every command is known to this test, and every kind of block too', () => {
    assert.ok(commands.length >= 8, `only ${commands.length} commands were found`);
    assert.deepEqual(
      commands.filter((command) => treatmentOf(command) === undefined),
      [],
      'commands that no test runs: add them to TREATMENTS',
    );
    assert.deepEqual(
      blocks.filter(({ language }) => !['bash', 'ts', ''].includes(language)),
      [],
    );
  });

  for (const command of commands) {
    const treatment = treatmentOf(command);
    const skip =
      treatment?.by === 'run' || treatment?.by === 'start'
        ? withoutCommands
        : treatment?.by === 'elsewhere'
          ? `not here: ${treatment.where}`
          : treatment?.by === 'full' && !FULL
            ? `${treatment.why}: FABRICKV_TEST_FULL=1 runs it`
            : false;
    test(command, { skip }, async () => {
      if (treatment?.by === 'start') {
        const addr = `127.0.0.1:${await freePort()}`;
        // As it is written, but for the port and the size, which belong to whoever runs the tests.
        const started = command.replace(/127\.0\.0\.1:\d+/, addr).replace(/--memory \S+/, '--memory 64MiB');
        await using child = shell(`exec ${started}`);
        const { pid } = await child.waitForRecord(({ msg }) => msg === 'Listening', 60_000);
        // A terminal's Ctrl-C goes to everyone in the foreground; npx itself passes nothing on.
        process.kill(Number(pid), 'SIGINT');
        assert.equal((await child.waitForEnd(10_000)).code, 0, child.stderr);
        return;
      }
      const ended = await shell(command).waitForEnd(FULL ? 300_000 : 60_000);
      assert.equal(ended.code, 0, `${ended.stdout.toString()}${ended.stderr}`);
    });
  }

  for (const [index, { text }] of blocks.filter(({ language }) => language === 'ts').entries()) {
    test(`example ${index + 1} in TypeScript`, async () => {
      // Inside the package its own name resolves as it does for those who have installed it.
      const name = `${ROOT}dist/readme-example-${process.pid}-${index}`;
      const source = text.replace(/'127\.0\.0\.1:50051'/, `'${server.addr}'`);
      assert.notEqual(source, text, 'the example names no server');
      const outDir = `${ROOT}dist/readme-example-${process.pid}-out`;
      await writeFile(`${name}.mts`, source);
      try {
        const flags = ['--target', 'es2023', '--module', 'nodenext', '--strict', '--skipLibCheck', '--types', 'node'];
        const lib = ['--lib', 'es2023,esnext.disposable', '--ignoreConfig', '--rootDir', ROOT, '--outDir', outDir];
        const tsc = new Child(`${ROOT}node_modules/.bin/tsc`, { args: [...flags, ...lib, `${name}.mts`], cwd: ROOT });
        const compiled = await tsc.waitForEnd(60_000);
        assert.equal(compiled.code, 0, compiled.stdout.toString());
        const file = `${outDir}/dist/readme-example-${process.pid}-${index}.mjs`;
        await writeFile(dir.file('model.bin'), Buffer.alloc(3 * 1024 * 1024, 'model'));
        const ended = await new Child(process.execPath, { args: [file], cwd: dir.path }).waitForEnd(30_000);
        assert.equal(ended.code, 0, ended.stderr);
        // What the comment behind the first console.log says is what it prints.
        const said = /console\.log\(.*?\);?\s*\/\/ (\S+ '\w+')/.exec(text)?.[1];
        if (said !== undefined) assert.equal(ended.stdout.toString().split('\n')[0], said.replaceAll("'", ''));
      } finally {
        await rm(`${name}.mts`, { force: true });
        await rm(outDir, { recursive: true, force: true });
      }
    });
  }
});
