import { Client, type ClientDuplexStream, credentials, type ServiceError } from '@grpc/grpc-js';
import { clientSessionMethod, encodeClientFrame, type Received } from '../../../src/protocol/codec.js';
import { FabricKvError } from '../../../src/protocol/errors.js';
import type { ClientMessage } from '../../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import type { GetRequest } from '../../../src/protocol/generated/fabrickv/v1/GetRequest.js';
import type { Hello } from '../../../src/protocol/generated/fabrickv/v1/Hello.js';
import type { Result__Output } from '../../../src/protocol/generated/fabrickv/v1/Result.js';
import type { ServerMessage__Output } from '../../../src/protocol/generated/fabrickv/v1/ServerMessage.js';
import type { Welcome__Output } from '../../../src/protocol/generated/fabrickv/v1/Welcome.js';
import { methodOf } from '../../../src/protocol/proto.js';
import { fromServiceError } from '../../../src/protocol/rpc-errors.js';
import { fromBigInt, toSafeInteger } from '../../../src/protocol/wire.js';

const WAIT_MS = 10_000;

/** How a call has ended: gRPC's own words, and our error inside, if there is one. */
export interface CallEnd {
  readonly status: ServiceError | undefined;
  readonly error: FabricKvError | undefined;
}

/** A bare client of the wire protocol: it sends what it is told to, right or wrong, and keeps what comes. */
export class WireClient implements Disposable {
  private readonly client: Client;
  private readonly sessions: WireSession[] = [];

  constructor(address: string) {
    // A connection of its own, so that the end of one client is not the end of another.
    this.client = new Client(address, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
  }

  /** Opens a Session call, and says nothing yet. */
  openSession(): WireSession {
    const { path, serialize, deserialize } = clientSessionMethod;
    const session = new WireSession(this.client.makeBidiStreamRequest(path, serialize, deserialize));
    this.sessions.push(session);
    return session;
  }

  /** Opens a session and shakes hands. */
  async connect(hello: Hello = {}): Promise<WireSession> {
    const session = this.openSession();
    session.send({ hello: { minVersion: 1, maxVersion: 1, clientId: fromBigInt(randomId()), ...hello } });
    await session.welcome();
    return session;
  }

  /** A unary call. @throws FabricKvError, or the ServiceError when none is in it */
  unary<Response extends object>(
    name: 'Get' | 'Put' | 'Delete' | 'Exists' | 'Stat',
    request: GetRequest & { readonly [field: string]: unknown },
  ): Promise<Response> {
    const { path, requestSerialize, responseDeserialize } = methodOf<object, Response>(name);
    return new Promise((resolve, reject) => {
      const deadline = { deadline: Date.now() + WAIT_MS };
      this.client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        deadline,
        (error, response) => {
          if (error !== null) reject(fromServiceError(error) ?? error);
          else if (response === undefined) reject(new Error('neither an error nor a response'));
          else resolve(response);
        },
      );
    });
  }

  /** The gRPC client itself, for other services. */
  get raw(): Client {
    return this.client;
  }

  /** Gives up every session, and closes the connection. */
  [Symbol.dispose](): void {
    for (const session of this.sessions) session.stream.cancel();
    this.client.close();
  }
}

/** 64 bits that are not 0. */
export function randomId(): bigint {
  return BigInt(Math.floor(Math.random() * 2 ** 48) + 1);
}

/** One Session call. */
export class WireSession {
  /** All that has come, in order. */
  readonly received: ServerMessage__Output[] = [];
  private end: CallEnd | undefined;
  private readonly listeners = new Set<() => void>();

  constructor(readonly stream: ClientDuplexStream<Buffer, Received<ServerMessage__Output>>) {
    stream.on('data', (frame: Received<ServerMessage__Output>) => {
      if (frame instanceof FabricKvError) throw frame;
      this.received.push(...frame);
      this.notify();
    });
    let failure: ServiceError | undefined;
    stream.on('error', (error: ServiceError) => {
      failure = error;
    });
    stream.on('status', () => {
      // The error event comes in the same turn, before or after.
      setImmediate(() => {
        this.end = { status: failure, error: failure === undefined ? undefined : fromServiceError(failure) };
        this.notify();
      });
    });
  }

