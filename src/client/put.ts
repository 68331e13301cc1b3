/**
 * `client.put`: one message, a stream of Data, or RDMA writes into the session window or into a grant.
 */

import { FabricKvError, type MutationOutcome } from '../protocol/errors.js';
import type { PutGrant__Output } from '../protocol/generated/fabrickv/v1/PutGrant.js';
import type { PutResult__Output } from '../protocol/generated/fabrickv/v1/PutResult.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import { DATA_BYTES_MAX } from '../protocol/limits.js';
import { toVersion } from '../protocol/wire.js';
import type { DataPlane } from './data-plane.js';
import { toClientError } from './fabric-errors.js';
import { GrantedRoom } from './granted-room.js';
import { TRANSFER_RETRIES_MAX, transferBackoffMs } from './limits.js';
import { MutationAttempts } from './mutation-attempts.js';
import { type ClientCore, Operation, unexpectedResult } from './operation.js';
import type { CallSettings } from './options.js';
import type { PutFeed, Sending } from './put-feed.js';
import type { PutTransfer } from './put-transfer.js';
import type { Session } from './session.js';
import { StateMachine, type Transitions } from './state-machine.js';
import type { PutInfo } from './value.js';
import { ValueCrc } from './value-crc.js';
import type { WindowSlot, WriteTarget } from './write-windows.js';

/**
 * - `idle`: nothing is with the server.
 * - `opening`: PutOpen is out.
 * - `moving`: the value is on its way into the grant, or into the session window, of which the server knows nothing yet.
 * - `applying`: Put, PutCommit or PutWritten is out; from now on the value may have been published.
 */
type PutState = 'idle' | 'opening' | 'moving' | 'applying';

const TRANSITIONS: Transitions<PutState> = {
  idle: ['opening', 'moving', 'applying'],
  opening: ['moving', 'idle'],
  moving: ['applying', 'idle'],
  applying: ['idle'],
};

/** PutProgress is sent when this much more has landed; a shorter value needs none. */
const PROGRESS_BYTES = 4 * 1024 * 1024;

/** Writes one value. */
export class PutOperation extends Operation<PutInfo> {
  protected feed: PutFeed;
  /** Of the value, as far as it has been sent. */
  protected crc: ValueCrc;
  readonly #machine = new StateMachine<PutState>('PUT', 'idle', TRANSITIONS);
  readonly #attempts = new MutationAttempts();
  /** Once it is known, which may be when the value has been sent. */
  #length: number | undefined;
  /** Where all of the value is, so that a PutCommit or PutWritten publishes it; otherwise it goes in one Put. */
  #placed: 'grant' | 'window' | undefined;
  /** Where in the session window this attempt writes, if it does. */
  #slot: WindowSlot | undefined;
  /** Whether the session window is to be tried. */
  #triesWindow = true;
  #room = new GrantedRoom();
  #data: Sending | undefined;
  #transfer: PutTransfer | undefined;
  #bytesMoved = 0;
  #progressSentBytes = 0;
  #regrants = 0;
  /** What reads the feed: the operation, and each transfer until it is quiet. */
  #holders = 1;

  /** Takes over the feed. */
  constructor(core: ClientCore, key: Buffer, feed: PutFeed, call: CallSettings) {
    super(core, 'put', key, call);
    this.feed = feed;
    this.crc = new ValueCrc(call.checksum);
    this.trace.bytes = feed.length;
  }

