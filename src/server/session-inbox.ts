/**
 * What a client has sent and what waits to be done for it: read frame by frame, decoded and handled in turns with the other
 * sessions, and not at all while the client does not take its answers.
 */

import type { ServerDuplexStream } from '@grpc/grpc-js';
import { decodeClientFrame, serverSessionMethod } from '../protocol/codec.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage__Output } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Turns, TurnTaker } from './turns.js';

const identity = (bytes: Buffer): Buffer => bytes;

/** The Session method. Frames are decoded by the session, in its turn: it takes as long as to do what a frame asks for. */
export const sessionMethod = { ...serverSessionMethod, requestDeserialize: identity } as const;

/** The stream as gRPC gives it to us, with our own codec on both sides. */
export type SessionStream = ServerDuplexStream<Buffer, Buffer>;

/** What all sessions of a server have together of what waits. */
export interface InboxShare {
  /** Frames that have been received and not handled. Past `bytesShared` a session may have one of them. */
  readonly received: { bytes: number; readonly bytesShared: number };
  readonly turns: Turns;
}

/** Whose inbox it is. */
export interface InboxOwner {
  readonly ended: boolean;
  /** May end the owner. */
  onMessage(message: ClientMessage__Output): void;
  /** Something waits. May end the owner. */
  onReceived(): void;
  /** Nothing waits any more. May end the owner. */
  onEmptied(): void;
  /** A frame of so many messages is being handled. */
  onDecoded(messages: number): void;
  /** A frame is not one: ends the owner. */
  refuse(error: FabricKvError): void;
}

/** Messages between two looks at the clock. */
const CLOCK_INTERVAL = 32;
/**
 * Of a frame that no other one follows a turn handles this part, so that the first answers are on their way, and the client at
 * work on them, while the others are found: what it has written leaves when the round ends. Where the next frame waits both sides
 * are at work already, and smaller frames would only cost more.
 */
const TURN_PART = 1 / 2;
/** A turn costs as much as some ten messages: one that has no more than this left handles all of it. */
const TURN_MESSAGES_MIN = 32;
/** What is handled as it comes, and takes longer than this, is gone on with in turns: a small frame may ask for much. */
const STRAIGHT_MS_MAX = 2;
/** Frames of up to this length are handled as they come, */
const STRAIGHT_FRAME_BYTES_MAX = 16 * 1024;
/** until a session has had this much of them: then it waits for a turn like those that have more. */
const STRAIGHT_BYTES_MAX = 64 * 1024;
/** The stream is not read while so many frames wait, of 1.25 MiB at most: one that is being handled, and the next. */
const BACKLOG_FRAMES_MAX = 2;
/** What a message takes that has been decoded, beside its bytes. */
const MESSAGE_BYTES = 512;

/** The reading half of a session's stream. */
export class SessionInbox implements TurnTaker {
  /** Frames that have been received and not been decoded. */
  private readonly backlog: Buffer[] = [];
  /** The frame that is being handled, and how far it is. */
  private messages: readonly ClientMessage__Output[] = [];
  private nextMessage = 0;
  private messagesBytes = 0;
  private held = 0;
  private turnMessages = TURN_MESSAGES_MIN;
  private straightBytes = 0;
  private working = false;
  private inTurns = false;
  private writable = true;
  private reading = true;
  /** The stream has asked for a frame while nothing was to be read. */
  private readAsked = false;
  private readonly read: (size: number) => void;

  constructor(
    stream: SessionStream,
    private readonly share: InboxShare,
    private readonly owner: InboxOwner,
  ) {
    // Paused, a stream would still read 16 frames of up to 1.25 MiB ahead.
    this.read = stream._read.bind(stream);
    stream._read = (size) => {
      if (this.reading) this.read(size);
      else this.readAsked = true;
    };
    stream.on('data', (frame: Buffer) => this.onFrame(frame));
  }

  /** What waits takes so much. */
  get heldBytes(): number {
    return this.held;
  }

