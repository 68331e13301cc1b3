/**
 * The suite `data-plane`: large values by the store beside the same bytes by raw delivery-complete writes.
 */

import { LIBFABRIC_PROVIDERS, type ProviderChoice, selectProviders } from '../src/fabric/index.js';
import { type DataPlaneCase, memoryFor, PRODUCT_TUNING, rawCase, storeCase, storedValues } from './data-plane-cases.js';
import { describeMachine } from './machine.js';
import { LoadMeter } from './machine-load.js';
import type { Duration } from './measurement.js';
import { buildRawPair, RawPair } from './raw-pair.js';
import { type CaseRounds, type Pair, type Report, reportRows } from './report.js';
import { StorePair } from './store-pair.js';

const PEER = 'raw';

/** How long each case runs before the first round. */
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

/** Runs the cases in rounds; in each round, each case on both sides, one right after the other. @throws Error */
export async function runDataPlane(
  options: DataPlaneOptions,
): Promise<{ readonly report: Report; readonly cases: readonly CaseRounds[] }> {
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
  onProgress('warming up');
  for (const one of options.cases) await store.measure(storeCase(one, { seconds: COMPILE_SECONDS, warmupSeconds: 0 }));

  const cases = options.cases.map((one) => ({ one, name: one.name, rounds: [] as Pair[] }));
  for (let round = 0; round < rounds; round += 1) {
    onProgress(`round ${round + 1} of ${rounds}`);
    for (const { one, rounds: pairs } of cases) {
      const measureRaw = () => raw.measure(rawCase(one, PRODUCT_TUNING[chosen], options));
      const measureStore = () => store.measure(storeCase(one, options));
      const load = await LoadMeter.start();
      // Every other round the other way round, so that a machine that gets slower or faster favours neither.
      const peersFirst = round % 2 === 0 ? await measureRaw() : undefined;
      const ours = await measureStore();
      pairs.push({ ours, peers: peersFirst ?? (await measureRaw()), othersShare: await load.othersShare() });
    }
  }
  const report: Report = {
    suite: 'data-plane',
    machine: describeMachine(),
    provider: raw.fabric.provider,
    libfabric: raw.fabric.libfabric,
    rounds,
    cases: cases.flatMap((measured) => reportRows(measured, PEER)),
  };
  return { report, cases };
}
