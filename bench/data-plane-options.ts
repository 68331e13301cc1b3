/**
 * The command line of the suite `data-plane`.
 */

import type { Argv } from 'yargs';
import { DATA_PLANE_CASES, type DataPlaneCase } from './data-plane-cases.js';
import {
  ADDRESS_OPTION,
  addressOf,
  caseOption,
  casesNamed,
  JSON_OPTION,
  PROVIDER_OPTION,
  ROUNDS_OPTION,
  roundsOf,
  secondsOf,
  textOption,
} from './option-values.js';

/** What to measure, and how to say it. */
export interface DataPlaneTask {
  readonly suite: 'data-plane';
  readonly cases: readonly DataPlaneCase[];
  readonly rounds: number;
  readonly seconds: number;
  readonly warmupSeconds: number;
  readonly provider: 'auto' | 'efa' | 'verbs' | 'tcp';
  readonly address: string;
  readonly json: boolean;
}

/** Declares the suite; `chosen` gets the task when the command line asks for it. @throws UsageError out of the parser */
export function declareDataPlane(parser: Argv, chosen: (task: DataPlaneTask) => void): Argv {
  return parser.command(
    'data-plane',
    'large values by the store, beside raw delivery-complete writes',
    (options) =>
      options
        .option('case', caseOption('get-16MiB'))
        .option('rounds', ROUNDS_OPTION)
        .option('time', textOption('600ms', 'how long each side has a turn'))
        .option('warmup', textOption('200ms', 'how long before it counts'))
        .option('provider', PROVIDER_OPTION)
        .option('address', ADDRESS_OPTION)
        .option('json', JSON_OPTION),
    (argv) =>
      chosen({
        suite: 'data-plane',
        cases: casesNamed(DATA_PLANE_CASES, argv.case),
        rounds: roundsOf(argv.rounds),
        seconds: secondsOf('time', argv.time),
        warmupSeconds: secondsOf('warmup', argv.warmup),
        provider: argv.provider,
        address: addressOf(argv.address),
        json: argv.json,
      }),
  );
}