  private onFrame(frame: Buffer): void {
    if (this.owner.ended) return;
    this.backlog.push(frame);
    this.hold(frame.length);
    this.straightBytes += frame.length;
    // Whoever is at work takes it when he comes to it.
    if (this.inTurns || this.working) {
      this.flow();
      this.owner.onReceived();
      return;
    }
    const isStraight =
      frame.length <= STRAIGHT_FRAME_BYTES_MAX &&
      this.straightBytes <= STRAIGHT_BYTES_MAX &&
      this.share.turns.mayGoOn(frame.length);
    if (isStraight) {
      this.work(performance.now() + STRAIGHT_MS_MAX);
    } else {
      this.flow();
      this.owner.onReceived();
    }
    if (this.isWaiting()) this.queueForTurn();
  }

  takeTurn(endsAtMs: number): boolean {
    this.work(endsAtMs);
    this.straightBytes = 0;
    this.inTurns = this.isWaiting();
    return this.inTurns;
  }

  /** Whether there is something that can be done. */
  private isWaiting(): boolean {
    return this.writable && !this.owner.ended && (this.backlog.length > 0 || this.nextMessage < this.messages.length);
  }

  private queueForTurn(): void {
    this.inTurns = true;
    this.share.turns.add(this);
  }

  /** The stream takes answers, or no more for now: then nothing is done that has one. */
  setWritable(writable: boolean): void {
    this.writable = writable;
    if (!this.inTurns && !this.working && this.isWaiting()) this.queueForTurn();
    else this.flow();
  }

  /** Handles what has been received, as far as the stream takes the answers. */
  private work(endsAtMs: number): void {
    this.working = true;
    this.turnMessages = Math.max(TURN_MESSAGES_MIN, Math.ceil(this.messages.length * TURN_PART));
    let handled = 0;
    let hasDecoded = false;
    while (this.writable && !this.owner.ended && handled < this.turnMessages) {
      if (handled > 0 && handled % CLOCK_INTERVAL === 0 && performance.now() > endsAtMs) break;
      const message = this.messages[this.nextMessage];
      if (message === undefined) {
        // A frame may have nothing in it that is to be handled, and take its time all the same.
        if (hasDecoded && performance.now() > endsAtMs) break;
        hasDecoded = true;
        if (this.decodeNext()) continue;
        break;
      }
      handled += 1;
      this.straightBytes += MESSAGE_BYTES;
      this.nextMessage += 1;
      if (this.nextMessage === this.messages.length) this.forgetMessages();
      this.owner.onMessage(message);
    }
    this.working = false;
    this.flow();
    if (this.held > 0) this.owner.onReceived();
    else this.owner.onEmptied();
  }

  /** Takes the next frame. @returns whether there was one */
  private decodeNext(): boolean {
    // What has come already is here at once.
    if (this.backlog.length === 0) this.flow();
    const frame = this.backlog.shift();
    if (frame === undefined) return false;
    const messages = decodeClientFrame(frame);
    if (messages instanceof FabricKvError) {
      this.owner.refuse(messages);
      return false;
    }
    this.owner.onDecoded(messages.length);
    this.messages = messages;
    this.nextMessage = 0;
    this.hold(messages.length * MESSAGE_BYTES);
    this.messagesBytes = frame.length + messages.length * MESSAGE_BYTES;
    if (messages.length === 0) this.forgetMessages();
    const part = this.backlog.length === 0 ? Math.ceil(messages.length * TURN_PART) : messages.length;
    this.turnMessages = Math.max(this.turnMessages, part);
    return true;
  }

  private hold(bytes: number): void {
    this.held += bytes;
    this.share.received.bytes += bytes;
  }

  private forgetMessages(): void {
    this.hold(-this.messagesBytes);
    this.messagesBytes = 0;
    this.messages = [];
    this.nextMessage = 0;
  }

  /** Lets the stream read on, or not. */
  private flow(): void {
    const frames = this.backlog.length + (this.nextMessage < this.messages.length ? 1 : 0);
    const { received } = this.share;
    this.reading =
      this.writable && (frames === 0 || (frames < BACKLOG_FRAMES_MAX && received.bytes < received.bytesShared));
    if (!this.reading || !this.readAsked) return;
    this.readAsked = false;
    this.read(0);
  }

  /** Drops what waits: the session has ended. */
  close(): void {
    this.hold(-this.held);
    this.messagesBytes = 0;
    this.messages = [];
    this.nextMessage = 0;
    this.backlog.length = 0;
  }
}
