/**
 * Frames to bytes and back. Both sides hand gRPC bytes that are already encoded, so that what a message refers to (a
 * piece of the arena, a caller's buffer) is read in the same turn in which it is sent.
 */

import { FabricKvError } from './errors.js';
import type { ClientMessage, ClientMessage__Output } from './generated/fabrickv/v1/ClientMessage.js';
import type { ServerMessage, ServerMessage__Output } from './generated/fabrickv/v1/ServerMessage.js';
import {
  appendClientMessage,
  appendServerMessage,
  decodeClientFrame as decodeClient,
  decodeServerFrame as decodeServer,
  type FrameLimits,
} from './generated/frames.js';
import { FRAME_BYTES_MAX, FRAME_MESSAGES_MAX, KEY_BYTES_MAX } from './limits.js';
import { WireFormatError, WireWriter } from './wire-format.js';

export { appendClientMessage, appendServerMessage };

const PATH = '/fabrickv.v1.FabricKV/Session';

/** The messages of one received frame, or why the frame was refused. */
export type Received<Message> = readonly Message[] | FabricKvError;

/**
 * Of a client's frame: decoding is what a hostile one makes expensive, and 1 MiB of empty fields would take 20 ms. An honest
 * full frame of 4,096 GETs with a sink has about 45,000 fields.
 */
const CLIENT_LIMITS: FrameLimits = {
  messagesMax: FRAME_MESSAGES_MAX,
  fieldsMax: FRAME_MESSAGES_MAX * 16,
  copiedBytesMax: 0,
};

/** Of a frame over {@link SMALL_FRAME_BYTES}: an operation that waits keeps its key, and must not keep all of the frame with it. */
const LARGE_CLIENT_LIMITS: FrameLimits = { ...CLIENT_LIMITS, copiedBytesMax: KEY_BYTES_MAX };
const SMALL_FRAME_BYTES = 4096;

/** A client has values of up to this length for itself; those that are longer are views of the frame that they came in. */
export const OWN_BYTES_MAX = 2048;

/** Of a server's: a grant may have tens of thousands of extents, and a client believes its server. */
const SERVER_LIMITS: FrameLimits = {
  messagesMax: FRAME_BYTES_MAX,
  fieldsMax: FRAME_BYTES_MAX,
  copiedBytesMax: OWN_BYTES_MAX,
};

function decode<Message>(
  bytes: Buffer,
  decoder: (bytes: Buffer, limits: FrameLimits) => Message[],
  limits: FrameLimits,
): Received<Message> {
  try {
    return decoder(bytes, limits);
  } catch (error) {
    const problem = error instanceof WireFormatError ? `: ${error.message}` : '';
    return new FabricKvError('ERR_FABRICKV_PROTOCOL', `malformed frame${problem}`, { cause: error });
  }
}

/** Encodes the messages of one frame to a server. */
export function encodeClientFrame(messages: readonly ClientMessage[]): Buffer {
  const frame = new WireWriter();
  for (const message of messages) appendClientMessage(message, frame);
  return frame.take();
}

/** Encodes the messages of one frame to a client. */
export function encodeServerFrame(messages: readonly ServerMessage[]): Buffer {
  const frame = new WireWriter();
  for (const message of messages) appendServerMessage(message, frame);
  return frame.take();
}

/** Decodes a frame from a client; never throws, so that a malformed one ends with an error of ours, not of gRPC's. */
export function decodeClientFrame(bytes: Buffer): Received<ClientMessage__Output> {
  return decode(bytes, decodeClient, bytes.length > SMALL_FRAME_BYTES ? LARGE_CLIENT_LIMITS : CLIENT_LIMITS);
}

/** Decodes a frame from a server; never throws. */
export function decodeServerFrame(bytes: Buffer): Received<ServerMessage__Output> {
  return decode(bytes, decodeServer, SERVER_LIMITS);
}

const identity = (bytes: Buffer): Buffer => bytes;

/** The Session method as a server serves it. */
export const serverSessionMethod = {
  path: PATH,
  requestStream: true,
  responseStream: true,
  requestSerialize: identity,
  requestDeserialize: decodeClientFrame,
  responseSerialize: identity,
  responseDeserialize: identity,
} as const;

/** The Session method as a client calls it. */
export const clientSessionMethod = {
  path: PATH,
  serialize: identity,
  deserialize: decodeServerFrame,
} as const;
