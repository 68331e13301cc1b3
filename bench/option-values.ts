/**
 * What the suites' command lines have in common: options that mean the same everywhere, and how their values are read.
 */

import { open } from 'node:fs/promises';
import { isIP } from 'node:net';
import { PROVIDER_PREFERENCE } from '../src/fabric/index.js';
import { parseDurationMs } from '../src/protocol/units.js';

const ROUNDS_MAX = 100;

/** The command line makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** `--case`, with a name that there is as the example. */
export function caseOption(example: string) {
  return {
    type: 'string',
    array: true,
    describe: `measure only the cases with this in their names, as in ${example}; may be repeated`,
  } as const;
}

/** `--time` or `--warmup`, or another one of a single text. */
export function textOption<Default extends string>(defaultText: Default, describe: string) {
  return { type: 'string', nargs: 1, default: defaultText, describe } as const;
}

/** A file that the suite writes. */
export function fileOption(describe: string) {
  return { type: 'string', nargs: 1, describe } as const;
}

export const ROUNDS_OPTION = textOption('5', 'how often all sides take turns');

export const PROVIDER_OPTION = {
  choices: ['auto', ...PROVIDER_PREFERENCE],
  default: 'auto',
  describe: 'the data plane of both sides',
} as const;

export const ADDRESS_OPTION = textOption('127.0.0.1', 'the IP address of this machine that both sides use');

export const JSON_OPTION = {
  type: 'boolean',
  default: false,
  describe: 'print one JSON object instead of a table',
} as const;

/**
 * The cases with one of the parts in their names, a whole name standing for that case alone; all without any.
 *
 * @throws UsageError for a part that no name has
 */
export function casesNamed<Case extends { readonly name: string }>(
  all: readonly Case[],
  parts: readonly string[] | undefined,
): readonly Case[] {
  if (parts === undefined) return all;
  const names = new Set<string>();
  for (const part of parts) {
    const whole = all.some(({ name }) => name === part);
    const found = all.filter(({ name }) => (whole ? name === part : name.includes(part)));
    if (found.length === 0) {
      throw new UsageError(`no case has "${part}" in its name; there are ${all.map(({ name }) => name).join(', ')}`);
    }
    for (const { name } of found) names.add(name);
  }
  return all.filter(({ name }) => names.has(name));
}

/** @throws UsageError */
export function roundsOf(text: string): number {
  const rounds = Number(text);
  if (Number.isInteger(rounds) && rounds >= 1 && rounds <= ROUNDS_MAX) return rounds;
  throw new UsageError(`--rounds is "${text}"; it must be a number from 1 to ${ROUNDS_MAX}`);
}

/** @throws UsageError */
export function secondsOf(name: string, text: string): number {
  const ms = parseDurationMs(text);
  if (ms !== undefined) return ms / 1000;
  throw new UsageError(`--${name} is "${text}"; it must be a time with its unit, as in 600ms`);
}

/** @throws UsageError */
export function addressOf(text: string): string {
  if (isIP(text) !== 0) return text;
  throw new UsageError(`--address is "${text}"; it must be an IP address of this machine`);
}

/** Finds out before anything is measured, which takes minutes, whether the outcome can be written. @throws UsageError */
export async function assertWritable(name: string, file: string): Promise<void> {
  try {
    await (await open(file, 'a')).close();
  } catch (error) {
    throw new UsageError(`--${name} cannot be written: ${error instanceof Error ? error.message : String(error)}`);
  }
}
