/**
 * The commands' logs: pino, always to stderr.
 */

import { type DestinationStream, type Logger, pino } from 'pino';
import { isNodeError } from './io.js';

/** Options of {@link createLogger}. */
export interface LoggerOptions {
  readonly name: string;
  readonly level: string;
  readonly format: 'auto' | 'json' | 'pretty';
  readonly isTerminal: boolean;
  /** Whether a line is out when the call returns: right for a short command, not for a server with a slow reader. */
  readonly sync: boolean;
}

/** A logger, and what writes out the lines that it still holds. */
export interface CommandLogger {
  readonly logger: Logger;
  flush(): void;
}

/** A reader of stderr that has stopped reading must not cost more memory than this; lines past it are dropped. */
const BUFFERED_BYTES_MAX = 16 * 1024 * 1024;

const STDERR = 2;

/** Opens the log of a command. */
export async function createLogger({ name, level, format, isTerminal, sync }: LoggerOptions): Promise<CommandLogger> {
  const options = {
    name,
    level,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  if (level === 'silent') return { logger: pino(options, discard), flush: () => undefined };
  const file = pino.destination({ dest: STDERR, sync, maxLength: BUFFERED_BYTES_MAX });
  // Who reads stderr may go away; that is no reason for a server to end.
  file.on('error', () => undefined);
  const flush = (): void => {
    try {
      file.flushSync();
    } catch (error) {
      // The reader has gone: there is nowhere left to say so.
      if (!isNodeError(error)) throw error;
    }
  };
  const isPretty = format === 'pretty' || (format === 'auto' && isTerminal);
  if (!isPretty) return { logger: pino(options, file), flush };
  // Loaded only when needed: it would be a tenth of the start-up time of every kv-client.
  const { prettyFactory } = await import('pino-pretty');
  const prettify = prettyFactory({
    colorize: isTerminal,
    ignore: 'pid,hostname,name',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  });
  const lines: DestinationStream = { write: (line) => void file.write(prettify(line)) };
  return { logger: pino(options, lines), flush };
}

const discard: DestinationStream = { write: () => undefined };
