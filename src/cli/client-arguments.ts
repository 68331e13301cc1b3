/**
 * kv-client's command line.
 */

import type { Argv } from 'yargs';
import { createParser, declareOptions, declareSettings, refuseUnknown, usageError, wordOf } from './arguments.js';
import { benchOptions } from './bench-options.js';
import { clientSettings } from './client-settings.js';
import { nearest } from './suggestion.js';

/** What kv-client can do. */
export type ClientCommand = 'put' | 'get' | 'delete' | 'exists' | 'stat' | 'ping' | 'bench';

/** One thing to do, as the command line says it. */
export interface ClientTask {
  readonly command: ClientCommand;
  /** As it was written; undefined for ping and bench. */
  readonly key: string | undefined;
  /** Of put: the value as it was written; `-` stands for standard input. */
  readonly value: string | undefined;
  /** Of put: the file to read; `-` stands for standard input. */
  readonly file: string | undefined;
  /** Of get: the file to write; `-` stands for standard output. */
  readonly out: string | undefined;
  /** The flags of the settings, and of bench its own. */
  readonly flags: Readonly<Record<string, unknown>>;
}

const COMMAND = 'kv-client';

const EXAMPLES = [
  ['$0 put greeting hello', 'store a text'],
  ['$0 put model --file model.bin', 'store a file'],
  ['tar c . | $0 put backup -', 'store what comes through a pipe'],
  ['$0 get greeting', 'print a value, byte for byte'],
  ['$0 get model --out model.bin --json', 'write it to a file, and tell how it went'],
] as const;

/**
 * Reads the command line.
 *
 * @returns undefined when the help or the version was asked for and has been printed
 * @throws ERR_FABRICKV_SETTING
 */
export async function parseClientArguments(args: readonly string[]): Promise<ClientTask | undefined> {
  let task: ClientTask | undefined;
  const settingNames = Object.keys(clientSettings);

  const take = (command: ClientCommand, argv: Readonly<Record<string, unknown>>, own: readonly string[]): void => {
    refuseUnknown(`${COMMAND} ${command}`, argv, [...settingNames, ...own], 1);
    const textOf = (name: string): string | undefined => {
      const given = own.includes(name) ? argv[name] : undefined;
      if (Array.isArray(given)) throw usageError(`--${name} is given ${given.length} times`, 'give it once');
      return typeof given === 'string' ? wordOf(given) : undefined;
    };
    task = {
      command,
      key: textOf('key'),
      value: textOf('value'),
      file: textOf('file'),
      out: textOf('out'),
      flags: argv,
    };
  };
  const key = (parser: Argv): Argv =>
    parser
      .positional('key', { type: 'string', describe: 'the key, 1 to 1,024 bytes', demandOption: true })
      // Without it yargs takes a lone `-` for the beginning of a flag, and the argument for an empty text.
      .nargs('key', 1);

  const parser = declareSettings(createParser(COMMAND, args), clientSettings)
    .usage('$0 COMMAND [settings]\n\nStores and fetches values of a FabricKV server.')
    .command(
      'put <key> [value]',
      'store a value: VALUE, --file FILE, or - for standard input',
      (own) =>
        key(own)
          .positional('value', { type: 'string', describe: 'the value as text, or - for standard input' })
          .nargs('value', 1)
          .option('file', { type: 'string', nargs: 1, describe: 'FILE: store its bytes; - for standard input' }),
      (argv) => {
        take('put', argv, ['key', 'value', 'file']);
      },
    )
    .command(
      'get <key>',
      'fetch a value and check its CRC-32C; its bytes go to standard output unless --out says otherwise',
      (own) =>
        key(own).option('out', { type: 'string', nargs: 1, describe: 'FILE: write the value there, whole or not' }),
      (argv) => {
        take('get', argv, ['key', 'out']);
      },
    );
  for (const [command, about] of [
    ['delete', 'remove a value'],
    ['exists', 'tell whether there is a value'],
    ['stat', "tell a value's length, version and CRC-32C"],
  ] as const) {
    parser.command(`${command} <key>`, about, key, (argv) => {
      take(command, argv, ['key']);
    });
  }
  parser
    .command(
      'ping',
      'tell how the server is reached, and what it counts',
      (own) => own,
      (argv) => {
        take('ping', argv, []);
      },
    )
    .command(
      'bench',
      'load the server with GETs and PUTs of keys of its own, and tell its throughput and latency',
      (own) => declareOptions(own, benchOptions),
      (argv) => {
        take('bench', argv, Object.keys(benchOptions));
      },
    )
    .command(
      '$0',
      false,
      (own) => own,
      (argv) => {
        throw withoutCommand(argv._[0]);
      },
    )
    .epilogue(
      'A setting comes from its flag, else from the variable in brackets, else from the file that --config names, ' +
        'else from its default.\nExit codes: 0 done, 1 key not there, 2 usage, 3 cannot connect or connection lost, ' +
        '4 the server refused, 5 data plane failed, 6 deadline.',
    );
  for (const [line, about] of EXAMPLES) parser.example(line, about);
  await parser.parseAsync();
  return task;
}

function withoutCommand(word: string | number | undefined): Error {
  const commands = ['put', 'get', 'delete', 'exists', 'stat', 'ping', 'bench'];
  const all = `the commands are ${commands.join(', ')}; ${COMMAND} --help tells more`;
  if (word === undefined) return usageError('no command', all);
  const meant = nearest(String(word), commands);
  return usageError(
    `unknown command "${wordOf(String(word))}"`,
    meant === undefined ? all : `did you mean ${meant}? ${all}`,
  );
}
