/**
 * The command line of the benchmarks.
 */

import { isIP } from 'node:net';
import yargs from 'yargs';
import { PROVIDER_PREFERENCE } from '../src/fabric/index.js';
import { parseDurationMs } from '../src/protocol/units.js';
import { DATA_PLANE_CASES, type DataPlaneCase } from './data-plane-cases.js';

const ROUNDS_MAX = 100;

/** What to measure, and how to say it. */
export interface BenchTask {
  readonly suite: 'data-plane';
  readonly cases: readonly DataPlaneCase[];
  readonly rounds: number;
  readonly seconds: number;
  readonly warmupSeconds: number;
  readonly provider: 'auto' | 'efa' | 'verbs' | 'tcp';
  readonly address: string;
  readonly json: boolean;
}

/** The command line makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/**
 * Reads the command line.
 *
 * @returns undefined when the help was asked for and has been printed
 * @throws UsageError
 */
export async function parseBenchArguments(args: readonly string[]): Promise<BenchTask | undefined> {
  let task: BenchTask | undefined;
  await yargs([...args])
    .scriptName('npm run bench --')
    .usage('$0 SUITE [options]\n\nMeasures FabricKV beside its peers, in one run on one machine.')
    .command(
      'data-plane',
      'large values by the store, beside raw delivery-complete writes',
      (parser) =>
        parser
          .option('case', {
            type: 'string',
            array: true,
            describe: 'measure only the cases with this in their names, as in get-16MiB; may be repeated',
          })
          .option('rounds', { type: 'string', nargs: 1, default: '5', describe: 'how often both sides take turns' })
          .option('time', { type: 'string', nargs: 1, default: '600ms', describe: 'how long each side has a turn' })
          .option('warmup', { type: 'string', nargs: 1, default: '200ms', describe: 'how long before it counts' })
          .option('provider', {
            choices: ['auto', ...PROVIDER_PREFERENCE] as const,
            default: 'auto' as const,
            describe: 'the data plane of both sides',
          })
          .option('address', {
            type: 'string',
            nargs: 1,
            default: '127.0.0.1',
            describe: 'the IP address of this machine that both sides use',
          })
          .option('json', { type: 'boolean', default: false, describe: 'print one JSON object instead of a table' }),
      (argv) => {
        task = {
          suite: 'data-plane',
          cases: casesNamed(argv.case),
          rounds: roundsOf(argv.rounds),
          seconds: secondsOf('time', argv.time),
          warmupSeconds: secondsOf('warmup', argv.warmup),
          provider: argv.provider,
          address: addressOf(argv.address),
          json: argv.json,
        };
      },
    )
    .demandCommand(1, 'which suite? there is: data-plane')
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

function casesNamed(parts: readonly string[] | undefined): readonly DataPlaneCase[] {
  if (parts === undefined) return DATA_PLANE_CASES;
  for (const part of parts) {
    if (!DATA_PLANE_CASES.some(({ name }) => name.includes(part))) {
      const names = DATA_PLANE_CASES.map(({ name }) => name).join(', ');
      throw new UsageError(`no case has "${part}" in its name; there are ${names}`);
    }
  }
  return DATA_PLANE_CASES.filter(({ name }) => parts.some((part) => name.includes(part)));
}

function roundsOf(text: string): number {
  const rounds = Number(text);
  if (Number.isInteger(rounds) && rounds >= 1 && rounds <= ROUNDS_MAX) return rounds;
  throw new UsageError(`--rounds is "${text}"; it must be a number from 1 to ${ROUNDS_MAX}`);
}

function secondsOf(name: string, text: string): number {
  const ms = parseDurationMs(text);
  if (ms !== undefined) return ms / 1000;
  throw new UsageError(`--${name} is "${text}"; it must be a time with its unit, as in 600ms`);
}

function addressOf(text: string): string {
  if (isIP(text) !== 0) return text;
  throw new UsageError(`--address is "${text}"; it must be an IP address of this machine`);
}