  /** Resolves when the call has ended. */
  get ended(): Promise<CallEnd> {
    return this.wait('the end of the call', () => this.end);
  }

  /** Sends messages in one frame. */
  send(...messages: ClientMessage[]): void {
    this.sendBytes(encodeClientFrame(messages));
  }

  /** Sends bytes as a frame. */
  sendBytes(bytes: Buffer): void {
    this.stream.write(bytes);
  }

  /** Waits for the first message that is looked for, of those that have come and will come. */
  find<Found>(what: string, pick: (message: ServerMessage__Output) => Found | null | undefined): Promise<Found> {
    return this.wait(what, () => {
      for (const message of this.received) {
        const found = pick(message);
        if (found !== undefined && found !== null) return found;
      }
      if (this.end === undefined) return undefined;
      throw new Error(`${what}: the call ended with ${this.end.error ?? this.end.status ?? 'OK'}`);
    });
  }

  welcome(): Promise<Welcome__Output> {
    return this.find('Welcome', (message) => message.welcome);
  }

  /** The first result of an operation. */
  result(operationId: number): Promise<Result__Output> {
    return this.find(`the result of ${operationId}`, (message) =>
      idOf(message) === operationId ? message.result : undefined,
    );
  }

  /** Sends one operation and waits for its result. */
  call(operationId: number, body: Omit<ClientMessage, 'operationId'>): Promise<Result__Output> {
    this.send({ operationId, ...body });
    return this.result(operationId);
  }

  quiesced(operationId: number): Promise<unknown> {
    return this.find(`Quiesced of ${operationId}`, (message) =>
      idOf(message) === operationId ? message.quiesced : undefined,
    );
  }

  /** The Data of an operation so far, put together. */
  data(operationId: number): Buffer {
    const pieces: Buffer[] = [];
    let length = 0;
    for (const message of this.received) {
      if (message.data === undefined || message.data === null || idOf(message) !== operationId) continue;
      if (toSafeInteger(message.data.offset, 'offset') !== length) throw new Error('Data out of order');
      pieces.push(message.data.bytes);
      length += message.data.bytes.length;
    }
    return Buffer.concat(pieces);
  }

  /** Everything sent so far has been handled: messages of a session are handled in order. */
  async settled(): Promise<void> {
    const id = 2 ** 40 + Math.floor(Math.random() * 2 ** 40);
    await this.call(id, { ping: {} });
  }

  /** The counters that a Ping is answered with. */
  async counters(): Promise<Readonly<Record<string, number>>> {
    const id = 2 ** 40 + Math.floor(Math.random() * 2 ** 40);
    const { pong } = await this.call(id, { ping: {} });
    return Object.fromEntries(
      Object.entries(pong?.counters ?? {}).map(([name, value]) => [name, toSafeInteger(value, name)]),
    );
  }

  private wait<Found>(what: string, look: () => Found | undefined): Promise<Found> {
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        clearTimeout(timer);
        this.listeners.delete(tryIt);
        settle();
      };
      const tryIt = (): void => {
        try {
          const found = look();
          if (found !== undefined) finish(() => resolve(found));
        } catch (error) {
          finish(() => reject(error));
        }
      };
      const timer = setTimeout(
        () => finish(() => reject(new Error(`${what} did not come within ${WAIT_MS} ms`))),
        WAIT_MS,
      );
      this.listeners.add(tryIt);
      tryIt();
    });
  }

  private notify(): void {
    for (const listener of this.listeners) listener();
  }
}

function idOf(message: ServerMessage__Output): number {
  return toSafeInteger(message.operationId, 'operationId');
}
