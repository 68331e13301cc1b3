/**
 * `client.put`: one message, a stream of Data, or RDMA writes into a grant.
 */

import { crc32c } from '../fabric/index.js';
import { FabricKvError, type MutationOutcome } from '../protocol/errors.js';
import type { PutGrant__Output } from '../protocol/generated/fabrickv/v1/PutGrant.js';
import type { PutResult__Output } from '../protocol/generated/fabrickv/v1/PutResult.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import { toSafeInteger, toVersion } from '../protocol/wire.js';
import { toClientError } from './fabric-errors.js';
import { TRANSFER_RETRIES_MAX, transferBackoffMs } from './limits.js';
import { MutationAttempts } from './mutation-attempts.js';
import { type ClientCore, Operation, unexpectedResult } from './operation.js';
import type { CallSettings } from './options.js';
import { PutData } from './put-data.js';
import { type PutSource, readPiece } from './put-source.js';
import { PutTransfer } from './put-transfer.js';
import type { Session } from './session.js';
import { StateMachine, type Transitions } from './state-machine.js';
import type { PutInfo } from './value.js';

/**
 * - `idle`: nothing is with the server.
 * - `opening`: PutOpen is out.
 * - `moving`: the value is on its way into the grant.
 * - `applying`: Put or PutCommit is out; from now on the value may have been published.
 */
type PutState = 'idle' | 'opening' | 'moving' | 'applying';

const TRANSITIONS: Transitions<PutState> = {
  idle: ['opening', 'applying'],
  opening: ['moving', 'idle'],
  moving: ['applying', 'idle'],
  applying: ['idle'],
};

/** PutProgress is sent when this much more has landed; a shorter value needs none. */
const PROGRESS_BYTES = 4 * 1024 * 1024;

/** Writes one value. */
export class PutOperation extends Operation<PutInfo> {
  readonly #machine = new StateMachine<PutState>('PUT', 'idle', TRANSITIONS);
  readonly #source: PutSource;
  readonly #attempts = new MutationAttempts();
  readonly #whole: boolean;
  /** The CRC of the value, once it has been sent. */
  #crc = 0;
  /** Whether all of the value is in a grant, so that a PutCommit publishes it; otherwise it goes in one Put. */
  #inGrant = false;
  #data: PutData | undefined;
  #transfer: PutTransfer | undefined;
  #bytesMoved = 0;
  #progressSentBytes = 0;
  #regrants = 0;
  /** What reads a region: the operation, and each transfer until it is quiet. */
  #holders = 1;

  /** @throws ERR_FABRICKV_REGION_BUSY, ERR_FABRICKV_INVALID_ARGUMENT */
  constructor(core: ClientCore, key: Buffer, source: PutSource, call: CallSettings) {
    if (source.kind === 'region') source.region.hold('source');
    super(core, 'put', key, call);
    this.#source = source;
    this.trace.bytes = source.length;
    this.#whole = source.length <= DATA_BYTES_MAX;
  }

