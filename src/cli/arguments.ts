/**
 * The command line by yargs, strict: what is not declared is an error that says what may have been meant.
 */

import { readFileSync } from 'node:fs';
import yargs, { type Argv, type Options } from 'yargs';
import { FabricKvError } from '../protocol/errors.js';
import { type Setting, type SettingsTable, variableOf } from './settings.js';
import { nearest } from './suggestion.js';

/** Where a user errs on the command line itself. */
export function usageError(message: string, remedy: string): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_SETTING', message, { remedy });
}

/** The version in package.json. */
export function packageVersion(): string {
  // From dist/src/cli/ to the package's root.
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

// yargs' types know only texts here; of what has a singular and a plural it takes both.
const PLAIN_WORDS = {
  'Not enough non-option arguments: got %s, need at least %s': {
    one: 'too few arguments: %s given, %s needed',
    other: 'too few arguments: %s given, %s needed',
  },
  'Not enough arguments following: %s': '--%s has no value',
} as unknown as Record<string, string>;

/** A parser with our rules; nothing is a number, a date or an object because it looks like one. */
export function createParser(command: string, args: readonly string[]): Argv {
  return yargs(protectWords(args))
    .scriptName(command)
    .updateStrings(PLAIN_WORDS)
    .parserConfiguration({
      'boolean-negation': true,
      'camel-case-expansion': false,
      'dot-notation': false,
      'parse-numbers': false,
      'parse-positional-numbers': false,
      'short-option-groups': false,
      'greedy-arrays': false,
    })
    .exitProcess(false)
    .version(packageVersion())
    .help()
    .wrap(120)
    .fail((message: string | null, error: Error | undefined) => {
      // yargs' own errors say what is wrong with the arguments; others come out of our handlers.
      if (error !== undefined && error.name !== 'YError') throw error;
      const what = error?.message ?? message ?? 'the arguments make no sense';
      throw usageError(what, `${command} --help lists what there is`);
    });
}

/** No argument of a process can hold this character, so it can stand for "what follows is a word, whatever it looks like". */
const PROTECTED = '\0';

/** yargs does not take what follows `--` for a command's positionals; so it is given as words that cannot be flags. */
function protectWords(args: readonly string[]): string[] {
  const end = args.indexOf('--');
  if (end === -1) return [...args];
  return [...args.slice(0, end), ...args.slice(end + 1).map((word) => `${PROTECTED}${word}`)];
}

/** A word as it was on the command line. */
export function wordOf(given: string): string {
  return given.startsWith(PROTECTED) ? given.slice(PROTECTED.length) : given;
}

/** Declares the flags of a table, and --config. */
export function declareSettings<Parser extends Argv>(parser: Parser, table: SettingsTable): Parser {
  for (const [name, row] of Object.entries(table)) parser.option(name, optionOf(name, row));
  parser.option('config', {
    type: 'string',
    nargs: 1,
    group: 'Settings:',
    describe: 'JSON file of settings, named like the flags [FABRICKV_CONFIG]',
    defaultDescription: 'none',
  });
  return parser;
}

/** Declares the flags of one command: there is no variable and no entry in a file for them. */
export function declareOptions<Parser extends Argv>(parser: Parser, table: SettingsTable): Parser {
  for (const [name, row] of Object.entries(table)) {
    parser.option(name, { ...optionOf(name, row), group: 'Options:', describe: describe(row) });
  }
  return parser;
}

function describe({ placeholder, about }: Setting<unknown>): string {
  return placeholder === '' ? about : `${placeholder}: ${about}`;
}

function optionOf(name: string, row: Setting<unknown>): Options {
  return {
    type: row.kind === 'switch' ? 'boolean' : 'string',
    group: 'Settings:',
    describe: `${describe(row)} [${variableOf(name)}]`,
    defaultDescription: row.whenUnset,
    ...(row.kind === 'switch' ? {} : { nargs: 1 }),
    ...(row.kind === 'list' ? { array: true } : {}),
  };
}

/** Flags that yargs knows by itself, and its own entries. */
const ALWAYS_KNOWN = ['help', 'version', 'config', '_', '$0'];

/**
 * Refuses flags and arguments that nobody declared.
 *
 * @param argv what yargs has read
 * @param known the names of the flags and positionals
 * @param words how many words without dashes may stay over: the command's own name
 */
export function refuseUnknown(
  command: string,
  argv: Readonly<Record<string, unknown>>,
  known: readonly string[],
  words: number,
): void {
  const names = [...known, ...ALWAYS_KNOWN];
  for (const [name, given] of Object.entries(argv)) {
    if (names.includes(name)) continue;
    const flag = `${name.length === 1 ? '-' : '--'}${given === false ? 'no-' : ''}${name}`;
    const meant = nearest(
      name,
      names.filter((candidate) => candidate.length > 2),
    );
    const remedy = meant === undefined ? '' : `did you mean --${meant}? `;
    throw usageError(`unknown flag ${flag}`, `${remedy}${command} --help lists what there is`);
  }
  const extra = (argv['_'] as readonly (string | number)[])[words];
  if (extra !== undefined) {
    throw usageError(
      `unexpected argument "${wordOf(String(extra))}"`,
      `quote what has spaces in it; ${command} --help lists what it takes`,
    );
  }
}
