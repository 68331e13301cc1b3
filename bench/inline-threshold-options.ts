/**
 * The command line of the suite `inline-threshold`.
 */

import type { Argv } from 'yargs';
import { INLINE_THRESHOLD_CASES, type InlineThresholdCase } from './inline-threshold-cases.js';
import {
  ADDRESS_OPTION,
  addressOf,
  caseOption,
  casesNamed,
  fileOption,
  JSON_OPTION,
  PROVIDER_OPTION,
  ROUNDS_OPTION,
  roundsOf,
  secondsOf,
  textOption,
} from './option-values.js';

/** What to measure, and how to say it. */
export interface InlineThresholdTask {
  readonly suite: 'inline-threshold';
  readonly cases: readonly InlineThresholdCase[];
  readonly rounds: number;
  readonly seconds: number;
  readonly warmupSeconds: number;
  readonly provider: 'auto' | 'efa' | 'verbs' | 'tcp';
  readonly address: string;
  readonly json: boolean;
  readonly svg: string | undefined;
}

/** Declares the suite; `chosen` gets the task when the command line asks for it. @throws UsageError out of the parser */
export function declareInlineThreshold(parser: Argv, chosen: (task: InlineThresholdTask) => void): Argv {
  return parser.command(
    'inline-threshold',
    'values inside gRPC messages, beside the same values by RDMA: where the paths cross',
    (options) =>
      options
        .option('case', caseOption('get-64KiB'))
        .option('rounds', ROUNDS_OPTION)
        .option('time', textOption('150ms', 'how long each side has a turn'))
        .option('warmup', textOption('20ms', 'how long before it counts'))
        .option('provider', PROVIDER_OPTION)
        .option('address', ADDRESS_OPTION)
        .option('svg', fileOption('write a plot of throughput over size to this file'))
        .option('json', JSON_OPTION),
    (argv) =>
      chosen({
        suite: 'inline-threshold',
        cases: casesNamed(INLINE_THRESHOLD_CASES, argv.case),
        rounds: roundsOf(argv.rounds),
        seconds: secondsOf('time', argv.time),
        warmupSeconds: secondsOf('warmup', argv.warmup),
        provider: argv.provider,
        address: addressOf(argv.address),
        json: argv.json,
        svg: argv.svg,
      }),
  );
}
