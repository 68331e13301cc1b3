/**
 * The command kv-server.
 */

import { toFabricKvError } from '../protocol/errors.js';
import { createParser, declareSettings, refuseUnknown, usageError } from './arguments.js';
import { serverExitCode } from './exit-codes.js';
import { type CommandIo, OutputClosed, processIo, writeAll } from './io.js';
import { errorObject, formatError } from './report-error.js';
import { serve } from './serve.js';
import { resolveServerSettings, serverSettings } from './server-settings.js';
import { settingsAsJson, settingsAsTable } from './show-settings.js';
import { nearest } from './suggestion.js';

const COMMAND = 'kv-server';

/**
 * Runs kv-server to its end.
 *
 * @returns the exit code: 0 stopped when asked, 2 cannot start as asked, 1 anything else
 */
export async function main(args: readonly string[], io: CommandIo = processIo): Promise<number> {
  try {
    const { task, flags } = await parse(args);
    if (task === 'told') return 0;
    const settings = resolveServerSettings({ flags, env: io.env });
    if (task === 'serve') return await serve(settings, io);
    const show = flags['json'] === true ? settingsAsJson : settingsAsTable;
    await writeAll(io.stdout, show(settings.entries));
    return 0;
  } catch (error) {
    if (error instanceof OutputClosed) return 0;
    const failure = toFabricKvError(error);
    const exitCode = serverExitCode(failure.code);
    const asJson = args[0] === 'config' && args.includes('--json');
    await writeAll(
      io.stderr,
      asJson ? `${JSON.stringify({ error: errorObject(failure, exitCode) })}\n` : formatError(COMMAND, failure),
    );
    return exitCode;
  }
}

interface Parsed {
  /** `told`: yargs has printed the help or the version. */
  readonly task: 'serve' | 'config' | 'told';
  readonly flags: Readonly<Record<string, unknown>>;
}

async function parse(args: readonly string[]): Promise<Parsed> {
  let parsed: Parsed = { task: 'told', flags: {} };
  const names = Object.keys(serverSettings);
  const parser = declareSettings(createParser(COMMAND, args), serverSettings)
    .usage('$0 [settings]\n\nServes a FabricKV store until it is stopped by SIGTERM or SIGINT.')
    .command(
      '$0',
      false,
      (own) => own,
      (argv) => {
        const [word] = argv._;
        if (word !== undefined) throw unknownCommand(String(word));
        refuseUnknown(COMMAND, argv, names, 0);
        parsed = { task: 'serve', flags: argv };
      },
    )
    .command(
      'config',
      'print every setting with its value and where that comes from',
      (own) => own.option('json', { type: 'boolean', describe: 'as one JSON object' }),
      (argv) => {
        refuseUnknown(COMMAND, argv, [...names, 'json'], 1);
        parsed = { task: 'config', flags: argv };
      },
    )
    .epilogue(
      'A setting comes from its flag, else from the variable in brackets, else from the file that --config names, ' +
        'else from its default.\nExit codes: 0 stopped when asked, 2 cannot start as asked, 1 anything else.',
    );
  await parser.parseAsync();
  return parsed;
}

function unknownCommand(word: string): Error {
  const meant = nearest(word, ['config']);
  const remedy = meant === undefined ? '' : `did you mean ${COMMAND} ${meant}? `;
  return usageError(
    `unknown command "${word}"`,
    `${remedy}${COMMAND} alone starts the server; --help lists what there is`,
  );
}
