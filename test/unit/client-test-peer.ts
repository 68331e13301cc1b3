import { Server, ServerCredentials, type ServerDuplexStream, status } from '@grpc/grpc-js';
import { encodeServerFrame, type Received, serverSessionMethod } from '../../src/protocol/codec.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Result } from '../../src/protocol/generated/fabrickv/v1/Result.js';
import type { ServerMessage } from '../../src/protocol/generated/fabrickv/v1/ServerMessage.js';
import type { Welcome } from '../../src/protocol/generated/fabrickv/v1/Welcome.js';
import { fromBigInt, fromThreshold, toSafeInteger } from '../../src/protocol/wire.js';

type Stream = ServerDuplexStream<Received<ClientMessage__Output>, Buffer>;

/** Answers one message, or does not. */
export type Answer = (message: ClientMessage__Output, session: PeerSession) => void;

/** One stream of a {@link TestPeer}. */
export class PeerSession {
  /** Everything but Hello, in order. */
  readonly received: ClientMessage__Output[] = [];
  /** How many messages each frame had. */
  readonly frameSizes: number[] = [];
  ended = false;

  constructor(readonly stream: Stream) {}

  send(...messages: ServerMessage[]): void {
    this.stream.write(encodeServerFrame(messages));
  }

  /** Answers a message. */
  result(to: ClientMessage__Output, result: Result): void {
    this.send({ operationId: to.operationId, result });
  }

  /** The messages of one kind. */
  of(body: ClientMessage__Output['body']): ClientMessage__Output[] {
    return this.received.filter((message) => message.body === body);
  }

  /** Ends the stream without a word of our protocol, as a crash would. */
  crash(): void {
    this.stream.emit('error', { code: status.UNAVAILABLE, details: 'crash' });
  }
}

/** The id of a message as a number. */
export function idOf(message: ClientMessage__Output): number {
  return toSafeInteger(message.operationId, 'operation_id');
}

/** A peer of the real protocol over real gRPC, without a store and rails of its own: it says what a test tells it to. */
export class TestPeer implements AsyncDisposable {
  readonly sessions: PeerSession[] = [];
  epoch = 1n;
  welcome: Partial<Welcome> = {};
  /** Whether it takes the first provider that it is offered. */
  takesProvider = false;
  addr = '';
  #server = new Server();

  constructor(public answer: Answer) {}

  static async start(answer: Answer): Promise<TestPeer> {
    const peer = new TestPeer(answer);
    await peer.listen(0);
    return peer;
  }

  get last(): PeerSession {
    const session = this.sessions.at(-1);
    if (session === undefined) throw new Error('no session yet');
    return session;
  }

  get port(): number {
    return Number(this.addr.split(':')[1]);
  }

  /** Listens, again if it was stopped. */
  async listen(port: number): Promise<void> {
    this.#server = new Server();
    this.#server.addService({ Session: serverSessionMethod }, { Session: (stream: Stream) => this.#onStream(stream) });
    const bound = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error, got) =>
        error === null ? resolve(got) : reject(error),
      );
    });
    this.addr = `127.0.0.1:${bound}`;
  }

  /** Stops at once, as a kill would. */
  kill(): void {
    this.#server.forceShutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
    await Promise.resolve();
  }

  #onStream(stream: Stream): void {
    const session = new PeerSession(stream);
    this.sessions.push(session);
    const ended = (): void => {
      session.ended = true;
    };
    stream.on('error', ended);
    stream.on('cancelled', ended);
    stream.on('end', () => {
      ended();
      stream.end();
    });
    stream.on('data', (frame: Received<ClientMessage__Output>) => {
      if (frame instanceof FabricKvError) throw frame;
      session.frameSizes.push(frame.length);
      for (const message of frame) this.#onMessage(session, message);
    });
  }

  #onMessage(session: PeerSession, message: ClientMessage__Output): void {
    if (message.body === 'hello') {
      const offer = this.takesProvider ? message.hello?.providers[0] : undefined;
      session.send({
        welcome: {
          version: 1,
          sessionId: this.sessions.length,
          serverEpoch: fromBigInt(this.epoch),
          nodeId: 'test-peer',
          inlineOnlyReason: 'the test peer has no data plane',
          getInlineThreshold: fromThreshold(16 * 1024),
          putInlineThreshold: fromThreshold(32 * 1024),
          limits: {
            maxValueBytes: 2 ** 40,
            maxKeyBytes: 1024,
            maxOperationsInFlight: 1024,
            maxOperationsWaiting: 4096,
            maxRegions: 64,
          },
          serverVersion: '0.0.0-test',
          ...(offer === undefined ? {} : { provider: offer.name, rails: offer.rails, inlineOnlyReason: '' }),
          ...this.welcome,
        },
      });
      return;
    }
    session.received.push(message);
    this.answer(message, session);
  }
}
