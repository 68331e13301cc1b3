/**
 * The command line of the suite `peers`.
 */

import type { Argv } from 'yargs';
import {
  caseOption,
  casesNamed,
  fileOption,
  JSON_OPTION,
  ROUNDS_OPTION,
  roundsOf,
  secondsOf,
  textOption,
  UsageError,
} from './option-values.js';
import { PEER_NAMES, PEERS_CASES, type PeerName, type PeersCase, takes } from './peers-cases.js';

/** What to measure, and how to say it. */
export interface PeersTask {
  readonly suite: 'peers';
  /** Each of them has a peer that takes part. */
  readonly cases: readonly PeersCase[];
  readonly peers: readonly PeerName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly warmupSeconds: number;
  readonly json: boolean;
  readonly html: string | undefined;
}

/** Declares the suite; `chosen` gets the task when the command line asks for it. @throws UsageError out of the parser */
export function declarePeers(parser: Argv, chosen: (task: PeersTask) => void): Argv {
  return parser.command(
    'peers',
    'FabricKV beside Redis and memcached, from 16 B to 64 MiB',
    (options) =>
      options
        .option('case', caseOption('get-1MiB'))
        .option('peer', {
          choices: PEER_NAMES,
          array: true,
          describe: 'measure only beside this one; may be repeated',
        })
        .option('rounds', ROUNDS_OPTION)
        .option('time', textOption('180ms', 'how long each has a turn; with huge values longer'))
        .option('warmup', textOption('40ms', 'how long before it counts'))
        .option('html', fileOption('write a report with charts to this file'))
        .option('json', JSON_OPTION),
    (argv) => {
      const peers = PEER_NAMES.filter((name) => argv.peer?.includes(name) ?? true);
      const named = casesNamed(PEERS_CASES, argv.case);
      const cases = named.filter((one) => peers.some((peer) => takes(peer, one)));
      if (cases.length === 0) throw new UsageError(`${peers.join(', ')} takes no values of these sizes`);
      chosen({
        suite: 'peers',
        cases,
        peers,
        rounds: roundsOf(argv.rounds),
        seconds: secondsOf('time', argv.time),
        warmupSeconds: secondsOf('warmup', argv.warmup),
        json: argv.json,
        html: argv.html,
      });
    },
  );
}
