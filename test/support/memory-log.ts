import { type Logger, pino } from 'pino';
import { type LogRecord, parseRecords } from './child.js';

/** A logger for the SDK in a test, whose records can be read. */
export interface MemoryLog {
  readonly logger: Logger;
  readonly records: readonly LogRecord[];
}

/** Keeps every record, down to debug; `onRecord` is called in the very turn in which each is logged. */
export function memoryLog(onRecord: (record: LogRecord) => void = () => undefined): MemoryLog {
  const records: LogRecord[] = [];
  const logger = pino(
    { level: 'debug', formatters: { level: (label) => ({ level: label }) } },
    {
      write: (line: string) => {
        const added = parseRecords(line);
        records.push(...added);
        for (const record of added) onRecord(record);
      },
    },
  );
  return { logger, records };
}
