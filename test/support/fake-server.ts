import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { encodeServerFrame, type Received, serverSessionMethod } from '../../src/protocol/codec.js';
import type { FabricKvError } from '../../src/protocol/errors.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import type { ServerMessage } from '../../src/protocol/generated/fabrickv/v1/ServerMessage.js';
import type { Welcome } from '../../src/protocol/generated/fabrickv/v1/Welcome.js';
import { toStatus } from '../../src/protocol/rpc-errors.js';

/** What a {@link FakeServer} does instead of what a real one would. */
export interface FakeServerOptions {
  /** Ends the session with this error instead of Welcome. */
  readonly refuse?: FabricKvError;
  /** Changes to Welcome. */
  readonly welcome?: Partial<Welcome>;
  /** Its answers to a message; none when it is not there, so that the operation waits for ever. */
  readonly answer?: (message: ClientMessage__Output) => readonly ServerMessage[];
}

type SessionStream = ServerDuplexStream<Received<ClientMessage__Output>, Buffer>;

/** A server that speaks the protocol and does only what a test tells it, in this process. */
export class FakeServer implements AsyncDisposable {
  private constructor(
    private readonly server: Server,
    /** What `--server-addr` takes. */
    readonly addr: string,
  ) {}

  static async start(options: FakeServerOptions = {}): Promise<FakeServer> {
    const server = new Server();
    server.addService(
      { Session: serverSessionMethod },
      { Session: (stream: SessionStream) => serveSession(stream, options) },
    );
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    return new FakeServer(server, `127.0.0.1:${port}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.forceShutdown();
  }
}

function serveSession(stream: SessionStream, { refuse, welcome, answer }: FakeServerOptions): void {
  stream.on('end', () => stream.end());
  stream.on('data', (received: Received<ClientMessage__Output>) => {
    if (!Array.isArray(received)) throw received;
    for (const message of received as readonly ClientMessage__Output[]) {
      if (message.hello === undefined || message.hello === null) {
        const messages = answer?.(message) ?? [];
        if (messages.length > 0) stream.write(encodeServerFrame([...messages]));
      } else if (refuse === undefined) {
        stream.write(encodeServerFrame([{ welcome: { ...WELCOME, ...welcome } }]));
      } else {
        stream.emit('error', toStatus(refuse));
      }
    }
  });
}

const WELCOME: Welcome = {
  version: 1,
  sessionId: 1,
  serverEpoch: 1,
  nodeId: 'fake',
  provider: '',
  inlineOnlyReason: 'a fake server has no data plane',
  getInlineThreshold: 16_384,
  putInlineThreshold: 32_768,
  serverVersion: '0.0.0',
  limits: {
    maxValueBytes: 2 ** 30,
    maxKeyBytes: 1024,
    maxFrameBytes: 1.25 * 2 ** 20,
    maxMessagesPerFrame: 4096,
    maxOperationsInFlight: 1024,
    maxOperationsWaiting: 4096,
    maxRegions: 1024,
  },
};
