import { connect as connectTo, createServer, type Server, type Socket } from 'node:net';

/**
 * A TCP proxy between a client's control plane and its server, which can hold back and cut what it carries. The data
 * plane does not pass through it.
 */
export class TcpProxy implements AsyncDisposable {
  private readonly pairs = new Set<{ readonly client: Socket; readonly server: Socket }>();
  private holding = false;
  private refusing = false;

  private constructor(
    private readonly listener: Server,
    private target: { readonly host: string; readonly port: number },
  ) {
    listener.on('connection', (client) => this.onConnection(client));
  }

  /** Listens on a free port of 127.0.0.1 for a server at HOST:PORT. */
  static async start(targetAddr: string): Promise<TcpProxy> {
    const listener = createServer({ noDelay: true });
    await new Promise<void>((resolve, reject) => {
      listener.once('error', reject);
      listener.listen(0, '127.0.0.1', resolve);
    });
    return new TcpProxy(listener, parse(targetAddr));
  }

  /** What clients connect to. */
  get addr(): string {
    const address = this.listener.address();
    if (address === null || typeof address === 'string') throw new Error('the proxy does not listen');
    return `127.0.0.1:${address.port}`;
  }

  /** Connections open now. */
  get connections(): number {
    return this.pairs.size;
  }

  /** From now on new connections go there. */
  retarget(targetAddr: string): void {
    this.target = parse(targetAddr);
  }

  /** Answers of the server are read by nobody until {@link release}; requests go on. */
  holdAnswers(): void {
    this.holding = true;
    for (const { server } of this.pairs) server.pause();
  }

  /** Answers flow again. */
  release(): void {
    this.holding = false;
    for (const { server } of this.pairs) server.resume();
  }

  /** New connections are closed at once. */
  refuse(refusing: boolean): void {
    this.refusing = refusing;
  }

  /** Resets every connection, with what it holds back; connections made afterwards are not held. */
  cut(): void {
    this.holding = false;
    for (const { client, server } of this.pairs) {
      client.resetAndDestroy();
      server.resetAndDestroy();
    }
    this.pairs.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise<void>((resolve) => {
      this.listener.close(() => resolve());
    });
  }

  private onConnection(client: Socket): void {
    if (this.refusing) {
      client.resetAndDestroy();
      return;
    }
    const server = connectTo({ ...this.target, noDelay: true });
    const pair = { client, server };
    this.pairs.add(pair);
    const end = (): void => {
      this.pairs.delete(pair);
      client.destroy();
      server.destroy();
    };
    // Either side's end or error ends the other; what it was is the business of those two.
    client.on('error', end).on('close', end);
    server.on('error', end).on('close', end);
    client.on('data', (chunk: Buffer) => {
      if (!server.write(chunk)) client.pause();
    });
    server.on('drain', () => client.resume());
    server.on('data', (chunk: Buffer) => {
      if (!client.write(chunk)) server.pause();
    });
    client.on('drain', () => {
      if (!this.holding) server.resume();
    });
    if (this.holding) server.pause();
  }
}

function parse(addr: string): { host: string; port: number } {
  const colon = addr.lastIndexOf(':');
  return { host: addr.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(addr.slice(colon + 1)) };
}
