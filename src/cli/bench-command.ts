/**
 * `kv-client bench`: loads the server, and tells what it and this client made of it.
 */

import { FabricKvError } from '../protocol/errors.js';
import { formatSize } from '../protocol/units.js';
import { loadKeys, runWorkload, type WorkloadOptions } from '../workload/workload.js';
import { type BenchOptions, benchOptions } from './bench-options.js';
import { type BenchProgress, createBenchProgress } from './bench-progress.js';
import { benchObject, benchText, type KeysLeft, type Measured } from './bench-result.js';
import { BenchTarget, removeKeys } from './bench-target.js';
import type { Command, TaskContext, TaskResult } from './command.js';
import { clientExitCode, EXIT } from './exit-codes.js';
import { resolveSettings } from './settings.js';

/** The same choices in every run, so that two of them can be compared. */
const SEED = 1;

/** The SDK's own defaults; bench asks for more where its load needs it. */
const IN_FLIGHT_MIN = 1024;
const RECEIVE_MEMORY_BYTES_MIN = 256 * 1024 ** 2;
const RECEIVE_MEMORY_BYTES_MAX = 1024 ** 3;

/** After Ctrl-C, what is in flight has so long to end by itself; it leaves time to say what there was. */
const IN_FLIGHT_GRACE_MS = 1000;

/** How long deleting may take after Ctrl-C: more than the server needs for as many keys. */
const DELETE_MS_MIN = 4000;
const DELETE_MS_PER_KEY = 0.05;

/** Nobody waits longer than this for counters when there is a result to tell. */
const COUNTERS_TIMEOUT_MS = 1000;

/** Puts a load on the server. */
export const benchCommand: Command = {
  async prepare(task) {
    const { values: options } = resolveSettings(benchOptions, { flags: { ...task.flags, config: undefined }, env: {} });
    const bytesInFlight = options.concurrency * options['value-size'];
    return {
      clientOptions: {
        maxInFlight: Math.max(IN_FLIGHT_MIN, options.concurrency),
        // Twice: results and operations are to find room at the same time. It is address space until it is used.
        receiveMemory: Math.min(RECEIVE_MEMORY_BYTES_MAX, Math.max(RECEIVE_MEMORY_BYTES_MIN, 2 * bytesInFlight)),
      },
      run: (context) => bench(options, context),
      [Symbol.asyncDispose]: async () => undefined,
    };
  },
};

async function bench(options: BenchOptions, context: TaskContext): Promise<TaskResult> {
  const { client, io, interruption } = context;
  const target = new BenchTarget(client);
  const progress = await createBenchProgress(io);
  const endInFlight = closeAfterInterruption(context);
  let measured: Measured;
  try {
    measured = await loadAndMeasure(target, options, context, progress);
  } catch (error) {
    // Whatever becomes of the keys, this is what went wrong first.
    await leaveKeys(target, options, context);
    throw error;
  } finally {
    endInFlight();
    progress.end();
  }
  const left = await leaveKeys(target, options, context);
  const failureCode = left.failure === undefined ? EXIT.done : clientExitCode(left.failure.code);
  return {
    exitCode: interruption.exitCode() ?? failureCode,
    isPartial: true,
    object: benchObject(measured, left, options, client.connection),
    text: benchText(measured, left, options, client.connection),
  };
}

async function loadAndMeasure(
  target: BenchTarget,
  options: BenchOptions,
  { client, interruption: { signal } }: TaskContext,
  progress: BenchProgress,
): Promise<Measured> {
  const workload: WorkloadOptions = {
    keys: options.keys,
    keyPrefix: options.prefix,
    valueBytes: options['value-size'],
    concurrency: options.concurrency,
    readRatio: options.ratio,
    distribution: options.distribution,
    durationMs: options.duration,
    warmupMs: 0,
    ...(options.rate === undefined ? {} : { ratePerSecond: options.rate }),
    seed: SEED,
    signal,
  };
  try {
    progress.loading(options.keys, () => target.putsBegun);
    await loadKeys(target, workload);
    progress.measuring(options.duration / 1000);
    // A run of its own, so that nothing is in flight when the counters are read.
    if (options.warmup > 0) await runWorkload(target, { ...workload, durationMs: options.warmup });
    const { counters: serverBefore } = await client.ping({ signal });
    signal.throwIfAborted();
    const clientBefore = client.counters();
    const cpuBefore = process.cpuUsage();
    const result = await runWorkload(target, workload, progress.onProgress);
    const { user, system } = process.cpuUsage(cpuBefore);
    const clientAfter = client.counters();
    return {
      result,
      interrupted: signal.aborted,
      cpuSeconds: (user + system) / 1e6,
      client: { before: clientBefore, after: clientAfter },
      server: { before: serverBefore, after: await countersOrNothing(client) },
    };
  } catch (error) {
    throw explainCapacity(error, target, options);
  }
}

/** The result is there: a server that does not answer any more is no reason to lose it. */
async function countersOrNothing(client: TaskContext['client']): Promise<Readonly<Record<string, number>> | undefined> {
  try {
    return (await client.ping({ timeoutMs: COUNTERS_TIMEOUT_MS })).counters;
  } catch (error) {
    if (error instanceof FabricKvError) return undefined;
    throw error;
  }
}

/** The server knows of one value that did not fit; why there were so many is known here. */
function explainCapacity(error: unknown, target: BenchTarget, options: BenchOptions): unknown {
  if (!(error instanceof FabricKvError) || error.code !== 'ERR_FABRICKV_CAPACITY') return error;
  const { keys, 'value-size': valueBytes } = options;
  const { outcome, stage, requestId, peer, retryable, details } = error;
  const stored = Math.min(target.putsDone, keys);
  return new FabricKvError(
    error.code,
    `${keys} keys of ${formatSize(valueBytes)} do not fit into the server's memory: ${stored} were stored, then ${error.message}`,
    {
      outcome,
      stage,
      requestId,
      peer,
      retryable,
      details: { ...details, keys: String(keys), keysStored: String(stored), valueBytes: String(valueBytes) },
      remedy: 'give fewer --keys or a smaller --value-size, or start the server with more --memory',
      cause: error,
    },
  );
}

/** Deletes what was put, unless it is to stay. */
async function leaveKeys(
  target: BenchTarget,
  options: BenchOptions,
  { client, interruption }: TaskContext,
): Promise<KeysLeft> {
  if (options.keep) return { deleted: 0, failure: undefined };
  const timeoutMs = DELETE_MS_MIN + options.keys * DELETE_MS_PER_KEY;
  const allow = (): void => interruption.allow(timeoutMs);
  if (interruption.signal.aborted) allow();
  else interruption.signal.addEventListener('abort', allow, { once: true });
  try {
    return await removeKeys(client, {
      keys: options.keys,
      keyPrefix: options.prefix,
      // The keys are loaded from the first one on.
      begun: target.putsBegun,
      concurrency: options.concurrency,
    });
  } finally {
    interruption.signal.removeEventListener('abort', allow);
  }
}

/** What a server that is stuck has in flight would keep the result from being told. Answers with what takes it back. */
function closeAfterInterruption({ client, interruption: { signal } }: TaskContext): () => void {
  let timer: NodeJS.Timeout | undefined;
  const onAbort = (): void => {
    // The command closes it again at its end, and logs what is wrong with that.
    timer = setTimeout(() => void client.close().catch(() => undefined), IN_FLIGHT_GRACE_MS);
  };
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  return () => {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  };
}