  protected override attempt(session: Session): void {
    const refused = this.#attempts.mayApply(session);
    if (refused !== undefined) throw refused;
    const rdma = this.#wantsRdma(session);
    if (this.#attempts.outcome === 'unknown') this.#apply(session);
    else if (!rdma && this.#whole) this.#apply(session);
    else this.#open(session, rdma);
  }

  protected override succeeded(result: Result__Output): void {
    const { session } = this;
    if (session === undefined) return;
    if (result.grant && this.#machine.state === 'opening') this.#granted(session, result.grant);
    else if (result.put && this.#machine.state === 'applying') this.#stored(result.put);
    else throw unexpectedResult('Put', result.outcome);
  }

  protected override failed(error: FabricKvError): void {
    const applying = this.#machine.state === 'applying';
    this.#stopMoving();
    if (applying) this.#attempts.answered(error);
    const grantEnded = error.code === 'ERR_FABRICKV_GRANT_ENDED' && this.#attempts.outcome === 'not-applied';
    if (grantEnded && this.session !== undefined && this.#regrants < TRANSFER_RETRIES_MAX) {
      // The grant expired or its session ended before the commit was seen: the same PUT is opened again.
      this.#regrants += 1;
      this.core.counters.retries += 1;
      this.#inGrant = false;
      this.leaveSession();
      this.later(transferBackoffMs(this.#regrants), () => this.core.connection.whenOpen(this));
      return;
    }
    this.retryOrFail(error);
  }

  protected override sessionLost(): void {
    this.#stopMoving();
  }

  protected override outcome(): MutationOutcome {
    return this.#attempts.outcome;
  }

  protected override progressDetails(): { readonly bytesDone?: string; readonly bytesTotal?: string } {
    return { bytesDone: String(this.#bytesMoved), bytesTotal: String(this.#source.length) };
  }

  protected override release(): void {
    const { session } = this;
    const known = this.#machine.state !== 'idle';
    this.#stopMoving();
    if (known && session !== undefined) {
      this.core.counters.cancels += 1;
      session.cancel(this.operationId);
    }
    this.#letGo();
  }

  #wantsRdma(session: Session): boolean {
    const threshold = this.call.inlineThreshold ?? session.greeting.putInlineThreshold;
    return session.receiveMemory !== undefined && this.#source.length > threshold;
  }

  #open(session: Session, rdma: boolean): void {
    this.#machine.to('opening');
    const { key, call } = this;
    this.begin(
      session,
      {
        putOpen: {
          key: key ?? '',
          namespace: call.namespace,
          deadlineMs: this.deadlineMs,
          length: this.#source.length,
          path: rdma ? 'RDMA' : 'INLINE',
        },
      },
      key?.length ?? 0,
    );
    this.trace.mark('put.grant.requested');
  }

  /** Sends what publishes the value: the commit if it is in a grant, otherwise the value itself. */
  #apply(session: Session): void {
    const { key, call } = this;
    const inThisSession = this.#machine.state === 'moving';
    if (this.#inGrant) {
      const putCommit = { crc32c: this.#crc };
      this.#applying(session);
      if (inThisSession) session.send({ operationId: this.operationId, putCommit });
      else this.begin(session, { putCommit }, 0);
    } else {
      const value = readPiece(this.#source, 0, this.#source.length);
      this.#crc = crc32c(value);
      const put = { key: key ?? '', namespace: call.namespace, deadlineMs: this.deadlineMs, value, crc32c: this.#crc };
      this.#applying(session);
      this.begin(session, { put }, (key?.length ?? 0) + value.length);
    }
    if (this.#inGrant) this.trace.mark('put.commit.sent');
  }

  #applying(session: Session): void {
    this.#machine.to('applying');
    this.#attempts.sending(session);
  }

  #granted(session: Session, grant: PutGrant__Output): void {
    this.trace.mark('put.grant.received', { extents: grant.extents.length });
    this.#machine.to('moving');
    this.#bytesMoved = 0;
    this.#progressSentBytes = 0;
    if (this.#wantsRdma(session)) this.#write(session, grant);
    else this.#sendData(session);
  }

  #sendData(session: Session): void {
    const data = new PutData({
      operationId: this.operationId,
      source: this.#source,
      onPiece: (bytes) => this.#moved(bytes),
      onEnd: (crc) => {
        if (this.#data !== data) return;
        this.#data = undefined;
        this.guard(() => this.#commit(session, crc));
      },
      onError: (error) => {
        if (this.#data === data) this.fail(toClientError(error));
      },
    });
    this.#data = data;
    session.sendData(data);
  }

  #write(session: Session, grant: PutGrant__Output): void {
    const { dataPlane } = session;
    const { pool, counters } = this.core;
    if (dataPlane === undefined || pool === undefined) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a grant without a data plane');
    }
    const transfer = new PutTransfer({
      source: this.#source,
      extents: grant.extents.map(({ windowId, windowOffset, length }) => ({
        windowId,
        windowOffset: toSafeInteger(windowOffset, 'window_offset'),
        length: toSafeInteger(length, 'length'),
      })),
      dataPlane,
      pool,
      counters,
      events: {
        onSubmitted: () => this.trace.mark('put.write.submitted'),
        onLanded: (bytes) => {
          if (this.#transfer === transfer) this.#landed(session, bytes);
        },
        onDone: (crc) => {
          if (this.#transfer !== transfer) return;
          this.trace.mark('put.write.completed');
          this.guard(() => this.#commit(session, crc));
        },
        onError: (error) => {
          if (this.#transfer === transfer) this.#transferFailed(session, error);
        },
        onQuiet: () => this.#letGo(),
      },
    });
    this.#transfer = transfer;
    this.#holders += 1;
    void this.guardAsync(async () => {
      try {
        if (this.#source.kind === 'region') await this.#source.region.prepareSource(dataPlane);
      } catch (error) {
        // Of a transfer that was given up meanwhile: the next attempt knows nothing of it.
        if (this.#transfer === transfer) throw error;
      }
      if (this.#transfer === transfer) transfer.start();
    });
  }

  #landed(session: Session, bytes: number): void {
    this.#moved(bytes);
    if (bytes === this.#source.length || bytes - this.#progressSentBytes < PROGRESS_BYTES) return;
    this.#progressSentBytes = bytes;
    session.send({ operationId: this.operationId, putProgress: { bytesWritten: bytes } });
  }

  #moved(bytes: number): void {
    this.#bytesMoved = bytes;
    this.reportProgress(bytes, this.#source.length);
  }

  /** The transfer has tried often enough, or its grant is gone. */
  #transferFailed(session: Session, error: FabricKvError): void {
    if (error.code !== 'ERR_FABRICKV_GRANT_ENDED') {
      this.fail(error);
      return;
    }
    session.cancel(this.operationId);
    this.guard(() => this.failed(error));
  }

  #commit(session: Session, crc: number): void {
    if (this.session !== session || this.#machine.state !== 'moving') return;
    this.#crc = crc;
    this.#inGrant = true;
    this.#apply(session);
  }

  #stored(result: PutResult__Output): void {
    const { core, call, key } = this;
    this.finishRequest();
    this.#transfer = undefined;
    this.#machine.to('idle');
    const { length } = this.#source;
    const path = result.path === 'RDMA' ? 'rdma' : 'inline';
    if (path === 'rdma') core.counters.putsRdma += 1;
    else core.counters.putsInline += 1;
    if (key !== undefined && path === 'rdma') core.sizes.remember(call.namespace, key, length);
    this.succeed({ version: toVersion(result.version), length, crc32c: this.#crc, path });
  }

  /** Leaves the server's side of the attempt: what moves is stopped, and what is known of the outcome stays. */
  #stopMoving(): void {
    this.#data?.stop();
    this.#data = undefined;
    const transfer = this.#transfer;
    this.#transfer = undefined;
    transfer?.cancel();
    if (this.#machine.state !== 'idle') this.#machine.to('idle');
  }

  #letGo(): void {
    this.#holders -= 1;
    if (this.#holders === 0 && this.#source.kind === 'region') this.#source.region.unhold('source');
  }
}
