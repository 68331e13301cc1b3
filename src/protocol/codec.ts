/**
 * Frames to bytes and back. Both sides hand gRPC bytes that are already encoded, so that what a message refers to (a
 * piece of the arena, a caller's buffer) is read in the same turn in which it is sent.
 */

import { FabricKvError } from './errors.js';
import type { ClientFrame, ClientFrame__Output } from './generated/fabrickv/v1/ClientFrame.js';
import type { ClientMessage, ClientMessage__Output } from './generated/fabrickv/v1/ClientMessage.js';
import type { ServerFrame, ServerFrame__Output } from './generated/fabrickv/v1/ServerFrame.js';
import type { ServerMessage, ServerMessage__Output } from './generated/fabrickv/v1/ServerMessage.js';
import { FRAME_MESSAGES_MAX } from './limits.js';
import { methodOf } from './proto.js';

const session = methodOf<ClientFrame, ServerFrame>('Session');
const encodeClient = session.requestSerialize;
const decodeClient = session.requestDeserialize as unknown as (bytes: Buffer) => ClientFrame__Output;
const encodeServer = session.responseSerialize;
const decodeServer = session.responseDeserialize as unknown as (bytes: Buffer) => ServerFrame__Output;

/** The messages of one received frame, or why the frame was refused. */
export type Received<Message> = readonly Message[] | FabricKvError;

/** Fields of all nested messages together; an honest full frame of 4,096 GETs with a sink has about 45,000. */
const FRAME_FIELDS_MAX = FRAME_MESSAGES_MAX * 16;

/** A field inside Hello or RailChanged counts for this many: decoding it allocates, and honest ones have a few dozen. */
const HANDSHAKE_FIELD_WEIGHT = 8;

// Depths: 1 frame, 2 message, 3 body of a message, 4 a message within that body, 5 one within that.
const BODY_DEPTH = 3;

/** What is counted inside the bodies of one direction's messages. */
interface FrameShape {
  /** The field of a body, by the body's number, that holds messages: a hostile one can hide a million fields there. */
  readonly nested: ReadonlyMap<number, number>;
  /** Bodies whose fields have {@link HANDSHAKE_FIELD_WEIGHT}. */
  readonly handshake: ReadonlySet<number>;
}

const CLIENT_SHAPE: FrameShape = {
  // Hello.providers, Region.rails, RailChanged.address, Get.sink, Put.options, PutCommit.options, PutWritten.options.
  nested: new Map([
    [2, 6],
    [5, 3],
    [8, 3],
    [10, 5],
    [11, 6],
    [14, 2],
    [24, 9],
  ]),
  // Hello, RailChanged.
  handshake: new Set([2, 8]),
};
/** A grant may have tens of thousands of extents; a client believes its server. */
const SERVER_SHAPE: FrameShape = { nested: new Map(), handshake: new Set() };

/** ProviderOffer.rails, the only message at depth 5. */
const RAILS_FIELD = 2;
const HELLO_BODY = 2;
const VARINT_BYTES_MAX = 10;

/**
 * Counts the messages and fields of a client's frame by its tags alone, because decoding is what a hostile frame makes
 * expensive: 1 MiB of empty operations took 104 ms to decode and takes under 2 ms to refuse.
 *
 * @returns undefined when the frame may be decoded, otherwise what is wrong with it
 */
export function checkFrame(bytes: Uint8Array): string | undefined {
  return new FrameScan(bytes, CLIENT_SHAPE).run();
}

