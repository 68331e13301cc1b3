/**
 * `client.getInto`: a value into a region of the caller's, without a copy.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { DataPlane } from './data-plane.js';
import { GetOperationBase, type SinkTaker } from './get-operation.js';
import { RANGED_BYTES_MIN, SYNC_BYTES_MAX } from './limits.js';
import type { ClientCore, ProgressDetails } from './operation.js';
import type { CallSettings } from './options.js';
import { RangedRead } from './ranged-read.js';
import type { UserRegion } from './region.js';
import type { Session } from './session.js';
import { RegionSink } from './sinks.js';
import type { ValueInfo } from './value.js';
import { RegionMemory } from './value-memory.js';

/** Reads one value into a region, which it holds until nothing of it can land there any more. */
export class GetIntoOperation extends GetOperationBase<ValueInfo, RegionSink> {
  readonly #region: UserRegion;
  /** What keeps the region: the operation itself while it is not over, and each request of it that the server may still write for. */
  #holders = 1;
  #whenQuiet: (() => void) | undefined;
  /** Of a value that is read in ranges. */
  #ranged: { readonly read: RangedRead; readonly memory: RegionMemory } | undefined;

  /** @throws ERR_FABRICKV_REGION_BUSY, ERR_FABRICKV_INVALID_ARGUMENT */
  constructor(core: ClientCore, key: Buffer, region: UserRegion, call: CallSettings) {
    region.hold('sink');
    super(core, 'get', key, call);
    this.#region = region;
  }

  protected override attempt(session: Session): void {
    const known = this.key && this.core.sizes.lookup(this.call.namespace, this.key);
    const longest = Math.min(known ?? Number.POSITIVE_INFINITY, this.#region.sizeBytes);
    if (longest > RANGED_BYTES_MIN) this.#readRanges();
    else this.ask(session, known);
  }

  protected override acquireSink(
    session: Session,
    length: number | undefined,
    inlineMax: number,
    { take, refuse }: SinkTaker<RegionSink>,
  ): () => void {
    const { dataPlane } = session;
    const name = async (plane: DataPlane): Promise<void> => {
      try {
        const introduced = await this.#region.introduceTo(plane);
        if (this.settled) return;
        const sink = new RegionSink(introduced, this.core.counters, () => this.#letGo());
        this.#holders += 1;
        take(sink);
      } catch (error) {
        refuse(error);
      }
    };
    const proceed = (): void => {
      if (inlineMax === Number.POSITIVE_INFINITY || (length !== undefined && length <= inlineMax)) take(undefined);
      else if (dataPlane !== undefined) void name(dataPlane);
      else refuse(new FabricKvError('ERR_FABRICKV_INTERNAL', 'a sink without a data plane'));
    };
    // An earlier request of this operation may still be written for: before the memory is quiet it is not named again,
    // and nothing that comes inline is stored in it.
    if (this.#holders === 1) proceed();
    else this.#whenQuiet = proceed;
    return () => {
      this.#whenQuiet = undefined;
    };
  }

  protected override sinkTooSmall(session: Session, length: number): void {
    if (length > this.#region.sizeBytes) throw this.#tooSmall(length);
    // It fits the region, but not the part of it that one registration covers.
    if (length > RANGED_BYTES_MIN) this.#readRanges();
    else this.ask(session, length, true);
  }

  protected override receivedRdma(info: ValueInfo, sink: RegionSink): void {
    const done = (): void => {
      sink.free();
      this.#done(info);
    };
    if (!this.call.verify) {
      done();
      return;
    }
    const { mapping } = this.#region;
    void this.guardAsync(async () => {
      try {
        const { length } = info;
        const crc =
          length <= SYNC_BYTES_MAX ? crc32c(mapping.readSync(0, length)) : await mapping.crc32c({ offset: 0, length });
        this.checkCrc(info, crc);
      } catch (error) {
        sink.free();
        throw error;
      }
      done();
    });
  }

  protected override receivedWhole(info: ValueInfo, bytes: Buffer): void {
    if (bytes.length > this.#region.sizeBytes) throw this.#tooSmall(bytes.length);
    if (bytes.length > 0) this.#region.mapping.writeSync(0, bytes);
    this.core.counters.bytesCopied += bytes.length;
    this.succeed(info);
  }

  protected override beginAssembly(totalBytes: number): void {
    if (totalBytes > this.#region.sizeBytes) throw this.#tooSmall(totalBytes);
  }

  protected override storePiece(offset: number, bytes: Buffer): void {
    if (bytes.length > 0) this.#region.mapping.writeSync(offset, bytes);
  }

  protected override receivedAssembled(info: ValueInfo): void {
    this.#done(info);
  }

  protected override progressDetails(): ProgressDetails {
    const progress = this.#ranged?.read.progress;
    if (progress === undefined) return super.progressDetails();
    return { bytesDone: String(progress.bytesDone), bytesTotal: String(progress.bytesTotal) };
  }

  protected override release(): void {
    super.release();
    this.#endRanges();
    this.#letGo();
  }

  /** Reads a large value in ranges, over as many sessions as it takes. */
  #readRanges(): void {
    this.leaveSession();
    const { core, key, call, trace } = this;
    this.#holders += 1;
    const memory = new RegionMemory(this.#region, () => this.#letGo());
    const read = new RangedRead({
      core,
      key: key ?? Buffer.alloc(0),
      call,
      memory,
      trace,
      firstOperationId: this.settledOperationId(),
      deadlineMs: () => this.deadlineMs,
      events: {
        onDone: (info) => {
          // A write that was given up carries the same bytes, but must not land when the region is the caller's again.
          memory.whenQuiet(() => {
            this.#endRanges();
            this.countReceived(info);
            this.#done(info);
          });
        },
        onAbsent: () => {
          if (key !== undefined) core.sizes.forget(call.namespace, key);
          this.succeed(undefined);
        },
        onTooLong: (length) => this.fail(this.#tooSmall(length)),
        onFailed: (error) => {
          if (error.code === 'ERR_FABRICKV_VERSION_CHANGED') memory.whenQuiet(() => this.#readAnew());
          else this.fail(error);
        },
        onProgress: (done, total) => {
          if (done < total) this.reportProgress(done, total);
        },
      },
    });
    this.#ranged = { read, memory };
    read.start();
  }

  /** No version was promised to anybody yet: then it is the new one. */
  #readAnew(): void {
    this.#endRanges();
    this.core.counters.retries += 1;
    this.core.connection.whenOpen(this);
  }

  #endRanges(): void {
    const ranged = this.#ranged;
    this.#ranged = undefined;
    ranged?.read.stop();
    ranged?.memory.free();
  }

  #letGo(): void {
    this.#holders -= 1;
    if (this.#holders === 0) {
      this.#region.unhold('sink');
    } else if (this.#holders === 1) {
      const whenQuiet = this.#whenQuiet;
      this.#whenQuiet = undefined;
      whenQuiet?.();
    }
  }

  #tooSmall(length: number): FabricKvError {
    return new FabricKvError(
      'ERR_FABRICKV_SINK_TOO_SMALL',
      `the value has ${length} bytes, the region ${this.#region.sizeBytes}`,
      { details: { length: String(length) } },
    );
  }

  #done(info: ValueInfo): void {
    this.reportProgress(info.length, info.length);
    this.succeed(info);
  }
}
