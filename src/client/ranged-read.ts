/**
 * A whole value into one piece of memory, in ranges: what `get` and `getInto` do with large values.
 */

import { combineCrc32c, crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { OperationTrace } from '../protocol/stages.js';
import type { DataPlane, IntroducedMemory } from './data-plane.js';
import { toClientError } from './fabric-errors.js';
import { RANGE_BYTES_MAX, SYNC_BYTES_MAX } from './limits.js';
import type { ClientCore } from './operation.js';
import type { CallSettings } from './options.js';
import { type RangeOwner, RangeReader, rangesByRdma } from './range-reader.js';
import type { Landed, Range, RangePlace, ValueFacts } from './range-request.js';
import type { Session } from './session.js';
import { checksumError, type ValueInfo, type ValuePath } from './value.js';
import type { ValueMemory } from './value-memory.js';

/** What becomes of a {@link RangedRead}; one of the first four, once. The memory stays the caller's, who frees it. */
export interface RangedReadEvents {
  /** Everything is in the memory, and the CRC is right if it was to be checked. */
  onDone(info: ValueInfo): void;
  onAbsent(): void;
  /** The value is longer than the memory. */
  onTooLong(length: number): void;
  onFailed(error: FabricKvError): void;
  onProgress(bytesDone: number, bytesTotal: number): void;
}

/** Options of {@link RangedRead}. */
export interface RangedReadOptions {
  readonly core: ClientCore;
  readonly key: Buffer;
  readonly call: CallSettings;
  readonly memory: ValueMemory;
  readonly trace: OperationTrace;
  readonly firstOperationId: number;
  readonly deadlineMs: () => number;
  readonly events: RangedReadEvents;
}

/** Bytes of the value; the end is not among them. */
interface Interval {
  offset: number;
  end: number;
}

/** Reads one value into memory. */
export class RangedRead implements RangeOwner {
  readonly #options: RangedReadOptions;
  readonly #reader: RangeReader;
  /** Not asked for, in ascending order. Before the first answer, the first range alone. */
  #missing: Interval[];
  #facts: ValueFacts | undefined;
  #path: ValuePath = 'inline';
  #landedBytes = 0;
  /** CRCs of what has landed, by offset; what is being checked is not there yet. */
  readonly #parts = new Map<number, { readonly length: number; readonly crc: number }>();
  #checking = 0;
  #introduced: { readonly dataPlane: DataPlane; readonly memory: IntroducedMemory } | undefined;
  #introducing: DataPlane | undefined;

  constructor(options: RangedReadOptions) {
    this.#options = options;
    const { core, key, call, memory, trace, firstOperationId, deadlineMs } = options;
    this.#missing = [{ offset: 0, end: Math.min(RANGE_BYTES_MAX, memory.length) }];
    this.#reader = new RangeReader({
      core,
      key,
      namespace: call.namespace,
      owner: this,
      trace,
      firstOperationId,
      inlineThreshold: call.inlineThreshold,
      check: call.verify,
      deadlineMs,
      stallMs: undefined,
    });
  }

  start(): void {
    this.#reader.pump();
  }

  /** Gives it up. The memory may then be quarantined. */
  stop(): void {
    this.#reader.stop();
  }

  /** For the error of a passed deadline; undefined before the first answer. */
  get progress(): { readonly bytesDone: number; readonly bytesTotal: number } | undefined {
    return this.#facts && { bytesDone: this.#landedBytes, bytesTotal: this.#facts.length };
  }

  get wantsMore(): boolean {
    return this.#missing.length > 0;
  }

  get isWaiting(): boolean {
    return true;
  }

  next(session: Session): Range | undefined {
    const [first] = this.#missing;
    if (first === undefined) return undefined;
    const { memory } = this.#options;
    if (this.#facts === undefined && memory.quarantined) {
      // What may still land there may be of another version than what would come now.
      memory.whenQuiet(() => this.#reader.pump());
      return undefined;
    }
    const { offset } = first;
    if (!rangesByRdma(session, this.#options.call, this.#facts?.length)) {
      return this.#take(first, Math.min(RANGE_BYTES_MAX, first.end - offset), undefined);
    }
    const { dataPlane } = session;
    if (dataPlane === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink without a data plane');
    const introduced = this.#introducedTo(session, dataPlane);
    if (introduced === undefined) return undefined;
    // No range crosses the seam between two registrations.
    const place = memory.mappingOffset + offset;
    const toSeam = dataPlane.regionBytesMax - (place % dataPlane.regionBytesMax);
    return this.#take(first, Math.min(RANGE_BYTES_MAX, toSeam, first.end - offset), introduced.place(place));
  }

  onValue(facts: ValueFacts): void {
    const { memory, trace, events } = this.#options;
    this.#facts = facts;
    trace.bytes = facts.length;
    if (facts.length > memory.length) {
      this.#reader.stop();
      events.onTooLong(facts.length);
      return;
    }
    const asked = Math.min(this.#asked, facts.length);
    this.#missing = asked < facts.length ? [{ offset: asked, end: facts.length }] : [];
  }

  onAbsent(): void {
    this.#options.events.onAbsent();
  }

  onLanded({ offset }: Range, { length, path, crc }: Landed): void {
    const { call, events } = this.#options;
    this.#landedBytes += length;
    if (path === 'rdma') this.#path = 'rdma';
    if (this.#facts !== undefined) events.onProgress(this.#landedBytes, this.#facts.length);
    if (call.verify && length > 0) {
      if (crc === undefined) void this.#check(offset, length);
      else this.#parts.set(offset, { length, crc });
    }
    this.#finishIfDone();
  }

  onMissing({ offset, length }: Range): void {
    const end = Math.min(offset + length, this.#facts?.length ?? Number.POSITIVE_INFINITY);
    const at = this.#missing.findIndex((interval) => interval.offset > offset);
    this.#missing.splice(at === -1 ? this.#missing.length : at, 0, { offset, end });
  }

  onFailed(error: FabricKvError): void {
    this.#options.events.onFailed(error);
  }

  /** How much the first request asked for. */
  #asked = 0;

  #introducedTo(session: Session, dataPlane: DataPlane): IntroducedMemory | undefined {
    if (this.#introduced?.dataPlane === dataPlane) return this.#introduced.memory;
    if (this.#introducing === dataPlane) return undefined;
    const introducing = this.#options.memory.introduceTo(session, dataPlane);
    if (!(introducing instanceof Promise)) {
      this.#introduced = { dataPlane, memory: introducing };
      return introducing;
    }
    this.#introducing = dataPlane;
    void this.#introduce(introducing, session, dataPlane);
    return undefined;
  }

  async #introduce(introducing: Promise<IntroducedMemory>, session: Session, dataPlane: DataPlane): Promise<void> {
    try {
      this.#introduced = { dataPlane, memory: await introducing };
    } catch (error) {
      // With the session the registration is lost too: it is made again in the next one.
      if (session.state !== 'ended' && !this.#reader.stopped) {
        this.#reader.stop();
        this.#options.events.onFailed(toClientError(error));
        return;
      }
    }
    this.#reader.pump();
  }

  #take(from: Interval, length: number, sink: RangePlace['sink']): Range {
    const { offset } = from;
    from.offset += length;
    if (from.offset === from.end) this.#missing.shift();
    if (this.#facts === undefined) this.#asked = from.offset;
    const { memory, core } = this.#options;
    return {
      offset,
      length,
      place: {
        sink,
        store: (at, bytes) => memory.mapping.writeSync(memory.mappingOffset + offset + at, bytes),
        quarantine: () => {
          const quiet = memory.quarantine();
          core.counters.quarantinedBytes += length;
          return () => {
            core.counters.quarantinedBytes -= length;
            quiet();
          };
        },
      },
    };
  }

  async #check(offset: number, length: number): Promise<void> {
    const { mapping, mappingOffset } = this.#options.memory;
    this.#checking += 1;
    try {
      const at = mappingOffset + offset;
      const crc =
        length <= SYNC_BYTES_MAX ? crc32c(mapping.readSync(at, length)) : await mapping.crc32c({ offset: at, length });
      this.#parts.set(offset, { length, crc });
    } catch (error) {
      if (this.#reader.stopped) return;
      this.#reader.stop();
      this.#options.events.onFailed(toClientError(error));
      return;
    } finally {
      this.#checking -= 1;
    }
    this.#finishIfDone();
  }

  #finishIfDone(): void {
    const facts = this.#facts;
    if (facts === undefined || this.#landedBytes < facts.length || this.#checking > 0 || this.#reader.stopped) return;
    this.#reader.stop();
    const info: ValueInfo = { ...facts, path: this.#path };
    if (this.#options.call.verify) {
      const wrong = checksumError(info, this.#wholeCrc());
      if (wrong !== undefined) {
        this.#options.events.onFailed(wrong);
        return;
      }
    }
    this.#options.events.onDone(info);
  }

  #wholeCrc(): number {
    const parts = [...this.#parts].sort(([a], [b]) => a - b);
    return parts.reduce((whole, [, { crc, length }]) => combineCrc32c(whole, crc, length), 0);
  }
}
