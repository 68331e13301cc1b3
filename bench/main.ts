/**
 * `npm run bench -- SUITE`: results on standard output, everything else on standard error. Exit codes: 0 measured,
 * 1 could not be measured, 2 wrong arguments, 128 + the signal when it was interrupted.
 */

import { SIGNAL_EXIT } from '../src/cli/exit-codes.js';
import { type BenchTask, parseBenchArguments, UsageError } from './arguments.js';
import { runDataPlane } from './data-plane.js';
import { formatReport } from './report.js';

const EXIT = { done: 0, failed: 1, usage: 2 } as const;

// Leaving is enough: what runs for a benchmark ends with it (processes.ts).
for (const [signal, code] of Object.entries(SIGNAL_EXIT)) process.once(signal, () => process.exit(code));

process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  try {
    const task = await parseBenchArguments(args);
    if (task !== undefined) await measure(task);
    return EXIT.done;
  } catch (error) {
    if (error instanceof UsageError) {
      say(`${error.message}\n  remedy  npm run bench -- --help lists what there is`);
      return EXIT.usage;
    }
    say(error instanceof Error ? error.message : String(error));
    return EXIT.failed;
  }
}

async function measure(task: BenchTask): Promise<void> {
  const { report, cases } = await runDataPlane({ ...task, onProgress: say });
  process.stdout.write(task.json ? `${JSON.stringify(report)}\n` : formatReport(report, cases));
}

function say(line: string): void {
  process.stderr.write(`bench: ${line}\n`);
}
