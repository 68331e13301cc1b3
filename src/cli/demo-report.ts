/**
 * The table and the stages that scripts/demo.sh ends with:
 *
 *   node dist/src/cli/demo-report.js address SERVER_LOG   prints where the server listens, once it does
 *   node dist/src/cli/demo-report.js report DIRECTORY     prints the report
 *
 * The directory holds `N-NAME.json` (what kv-client --json printed, in the order of N), `get-large.log` (the log of the
 * client that got the large value) and `server.log`.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { isStage, parseLog, type StageRecord, stageLine } from '../diagnosis/log-records.js';
import { type CommandIo, processIo, writeAll } from './io.js';
import { createTable } from './table.js';
import { RATED_BYTES_MIN } from './transfer-result.js';

const resultSchema = z.object({
  op: z.string(),
  key: z.string(),
  path: z.enum(['inline', 'rdma']),
  provider: z.string().nullable(),
  bytes: z.number(),
  ms: z.number(),
  GBps: z.number().nullable(),
});

/** Runs one of the two; the exit code is 1 where there is nothing to print (yet). */
export async function main(args: readonly string[], { stdout, stderr }: CommandIo = processIo): Promise<number> {
  const [task, path] = args;
  if (task === 'address' && path !== undefined) {
    const listening = parseLog(readFileSync(path, 'utf8')).find(({ msg }) => msg === 'Listening');
    if (listening === undefined) return 1;
    await writeAll(stdout, `${String(listening['boundAddr'])}\n`);
    return 0;
  }
  if (task === 'report' && path !== undefined) {
    await writeAll(stdout, report(path));
    return 0;
  }
  await writeAll(stderr, 'usage: demo-report.js address SERVER_LOG | report DIRECTORY\n');
  return 2;
}

function report(directory: string): string {
  const read = (name: string): string => readFileSync(join(directory, name), 'utf8');
  const results = readdirSync(directory)
    .filter((name) => /^\d+-.*\.json$/.test(name))
    .sort()
    .map((name) => resultSchema.parse(JSON.parse(read(name))));
  const table = createTable(
    ['operation', 'path', 'provider', 'bytes', 'ms', 'GB/s'],
    results.map(({ op, key, path, provider, bytes, ms, GBps }) => [
      `${op} ${key}`,
      path,
      // gRPC has no provider; naming the session's would say that the value went over it.
      path === 'rdma' ? (provider ?? '-') : '-',
      String(bytes),
      ms.toFixed(2),
      bytes >= RATED_BYTES_MIN && GBps !== null ? GBps.toFixed(2) : '-',
    ]),
  );
  // One process, one GET: all of its requests are the GET's, of which the first may only have asked for the length.
  const client = parseLog(read('get-large.log'))
    .filter(isStage)
    .filter(({ op }) => op === 'get');
  const requestIds = new Set(client.map(({ requestId }) => requestId));
  const server = parseLog(read('server.log'))
    .filter(isStage)
    .filter(({ requestId }) => requestIds.has(requestId));
  const lines = (side: 'client' | 'server', records: readonly StageRecord[]): string =>
    records.map((record) => `${record.requestId} ${stageLine(side, record)}`).join('\n');
  return [
    table,
    "Stages of the large GET: request, time since the side's own first stage, side, stage",
    '',
    lines('client', client),
    '',
    lines('server', server),
    '',
  ].join('\n');
}
