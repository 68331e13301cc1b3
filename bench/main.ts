/**
 * `npm run bench -- SUITE`: results on standard output, everything else on standard error. Exit codes: 0 measured,
 * 1 could not be measured, 2 wrong arguments, 128 + the signal when it was interrupted.
 */

import { writeFile } from 'node:fs/promises';
import { SIGNAL_EXIT } from '../src/cli/exit-codes.js';
import { type BenchTask, parseBenchArguments } from './arguments.js';
import { runDataPlane } from './data-plane.js';
import type { DataPlaneTask } from './data-plane-options.js';
import { runInlineThreshold } from './inline-threshold.js';
import type { InlineThresholdTask } from './inline-threshold-options.js';
import { formatCrossings, plotInlineThreshold } from './inline-threshold-report.js';
import { assertWritable, UsageError } from './option-values.js';
import { formatPairReport } from './pair-report.js';
import { runPeers } from './peers.js';
import { peersHtml } from './peers-html.js';
import type { PeersTask } from './peers-options.js';
import { formatPeersReport } from './peers-report.js';
import { disturbedNote } from './report.js';

const EXIT = { done: 0, failed: 1, usage: 2 } as const;

// Leaving is enough: what runs for a benchmark ends with it (processes.ts).
for (const [signal, code] of Object.entries(SIGNAL_EXIT)) process.once(signal, () => process.exit(code));

process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  try {
    const task = await parseBenchArguments(args);
    if (task !== undefined) process.stdout.write(await measure(task, args));
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

/** What is printed. */
function measure(task: BenchTask, args: readonly string[]): Promise<string> {
  switch (task.suite) {
    case 'data-plane':
      return measureDataPlane(task);
    case 'peers':
      return measurePeers(task, args);
    case 'inline-threshold':
      return measureInlineThreshold(task);
  }
}

async function measureDataPlane(task: DataPlaneTask): Promise<string> {
  const { report, cases } = await runDataPlane({ ...task, onProgress: say });
  return task.json ? `${JSON.stringify(report)}\n` : formatPairReport(report, cases);
}

async function measurePeers(task: PeersTask, args: readonly string[]): Promise<string> {
  const { html } = task;
  if (html !== undefined) await assertWritable('html', html);
  const { report, cases, turns } = await runPeers({ ...task, onProgress: say });
  if (html !== undefined) {
    const disturbed = disturbedNote(turns.map(({ one, rounds }) => ({ name: one.name, rounds })));
    const command = ['npm run bench --', ...args].join(' ');
    await writeFile(html, peersHtml({ report, cases, command, date: new Date(), disturbed }));
  }
  return task.json ? `${JSON.stringify(report)}\n` : formatPeersReport(report, cases, turns);
}

async function measureInlineThreshold(task: InlineThresholdTask): Promise<string> {
  const { svg } = task;
  if (svg !== undefined) await assertWritable('svg', svg);
  const { report, cases } = await runInlineThreshold({ ...task, onProgress: say });
  if (svg !== undefined) await writeFile(svg, plotInlineThreshold(report, task.cases));
  if (task.json) return `${JSON.stringify(report)}\n`;
  return `${formatPairReport(report, cases, 'RDMA')}${formatCrossings(report.crossings)}`;
}

function say(line: string): void {
  process.stderr.write(`bench: ${line}\n`);
}
