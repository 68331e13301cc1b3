/**
 * A client that is up to no good: `node hostile-session-client.js ADDR MODE SESSIONS`, each session on a connection of its own.
 *
 * - `never-reads`: asks for as much as it can, leaves the flow-control window as it is, and takes nothing.
 * - `deaf`: opens the window as far as it goes, asks, and does not read its socket any more.
 * - `largest-frames`: sends frames of the largest size for ever, and reads the answers.
 * - `most-sessions`: opens sessions, and more of them when it gets no more, for ever.
 *
 * Values are asked for under the key `big`. Prints "begun" when it has begun; ends when it is killed.
 */

import { type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from 'node:http2';
import { connect as connectSocket, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { encodeClientFrame } from '../../src/protocol/codec.js';
import type { ClientMessage } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX, FRAME_BYTES_MAX, FRAME_MESSAGES_MAX } from '../../src/protocol/limits.js';

const [addr = '', mode = '', sessionsText = '1'] = process.argv.slice(2);
const WINDOW_BYTES_MAX = 2 ** 31 - 1;
/** Connections whose session was refused are tried again after this long. */
const AGAIN_MS = 20;
const [host = '', port = ''] = addr.split(':');

const HEADERS: OutgoingHttpHeaders = {
  ':method': 'POST',
  ':path': '/fabrickv.v1.FabricKV/Session',
  'content-type': 'application/grpc',
  te: 'trailers',
};

/** A socket that can be left unread. */
class Valve extends Duplex {
  private isClosed = false;

  constructor(private readonly socket: Socket) {
    super();
    socket.on('data', (chunk: Buffer) => {
      if (!this.push(chunk)) socket.pause();
    });
    socket.on('close', () => this.destroy());
    socket.on('error', () => this.destroy());
  }

  /** Reads nothing more. */
  shut(): void {
    this.isClosed = true;
    this.socket.pause();
  }

  override _read(): void {
    if (!this.isClosed) this.socket.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.socket.write(chunk, callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.socket.destroy();
    callback(error);
  }
}

/** A message as gRPC frames it. */
function framed(bytes: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

const frame = (messages: readonly ClientMessage[]): Buffer => framed(encodeClientFrame(messages));

interface Opened {
  readonly stream: ClientHttp2Stream;
  readonly valve: Valve;
}

/** Opens a session; undefined when it was refused. */
async function open(windowBytes?: number): Promise<Opened | undefined> {
  const valve = new Valve(connectSocket(Number(port), host));
  const session = connect(`http://${addr}`, {
    createConnection: () => valve,
    ...(windowBytes === undefined ? {} : { settings: { initialWindowSize: windowBytes } }),
  });
  session.on('error', () => undefined);
  if (windowBytes !== undefined) session.on('connect', () => session.setLocalWindowSize(windowBytes));
  const stream = session.request(HEADERS, { endStream: false });
  stream.on('error', () => undefined);
  const clientId = Math.floor(Math.random() * 2 ** 48) + 1;
  stream.write(frame([{ hello: { minVersion: 1, maxVersion: 1, clientId } }]));
  const isOpen = await new Promise<boolean>((resolve) => {
    stream.once('data', () => resolve(true));
    stream.once('end', () => resolve(false));
    stream.once('close', () => resolve(false));
    session.once('close', () => resolve(false));
  });
  if (isOpen) return { stream, valve };
  session.destroy();
  return undefined;
}

async function opened(windowBytes?: number): Promise<Opened> {
  const session = await open(windowBytes);
  if (session === undefined) throw new Error('the server has refused a session');
  return session;
}

let operationId = 0;
function nextId(): number {
  operationId += 1;
  return operationId;
}

/** Asks for 256 MiB. */
function manyGets(): Buffer {
  return frame(
    Array.from({ length: FRAME_MESSAGES_MAX }, () => ({
      operationId: nextId(),
      get: { key: Buffer.from('big'), inlineMax: DATA_BYTES_MAX },
    })),
  );
}

/** A GET in a frame of 1.25 MiB: the rest is of a field that nobody knows. */
function heavyGet(): Buffer {
  const get = encodeClientFrame([
    { operationId: nextId(), get: { key: Buffer.from('big'), inlineMax: DATA_BYTES_MAX } },
  ]);
  const length = FRAME_BYTES_MAX - get.length - 8;
  const head = Buffer.from([0xfa, 0x3f, 0, 0, 0, 0]);
  // Field 1023, of bytes; its length as a varint of four bytes.
  for (let i = 0; i < 4; i++) head[2 + i] = ((length >>> (7 * i)) & 0x7f) | (i < 3 ? 0x80 : 0);
  return framed(Buffer.concat([get, head, Buffer.alloc(length)]));
}

/** As many messages as may be, with as many fields as may be. */
function manyFields(): Buffer {
  const messages = Array.from({ length: FRAME_MESSAGES_MAX }, () => ({
    operationId: nextId(),
    get: {
      key: Buffer.alloc(240, 'k'),
      namespace: 1,
      inlineMax: 1,
      sink: { regionId: 1, offset: 1, length: 1 },
      onlyVersion: 1,
      rangeOffset: 1,
      rangeLength: 1,
      deadlineMs: 1,
    },
  }));
  return frame(messages);
}

/** PUTs of 1.2 MiB together, whose CRC is wrong. */
function manyBytes(): Buffer {
  return frame(
    Array.from({ length: 19 }, () => ({
      operationId: nextId(),
      put: { key: Buffer.from('wrong'), value: Buffer.alloc(DATA_BYTES_MAX), crc32c: 1 },
    })),
  );
}

async function send(stream: ClientHttp2Stream, bytes: Buffer): Promise<void> {
  await new Promise<void>((resolve) => stream.write(bytes, () => resolve()));
}

async function neverReads(): Promise<void> {
  const { stream } = await opened();
  stream.pause();
  stream.write(manyGets());
  // Each of them takes as long as the server wants; it reads none when it has enough.
  for (;;) await send(stream, heavyGet());
}

async function deaf(): Promise<void> {
  const { stream, valve } = await opened(WINDOW_BYTES_MAX);
  valve.shut();
  for (;;) await send(stream, manyGets());
}

async function largestFrames(): Promise<void> {
  const { stream } = await opened();
  stream.resume();
  for (;;) {
    for (const bytes of [manyFields(), manyBytes(), heavyGet()]) {
      await send(stream, bytes);
      // Its answers have to be read.
      await turn();
    }
  }
}

async function mostSessions(): Promise<void> {
  for (;;) {
    const session = await open();
    if (session === undefined) await sleep(AGAIN_MS);
    else session.stream.resume();
  }
}

const modes: Readonly<Record<string, () => Promise<void>>> = {
  'never-reads': neverReads,
  deaf,
  'largest-frames': largestFrames,
  'most-sessions': mostSessions,
};
const run = modes[mode];
if (run === undefined) throw new Error(`no mode ${mode}`);
const running = Promise.all(Array.from({ length: Number(sessionsText) }, run));
process.stdout.write('begun\n');
// A socket that is not read keeps no process.
setInterval(() => undefined, 60_000);
await running;
