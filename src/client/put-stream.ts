/**
 * `client.putStream`: a value that nobody has in memory. A short one is collected and put like any other; a long one is staged
 * piece by piece and written into a grant that grows with it, or sent as Data.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX, STREAM_SILENCE_MS_MAX } from '../protocol/limits.js';
import { formatSize } from '../protocol/units.js';
import { TRANSFER_RETRIES_MAX } from './limits.js';
import type { ClientCore } from './operation.js';
import type { CallSettings } from './options.js';
import { PutOperation } from './put.js';
import { memoryFeed, streamFeed } from './put-feed.js';
import type { Session } from './session.js';
import { StreamLength } from './stream-length.js';
import { type ByteStream, StreamReader, type StreamSource, sourceFailed } from './stream-reader.js';
import { ValueCrc } from './value-crc.js';

/** A stream of unknown length that has to go inline is collected up to this length: Data has to say the length first. */
const COLLECTED_BYTES_MAX = 64 * 1024 * 1024;

/** So often the server hears of a stream that has room there; it gives up after three times as long. */
const ROOM_RENEWAL_MS = STREAM_SILENCE_MS_MAX / 3;

/** How much of a stream is kept in memory, and whether its end must have come by then. */
interface Plan {
  readonly keptBytesMax: number;
  readonly mustEnd: boolean;
}

/**
 * Writes one stream. Its time begins anew when it gets its first session and whenever bytes of it have moved, and stands still
 * while there is nothing to do but to wait for the source.
 */
export class PutStreamOperation extends PutOperation {
  readonly #open: (() => ByteStream) | undefined;
  readonly #known: number | undefined;
  #reader: StreamReader | undefined;
  #waitsForSource = false;
  #hadSession = false;
  /** The most bytes that an attempt has moved, */
  #movedMax = 0;
  /** and the attempts since then. */
  #attemptsSince = 0;
  /** The bytes that this attempt has moved. */
  #movedBytes = 0;
  /** From PutOpen to the end of the attempt. */
  #renewals: NodeJS.Timeout | undefined;

