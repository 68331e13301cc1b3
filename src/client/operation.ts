/**
 * What all operations have in common: they pass the gate, wait for a session, are tried again in the next one, and
 * settle exactly once, at their deadline if nothing comes before.
 */

import type { EventLoopSpin } from '../fabric/index.js';
import type { FabricKvErrorDetails, MutationOutcome } from '../protocol/errors.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import { fromFailure } from '../protocol/rpc-errors.js';
import { type OperationKind, OperationTrace, type Stage, type TraceContext } from '../protocol/stages.js';
import { turnNowMs } from '../protocol/turn-clock.js';
import type { Connection, SessionWaiter } from './connection.js';
import type { Counters } from './counters.js';
import type { Deadlines, DeadlineTick, Expiring } from './deadlines.js';
import { toClientError } from './fabric-errors.js';
import { TRANSFER_RETRIES_MAX, transferBackoffMs } from './limits.js';
import type { Gated, OperationGate } from './operation-gate.js';
import type { OperationDescription, Operations } from './operations.js';
import type { CallSettings, ClientSettings } from './options.js';
import type { ReceivePool } from './receive-pool.js';
import type { Session, SessionHandler } from './session.js';
import type { SizeMemory } from './size-memory.js';
import type { Transitions } from './state-machine.js';

/** What operations share with their client. */
export interface ClientCore {
  readonly settings: ClientSettings;
  /** The client id as it stands in request ids. */
  readonly clientIdHex: string;
  readonly connection: Connection;
  readonly counters: Counters;
  readonly deadlines: Deadlines;
  readonly gate: OperationGate;
  /** How many GETs may have memory of their own at a time. */
  readonly ownMemoryGate: OperationGate;
  readonly operations: Operations;
  /** Of the event loop, while one operation is awaited. */
  readonly spin: EventLoopSpin;
  readonly sizes: SizeMemory;
  readonly trace: TraceContext;
  /** Undefined until a session first has a data plane. */
  readonly pool: ReceivePool | undefined;
  readonly closed: boolean;
  /** Ascending, never used twice. */
  nextOperationId(): number;
}

/** How far a transfer has come, for errors. */
export type ProgressDetails = { readonly bytesDone?: string; readonly bytesTotal?: string };

/** How exactly a deadline is kept that moved while its tick was under way. */
const HELD_TICK_MS_MIN = 20;

/** - `waiting`: at the gate. - `running`: it has its place, with or without a session. - `settled`: its promise is. */
type OperationState = 'waiting' | 'running' | 'settled';

const TRANSITIONS: Transitions<OperationState> = {
  waiting: ['running', 'settled'],
  running: ['settled'],
  settled: [],
};

/** The first stage of each kind, and the last one. */
const START = {
  get: 'get.start',
  put: 'put.start',
  delete: 'delete.start',
  exists: 'exists.start',
  stat: 'stat.start',
  ping: 'ping.start',
} as const satisfies Record<OperationKind, Stage>;
const DONE = {
  get: 'get.done',
  put: 'put.done',
  delete: 'delete.done',
  exists: 'exists.done',
  stat: 'stat.done',
  ping: 'ping.done',
} as const satisfies Record<OperationKind, Stage>;

/** One call of the user's. */
export abstract class Operation<T> implements SessionHandler, SessionWaiter, Gated, Expiring {
  readonly promise: Promise<T>;
  operationPlace = -1;
  sessionPlace = -1;
  deadlinePlace = -1;
  inGate = false;
  protected readonly trace: OperationTrace;
  /** The session that the current attempt runs in. */
  protected session: Session | undefined;
  #state: OperationState = 'waiting';
  #deadlineAtMs: number;
  /** While the time stands still: how much is left. */
  #heldLeftMs: number | undefined;
  #deadlineTick: DeadlineTick;
  #resolve: (value: T) => void = unset;
  #reject: (error: FabricKvError) => void = unset;
  #onAbort: (() => void) | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  #dataPlaneRetries = 0;

