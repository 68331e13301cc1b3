/**
 * The suite `inline-threshold`: the same values inside gRPC messages and by RDMA, and where the paths cross.
 */

import { type ProviderChoice, selectProviders } from '../src/fabric/index.js';
import type { InlineThresholdCase } from './inline-threshold-cases.js';
import { crossings, type InlineThresholdReport } from './inline-threshold-report.js';
import { arenaBytes } from './load-cases.js';
import { LoadClient } from './load-client.js';
import type { LoadMeasurement } from './load-messages.js';
import { describeMachine } from './machine.js';
import type { Duration } from './measurement.js';
import { type CaseRounds, pairRows, pairsOf } from './pair-report.js';
import { takeTurns } from './rounds.js';
import { startKvServer } from './server-process.js';

const RDMA = 'rdma';
const INLINE = 'inline';

/** Options of {@link runInlineThreshold}. */
export interface InlineThresholdOptions extends Duration {
  readonly cases: readonly InlineThresholdCase[];
  readonly rounds: number;
  readonly provider: Exclude<ProviderChoice, 'none'>;
  /** Where everything binds. */
  readonly address: string;
  /** Called with what is being done, in a line. */
  readonly onProgress: (line: string) => void;
}

/** Runs the cases one after the other, in rounds in which everyone has a turn. @throws Error */
export async function runInlineThreshold(
  options: InlineThresholdOptions,
): Promise<{ readonly report: InlineThresholdReport; readonly cases: readonly CaseRounds[] }> {
  const { address, rounds, onProgress } = options;
  const { chosen } = await selectProviders({ choice: options.provider, sourceAddress: address });
  if (chosen === undefined) throw new Error('there is no provider to measure: see kv-client doctor');
  onProgress('starting kv-server and a client for each path');
  const memoryBytes = arenaBytes(options.cases);
  await using server = await startKvServer({ address, memoryBytes, provider: chosen });
  const start = (path: 'rdma' | 'inline', inlineThreshold: number): Promise<LoadClient> => {
    const clientOptions = { serverAddr: server.hostPort, provider: chosen, fabricAddr: address, inlineThreshold };
    return LoadClient.start(path, { kind: 'fabrickv', options: clientOptions, path }, server);
  };
  await using rdma = await start(RDMA, 0);
  await using inline = await start(INLINE, Number.POSITIVE_INFINITY);
  onProgress('storing the values');
  await inline.load(options.cases);
  onProgress('warming up');
  const warmUp = (one: InlineThresholdCase, side: string): Promise<void> =>
    (side === RDMA ? rdma : inline).compile(one, options.cases.length, options);
  for (const one of options.cases) for (const side of [RDMA, INLINE]) await warmUp(one, side);
  const turns = await takeTurns<InlineThresholdCase, LoadMeasurement>({
    cases: options.cases,
    rounds,
    sidesOf: () => [INLINE, RDMA],
    measure: (one, side) => (side === RDMA ? rdma : inline).measure(one, options),
    warmUp,
    onCase: (index) => onProgress(`case ${index + 1} of ${options.cases.length}, ${rounds} rounds each`),
  });
  const cases = turns.map(({ one, rounds: taken }) => pairsOf(one.name, taken, { ours: RDMA, peer: INLINE }));
  const rows = cases.flatMap((measured) => pairRows(measured, INLINE));
  const report: InlineThresholdReport = {
    suite: 'inline-threshold',
    machine: describeMachine(),
    provider: rdma.about.provider,
    libfabric: rdma.about.libfabric,
    rounds,
    cases: rows,
    crossings: crossings(options.cases, rows),
  };
  return { report, cases };
}
