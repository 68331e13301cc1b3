/**
 * One range of a value, asked for once: the request, the place for its bytes, and the server's answer.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { GetResult__Output } from '../protocol/generated/fabrickv/v1/GetResult.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import { fromFailure } from '../protocol/rpc-errors.js';
import { fromBigInt, fromThreshold, toBigInt, toSafeInteger, toVersion, type Version } from '../protocol/wire.js';
import type { Counters } from './counters.js';
import { toClientError } from './fabric-errors.js';
import { unexpectedResult } from './operation.js';
import type { LateHandler, Session, SessionHandler } from './session.js';
import type { ValuePath } from './value.js';

/** Where a range's bytes go. */
export interface RangePlace {
  /** Registered memory, as the session's server knows it; undefined when the range is to come inline. */
  readonly sink: { readonly regionId: number; readonly offset: number } | undefined;
  /** Stores a part of a range that comes inline; `offset` is in the range, of which `rangeBytes` will come. */
  store(offset: number, bytes: Buffer, rangeBytes: number): void;
  /**
   * The request was given up, and a write of it may still land in the sink.
   *
   * @returns to be called once it is proved that none can
   */
  quarantine(): () => void;
}

/** A part of a value, with the place for it. */
export interface Range {
  readonly offset: number;
  /** At least 1; what lies beyond the value's end does not come. */
  readonly length: number;
  readonly place: RangePlace;
}

/** What a range has brought. */
export interface Landed {
  /** Bytes of it that the value has. */
  readonly length: number;
  readonly path: ValuePath;
  /** Of a range that came inline and was to be checked. */
  readonly crc: number | undefined;
}

/** What every answer says of the value. */
export interface ValueFacts {
  /** Bytes. */
  readonly length: number;
  readonly version: Version;
  /** Undefined when it was stored without. */
  readonly crc32c: number | undefined;
}

/** What a request tells its reader; exactly one call ends it. */
export interface RangeEvents {
  /** Bytes have come. */
  onProgress(): void;
  onAbsent(request: RangeRequest): void;
  /** `leaseId` is 0n when there is none. */
  onLanded(request: RangeRequest, facts: ValueFacts, leaseId: bigint, landed: Landed): void;
  onFailed(request: RangeRequest, error: FabricKvError): void;
  /** The session ended before the answer. */
  onLost(request: RangeRequest): void;
  /** Its sink is kept until it is proved that no write can land there; no end by itself. */
  onQuarantined(request: RangeRequest): void;
}

/** Options of {@link RangeRequest}. */
export interface RangeRequestOptions {
  readonly session: Session;
  readonly operationId: number;
  readonly key: Buffer;
  readonly namespace: number;
  readonly range: Range;
  readonly deadlineMs: number;
  /** Ranges up to this length come inline although there is a sink. */
  readonly inlineMax: number;
  /** To be read under; undefined: take one. */
  readonly leaseId: bigint | undefined;
  /** The server can give no lease for this request any more. */
  readonly onLeaseDecided: () => void;
  /** The version that is read, if it is decided and no lease says it. */
  readonly onlyVersion: Version | undefined;
  /** Compute the CRC of what comes inline. */
  readonly check: boolean;
  readonly counters: Counters;
  readonly events: RangeEvents;
}

/** A request in flight. */
export class RangeRequest implements SessionHandler, LateHandler {
  sessionPlace = -1;
  #receivedBytes = 0;
  #crc = 0;
  #over = false;

  constructor(readonly options: RangeRequestOptions) {}

  get range(): Range {
    return this.options.range;
  }

  get session(): Session {
    return this.options.session;
  }

  /** Whether it takes a lease. */
  get holds(): boolean {
    return this.options.leaseId === undefined;
  }

  send(): void {
    const { session, operationId, key, namespace, range, deadlineMs, inlineMax, leaseId, onlyVersion } = this.options;
    const { sink } = range.place;
    session.attach(this);
    session.begin(this, operationId, {
      operationId,
      get: {
        key,
        namespace,
        deadlineMs,
        inlineMax: fromThreshold(sink === undefined ? Number.POSITIVE_INFINITY : inlineMax),
        sink: sink === undefined ? null : { ...sink, length: range.length },
        rangeOffset: range.offset,
        rangeLength: range.length,
        ...(leaseId === undefined ? { hold: true } : { leaseId: fromBigInt(leaseId) }),
        ...(onlyVersion === undefined ? {} : { onlyVersion: fromBigInt(onlyVersion) }),
      },
    });
  }

