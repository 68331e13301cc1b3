/**
 * Reads one version of one value in ranges, a few at a time, each into memory that its owner supplies. The first answer
 * decides the version and brings a lease, under which the others are read; what a failure or the loss of a session has left
 * out is asked for again, and nothing that has arrived.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { OperationTrace } from '../protocol/stages.js';
import { fromBigInt, type Version } from '../protocol/wire.js';
import type { DeadlineTick, Expiring } from './deadlines.js';
import { toClientError } from './fabric-errors.js';
import { LEASE_RENEWAL_MS, RANGES_IN_FLIGHT_MAX, TRANSFER_RETRIES_MAX, transferBackoffMs } from './limits.js';
import type { ClientCore } from './operation.js';
import type { Gated } from './operation-gate.js';
import type { CallSettings } from './options.js';
import { type Landed, type Range, type RangePlace, RangeRequest, type ValueFacts } from './range-request.js';
import type { Session, SessionHandler } from './session.js';
import { StateMachine, type Transitions } from './state-machine.js';

/** What the bytes are for. None of these is called after {@link RangeReader.stop}. */
export interface RangeOwner {
  /** Whether ranges are left to be asked for, which {@link next} may still have no memory for. */
  readonly wantsMore: boolean;
  /** Whether somebody waits for bytes now: then the reader fails when none come for `stallMs`. */
  readonly isWaiting: boolean;
  /**
   * The range to ask for next, with its place; the lowest that is missing, because the consumer needs that first.
   * Undefined when none is left or there is no memory for it now: call {@link RangeReader.pump} when there is.
   */
  next(session: Session): Range | undefined;
  /** The first answer: the version is decided. */
  onValue(facts: ValueFacts): void;
  /** There is no value. Only before {@link onValue}. */
  onAbsent(): void;
  onLanded(range: Range, landed: Landed): void;
  /** The range has not been read, and is to be given again. If its place may still be written to, it was told before. */
  onMissing(range: Range): void;
  /** For good. The reader has stopped. */
  onFailed(error: FabricKvError): void;
}

/** Options of {@link RangeReader}. */
export interface RangeReaderOptions {
  readonly core: ClientCore;
  readonly key: Buffer;
  readonly namespace: number;
  readonly owner: RangeOwner;
  readonly trace: OperationTrace;
  /** Id of the first request: that of the operation, so that both sides' logs tell one story. */
  readonly firstOperationId: number;
  /** The caller's threshold; undefined for the server's. */
  readonly inlineThreshold: number | undefined;
  /** Compute CRCs of what comes inline; of the other ranges the owner does. */
  readonly check: boolean;
  /** For each request: the time that it has. */
  readonly deadlineMs: () => number;
  /** Fail when nothing arrives for so long while somebody waits; undefined: whoever started the reader watches its time. */
  readonly stallMs: number | undefined;
}

/** - `reading`: until everything is read, or it failed. - `stopped`: nothing is asked for any more. */
type ReaderState = 'reading' | 'stopped';

const TRANSITIONS: Transitions<ReaderState> = { reading: ['stopped'], stopped: [] };

/** A place in {@link Session.holds}. */
interface Hold extends Gated {
  readonly session: Session;
  admitted: boolean;
}

/** A renewal reads a byte, for the sake of the lease. */
const RENEWAL_PLACE: RangePlace = { sink: undefined, store: nothing, quarantine: () => nothing };

/**
 * Whether a range is to come by RDMA.
 *
 * @param length of the value; undefined while it is not known
 */
export function rangesByRdma(session: Session, call: CallSettings, length: number | undefined): boolean {
  if (session.receiveMemory === undefined) return false;
  const threshold = call.inlineThreshold ?? session.greeting.getInlineThreshold;
  return (length ?? Number.POSITIVE_INFINITY) > threshold && threshold !== Number.POSITIVE_INFINITY;
}

