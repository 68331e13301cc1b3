/**
 * The store's side: a kv-server as users start it, and a client in a process of its own.
 */

import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectTcp, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { ProviderName } from '../src/fabric/index.js';
import type { Measurement } from './measurement.js';
import { KV_SERVER } from './paths.js';
import { end, tie } from './processes.js';
import type { StoreCase, StoreReply, StoreRequest } from './store-messages.js';

/** Prefaulting the arena takes its time. */
const START_TIMEOUT_MS = 60_000;
const POLL_MS = 50;
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
  readonly #server: ChildProcess;
  readonly #client: ChildProcess;

  private constructor(server: ChildProcess, client: ChildProcess) {
    this.#server = server;
    this.#client = client;
  }

  /** @throws Error when the server does not start, or the client does not reach it */
  static async start({ provider, address, memoryBytes, receiveMemory }: StorePairOptions): Promise<StorePair> {
    const host = address.includes(':') ? `[${address}]` : address;
    const port = await freePort(address);
    const serverAddr = `${host}:${port}`;
    const settings: readonly (readonly [string, string])[] = [
      ['listen-addr', serverAddr],
      ['fabric-addr', address],
      ['provider', provider],
      ['memory', `${memoryBytes}B`],
      ['log-level', 'warn'],
    ];
    const args = [KV_SERVER, ...settings.flatMap(([name, value]) => [`--${name}`, value])];
    const server = tie(spawn(process.execPath, args, { stdio: ['ignore', process.stderr, process.stderr] }));
    await once(server, 'spawn');
    const client = tie(fork(CLIENT_MAIN, { stdio: ['ignore', process.stderr, process.stderr, 'ipc'] }));
    const pair = new StorePair(server, client);
    try {
      await pair.#listening(port, address);
      await pair.#ask({
        kind: 'connect',
        serverAddr,
        serverPid: server.pid ?? 0,
        provider,
        fabricAddr: address,
        receiveMemory,
        timeoutMs: START_TIMEOUT_MS,
      });
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Stores values for {@link measure} to read. @throws Error with what the client said */
  async load(sizeBytes: number, count: number): Promise<void> {
    await this.#ask({ kind: 'load', sizeBytes, count });
  }

  /** @throws Error with what the client said */
  async measure(what: StoreCase): Promise<Measurement> {
    const reply = await this.#ask({ kind: 'measure', case: what });
    if (reply.kind !== 'measured') throw new Error(`the client process answered ${reply.kind}`);
    return reply.measurement;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#client.connected) this.#client.disconnect();
    await Promise.all([end(this.#client), end(this.#server, 'SIGTERM')]);
  }

  async #listening(port: number, host: string): Promise<void> {
    for (let waitedMs = 0; waitedMs < START_TIMEOUT_MS; waitedMs += POLL_MS) {
      if (this.#server.exitCode !== null) throw new Error('kv-server does not start; what it said is above');
      if (await listens(port, host)) return;
      await delay(POLL_MS);
    }
    throw new Error(`kv-server does not listen after ${START_TIMEOUT_MS} ms`);
  }

  async #ask(request: StoreRequest): Promise<StoreReply> {
    const over = new AbortController();
    const { signal } = over;
    const gone = async (child: ChildProcess, who: string): Promise<never> => {
      const [code, by] = (await once(child, 'exit', { signal })) as [number | null, NodeJS.Signals | null];
      throw new Error(`${who} ended with ${code ?? by}; what it said is above`);
    };
    for (const [child, who] of [
      [this.#server, 'kv-server'],
      [this.#client, 'the client process'],
    ] as const) {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${who} has ended`);
    }
    try {
      const answered = once(this.#client, 'message', { signal });
      this.#client.send(request);
      const [reply] = (await Promise.race([
        answered,
        gone(this.#server, 'kv-server'),
        gone(this.#client, 'the client process'),
      ])) as [StoreReply];
      if (reply.kind === 'failed') throw new Error(`the store failed: ${reply.message}`);
      return reply;
    } finally {
      over.abort();
    }
  }
}

/** A port that nobody listens at now: with `--log-level warn` the server does not say which one it took. */
async function freePort(host: string): Promise<number> {
  const probe = createServer().listen(0, host);
  await once(probe, 'listening');
  const address = probe.address();
  probe.close();
  await once(probe, 'close');
  if (address === null || typeof address === 'string') throw new Error('no free port');
  return address.port;
}

function listens(port: number, host: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectTcp(port, host);
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}