  protected override attempt(session: Session): void {
    const refused = this.#attempts.mayApply(session);
    if (refused !== undefined) throw refused;
    const rdma = this.#wantsRdma(session);
    const { length } = this.feed;
    if (this.#attempts.outcome === 'unknown') this.#apply(session);
    else if (!rdma && length !== undefined && length <= DATA_BYTES_MAX) this.#apply(session);
    else if (!rdma || !this.#writeToWindow(session)) this.#open(session, rdma);
  }

  protected override succeeded(result: Result__Output): void {
    const { session } = this;
    if (session === undefined) return;
    const { state } = this.#machine;
    if (result.grant && state === 'opening') this.#granted(session, result.grant);
    else if (result.grant && state === 'moving' && this.#transfer !== undefined)
      this.#moreGranted(session, result.grant);
    else if (result.put && state === 'applying') this.#stored(result.put);
    // More room than the stream turned out to need; the server takes it back with the commit.
    else if (result.grant && state === 'applying' && this.feed.length === undefined) return;
    else throw unexpectedResult('Put', result.outcome);
  }

  protected override failed(error: FabricKvError): void {
    const { session } = this;
    const wasInWindow = this.#slot !== undefined;
    const applying = this.#machine.state === 'applying';
    this.#stopMoving();
    if (applying) this.#attempts.answered(error);
    if (this.#attempts.outcome === 'not-applied') {
      this.#placed = undefined;
      if (!this.mayRepeat()) {
        this.fail(error);
        return;
      }
      if (error.code === 'ERR_FABRICKV_GRANT_ENDED' && session !== undefined && this.#regrants < TRANSFER_RETRIES_MAX) {
        this.#regrants += 1;
        this.core.counters.retries += 1;
        this.#writeAnew(session, wasInWindow);
        return;
      }
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
    return { bytesDone: String(this.#bytesMoved), bytesTotal: String(this.feed.length ?? 'unknown') };
  }

  protected override release(): void {
    const { session } = this;
    // Of a value that is on its way into the session window the server knows nothing.
    const known = this.#machine.state !== 'idle' && !(this.#slot !== undefined && this.#machine.state === 'moving');
    this.#stopMoving();
    if (known && session !== undefined) {
      this.core.counters.cancels += 1;
      session.cancel(this.operationId);
    }
    this.#letGo();
  }

  /** So many bytes of this attempt have moved. */
  protected progressed(_bytes: number): void {
    // The time of a value that is in memory runs whatever has moved of it.
  }

  /** Whether bytes are on their way by RDMA. */
  protected get isMoving(): boolean {
    return this.#transfer?.isMoving ?? false;
  }

  /** Whether the value can be sent from its beginning again. */
  protected mayRepeat(): boolean {
    return true;
  }

  #wantsRdma(session: Session): boolean {
    const threshold = this.call.inlineThreshold ?? session.greeting.putInlineThreshold;
    return session.receiveMemory !== undefined && (this.feed.length ?? Number.POSITIVE_INFINITY) > threshold;
  }

  /** Returns false when the value does not fit the session window. */
  #writeToWindow(session: Session): boolean {
    const { length, inMemory } = this.feed;
    const slot =
      this.#triesWindow && inMemory && length !== undefined ? session.dataPlane?.windows.allocate(length) : undefined;
    if (slot === undefined) return false;
    this.#slot = slot;
    this.#machine.to('moving');
    this.#write(session, [slot.target]);
    return true;
  }

  /**
   * The grant, or the session window, was taken back before the value was published: it is written anew, under the same
   * operation id, into a grant. Where nothing but an idle window has ended, at once.
   */
  #writeAnew(session: Session, wasInWindow: boolean): void {
    if (!wasInWindow) {
      this.leaveSession();
      this.later(transferBackoffMs(this.#regrants), () => this.core.connection.whenOpen(this));
      return;
    }
    this.#triesWindow = false;
    if (session.state === 'open') this.attempt(session);
    else this.waitForSession();
  }

  #open(session: Session, rdma: boolean): void {
    this.#machine.to('opening');
    const { key, call } = this;
    const { length } = this.feed;
    this.begin(session, {
      putOpen: {
        key: key ?? '',
        namespace: call.namespace,
        deadlineMs: this.deadlineMs,
        length: length ?? 0,
        path: rdma ? 'RDMA' : 'INLINE',
        streamed: length === undefined,
        withoutCrc: !call.checksum,
      },
    });
    this.trace.mark('put.grant.requested');
  }

  /** Sends what publishes the value: the word that it is in its place, otherwise the value itself. */
  #apply(session: Session): void {
    const { key, call } = this;
    const inThisSession = this.#machine.state === 'moving';
    const target = this.#slot?.target;
    if (this.#placed === undefined) {
      const value = this.feed.whole();
      // One message is never without: the CRC of so little costs less than a second message.
      this.crc = new ValueCrc(true);
      this.crc.add(0, value);
      const { crc32c } = this.crc.fields;
      const put = { key: key ?? '', namespace: call.namespace, deadlineMs: this.deadlineMs, value, crc32c };
      this.#length = value.length;
      this.#applying(session);
      this.begin(session, { put });
      return;
    }
    if (inThisSession && target !== undefined) {
      const putWritten = {
        key: key ?? '',
        namespace: call.namespace,
        deadlineMs: this.deadlineMs,
        windowId: target.window.id,
        windowOffset: target.windowOffset,
        length: target.length,
        ...this.crc.fields,
      };
      this.#applying(session);
      this.begin(session, { putWritten });
    } else {
      // In a later session this asks for the result, of a PutWritten as well: its window is not there any more, and the id of
      // another one must not be taken for it.
      const putCommit = { ...this.crc.fields, length: this.feed.length === undefined ? (this.#length ?? 0) : 0 };
      this.#applying(session);
      if (inThisSession) session.send({ operationId: this.operationId, putCommit });
      else this.begin(session, { putCommit });
    }
    this.trace.mark('put.commit.sent');
  }

  #applying(session: Session): void {
    this.#machine.to('applying');
    this.#attempts.sending(session);
  }

  #granted(session: Session, grant: PutGrant__Output): void {
    this.trace.mark('put.grant.received', { extents: grant.extents.length });
    this.#machine.to('moving');
    const { dataPlane } = session;
    if (this.#wantsRdma(session) && dataPlane !== undefined) {
      const targets = dataPlane.windows.grant(grant.extents);
      const granted = targets.reduce((sum, { length }) => sum + length, 0);
      const { length } = this.feed;
      if (length !== undefined && granted !== length) {
        dataPlane.windows.ungrant(targets);
        throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `a grant of ${granted} bytes for a value of ${length}`);
      }
      this.#write(session, targets);
    } else {
      this.#sendData(session);
    }
  }

  /** The answer to PutMore. */
  #moreGranted(session: Session, grant: PutGrant__Output): void {
    if (session.dataPlane === undefined) return;
    this.#room.add(session.dataPlane.windows.grant(grant.extents));
    this.#transfer?.roomGranted();
  }

  #sendData(session: Session): void {
    this.#bytesMoved = 0;
    const isCurrent = (): boolean => this.#data === data;
    const data: Sending = this.feed.sendData({
      operationId: this.operationId,
      crc: this.crc,
      // By then it is known what it belongs to.
      send: (source) => queueMicrotask(() => session.sendData(source)),
      onPiece: (bytes) => this.#moved(bytes),
      onEnd: () => {
        if (!isCurrent()) return;
        this.#data = undefined;
        this.guard(() => this.#commit(session));
      },
      onError: (error) => {
        if (isCurrent()) this.fail(toClientError(error));
      },
    });
    this.#data = data;
  }

  #write(session: Session, targets: readonly WriteTarget[]): void {
    const { dataPlane } = session;
    const { pool, counters } = this.core;
    if (dataPlane === undefined || pool === undefined) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a grant without a data plane');
    }
    this.#bytesMoved = 0;
    this.#progressSentBytes = 0;
    const room = new GrantedRoom();
    room.add(targets);
    this.#room = room;
    const isCurrent = (): boolean => this.#transfer === transfer;
    const transfer: PutTransfer = this.feed.transfer({
      room,
      crc: this.crc,
      dataPlane,
      pool,
      counters,
      events: {
        onSubmitted: () => this.trace.mark('put.write.submitted'),
        onLanded: (bytes) => {
          if (isCurrent()) this.#landed(session, bytes);
        },
        onDone: (length) => {
          if (!isCurrent()) return;
          this.#length = length;
          this.trace.bytes = length;
          this.trace.mark('put.write.completed');
          this.guard(() => this.#commit(session));
        },
        onError: (error) => {
          if (isCurrent()) this.#transferFailed(session, error);
        },
        onRoomNeeded: (bytes) => {
          if (isCurrent()) session.send({ operationId: this.operationId, putMore: { length: bytes } });
        },
        onQuiet: () => {
          dataPlane.windows.ungrant(room.targets);
          this.#letGo();
        },
      },
    });
    this.#transfer = transfer;
    this.#holders += 1;
    const preparing = this.feed.prepare(dataPlane);
    if (preparing === undefined) transfer.start();
    else void this.guardAsync(() => this.#startWhen(preparing, transfer, dataPlane));
  }

  async #startWhen(preparing: Promise<void>, transfer: PutTransfer, dataPlane: DataPlane): Promise<void> {
    try {
      await preparing;
    } catch (error) {
      // Of a transfer that was given up meanwhile: the next attempt knows nothing of it.
      if (this.#transfer === transfer) throw error;
    }
    if (this.#transfer === transfer && dataPlane.state === 'up') transfer.start();
  }

  #landed(session: Session, bytes: number): void {
    this.#moved(bytes);
    if (this.#slot !== undefined || bytes === this.feed.length) return;
    if (bytes - this.#progressSentBytes < PROGRESS_BYTES) return;
    this.#progressSentBytes = bytes;
    session.send({ operationId: this.operationId, putProgress: { bytesWritten: bytes } });
  }

  #moved(bytes: number): void {
    this.#bytesMoved = bytes;
    this.progressed(bytes);
    this.reportProgress(bytes, this.feed.length ?? Number.POSITIVE_INFINITY);
  }

  /** The transfer has tried often enough, or its grant is gone. */
  #transferFailed(session: Session, error: FabricKvError): void {
    if (error.code !== 'ERR_FABRICKV_GRANT_ENDED') {
      this.fail(error);
      return;
    }
    if (this.#slot === undefined) session.cancel(this.operationId);
    this.guard(() => this.failed(error));
  }

  #commit(session: Session): void {
    if (this.session !== session || this.#machine.state !== 'moving') return;
    const slot = this.#slot;
    if (slot === undefined) {
      this.#placed = 'grant';
      this.#apply(session);
    } else {
      slot.landed(() => this.guard(() => this.#announce(session)));
    }
  }

  /** Tells the server of a value in the session window, which may have been revoked meanwhile: then it says so. */
  #announce(session: Session): void {
    if (this.session !== session || this.#machine.state !== 'moving') return;
    if (session.state === 'open') {
      this.#placed = 'window';
      this.#apply(session);
    } else {
      this.#stopMoving();
      this.waitForSession();
    }
  }

  #stored(result: PutResult__Output): void {
    const { core, call, key } = this;
    this.finishRequest();
    this.#transfer = undefined;
    this.#machine.to('idle');
    const length = this.#length ?? this.feed.length ?? 0;
    const path = result.path === 'RDMA' ? 'rdma' : 'inline';
    if (path === 'rdma') core.counters.putsRdma += 1;
    else core.counters.putsInline += 1;
    if (this.#placed === 'window') core.counters.putsInWindow += 1;
    if (key !== undefined && path === 'rdma') core.sizes.remember(call.namespace, key, length);
    this.succeed({ version: toVersion(result.version), length, crc32c: this.crc.value, path });
  }

  /** Leaves the server's side of the attempt: what moves is stopped, and what is known of the outcome stays. */
  #stopMoving(): void {
    this.#data?.stop();
    this.#data = undefined;
    const transfer = this.#transfer;
    this.#transfer = undefined;
    this.#slot?.giveUp();
    this.#slot = undefined;
    transfer?.cancel();
    if (this.#machine.state !== 'idle') this.#machine.to('idle');
  }

  #letGo(): void {
    this.#holders -= 1;
    if (this.#holders === 0) this.feed.release();
  }
}
