/**
 * Cases one after the other; of each, rounds in which every side has a turn, one right after the other, so that a machine
 * that gets slower or faster while they run favours none. All rounds of a case follow each other: what JavaScript's compiler
 * and the caches have learnt from other cases is forgotten once, before they count, and on every side.
 */

import { LoadMeter } from './machine-load.js';

/** One case of one round. */
export interface Round<Measured> {
  /** By the side's name. */
  readonly measured: ReadonlyMap<string, Measured>;
  /** The share of all CPUs that other processes used meanwhile, 0 to 1. */
  readonly othersShare: number;
}

/** Every round of one case. */
export interface CaseTurns<Case, Measured> {
  readonly one: Case;
  readonly rounds: readonly Round<Measured>[];
}

/** Options of {@link takeTurns}. */
export interface TakeTurnsOptions<Case, Measured> {
  readonly cases: readonly Case[];
  readonly rounds: number;
  /** The names of those that take part in a case. */
  readonly sidesOf: (one: Case) => readonly string[];
  readonly measure: (one: Case, side: string) => Promise<Measured>;
  /** Called once for each side of a case before its rounds: what it does does not count. */
  readonly warmUp: (one: Case, side: string) => Promise<void>;
  /** Called before each case, counted from 0. */
  readonly onCase: (index: number) => void;
}

/** Measures, and changes who comes first from round to round. */
export async function takeTurns<Case, Measured>(
  options: TakeTurnsOptions<Case, Measured>,
): Promise<readonly CaseTurns<Case, Measured>[]> {
  const { cases, rounds, sidesOf, measure, warmUp, onCase } = options;
  const turns: CaseTurns<Case, Measured>[] = [];
  for (const [index, one] of cases.entries()) {
    onCase(index);
    const sides = sidesOf(one);
    for (const side of sides) await warmUp(one, side);
    const measuredRounds: Round<Measured>[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const load = await LoadMeter.start();
      const measured = new Map<string, Measured>();
      for (const side of rotated(sides, round)) measured.set(side, await measure(one, side));
      measuredRounds.push({ measured, othersShare: await load.othersShare() });
    }
    turns.push({ one, rounds: measuredRounds });
  }
  return turns;
}

/** The same names, beginning with another one each time. */
export function rotated(names: readonly string[], by: number): readonly string[] {
  const start = by % Math.max(1, names.length);
  return [...names.slice(start), ...names.slice(0, start)];
}

/** What one side came to. @throws Error when it has not taken part */
export function sideOf<Measured>({ measured }: Round<Measured>, side: string): Measured {
  const found = measured.get(side);
  if (found === undefined) throw new Error(`${side} was not measured`);
  return found;
}
