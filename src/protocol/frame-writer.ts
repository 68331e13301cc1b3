/**
 * What one side of a session has to say, in order of urgency: small messages first, as frames of everything that one
 * turn of the event loop brings; then Data, a piece at a time, from all inline values in turn.
 */

import type { Chunk, ChunkPool } from './chunk-pool.js';
import { DATA_IN_FLIGHT_BYTES_MAX, FRAME_BYTES_TARGET, FRAME_MESSAGES_MAX } from './limits.js';
import { WireWriter } from './wire-format.js';

/** The part of a gRPC stream that frames are written to. */
export interface FrameSink {
  /** Calls back, in the order of writing, when the transport has taken the bytes, or with the error that has kept it from that. */
  write(bytes: Buffer, callback: (error?: Error | null) => void): unknown;
}

/** An inline value on its way out, piece by piece. */
export interface DataSource<Message> {
  /** The next piece, read when it is sent; undefined when there is none left, or none any more. */
  next(): { message: Message; sizeBytes: number } | undefined;
}

/** What one stream may have handed to gRPC that the transport has not taken; past it, it takes no more until half of that is gone. */
export const QUEUED_BYTES_MAX = 512 * 1024;

/** The same in frames: as many as gRPC itself would take, whatever their size. */
export const QUEUED_FRAMES_MAX = 16;

/** What several writers have queued together. When it is more than the limit, each of them may have one frame. */
export class QueuedBytes {
  bytes = 0;

  constructor(readonly bytesMax: number) {}
}

/** Batches messages into frames and keeps Data from standing in their way. */
export class FrameWriter<Message> {
  private readonly frame: WireWriter;
  private messages = 0;
  private flushScheduled = false;
  private readonly sources: DataSource<Message>[] = [];
  private dataInFlightBytes = 0;
  /** Lengths of the frames that the transport has not taken, in order, and where they are. */
  private readonly queuedLengths: number[] = [];
  private readonly queuedChunks: Chunk[] = [];
  private queuedBytes = 0;
  private writable = true;
  private readonly onTurnEnd = (): void => {
    this.flushScheduled = false;
    this.flush();
  };
  private ended = false;
  // One for all frames: a closure for each would cost every small operation something.
  private readonly onTaken = (error?: Error | null): void => this.taken(error);

  constructor(
    private readonly sink: FrameSink,
    private readonly append: (message: Message, frame: WireWriter) => void,
    /** Told when the stream takes no more for now, and when it does again. */
    private readonly onWritable: (writable: boolean) => void = () => undefined,
    private readonly total = new QueuedBytes(Number.POSITIVE_INFINITY),
    /** For a transport that does not read a frame any more once it has called back: grpc-js's server has copied it before. */
    chunks?: ChunkPool,
  ) {
    this.frame = new WireWriter(chunks);
  }

  /** Adds a message to the frame of this turn. It is encoded at once: what it refers to is the caller's again. */
  send(message: Message): void {
    if (this.ended) return;
    this.append(message, this.frame);
    this.messages += 1;
    if (this.messages >= FRAME_MESSAGES_MAX || this.frame.sizeBytes >= FRAME_BYTES_TARGET) {
      this.flush();
    } else if (!this.flushScheduled) {
      this.flushScheduled = true;
      // After everything that this turn still has to say, before the loop goes on.
      queueMicrotask(this.onTurnEnd);
    }
  }

  /** Sends a value's pieces, in turn with those of other values, as the stream takes them. */
  sendData(source: DataSource<Message>): void {
    if (this.ended) return;
    this.sources.push(source);
    this.pump();
  }

  /** Writes what is queued now, for the last words of a session. */
  flush(): void {
    if (this.ended || this.messages === 0) return;
    this.messages = 0;
    this.write(this.frame.take());
  }

  /** Sends nothing more; what has been written is still the stream's. */
  end(): void {
    this.ended = true;
    this.messages = 0;
    this.sources.length = 0;
  }

  /** The stream is gone, and what was queued in it. */
  forget(): void {
    this.end();
    this.total.bytes -= this.queuedBytes;
    this.queuedBytes = 0;
    this.queuedLengths.length = 0;
    this.queuedChunks.length = 0;
  }

  private write(bytes: Buffer, onTaken = this.onTaken): void {
    this.queuedLengths.push(bytes.length);
    this.queuedChunks.push(this.frame.chunk);
    this.queuedBytes += bytes.length;
    this.total.bytes += bytes.length;
    this.sink.write(bytes, onTaken);
    if (!this.writable || !this.isFull()) return;
    this.writable = false;
    this.onWritable(false);
  }

  private taken(error: Error | null | undefined): void {
    const length = this.queuedLengths.shift() ?? 0;
    const chunk = this.queuedChunks.shift();
    // Of a stream that has failed it is not known what it reads still: that chunk is never used again.
    if (chunk !== undefined && !error) this.frame.taken(chunk);
    this.queuedBytes -= length;
    this.total.bytes -= length;
    if (this.ended) return;
    if (!this.writable) {
      if (!this.hasRoom()) return;
      this.writable = true;
      this.onWritable(true);
    }
    if (this.sources.length > 0) this.pump();
  }

  private isFull(): boolean {
    return (
      this.queuedBytes >= QUEUED_BYTES_MAX ||
      this.queuedLengths.length >= QUEUED_FRAMES_MAX ||
      this.total.bytes >= this.total.bytesMax
    );
  }

  /** Whoever was full goes on when half is gone, so that he does not stop at every frame. */
  private hasRoom(): boolean {
    if (this.queuedLengths.length === 0) return true;
    return (
      this.queuedBytes <= QUEUED_BYTES_MAX / 2 &&
      this.queuedLengths.length <= QUEUED_FRAMES_MAX / 2 &&
      this.total.bytes < this.total.bytesMax
    );
  }

  private pump(): void {
    while (!this.ended && this.writable && this.dataInFlightBytes < DATA_IN_FLIGHT_BYTES_MAX) {
      const source = this.sources.shift();
      if (source === undefined) return;
      // What was said before goes first.
      this.flush();
      if (!this.writable) {
        this.sources.unshift(source);
        return;
      }
      const piece = source.next();
      if (piece === undefined) continue;
      this.sources.push(source);
      this.dataInFlightBytes += piece.sizeBytes;
      this.append(piece.message, this.frame);
      this.write(this.frame.take(), (error) => {
        this.dataInFlightBytes -= piece.sizeBytes;
        this.taken(error);
      });
    }
  }
}