/** Reads by ranges. */
export class RangeReader implements Expiring {
  deadlinePlace = -1;
  readonly #machine = new StateMachine<ReaderState>('range reader', 'reading', TRANSITIONS);
  readonly #options: RangeReaderOptions;
  readonly #inFlight = new Set<RangeRequest>();
  #session: Session | undefined;
  #awaitsSession = false;
  /** Its place among those who ask the session for a lease, until the request has been answered. */
  #hold: Hold | undefined;
  #lease: { readonly id: bigint; readonly session: Session } | undefined;
  #version: Version | undefined;
  #length = 0;
  #asked = 0;
  /** Failures since a range last landed. */
  #failures = 0;
  #retryTimer: NodeJS.Timeout | undefined;
  #renewalTimer: NodeJS.Timeout | undefined;
  #renewalDue = false;
  #pumping = false;
  #progressAtMs = performance.now();
  /** While nobody waits the time stands still: how much of it had passed. */
  #stoodStillAtMs: number | undefined = 0;
  #deadlineTick: DeadlineTick | undefined;

  constructor(options: RangeReaderOptions) {
    this.#options = options;
  }

  /** Whether it has been stopped, or has failed. */
  get stopped(): boolean {
    return this.#machine.state === 'stopped';
  }

  /** Asks for what can be asked for now. To be called once to start, and whenever the owner has got memory. */
  pump(): void {
    // A call from within next() is served by the loop that made it.
    if (this.#pumping || this.stopped) return;
    this.#pumping = true;
    try {
      while (this.#askNext()) {
        // Until nothing more can be asked.
      }
    } catch (error) {
      this.#fail(toClientError(error));
    } finally {
      this.#pumping = false;
    }
    this.#watch();
  }

  onSession(session: Session): void {
    this.#awaitsSession = false;
    if (this.stopped) return;
    this.#session = session;
    this.pump();
  }

  /** Ends it: gives up what is in flight, and the lease. Idempotent. */
  stop(): void {
    if (this.stopped) return;
    this.#machine.to('stopped');
    const { core } = this.#options;
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#renewalTimer);
    if (this.#deadlineTick !== undefined) core.deadlines.cancel(this, this.#deadlineTick);
    core.connection.forget(this);
    for (const request of this.#inFlight) request.cancel();
    this.#inFlight.clear();
    if (this.#hold !== undefined) this.#hold.session.holds.leave(this.#hold);
    const lease = this.#lease;
    this.#lease = undefined;
    // A session that has ended has dropped its leases.
    lease?.session.send({ operationId: 0, leaseEnd: { leaseId: fromBigInt(lease.id) } });
    lease?.session.detach(this.#leaseholder);
  }

  onDeadline(): void {
    this.#deadlineTick = undefined;
    const { stallMs, core, trace } = this.#options;
    if (stallMs === undefined || this.stopped) return;
    if (!this.#isWaiting || performance.now() < this.#progressAtMs + stallMs) {
      this.#watch();
      return;
    }
    const { connection } = core;
    const ms = Math.round(stallMs);
    if (connection.session === undefined) {
      const { lastError } = connection;
      const why = lastError === undefined ? '' : `: ${lastError.message}`;
      this.#fail(
        new FabricKvError('ERR_FABRICKV_CONNECTION_LOST', `no connection, and none within ${ms} ms${why}`, {
          cause: lastError,
        }),
      );
      return;
    }
    this.#fail(
      new FabricKvError('ERR_FABRICKV_DEADLINE', `nothing arrived within ${ms} ms; last stage: ${trace.stage}`),
    );
  }

  get #isWaiting(): boolean {
    return this.#inFlight.size > 0 || this.#options.owner.isWaiting;
  }

  /** Returns whether another may follow. */
  #askNext(): boolean {
    const { owner } = this.#options;
    if (this.stopped || this.#retryTimer !== undefined || this.#inFlight.size >= RANGES_IN_FLIGHT_MAX) return false;
    if (!owner.wantsMore && !this.#renewalDue) return false;
    const session = this.#openSession();
    if (session === undefined) return false;
    if (this.#leaseIn(session) === undefined && (this.#isTakingLease(session) || !this.#mayTakeLease(session))) {
      return false;
    }
    const range = owner.next(session);
    if (range !== undefined) this.#ask(session, range);
    else if (this.#renewalDue) this.#ask(session, { offset: 0, length: 1, place: RENEWAL_PLACE });
    return range !== undefined && !this.stopped;
  }

  /** The open session; without one, comes back with the next. */
  #openSession(): Session | undefined {
    if (this.#session?.state === 'open') return this.#session;
    // A server that stops lets what it leased be read to its end.
    if (this.#session?.state === 'draining' && this.#leaseIn(this.#session) !== undefined) return this.#session;
    this.#session = undefined;
    if (!this.#awaitsSession) {
      this.#awaitsSession = true;
      // It may have one at once: onSession() then sets it.
      this.#options.core.connection.whenOpen(this);
    }
    return this.#session;
  }

  #leaseIn(session: Session): bigint | undefined {
    return this.#lease?.session === session ? this.#lease.id : undefined;
  }

  /** Whether its turn to ask for a lease has come; otherwise it is pumped then. */
  #mayTakeLease(session: Session): boolean {
    if (this.#hold?.session === session) return this.#hold.admitted;
    const hold: Hold = {
      session,
      admitted: false,
      admit: () => {
        hold.admitted = true;
        this.pump();
      },
    };
    this.#hold = hold;
    session.holds.enter(hold);
    return hold.admitted;
  }

  #isTakingLease(session: Session): boolean {
    for (const request of this.#inFlight) if (request.holds && request.session === session) return true;
    return false;
  }

  #ask(session: Session, range: Range): void {
    const { core, key, namespace, firstOperationId, check, trace, deadlineMs } = this.#options;
    const { sink } = range.place;
    const operationId = this.#asked === 0 ? firstOperationId : core.nextOperationId();
    const leaseId = this.#leaseIn(session);
    const hold = leaseId === undefined ? this.#hold : undefined;
    if (hold !== undefined) this.#hold = undefined;
    const request = new RangeRequest({
      session,
      operationId,
      key,
      namespace,
      range,
      deadlineMs: deadlineMs(),
      inlineMax: this.#inlineMax(session),
      leaseId,
      onLeaseDecided: () => hold && session.holds.leave(hold),
      onlyVersion: leaseId === undefined ? this.#version : undefined,
      check,
      counters: core.counters,
      events: this.#events,
    });
    const fields = { rangeOffset: range.offset, rangeBytes: range.length };
    if (sink !== undefined && this.#asked === 0) {
      trace.mark('get.buffer.allocated', { sinkBytes: range.length });
      trace.mark('get.location.created', { regionId: sink.regionId, offset: sink.offset });
    }
    this.#asked += 1;
    this.#inFlight.add(request);
    this.#renewSoon();
    request.send();
    trace.mark('get.request.sent', fields);
  }

  /** How long a range may be and still come inline. Of a value whose length is known, all ranges go one way. */
  #inlineMax(session: Session): number {
    const threshold = this.#options.inlineThreshold ?? session.greeting.getInlineThreshold;
    if (this.#version === undefined) return threshold;
    return this.#length <= threshold ? Number.POSITIVE_INFINITY : 0;
  }

  /** Nothing is sent to it: it is there for the session to know that the lease is in use. */
  readonly #leaseholder: SessionHandler = {
    sessionPlace: -1,
    onResult: nothing,
    onData: nothing,
    onSessionEnd: nothing,
  };

  readonly #events = {
    onProgress: (): void => this.#progressed(),
    onAbsent: (request: RangeRequest): void => {
      this.#inFlight.delete(request);
      if (this.#version === undefined) {
        this.stop();
        this.#options.owner.onAbsent();
      } else {
        this.#fail(new FabricKvError('ERR_FABRICKV_VERSION_CHANGED', 'the value was deleted'));
      }
    },
    onLanded: (request: RangeRequest, facts: ValueFacts, leaseId: bigint, landed: Landed): void => {
      this.#inFlight.delete(request);
      this.#landed(request, facts, leaseId, landed);
    },
    onFailed: (request: RangeRequest, error: FabricKvError): void => {
      this.#inFlight.delete(request);
      this.#missing(request);
      this.#keepTime();
      this.#failed(request, error);
    },
    onQuarantined: ({ range }: RangeRequest): void => {
      this.#options.trace.mark('get.quarantined', { sinkBytes: range.length });
    },
    onLost: (request: RangeRequest): void => {
      this.#inFlight.delete(request);
      this.#missing(request);
      this.#keepTime();
      this.#options.core.counters.retries += 1;
      this.pump();
    },
  };

  #landed({ range, session, holds }: RangeRequest, facts: ValueFacts, leaseId: bigint, landed: Landed): void {
    const { owner, trace } = this.#options;
    this.#progressed();
    this.#failures = 0;
    if (holds && leaseId !== 0n) {
      this.#lease = { id: leaseId, session };
      // A draining session stays for it.
      session.attach(this.#leaseholder);
    }
    const isFirst = this.#version === undefined;
    if (!isFirst && (facts.version !== this.#version || facts.length !== this.#length)) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'the server sent a range of another version');
    }
    if (isFirst) {
      trace.mark('get.response.received');
      this.#version = facts.version;
      this.#length = facts.length;
      owner.onValue(facts);
    }
    if (this.stopped) return;
    if (range.place !== RENEWAL_PLACE) owner.onLanded(range, landed);
    this.pump();
  }

  #missing({ range }: RangeRequest): void {
    if (!this.stopped && range.place !== RENEWAL_PLACE) this.#options.owner.onMissing(range);
  }

  #failed(request: RangeRequest, error: FabricKvError): void {
    if (this.stopped) return;
    const { counters } = this.#options.core;
    const { session } = request;
    switch (error.code) {
      case 'ERR_FABRICKV_LEASE_EXPIRED':
        if (request.holds) break;
        // The ranges in flight all say so; only the first of them is news.
        if (this.#leaseIn(session) === request.options.leaseId) {
          this.#lease = undefined;
          session.detach(this.#leaseholder);
        }
        counters.retries += 1;
        this.pump();
        return;
      case 'ERR_FABRICKV_SHUTTING_DOWN':
        counters.retries += 1;
        session.drain();
        this.pump();
        return;
      case 'ERR_FABRICKV_DATA_PLANE':
        if (this.#failures >= TRANSFER_RETRIES_MAX) break;
        // Those that fail together are one failure: they wait for the same moment.
        counters.retries += 1;
        if (this.#retryTimer !== undefined) return;
        this.#failures += 1;
        this.#retryTimer = setTimeout(() => {
          this.#retryTimer = undefined;
          this.pump();
        }, transferBackoffMs(this.#failures));
        return;
      default:
    }
    this.#fail(error);
  }

  #fail(error: FabricKvError): void {
    if (this.stopped) return;
    this.stop();
    this.#options.owner.onFailed(error);
  }

  /** A lease ends when nothing is read under it for 30 s, however slow the consumer is: a byte is read in time. */
  #renewSoon(): void {
    clearTimeout(this.#renewalTimer);
    this.#renewalDue = false;
    this.#renewalTimer = setTimeout(() => {
      this.#renewalDue = this.#version !== undefined;
      this.pump();
    }, LEASE_RENEWAL_MS);
    this.#renewalTimer.unref();
  }

  /** Bytes have come, or the consumer has asked for more: the time begins anew. Never because a request is made again. */
  #progressed(): void {
    this.#progressAtMs = performance.now();
    if (this.#stoodStillAtMs !== undefined) this.#stoodStillAtMs = 0;
  }

  /** To be called when it may have changed whether somebody waits. */
  #keepTime(): void {
    const nowMs = performance.now();
    if (!this.#isWaiting) {
      this.#stoodStillAtMs ??= nowMs - this.#progressAtMs;
    } else if (this.#stoodStillAtMs !== undefined) {
      this.#progressAtMs = nowMs - this.#stoodStillAtMs;
      this.#stoodStillAtMs = undefined;
    }
  }

  #watch(): void {
    const { stallMs, core } = this.#options;
    if (stallMs === undefined || this.stopped) return;
    this.#keepTime();
    if (this.#deadlineTick !== undefined || !this.#isWaiting) return;
    this.#deadlineTick = core.deadlines.add(this, this.#progressAtMs + stallMs);
  }

  /** Somebody begins to wait: the time that nothing has arrived counts from now. */
  waitBegins(): void {
    if (this.#inFlight.size === 0) this.#progressed();
    this.pump();
  }
}

function nothing(): void {
  // A renewal wants no bytes.
}
