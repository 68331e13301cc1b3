import { pino } from 'pino';
import { KvServer, type KvServerOptions } from '../../../src/server/index.js';
import { WireClient } from './session-client.js';

/** A server in this process, without a data plane, and one client of it. */
export interface InlineServer extends AsyncDisposable {
  readonly server: KvServer;
  readonly client: WireClient;
  /** Another client, with a connection of its own. */
  newClient(): WireClient;
}

export const ARENA_BYTES = 8 * 1024 * 1024;

/** `await using served = await serve()`: listens on a free port of 127.0.0.1 with an arena of 8 MiB. */
export async function serve(options: Partial<KvServerOptions> = {}): Promise<InlineServer> {
  const server = await KvServer.start({
    listenAddr: '127.0.0.1:0',
    memoryBytes: ARENA_BYTES,
    provider: 'none',
    drainMs: 2000,
    logger: pino({ level: 'silent' }),
    ...options,
  });
  const clients: WireClient[] = [];
  const newClient = (): WireClient => {
    const client = new WireClient(server.boundAddr);
    clients.push(client);
    return client;
  };
  return {
    server,
    client: newClient(),
    newClient,
    async [Symbol.asyncDispose]() {
      for (const client of clients) client[Symbol.dispose]();
      await server.stop();
    },
  };
}
