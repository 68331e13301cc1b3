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

/** Fields of all nested messages together; an honest full frame of 4,096 operations has about 30,000. */
const FRAME_FIELDS_MAX = FRAME_MESSAGES_MAX * 16;

/** How deep the fields of a frame are counted: frame, message, operation, its parts, and theirs. */
const COUNTED_DEPTH = 5;

// The two bodies of a ClientMessage (and Welcome of a ServerMessage, which is 2 as well) that hold repeated messages.
const HELLO_FIELD = 2;
const REGION_FIELD = 5;

/**
 * Counts a frame's messages and fields by its tags alone, because decoding is what a hostile frame makes expensive: 1 MiB
 * of empty operations took 104 ms to decode and takes under 2 ms to refuse.
 *
 * @returns undefined when the frame may be decoded, otherwise what is wrong with it
 */
export function checkFrame(bytes: Uint8Array): string | undefined {
  let fields = 0;
  let position = 0;

  function varint(end: number): number {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (position >= end) return -1;
      const byte = bytes[position++] ?? 0;
      // Past 2^53 the value is only skipped, never used as a length that fits.
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    return -1;
  }

  function scan(end: number, depth: number, inHandshake: boolean): string | undefined {
    let messages = 0;
    while (position < end) {
      const tag = varint(end);
      if (tag < 0) return 'a tag is cut off';
      fields += 1;
      if (depth === 1 && ++messages > FRAME_MESSAGES_MAX) return `over ${FRAME_MESSAGES_MAX} messages in one frame`;
      if (fields > FRAME_FIELDS_MAX) return `over ${FRAME_FIELDS_MAX} fields in one frame`;
      switch (tag % 8) {
        case 0:
          if (varint(end) < 0) return 'a number is cut off';
          break;
        case 1:
          position += 8;
          break;
        case 5:
          position += 4;
          break;
        case 2: {
          const length = varint(end);
          if (length < 0 || position + length > end) return 'a field is cut off';
          const field = Math.floor(tag / 8);
          const handshake = inHandshake || (depth === 2 && (field === HELLO_FIELD || field === REGION_FIELD));
          if (depth < 3 || (handshake && depth < COUNTED_DEPTH && looksNested(field, depth))) {
            const problem = scan(position + length, depth + 1, handshake);
            if (problem !== undefined) return problem;
          } else {
            position += length;
          }
          break;
        }
        default:
          return `wire type ${tag % 8} is not used by this protocol`;
      }
      if (position > end) return 'a field is cut off';
    }
    return undefined;
  }

  return scan(bytes.length, 1, false);
}

/** Hello.providers (6) holds ProviderOffer.rails (2); the fields of what else repeats are few and cheap to decode. */
function looksNested(field: number, depth: number): boolean {
  return depth === 3 ? field === 6 : field === 2;
}

function decode<Frame extends { messages: readonly Message[] }, Message>(
  bytes: Buffer,
  decoder: (bytes: Buffer) => Frame,
): Received<Message> {
  const problem = checkFrame(bytes);
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
  return decode(bytes, decodeClient);
}

/** Encodes the messages of one frame to a client. */
export function encodeServerFrame(messages: ServerMessage[]): Buffer {
  return encodeServer({ messages });
}

/** Decodes a frame from a server; never throws. */
export function decodeServerFrame(bytes: Buffer): Received<ServerMessage__Output> {
  return decode(bytes, decodeServer);
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
