/**
 * Logs of kv-server and kv-client in JSON, read back.
 */

import { z } from 'zod';

const schema = z.looseObject({
  /** A name in the commands' logs, a number in pino's own. */
  level: z.union([z.string(), z.number()]).optional(),
  time: z.union([z.string(), z.number()]).optional(),
  msg: z.string().optional(),
  requestId: z.string().optional(),
  op: z.string().optional(),
  stage: z.string().optional(),
  elapsedUs: z.number().optional(),
});

/** One record of a log. */
export type LogRecord = z.infer<typeof schema>;

/** A record of a stage. */
export interface StageRecord extends LogRecord {
  readonly requestId: string;
  readonly stage: string;
  readonly elapsedUs: number;
}

/** A line as a record; undefined when it is none. */
export function parseRecord(line: string): LogRecord | undefined {
  if (!line.startsWith('{')) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(line);
  } catch (error) {
    // A line that is cut off, as the last one of a process that was killed.
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
  const record = schema.safeParse(parsed);
  return record.success ? record.data : undefined;
}

/** Whether a record tells of a stage. */
export function isStage(record: LogRecord): record is StageRecord {
  return record.stage !== undefined && record.requestId !== undefined && record.elapsedUs !== undefined;
}

/** All records of a log. */
export function parseLog(text: string): LogRecord[] {
  return text.split('\n').flatMap((line) => {
    const record = parseRecord(line);
    return record === undefined ? [] : [record];
  });
}

/** A stage as one line: when, on which side, which, in words, and what else is known. */
export function stageLine(side: 'client' | 'server', record: StageRecord): string {
  const { elapsedUs, stage, msg = '', bytes, path, code } = record;
  const more = [
    bytes === undefined ? '' : `${String(bytes)} B`,
    path === undefined ? '' : String(path),
    code === undefined ? '' : String(code),
  ].filter((text) => text !== '');
  const ms = (elapsedUs / 1000).toFixed(3).padStart(11);
  return `${ms} ms  ${side}  ${stage.padEnd(22)} ${msg}${more.length === 0 ? '' : `  (${more.join(', ')})`}`;
}
