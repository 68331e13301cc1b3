/**
 * The contrast probe: the same large value by RDMA and inside gRPC, with the stages of each. What differs is the data
 * plane; what does not is not.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Logger, pino } from 'pino';
import type { KvClient } from '../client/index.js';
import { type FabricKvError, toFabricKvError } from '../protocol/errors.js';
import { isStage, parseRecord, type StageRecord } from './log-records.js';
import type { LogTail } from './log-tail.js';
import type { ObservedError, ProbeFacts, ProbeStep, StepObservation } from './verdict.js';

/** Options of {@link runContrastProbe}. */
export interface ContrastProbeOptions {
  readonly serverAddr: string;
  /** Opens the client; its log is read for the stages. */
  connect(logger: Logger): Promise<KvClient>;
  readonly smallBytes: number;
  readonly largeBytes: number;
  /** Time for each step. */
  readonly stepTimeoutMs: number;
  /** The server's log, where it can be read from here. */
  readonly serverLog?: LogTail | undefined;
  readonly signal: AbortSignal;
  /** A step begins. */
  onStep(step: ProbeStep): void;
  /** A stage was reached; called as it happens. */
  onStage(side: 'client' | 'server', record: StageRecord): void;
  /** A step has ended. */
  onObservation(observation: StepObservation): void;
}

/** What a probe has found out, for `judge`. */
export interface ContrastProbeResult {
  readonly observations: readonly StepObservation[];
  readonly facts: ProbeFacts;
}

const SERVER_LOG_POLL_MS = 50;

/** How long the server's last stages may take to appear in its log. */
const SERVER_LOG_SETTLE_MS = 300;

const CLEAN_UP_TIMEOUT_MS = 2000;

/** What a step of the probe does; undefined for a path that does not apply. */
type Action = (client: KvClient) => Promise<{ readonly path: 'rdma' | 'inline' } | undefined>;

/** Connects, puts a small and a large value, gets the large one by RDMA and inline, and cleans up. Never throws for a failed step. */
export async function runContrastProbe(options: ContrastProbeOptions): Promise<ContrastProbeResult> {
  const recorder = new StageRecorder(options);
  const observations: StepObservation[] = [];
  const observe = async (step: ProbeStep, action: () => ReturnType<Action>): Promise<boolean> => {
    options.signal.throwIfAborted();
    options.onStep(step);
    recorder.begin();
    const startedAtMs = performance.now();
    let error: FabricKvError | undefined;
    let path: 'rdma' | 'inline' | undefined;
    try {
      path = (await action())?.path;
    } catch (problem) {
      error = toFabricKvError(problem);
    }
    const ms = performance.now() - startedAtMs;
    await recorder.settle();
    const observation: StepObservation = {
      step,
      outcome: error === undefined ? 'ok' : 'failed',
      path,
      ms,
      error: error === undefined ? undefined : observed(error),
      clientStages: recorder.clientStages,
      serverStages: recorder.serverStages,
    };
    observations.push(observation);
    options.onObservation(observation);
    return error === undefined;
  };

  let client: KvClient | undefined;
  await observe('connect', async () => {
    client = await options.connect(recorder.logger);
    return undefined;
  });
  if (client === undefined) return { observations, facts: { serverAddr: options.serverAddr } };
  try {
    await probe(client, options, observe, () => recorder.end());
    const { provider, inlineOnlyReason } = client.connection;
    return { observations, facts: { serverAddr: options.serverAddr, provider, inlineOnlyReason } };
  } finally {
    await Promise.race([client.close(), sleep(CLEAN_UP_TIMEOUT_MS)]);
  }
}