class FrameScan {
  private fields = 0;
  private position = 0;
  /** The number of the message body that is being scanned. */
  private body = 0;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly shape: FrameShape,
  ) {}

  run(): string | undefined {
    return this.scan(this.bytes.length, 1);
  }

  private scan(end: number, depth: number): string | undefined {
    let messages = 0;
    const weight = depth >= BODY_DEPTH && this.shape.handshake.has(this.body) ? HANDSHAKE_FIELD_WEIGHT : 1;
    while (this.position < end) {
      const tag = this.varint(end);
      if (tag < 0) return 'a tag is cut off';
      this.fields += weight;
      if (depth === 1 && ++messages > FRAME_MESSAGES_MAX) return `over ${FRAME_MESSAGES_MAX} messages in one frame`;
      if (this.fields > FRAME_FIELDS_MAX) return `over ${FRAME_FIELDS_MAX} fields in one frame`;
      switch (tag % 8) {
        case 0:
          if (this.varint(end) < 0) return 'a number is cut off';
          break;
        case 1:
          this.position += 8;
          break;
        case 5:
          this.position += 4;
          break;
        case 2: {
          const length = this.varint(end);
          if (length < 0 || this.position + length > end) return 'a field is cut off';
          const field = Math.floor(tag / 8);
          if (depth === BODY_DEPTH - 1) this.body = field;
          if (this.isMessage(field, depth)) {
            const problem = this.scan(this.position + length, depth + 1);
            if (problem !== undefined) return problem;
          } else {
            this.position += length;
          }
          break;
        }
        default:
          return `wire type ${tag % 8} is not used by this protocol`;
      }
      if (this.position > end) return 'a field is cut off';
    }
    return undefined;
  }

  private isMessage(field: number, depth: number): boolean {
    if (depth < BODY_DEPTH) return true;
    if (depth === BODY_DEPTH) return this.shape.nested.get(this.body) === field;
    return depth === BODY_DEPTH + 1 && this.body === HELLO_BODY && field === RAILS_FIELD;
  }

  private varint(end: number): number {
    let value = 0;
    let factor = 1;
    for (let length = 0; length < VARINT_BYTES_MAX; length++) {
      if (this.position >= end) return -1;
      const byte = this.bytes[this.position++] ?? 0;
      // Past 2^53 the value is only skipped, never used as a length that fits.
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
      factor *= 128;
    }
    return -1;
  }
}

function decode<Frame extends { messages: readonly Message[] }, Message>(
  bytes: Buffer,
  decoder: (bytes: Buffer) => Frame,
  shape: FrameShape,
): Received<Message> {
  const problem = new FrameScan(bytes, shape).run();
  if (problem !== undefined) return new FabricKvError('ERR_FABRICKV_PROTOCOL', `malformed frame: ${problem}`);
  try {
    return decoder(bytes).messages;
  } catch (error) {
    return new FabricKvError('ERR_FABRICKV_PROTOCOL', 'malformed frame', { cause: error });
  }
}

/** Encodes the messages of one frame to a server. */
export function encodeClientFrame(messages: ClientMessage[]): Buffer {
  return encodeClient({ messages });
}

/** Decodes a frame from a client; never throws, so that a malformed one ends with an error of ours, not of gRPC's. */
export function decodeClientFrame(bytes: Buffer): Received<ClientMessage__Output> {
  return decode(bytes, decodeClient, CLIENT_SHAPE);
}

/** Encodes the messages of one frame to a client. */
export function encodeServerFrame(messages: ServerMessage[]): Buffer {
  return encodeServer({ messages });
}

/** Decodes a frame from a server; never throws. */
export function decodeServerFrame(bytes: Buffer): Received<ServerMessage__Output> {
  return decode(bytes, decodeServer, SERVER_SHAPE);
}

const identity = (bytes: Buffer): Buffer => bytes;

/** The Session method as a server serves it. */
export const serverSessionMethod = {
  path: session.path,
  requestStream: true,
  responseStream: true,
  requestSerialize: identity,
  requestDeserialize: decodeClientFrame,
  responseSerialize: identity,
  responseDeserialize: identity,
} as const;

/** The Session method as a client calls it. */
export const clientSessionMethod = {
  path: session.path,
  serialize: identity,
  deserialize: decodeServerFrame,
} as const;