  /** Gives it up: the server is told, and the sink is held until nothing can land in it. */
  cancel(): void {
    if (this.#over) return;
    const { counters, session, operationId } = this.options;
    counters.cancels += 1;
    session.cancel(operationId, this.holds ? this : undefined);
    this.#holdSink();
    this.#leave();
  }

  onResult(result: Result__Output): void {
    if (this.#over) return;
    this.session.finish(this.options.operationId);
    const { events, onLeaseDecided } = this.options;
    onLeaseDecided();
    try {
      if (result.failure) {
        if (result.failure.sinkBusy) this.#holdSink();
        this.#leave();
        events.onFailed(this, fromFailure(result.failure));
      } else if (result.get) {
        const { get } = result;
        this.#leave();
        if (get.found) this.#landed(get);
        else events.onAbsent(this);
      } else {
        this.#leave();
        throw unexpectedResult('Get of a range', result.outcome);
      }
    } catch (error) {
      events.onFailed(this, toClientError(error));
    }
  }

  onData(data: Data__Output): void {
    if (this.#over) return;
    const { range, events, check, counters } = this.options;
    try {
      const at = toSafeInteger(data.offset, 'offset') - range.offset;
      if (at !== this.#receivedBytes || at + data.bytes.length > range.length) {
        throw new FabricKvError(
          'ERR_FABRICKV_PROTOCOL',
          `Data at ${at} of a range of which ${this.#receivedBytes} bytes were there`,
        );
      }
      this.#store(data.bytes, this.#due(toSafeInteger(data.totalLength, 'total_length')), check);
      counters.bytesCopied += data.bytes.length;
      events.onProgress();
    } catch (error) {
      this.cancel();
      events.onFailed(this, toClientError(error));
    }
  }

  /** Of a request that was given up: nobody wants the lease that it brings. */
  onLateResult({ get }: Result__Output): void {
    if (get && toBigInt(get.leaseId) !== 0n) {
      this.session.send({ operationId: 0, leaseEnd: { leaseId: get.leaseId } });
    }
  }

  onQuiesced(): void {
    this.options.onLeaseDecided();
  }

  onSessionEnd(): void {
    if (this.#over) return;
    this.#over = true;
    this.#holdSink();
    this.options.events.onLost(this);
  }

  #landed(get: GetResult__Output): void {
    const { range, events, check, counters } = this.options;
    const length = toSafeInteger(get.length, 'length');
    const rangeLength = toSafeInteger(get.rangeLength, 'range_length');
    const due = this.#due(length);
    const path = get.path === 'RDMA' ? 'rdma' : 'inline';
    if (path === 'inline' && get.value.length > 0) {
      if (this.#receivedBytes > 0 || get.value.length > range.length) throw tooMuch(range);
      this.#store(get.value, due, check);
      counters.bytesCopied += get.value.length;
    }
    const received = path === 'rdma' ? rangeLength : this.#receivedBytes;
    if (received !== due || rangeLength !== due || (path === 'rdma' && range.place.sink === undefined)) {
      throw new FabricKvError(
        'ERR_FABRICKV_PROTOCOL',
        `of a value of ${length} bytes ${due} were due at ${range.offset}, and ${received} came (${path})`,
      );
    }
    events.onLanded(
      this,
      { length, version: toVersion(get.version), crc32c: get.withoutCrc ? undefined : get.crc32c },
      toBigInt(get.leaseId),
      { length: due, path, crc: path === 'inline' && check ? this.#crc : undefined },
    );
  }

  /** How much of it a value of that length has. */
  #due(valueLength: number): number {
    const { offset, length } = this.range;
    return Math.min(length, Math.max(0, valueLength - offset));
  }

  #store(bytes: Buffer, rangeBytes: number, check: boolean): void {
    if (bytes.length > 0) this.range.place.store(this.#receivedBytes, bytes, rangeBytes);
    if (check) this.#crc = crc32c(bytes, this.#crc);
    this.#receivedBytes += bytes.length;
  }

  #holdSink(): void {
    const { place } = this.range;
    if (place.sink === undefined) return;
    this.session.awaitQuiesced(this.options.operationId, place.quarantine());
    this.options.events.onQuarantined(this);
  }

  #leave(): void {
    this.#over = true;
    this.session.detach(this);
  }
}

function tooMuch({ length }: Range): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_PROTOCOL', `more than the ${length} bytes of a range came`);
}