  /** @throws ERR_FABRICKV_INVALID_ARGUMENT */
  constructor(core: ClientCore, key: Buffer, source: StreamSource, length: number | undefined, call: CallSettings) {
    // Checked before the operation is there, which would have to be ended.
    const reader = typeof source === 'function' ? undefined : new StreamReader(source, (waits) => this.#onWait(waits));
    super(core, key, unopened(length), call);
    this.#reader = reader;
    this.#open = typeof source === 'function' ? source : undefined;
    this.#known = length;
  }

  protected override attempt(session: Session): void {
    if (!this.#hadSession) this.restartTime();
    this.#hadSession = true;
    this.#attemptsSince += 1;
    if (this.outcome() === 'unknown' || this.feed.inMemory) super.attempt(session);
    else void this.guardAsync(() => this.#begin(session));
  }

  protected override begin(session: Session, message: ClientMessage): void {
    super.begin(session, message);
    if (message.putOpen && !this.feed.inMemory) this.#renewRoom(session);
  }

  protected override failed(error: FabricKvError): void {
    this.#endRenewals();
    // The caller's time has not passed, only that of the room: it is as with any other grant that has ended.
    const isUnheard = error.code === 'ERR_FABRICKV_DEADLINE' && !this.feed.inMemory;
    super.failed(isUnheard ? unheard(error) : error);
  }

  protected override sessionLost(): void {
    this.#endRenewals();
    super.sessionLost();
    this.#reader?.interrupt();
    if (this.outcome() === 'unknown' || this.mayRepeat()) return;
    throw new FabricKvError(
      'ERR_FABRICKV_CONNECTION_LOST',
      'the connection was lost in the middle of the stream: give putStream a function that begins the stream anew, and it goes on by itself',
      { outcome: 'not-applied' },
    );
  }

  protected override release(): void {
    this.#endRenewals();
    super.release();
    this.#reader?.close();
  }

  protected override mayRepeat(): boolean {
    return this.feed.inMemory || this.#open !== undefined || this.#reader?.spent === false;
  }

  protected override progressed(bytes: number): void {
    this.#movedBytes = bytes;
    if (bytes > this.#movedMax) {
      this.#movedMax = bytes;
      this.#attemptsSince = 0;
    }
    // One that never comes further than those before it must not go on for ever.
    if (this.#attemptsSince <= TRANSFER_RETRIES_MAX) this.restartTime();
    this.#keepTime();
  }

  /**
   * On the wire. Of a stream it is short and renewed: nobody knows how long the source may be silent, and a client that is
   * stopped must not keep its room. What was collected is not renewed, and the client's own time is the stricter.
   */
  protected override get deadlineMs(): number {
    return this.feed.inMemory ? Math.max(super.deadlineMs, STREAM_SILENCE_MS_MAX) : STREAM_SILENCE_MS_MAX;
  }

  protected override get lateText(): string {
    return 'no progress';
  }

  #onWait(waits: boolean): void {
    this.#waitsForSource = waits;
    this.#keepTime();
  }

  #keepTime(): void {
    if (this.#waitsForSource && !this.isMoving) this.holdTime();
    else this.releaseTime();
  }

  /**
   * Whatever is waited for, not only a silent source: one that trickles says too little for a PutProgress of its own, and
   * the server may be long in finding room.
   */
  #renewRoom(session: Session): void {
    this.#endRenewals();
    this.#movedBytes = 0;
    const { operationId } = this;
    this.#renewals = setInterval(() => {
      // What is committed needs no room any more.
      if (this.outcome() === 'unknown') this.#endRenewals();
      else session.send({ operationId, putProgress: { bytesWritten: this.#movedBytes } });
    }, ROOM_RENEWAL_MS);
    this.#renewals.unref();
  }

  #endRenewals(): void {
    clearInterval(this.#renewals);
    this.#renewals = undefined;
  }

  async #begin(session: Session): Promise<void> {
    const { valueBytesMax } = session.greeting;
    const length = new StreamLength(this.#known, valueBytesMax);
    length.checkKnown();
    const reader = this.#unspentReader();
    const { keptBytesMax, mustEnd } = this.#plan(session);
    const readiness = keptBytesMax === 0 ? 'bytes' : await reader.keep(Math.min(keptBytesMax, length.bytesMax));
    // Interrupted, it begins again with the next session.
    if (this.settled || this.session !== session || readiness === 'interrupted') return;
    if (readiness === 'ended') {
      length.checkEnd(reader.keptBytes);
      const source = { kind: 'blocks', blocks: reader.keptBlocks(), length: reader.keptBytes } as const;
      reader.close();
      this.feed = memoryFeed(source);
      this.trace.bytes = source.length;
    } else {
      if (reader.hasMoreThan(length.bytesMax)) length.checkMore(length.bytesMax);
      if (mustEnd) throw this.#needsLength(session);
      this.feed = streamFeed(reader, this.#known, valueBytesMax);
    }
    if (session.state === 'open') this.guard(() => super.attempt(session));
    else this.waitForSession();
  }

  #plan(session: Session): Plan {
    if (this.#known !== undefined) {
      return {
        keptBytesMax: this.#known <= DATA_BYTES_MAX ? DATA_BYTES_MAX : 0,
        mustEnd: this.#known <= DATA_BYTES_MAX,
      };
    }
    if (session.receiveMemory === undefined) return { keptBytesMax: COLLECTED_BYTES_MAX, mustEnd: true };
    const threshold = this.call.inlineThreshold ?? session.greeting.putInlineThreshold;
    return {
      keptBytesMax: Math.min(COLLECTED_BYTES_MAX, Math.max(threshold, DATA_BYTES_MAX)),
      mustEnd: threshold > COLLECTED_BYTES_MAX,
    };
  }

  /** A reader that stands at the beginning of the stream. */
  #unspentReader(): StreamReader {
    if (this.#reader?.spent === false) return this.#reader;
    const open = this.#open;
    if (open === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'a stream that was read is begun again');
    if (this.#reader !== undefined) {
      // Nothing was applied under the old id, and the server may still have something to say about it.
      this.renewOperationId();
      this.#reader.close();
    }
    this.crc = new ValueCrc(this.call.checksum);
    this.#reader = new StreamReader(opened(open), (waits) => this.#onWait(waits));
    return this.#reader;
  }

  #needsLength(session: Session): FabricKvError {
    const { inlineOnlyReason } = this.core.connection;
    const why =
      session.receiveMemory === undefined
        ? `the session is inline-only: ${inlineOnlyReason ?? ''}`
        : 'it is to go inline';
    return new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      `a stream of more than ${formatSize(COLLECTED_BYTES_MAX)} needs its length given (options.length), because ${why}`,
      { outcome: 'not-applied' },
    );
  }
}

function unheard(error: FabricKvError): FabricKvError {
  return new FabricKvError(
    'ERR_FABRICKV_GRANT_ENDED',
    `the server heard nothing of the stream for ${STREAM_SILENCE_MS_MAX / 1000} s and took its room back: this process was stopped, or its event loop blocked. Give putStream a function that begins the stream anew, and it goes on by itself`,
    { cause: error, outcome: error.outcome },
  );
}

function opened(open: () => ByteStream): ByteStream {
  try {
    return open();
  } catch (error) {
    throw sourceFailed(error);
  }
}

/** Stands for the stream until it is known how it goes. */
function unopened(length: number | undefined): ReturnType<typeof memoryFeed> {
  const notYet = (): never => {
    throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'the stream has not begun');
  };
  return {
    length,
    inMemory: false,
    transfer: notYet,
    sendData: notYet,
    whole: notYet,
    prepare: () => undefined,
    release: () => undefined,
  };
}
