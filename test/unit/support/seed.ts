import fc from 'fast-check';

/** FABRICKV_TEST_SEED=N repeats a run. */
export const SEED = Number(process.env['FABRICKV_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));

/** Gives fast-check the seed of this run, and prints it. */
export function configureProperties(numRuns: number): void {
  fc.configureGlobal({ seed: SEED, numRuns });
  process.stdout.write(`FABRICKV_TEST_SEED=${SEED}\n`);
}