  constructor(
    protected readonly core: ClientCore,
    protected readonly kind: OperationKind,
    protected readonly key: Buffer | undefined,
    protected readonly call: CallSettings,
  ) {
    this.promise = new Promise<T>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.trace = new OperationTrace(core.trace, kind, core.nextOperationId(), key, START[kind]);
    // Exactly: the turn may have taken long already.
    this.#deadlineAtMs = performance.now() + call.timeoutMs;
    this.#deadlineTick = core.deadlines.add(this, this.#deadlineAtMs);
    core.operations.add(this);
    core.counters.operations += 1;
  }

  /** `clientId-operationId`, as in both sides' logs. */
  get requestId(): string {
    return this.trace.requestId;
  }

  /** What a report of stalled operations says of this one. */
  describe(): OperationDescription {
    return {
      op: this.kind,
      key: this.key === undefined ? undefined : this.core.trace.formatKey(this.key),
      requestId: this.requestId,
      stage: this.trace.stage,
      stageAgeMs: performance.now() - this.trace.stageSinceMs,
    };
  }

  /** Sets out. */
  start(): Promise<T> {
    // It may have been given up before its turn came.
    if (this.settled) return this.promise;
    const { signal } = this.call;
    if (signal?.aborted === true) {
      this.#abort(signal);
      return this.promise;
    }
    if (signal !== undefined) {
      this.#onAbort = () => this.#abort(signal);
      signal.addEventListener('abort', this.#onAbort, { once: true });
    }
    try {
      this.core.gate.enter(this);
    } catch (error) {
      this.fail(toClientError(error));
    }
    return this.promise;
  }

  admit(): void {
    if (this.#state !== 'waiting' || this.core.closed) return;
    // Its time is over, which it is about to hear: a mutation that is sent now would end as unknown.
    if (this.#deadlineAtMs <= turnNowMs()) return;
    this.#become('running');
    this.core.connection.whenOpen(this);
  }

  onSession(session: Session): void {
    if (this.settled) return;
    this.session = session;
    session.attach(this);
    try {
      this.attempt(session);
    } catch (error) {
      this.fail(toClientError(error));
    }
  }

  onResult(result: Result__Output): void {
    if (this.settled) return;
    try {
      this.#answered(result);
    } catch (error) {
      this.fail(toClientError(error));
    }
  }

  onData(data: Data__Output): void {
    this.guard(() => this.dataArrived(data));
  }

  onSessionEnd(): void {
    const { session } = this;
    this.session = undefined;
    if (session === undefined || this.settled) return;
    this.guard(() => {
      this.sessionLost(session);
      this.core.counters.retries += 1;
      this.core.connection.whenOpen(this);
    });
  }

  onDeadline(): void {
    if (this.settled) return;
    const { connection, deadlines } = this.core;
    const nowMs = performance.now();
    const leftMs = this.#heldLeftMs ?? this.#deadlineAtMs - nowMs;
    if (this.#heldLeftMs !== undefined || leftMs > 0) {
      // The time has stood still or begun anew since the tick was entered: to enter one each time would cost more.
      this.#deadlineTick = deadlines.add(this, nowMs + Math.max(leftMs, HELD_TICK_MS_MIN));
      return;
    }
    const ms = Math.round(this.call.timeoutMs);
    if (this.session === undefined && connection.session === undefined) {
      const { lastError } = connection;
      const why = lastError === undefined ? '' : `: ${lastError.message}`;
      this.fail(
        new FabricKvError('ERR_FABRICKV_CONNECTION_LOST', `no connection, and none within ${ms} ms${why}`, {
          cause: lastError,
        }),
      );
      return;
    }
    const details = this.progressDetails();
    const { bytesDone, bytesTotal } = details;
    const progress = bytesDone === undefined ? '' : `; ${bytesDone} of ${bytesTotal} bytes had arrived`;
    this.fail(
      new FabricKvError(
        'ERR_FABRICKV_DEADLINE',
        `${this.lateText} within ${ms} ms; last stage: ${this.trace.stage}${progress}`,
        {
          details,
        },
      ),
    );
  }

  /** Rejects at once, wherever the operation is. Does nothing when it has settled. */
  fail(error: FabricKvError): void {
    if (this.settled) return;
    this.core.counters.operationsFailed += 1;
    const more: FabricKvErrorDetails = {
      stage: this.trace.stage,
      requestId: this.requestId,
      peer: this.core.settings.serverAddr,
      outcome: this.outcome(),
    };
    const complete = error.with(more);
    this.trace.fail(`${this.kind}.failed` as Stage, complete);
    this.#settle();
    this.#reject(complete);
  }

  /** Sends the attempt's first request, or does what comes before it. Called once per session. */
  protected abstract attempt(session: Session): void;

  /** A result other than a failure. */
  protected abstract succeeded(result: Result__Output): void;

  /** The operation's place in the session is gone; the resources of the attempt are to be given back. */
  protected abstract sessionLost(session: Session): void;

  /** The operation has settled; what it still holds is to be given back, with a Cancel if the server knows of it. */
  protected abstract release(): void;

  /** Of a mutation: what is known if it fails now. */
  protected outcome(): MutationOutcome | undefined {
    return undefined;
  }

  /** What the error of a passed deadline says of how far it came. */
  protected progressDetails(): ProgressDetails {
    return {};
  }

  /** A Failure. The operation is tried again where that is safe and can help, otherwise it fails. */
  protected failed(error: FabricKvError, _sinkBusy: boolean): void {
    this.retryOrFail(error);
  }

  protected dataArrived(_data: Data__Output): void {
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server sent Data for a ${this.kind}`);
  }

  protected get settled(): boolean {
    return this.#state === 'settled';
  }

  /** The same for every request of the operation, so that both sides' logs tell one story. */
  protected get operationId(): number {
    return this.trace.operationId;
  }

  /** Takes a new id: the server may still have something to say about the old one. */
  protected renewOperationId(): void {
    this.trace.operationId = this.core.nextOperationId();
  }

  /** For the wire: the time that is left. */
  protected get deadlineMs(): number {
    const leftMs = this.#heldLeftMs ?? this.#deadlineAtMs - turnNowMs();
    // The turn's clock may be that of its beginning, before the operation's.
    return Math.max(1, Math.ceil(Math.min(leftMs, this.call.timeoutMs)));
  }

  /** The operation's time begins anew: it has come further. */
  protected restartTime(): void {
    if (this.#heldLeftMs !== undefined) this.#heldLeftMs = this.call.timeoutMs;
    else this.#deadlineAtMs = performance.now() + this.call.timeoutMs;
  }

  /** The operation's time stands still, until {@link releaseTime}: what it waits for is the caller's to give. Idempotent. */
  protected holdTime(): void {
    this.#heldLeftMs ??= this.#deadlineAtMs - performance.now();
  }

  /** The operation's time runs on. Idempotent. */
  protected releaseTime(): void {
    if (this.#heldLeftMs === undefined) return;
    this.#deadlineAtMs = performance.now() + this.#heldLeftMs;
    this.#heldLeftMs = undefined;
  }

  /** What has not happened when the time is over. */
  protected get lateText(): string {
    return 'not done';
  }

  /** Sends a first message under the current id. */
  protected begin(session: Session, message: ClientMessage): void {
    const { operationId } = this.trace;
    message.operationId = operationId;
    session.begin(this, operationId, message);
    this.core.spin.begin();
  }

  /** The server has said its last word on the current request. */
  protected finishRequest(): void {
    this.session?.finish(this.trace.operationId);
  }

  /** Its session's end is no business of the operation any more, nor is it one that a draining session waits for. */
  protected leaveSession(): void {
    const { session } = this;
    this.session = undefined;
    session?.detach(this);
  }

  /** The attempt is over; the next one is made in an open session. */
  protected waitForSession(): void {
    this.leaveSession();
    this.core.connection.whenOpen(this);
  }

  /** Runs a step; what it throws is the operation's error. */
  protected guard(step: () => void): void {
    if (this.settled) return;
    try {
      step();
    } catch (error) {
      this.fail(toClientError(error));
    }
  }

  /** Runs a step that waits; what it throws is the operation's error, unless it has settled. */
  protected async guardAsync(step: () => Promise<void>): Promise<void> {
    try {
      await step();
    } catch (error) {
      this.fail(toClientError(error));
    }
  }

  /** Fulfils the operation. */
  protected succeed(value: T): void {
    if (this.settled) return;
    this.finishTrace();
    this.#settle();
    this.#resolve(value);
  }

  /** The last stage of an operation that is done when its promise is fulfilled. */
  protected finishTrace(): void {
    this.trace.finish(DONE[this.kind]);
  }

  /** Calls the caller's onProgress in a turn of its own: what it throws is no business of the operation. */
  protected reportProgress(bytesDone: number, bytesTotal: number): void {
    const { onProgress } = this.call;
    if (onProgress !== undefined && !this.settled) queueMicrotask(() => onProgress(bytesDone, bytesTotal));
  }

  /** Tries the current attempt again, or fails: data plane up to three times with backoff, a stopping server in the next session. */
  protected retryOrFail(error: FabricKvError): void {
    const { session } = this;
    if (error.code === 'ERR_FABRICKV_SHUTTING_DOWN' && error.outcome !== 'unknown' && session !== undefined) {
      this.core.counters.retries += 1;
      this.leaveSession();
      session.drain();
      this.core.connection.whenOpen(this);
      return;
    }
    if (
      error.code === 'ERR_FABRICKV_DATA_PLANE' &&
      error.outcome !== 'unknown' &&
      session !== undefined &&
      this.#dataPlaneRetries < TRANSFER_RETRIES_MAX
    ) {
      this.#dataPlaneRetries += 1;
      this.core.counters.retries += 1;
      this.leaveSession();
      this.later(transferBackoffMs(this.#dataPlaneRetries), () => this.core.connection.whenOpen(this));
      return;
    }
    this.fail(error);
  }

  /** Does something later, unless the operation has settled by then. One at a time. */
  protected later(ms: number, step: () => void): void {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.guard(step), ms);
  }

  #answered(result: Result__Output): void {
    switch (result.outcome) {
      case 'failure':
        if (!result.failure) break;
        this.finishRequest();
        this.failed(fromFailure(result.failure), result.failure.sinkBusy);
        return;
      case 'notOwner':
        this.finishRequest();
        throw new FabricKvError(
          'ERR_FABRICKV_UNIMPLEMENTED',
          'the key is on another server; this client knows only one',
        );
      case undefined:
        break;
      default:
        this.succeeded(result);
        return;
    }
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `an empty result for a ${this.kind}`);
  }

  #become(next: OperationState): void {
    if (!TRANSITIONS[this.#state].includes(next)) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', `operation: ${this.#state} → ${next} is not a transition`);
    }
    this.#state = next;
  }

  #abort(signal: AbortSignal): void {
    this.fail(new FabricKvError('ERR_FABRICKV_CANCELLED', undefined, { cause: signal.reason }));
  }

  #settle(): void {
    this.#become('settled');
    if (this.#retryTimer !== undefined) clearTimeout(this.#retryTimer);
    const { core, call } = this;
    core.deadlines.cancel(this, this.#deadlineTick);
    if (this.#onAbort !== undefined) call.signal?.removeEventListener('abort', this.#onAbort);
    core.operations.delete(this);
    if (this.session === undefined) core.connection.forget(this);
    try {
      this.release();
    } catch (error) {
      core.settings.logger.error(
        { err: toFabricKvError(error), requestId: this.requestId },
        'Giving back what an operation held failed',
      );
    }
    this.leaveSession();
    core.gate.leave(this);
  }
}

function unset(): void {
  throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'settled before it began');
}

/** The error for a result of a kind that the operation did not ask for. */
export function unexpectedResult(op: string, outcome: string | undefined): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server answered a ${op} with ${outcome ?? 'nothing'}`);
}
