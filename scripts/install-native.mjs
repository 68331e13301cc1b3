// npm's install script: builds the native addon. It never fails an installation, since everything but the data plane works
// without the addon, and it is silent when all went well.
//
// FABRICKV_SKIP_NATIVE_BUILD=1 skips it. FABRICKV_REQUIRE_NATIVE_BUILD=1 makes a failure fail, for CI.

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A build takes some 20 s on two cores; one that hangs must not hang the installation. */
const BUILD_TIMEOUT_MS = 10 * 60 * 1000;

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const native = join(root, 'native');

if (process.env.FABRICKV_SKIP_NATIVE_BUILD === '1' || !existsSync(join(native, 'CMakeLists.txt'))) process.exit(0);

const build = runCmakeJs();
if (build.status !== 0) {
  process.stderr.write(`${explain(build).join('\n')}\n`);
  process.exit(process.env.FABRICKV_REQUIRE_NATIVE_BUILD === '1' ? 1 : 0);
}
if (builtWithoutLibfabric()) {
  process.stderr.write(
    [
      'fabrickv: built without a data plane, because the headers of libfabric are missing.',
      '  What works: everything, with values travelling inline in gRPC messages.',
      '  For RDMA: apt-get install libfabric-dev   (AWS: the EFA installer), then: npm rebuild fabrickv',
      '',
    ].join('\n'),
  );
}

/** @returns {{ status: number | null, output: string }} */
function runCmakeJs() {
  let entry;
  try {
    entry = join(dirname(createRequire(import.meta.url).resolve('cmake-js/package.json')), 'bin', 'cmake-js');
  } catch {
    return { status: 1, output: 'cmake-js is not installed' };
  }
  // cmake-js reads npm's `nodedir`; with node-api-headers it needs no headers of Node's.
  const args = [entry, 'compile', '--directory', native, '--out', join(native, 'build')];
  const result = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
    timeout: BUILD_TIMEOUT_MS,
    maxBuffer: 64 * 1024 * 1024,
  });
  return { status: result.status, output: `${result.stdout ?? ''}${result.stderr ?? ''}${result.error ?? ''}` };
}

function builtWithoutLibfabric() {
  const cache = join(native, 'build', 'CMakeCache.txt');
  return existsSync(cache) && readFileSync(cache, 'utf8').includes('FABRICKV_LIBFABRIC_INCLUDE-NOTFOUND');
}

/**
 * @param {{ output: string }} build
 * @returns {string[]}
 */
function explain({ output }) {
  const missing = ['cmake', 'c++'].filter((tool) => spawnSync(tool, ['--version'], { stdio: 'ignore' }).status !== 0);
  const firstError = output.split('\n').find((line) => /error|not found|no such|cannot/i.test(line));
  const reason = missing.length > 0 ? `missing: ${missing.join(', ')}` : (firstError?.trim() ?? 'the build failed');
  return [
    `fabrickv: the native addon was not built (${reason}).`,
    '  What works: everything, with values travelling inline in gRPC messages and CRCs computed in JavaScript.',
    '  What does not: RDMA (efa, verbs, tcp), zero-copy results, hardware CRC-32C.',
    '  To have them: apt-get install g++ cmake make libfabric-dev, then: npm rebuild fabrickv',
    '  To see the whole build log: npm run build:native',
  ];
}
