/**
 * The store's side: a kv-server as users start it, and a client in a process of its own.
 */

import { fileURLToPath } from 'node:url';
import type { ProviderName } from '../src/fabric/index.js';
import { ClientProcess } from './client-process.js';
import type { Measurement } from './measurement.js';
import { type ServerProcess, startKvServer } from './server-process.js';
import type { StoreCase, StoreReply, StoreRequest } from './store-messages.js';

const TIMEOUT_MS = 60_000;
const CLIENT_MAIN = fileURLToPath(new URL('store-client-main.js', import.meta.url));

/** Options of {@link StorePair.start}. */
export interface StorePairOptions {
  readonly provider: ProviderName;
  /** Where the server listens and both bind. */
  readonly address: string;
  /** The arena; bytes. */
  readonly memoryBytes: number;
  /** The client's; bytes. */
  readonly receiveMemory: number;
}

/** Server and client, connected, for as many cases as are wanted. */
export class StorePair implements AsyncDisposable {
  readonly #server: ServerProcess;
  readonly #client: ClientProcess<StoreRequest, StoreReply>;

  private constructor(server: ServerProcess, client: ClientProcess<StoreRequest, StoreReply>) {
    this.#server = server;
    this.#client = client;
  }

  /** @throws Error when the server does not start, or the client does not reach it */
  static async start({ provider, address, memoryBytes, receiveMemory }: StorePairOptions): Promise<StorePair> {
    const server = await startKvServer({ address, memoryBytes, provider });
    const pair = new StorePair(server, ClientProcess.start('the store', CLIENT_MAIN, server));
    try {
      await pair.#client.ask({
        kind: 'connect',
        serverAddr: server.hostPort,
        serverPid: server.pid,
        provider,
        fabricAddr: address,
        receiveMemory,
        timeoutMs: TIMEOUT_MS,
      });
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Stores values for {@link measure} to read. @throws Error with what the client said */
  async load(sizeBytes: number, count: number): Promise<void> {
    await this.#client.ask({ kind: 'load', sizeBytes, count });
  }

  /** @throws Error with what the client said */
  async measure(what: StoreCase): Promise<Measurement> {
    const reply = await this.#client.ask({ kind: 'measure', case: what });
    if (reply.kind !== 'measured') throw new Error(`the client process answered ${reply.kind}`);
    return reply.measurement;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]();
    await this.#server[Symbol.asyncDispose]();
  }
}