async function probe(
  client: KvClient,
  { smallBytes, largeBytes, stepTimeoutMs, signal }: ContrastProbeOptions,
  observe: (step: ProbeStep, action: () => ReturnType<Action>) => Promise<boolean>,
  onDone: () => void,
): Promise<void> {
  const id = randomBytes(6).toString('hex');
  const smallKey = `fabrickv-debug/${id}/small`;
  const largeKey = `fabrickv-debug/${id}/large`;
  const large = randomBytes(largeBytes);
  const call = { timeoutMs: stepTimeoutMs, signal };
  const byRdma = { ...call, inlineThreshold: 0 };
  const inline = { ...call, inlineThreshold: Number.POSITIVE_INFINITY };
  const getLarge = async (options: typeof byRdma): ReturnType<Action> => {
    const value = await client.get(largeKey, { ...options, verify: true });
    if (value === undefined) throw new Error('the value is gone: somebody deleted it, or the server was restarted');
    const { path } = value;
    const isSame = value.bytes.equals(large);
    value.release();
    // Its CRC-32C was right and its bytes are not: no network does this.
    if (!isSame) throw new Error('the bytes are not the ones that were put');
    return { path };
  };
  try {
    if (!(await observe('put-small', () => client.put(smallKey, randomBytes(smallBytes), inline)))) return;
    const isPut =
      (await observe('put-large', () => client.put(largeKey, large, byRdma))) ||
      (await observe('put-large-inline', () => client.put(largeKey, large, inline)));
    if (!isPut) return;
    await observe('get-rdma', () => getLarge(byRdma));
    await observe('get-inline', () => getLarge(inline));
  } finally {
    onDone();
    const settled = Promise.allSettled(
      [smallKey, largeKey].map((key) => client.delete(key, { timeoutMs: CLEAN_UP_TIMEOUT_MS })),
    );
    await Promise.race([settled, sleep(CLEAN_UP_TIMEOUT_MS)]);
  }
}

function observed(error: FabricKvError): ObservedError {
  return { code: error.code, message: error.message, stage: error.stage, peer: error.peer };
}

/** Collects the stages of one step at a time, of both sides. */
class StageRecorder {
  readonly logger: Logger;
  clientStages: string[] = [];
  private serverSeen: string[] = [];
  private readonly requestIds = new Set<string>();
  /** Stages of the server whose request the client has not named yet. */
  private unclaimed: StageRecord[] = [];
  private readonly timer: NodeJS.Timeout | undefined;
  private isOver = false;

  constructor(private readonly options: ContrastProbeOptions) {
    this.logger = pino({ level: 'debug' }, { write: (line) => this.onClientLine(line) });
    // What is in the log already belongs to others.
    options.serverLog?.read();
    this.timer =
      options.serverLog === undefined ? undefined : setInterval(() => this.readServerLog(), SERVER_LOG_POLL_MS);
  }

  /** Undefined when the server's log cannot be read. */
  get serverStages(): readonly string[] | undefined {
    return this.options.serverLog === undefined ? undefined : this.serverSeen;
  }

  begin(): void {
    this.clientStages = [];
    this.serverSeen = [];
    this.unclaimed = [];
    this.requestIds.clear();
  }

  /** Waits for what the server may still have to say of this step. */
  async settle(): Promise<void> {
    if (this.options.serverLog === undefined) return;
    const until = performance.now() + SERVER_LOG_SETTLE_MS;
    do {
      this.readServerLog();
      const last = this.serverSeen.at(-1);
      if (last?.endsWith('.done') === true || last?.endsWith('.failed') === true) return;
      await sleep(SERVER_LOG_POLL_MS);
    } while (performance.now() < until && this.requestIds.size > 0);
  }

  /** What comes after is cleaning up, which nobody wants to see. */
  end(): void {
    this.isOver = true;
    clearInterval(this.timer);
  }

  private onClientLine(line: string): void {
    const record = this.isOver ? undefined : parseRecord(line);
    if (record === undefined || !isStage(record)) return;
    this.requestIds.add(record.requestId);
    this.clientStages.push(record.stage);
    this.options.onStage('client', record);
    this.readServerLog();
  }

  private readServerLog(): void {
    const fresh = [...this.unclaimed, ...(this.options.serverLog?.read().filter(isStage) ?? [])];
    this.unclaimed = [];
    for (const record of fresh) {
      if (!this.requestIds.has(record.requestId)) {
        this.unclaimed.push(record);
        continue;
      }
      this.serverSeen.push(record.stage);
      this.options.onStage('server', record);
    }
  }
}
