/**
 * What one side of a session has to say, in order of urgency: small messages first, as frames of everything that one
 * turn of the event loop brings; then Data, a piece at a time, from all inline values in turn.
 */

import { DATA_IN_FLIGHT_BYTES_MAX, FRAME_BYTES_TARGET, FRAME_MESSAGES_MAX } from './limits.js';
import { WireWriter } from './wire-format.js';

/** The part of a gRPC stream that frames are written to. */
export interface FrameSink {
  write(bytes: Buffer, callback?: () => void): boolean;
  once(event: 'drain', listener: () => void): unknown;
}

/** An inline value on its way out, piece by piece. */
export interface DataSource<Message> {
  /** The next piece, read when it is sent; undefined when there is none left, or none any more. */
  next(): { message: Message; sizeBytes: number } | undefined;
}

/** Batches messages into frames and keeps Data from standing in their way. */
export class FrameWriter<Message> {
  private readonly frame = new WireWriter();
  private messages = 0;
  private flushScheduled = false;
  private readonly sources: DataSource<Message>[] = [];
  private dataInFlightBytes = 0;
  private writable = true;
  private readonly onTurnEnd = (): void => {
    this.flushScheduled = false;
    this.flush();
  };
  private ended = false;

  constructor(
    private readonly sink: FrameSink,
    private readonly append: (message: Message, frame: WireWriter) => void,
    /** Told when the stream takes no more for now, and when it does again. */
    private readonly onWritable: (writable: boolean) => void = () => undefined,
  ) {}

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

  /** Sends nothing more; what is queued is dropped. */
  end(): void {
    this.ended = true;
    this.messages = 0;
    this.sources.length = 0;
  }

  private write(bytes: Buffer, written?: () => void): void {
    if (this.sink.write(bytes, written) || !this.writable) return;
    this.writable = false;
    this.onWritable(false);
    this.sink.once('drain', () => {
      this.writable = true;
      if (this.ended) return;
      this.onWritable(true);
      this.pump();
    });
  }

  private pump(): void {
    while (!this.ended && this.writable && this.dataInFlightBytes < DATA_IN_FLIGHT_BYTES_MAX) {
      const source = this.sources.shift();
      if (source === undefined) return;
      // What was said before goes first.
      this.flush();
      const piece = source.next();
      if (piece === undefined) continue;
      this.sources.push(source);
      this.dataInFlightBytes += piece.sizeBytes;
      this.append(piece.message, this.frame);
      this.write(this.frame.take(), () => {
        this.dataInFlightBytes -= piece.sizeBytes;
        this.pump();
      });
    }
  }
}
