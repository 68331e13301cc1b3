import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * Runs a command of dist/, or says how to build it. The command answers with its exit code; the process ends with it
 * at once, so that nothing that is still open can hold it.
 *
 * @param {'kv-server' | 'kv-client'} name
 */
export async function runCommand(name) {
  const entry = new URL(`../dist/src/cli/${name}.js`, import.meta.url);
  if (!existsSync(entry)) {
    process.stderr.write(
      `${name}: FabricKV is not built: ${fileURLToPath(entry)} is missing\n  remedy  run scripts/setup.sh, or npm run build\n`,
    );
    process.exitCode = 2;
    return;
  }
  const { main } = await import(entry.href);
  process.exit(await main(process.argv.slice(2)));
}
