/**
 * The suite `data-plane`: large values by the store beside the same bytes by raw delivery-complete writes.
 */

import { LIBFABRIC_PROVIDERS, type ProviderChoice, selectProviders } from '../src/fabric/index.js';
import { type DataPlaneCase, memoryFor, PRODUCT_TUNING, rawCase, storeCase, storedValues } from './data-plane-cases.js';
import { describeMachine } from './machine.js';
import type { Duration, Measurement } from './measurement.js';
import { type CaseRounds, type PairReport, pairRows, pairsOf } from './pair-report.js';
import { buildRawPair, RawPair } from './raw-pair.js';
import { takeTurns } from './rounds.js';
import { StorePair } from './store-pair.js';

const OURS = 'store';
const PEER = 'raw';

/** How long each case runs each time that it warms up. */
const COMPILE_SECONDS = 1.5;

/** Options of {@link runDataPlane}. */
export interface DataPlaneOptions extends Duration {
  readonly cases: readonly DataPlaneCase[];
  readonly rounds: number;
  readonly provider: Exclude<ProviderChoice, 'none'>;
  /** Where everything binds. */
  readonly address: string;
  /** Called with what is being done, in a line. */
  readonly onProgress: (line: string) => void;
}

/** Runs the cases one after the other, in rounds in which everyone has a turn. @throws Error */
export async function runDataPlane(
  options: DataPlaneOptions,
): Promise<{ readonly report: PairReport; readonly cases: readonly CaseRounds[] }> {
  const { address, rounds, onProgress } = options;
  const { chosen } = await selectProviders({ choice: options.provider, sourceAddress: address });
  if (chosen === undefined) throw new Error('there is no provider to measure: see kv-client doctor');
  onProgress('building the raw pair');
  await buildRawPair();
  onProgress('starting both sides');
  const memory = memoryFor(options.cases);
  await using raw = await RawPair.start({
    provider: LIBFABRIC_PROVIDERS[chosen],
    sourceAddress: address,
    memoryBytes: memory.raw,
  });
  await using store = await StorePair.start({
    provider: chosen,
    address,
    memoryBytes: memory.arena,
    receiveMemory: memory.receive,
  });
  for (const [sizeBytes, count] of storedValues(options.cases)) await store.load(sizeBytes, count);

  // JavaScript takes some thousand operations until it is compiled; a server that has run for a minute has them behind it.
  const compile = async (one: DataPlaneCase): Promise<void> => {
    await store.measure(storeCase(one, { seconds: COMPILE_SECONDS, warmupSeconds: 0 }));
  };
  onProgress('warming up');
  for (const one of options.cases) await compile(one);

  const turns = await takeTurns<DataPlaneCase, Measurement>({
    cases: options.cases,
    rounds,
    sidesOf: () => [PEER, OURS],
    measure: (one, side) =>
      side === PEER
        ? raw.measure(rawCase(one, PRODUCT_TUNING[chosen], options))
        : store.measure(storeCase(one, options)),
    warmUp: async (one, side) => {
      if (side === OURS) await compile(one);
    },
    onCase: (index) => onProgress(`case ${index + 1} of ${options.cases.length}, ${rounds} rounds each`),
  });
  const cases = turns.map(({ one, rounds: taken }) => pairsOf(one.name, taken, { ours: OURS, peer: PEER }));
  const report: PairReport = {
    suite: 'data-plane',
    machine: describeMachine(),
    provider: raw.fabric.provider,
    libfabric: raw.fabric.libfabric,
    rounds,
    cases: cases.flatMap((measured) => pairRows(measured, PEER)),
  };
  return { report, cases };
}
