/**
 * The two halves of scripts/test-rdma-debug.sh:
 *
 *   node dist/src/cli/rdma-debug-main.js client SERVER_IP   the contrast probe, its stages as they happen, the verdict
 *   node dist/src/cli/rdma-debug-main.js show [LOG]         shows the log that comes in by standard input, and keeps it
 */

import { createWriteStream } from 'node:fs';
import { isIP } from 'node:net';
import { createInterface } from 'node:readline';
import { KvClient } from '../client/index.js';
import { runContrastProbe } from '../diagnosis/contrast-probe.js';
import { isStage, parseRecord, stageLine } from '../diagnosis/log-records.js';
import { LogTail } from '../diagnosis/log-tail.js';
import { judge, type ProbeStep, type StepObservation, verdictText } from '../diagnosis/verdict.js';
import { toFabricKvError } from '../protocol/errors.js';
import { formatDuration, formatSize, parseSizeBytes } from '../protocol/units.js';
import { usageError } from './arguments.js';
import { clientSettings } from './client-settings.js';
import { SIGNAL_EXIT } from './exit-codes.js';
import { listenForInterruption, unlessAborted } from './interruption.js';
import { type CommandIo, isNodeError, OutputClosed, processIo, writeAll } from './io.js';
import { formatError } from './report-error.js';
import { resolveSettings } from './settings.js';

const SMALL_BYTES = 64;
const LARGE_BYTES_DEFAULT = '16MiB';

/** Four steps of this make less than a minute, also when each of them hangs. */
const STEP_TIMEOUT_MS_MAX = 10_000;

const STEP_TITLES: Readonly<Record<ProbeStep, string>> = {
  connect: 'connecting',
  'put-small': 'PUT of a small value, inside gRPC',
  'put-large': 'PUT of a large value, by RDMA',
  'put-large-inline': 'PUT of the same value, inside gRPC, because it failed by RDMA',
  'get-rdma': 'GET of the large value, by RDMA',
  'get-inline': 'the same GET, inside gRPC',
};

/** Runs one half; the exit code is the verdict's, or 2 for wrong usage. */
export async function main(args: readonly string[], io: CommandIo = processIo): Promise<number> {
  const [task, argument] = args;
  try {
    if (task === 'show') return await show(argument, io);
    if (task === 'client' && argument !== undefined) return await debugClient(argument, io);
    throw usageError('usage: rdma-debug client SERVER_IP | show [LOG]', 'use scripts/test-rdma-debug.sh');
  } catch (error) {
    if (error instanceof OutputClosed) return 0;
    await writeAll(io.stderr, formatError('test-rdma-debug', toFabricKvError(error)));
    return 2;
  }
}

async function debugClient(server: string, io: CommandIo): Promise<number> {
  const serverAddr = withPort(server, io.env['PORT'] ?? '50051');
  const { values } = resolveSettings(clientSettings, { flags: { 'server-addr': serverAddr }, env: io.env });
  const largeBytes = parseSizeBytes(io.env['SIZE'] ?? LARGE_BYTES_DEFAULT);
  if (largeBytes === undefined || largeBytes === 0)
    throw usageError(`SIZE=${io.env['SIZE']} is no size`, 'give SIZE=16MiB');
  const serverLog = openServerLog(io.env['FABRICKV_SERVER_LOG']);
  const interruption = listenForInterruption();
  // Stages come from callbacks; what is written stays in order all the same.
  let written = Promise.resolve();
  const print = (line: string): void => {
    written = written.then(() => writeAll(io.stdout, `${line}\n`));
    written.catch(() => undefined);
  };
  const stepTimeoutMs = Math.min(values.timeout, STEP_TIMEOUT_MS_MAX);
  print(
    `server ${serverAddr}, ${formatSize(largeBytes)} by each way, ${formatDuration(stepTimeoutMs)} for each step; ` +
      (serverLog === undefined ? "the server's log is not readable from here" : "with the server's log"),
  );
  try {
    const probing = runContrastProbe({
      serverAddr,
      connect: (logger) =>
        KvClient.connect({
          serverAddr,
          clientName: `rdma-debug-${process.pid}`,
          provider: values.provider,
          eventLoopSpinUs: values['event-loop-spin-us'],
          ...(values['fabric-addr'] === undefined ? {} : { fabricAddr: values['fabric-addr'] }),
          fabricOptions: values['fabric-option'],
          connectTimeoutMs: Math.min(5000, stepTimeoutMs),
          logger,
        }),
      smallBytes: SMALL_BYTES,
      largeBytes,
      stepTimeoutMs,
      serverLog,
      signal: interruption.signal,
      onStep: (step) => print(`\n── ${STEP_TITLES[step]}`),
      onStage: (side, record) => print(stageLine(side, record)),
      onObservation: (observation) => print(observationText(observation)),
    });
    const { observations, facts } = await unlessAborted(interruption.signal, probing);
    const verdict = judge(observations, facts);
    print(`\n${verdictText(verdict)}`);
    await written;
    return verdict.exitCode;
  } catch (error) {
    const exitCode = interruption.exitCode();
    if (exitCode === undefined) throw error;
    return exitCode;
  } finally {
    serverLog?.[Symbol.dispose]();
    interruption.end();
  }
}

function withPort(server: string, port: string): string {
  if (isIP(server) === 6) return `[${server}]:${port}`;
  return /:\d+$/.test(server) ? server : `${server}:${port}`;
}

function openServerLog(path: string | undefined): LogTail | undefined {
  if (path === undefined || path === '') return undefined;
  try {
    return new LogTail(path);
  } catch (error) {
    if (isNodeError(error)) return undefined;
    throw error;
  }
}

function observationText({ outcome, path, ms, error }: StepObservation): string {
  if (outcome === 'failed') return `   failed after ${ms.toFixed(0)} ms: ${error?.code}: ${error?.message}`;
  return `   ok${path === undefined ? '' : `, ${path}`}, ${ms.toFixed(1)} ms`;
}

/** Shows a log in JSON as it comes in, stages short and all else as it is, and keeps it in a file. */
async function show(path: string | undefined, io: CommandIo): Promise<number> {
  // Ctrl-C is for the server, whose last words are still to be shown.
  for (const name of Object.keys(SIGNAL_EXIT)) process.on(name, () => undefined);
  const copy = path === undefined ? undefined : createWriteStream(path, { flags: 'a', mode: 0o600 });
  for await (const line of createInterface({ input: io.stdin })) {
    copy?.write(`${line}\n`);
    const record = parseRecord(line);
    if (record === undefined) await writeAll(io.stdout, `${line}\n`);
    else if (isStage(record))
      await writeAll(io.stdout, `${record.time} ${record.requestId} ${stageLine('server', record)}\n`);
    else {
      const { level = '', time = '', msg = '', pid: _pid, hostname: _hostname, name: _name, ...fields } = record;
      await writeAll(io.stdout, `${time} ${String(level).toUpperCase()} ${msg} ${JSON.stringify(fields)}\n`);
    }
  }
  copy?.end();
  return 0;
}
