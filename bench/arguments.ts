/**
 * The command line of the benchmarks.
 */

import yargs from 'yargs';
import { type DataPlaneTask, declareDataPlane } from './data-plane-options.js';
import { declareInlineThreshold, type InlineThresholdTask } from './inline-threshold-options.js';
import { UsageError } from './option-values.js';
import { declarePeers, type PeersTask } from './peers-options.js';

/** What to measure, and how to say it. */
export type BenchTask = DataPlaneTask | PeersTask | InlineThresholdTask;

/**
 * Reads the command line.
 *
 * @returns undefined when the help was asked for and has been printed
 * @throws UsageError
 */
export async function parseBenchArguments(args: readonly string[]): Promise<BenchTask | undefined> {
  let task: BenchTask | undefined;
  const parser = yargs([...args])
    .scriptName('npm run bench --')
    .usage('$0 SUITE [options]\n\nMeasures FabricKV beside its peers, in one run on one machine.');
  for (const declare of [declareDataPlane, declarePeers, declareInlineThreshold]) {
    declare(parser, (chosen) => {
      task = chosen;
    });
  }
  await parser
    .demandCommand(1, 'which suite? there are: data-plane, peers, inline-threshold')
    .parserConfiguration({ 'greedy-arrays': false, 'parse-numbers': false, 'parse-positional-numbers': false })
    .strict()
    .version(false)
    .exitProcess(false)
    .wrap(110)
    .fail((message: string | null, error: Error | undefined) => {
      throw error instanceof UsageError ? error : new UsageError(message ?? error?.message ?? 'it makes no sense');
    })
    .parseAsync();
  return task;
}
