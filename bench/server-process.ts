/**
 * A server of a benchmark: a process that listens on a free TCP port.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectTcp, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { ProviderName } from '../src/fabric/index.js';
import { KV_SERVER } from './paths.js';
import { end, tie } from './processes.js';

/** Prefaulting an arena takes its time. */
const START_TIMEOUT_MS = 60_000;
const POLL_MS = 50;
const SAID_LENGTH_MAX = 4000;

/** Options of {@link ServerProcess.start}. */
export interface ServerProcessOptions {
  /** How errors call it. */
  readonly name: string;
  readonly command: string;
  /** Where it is to listen. */
  readonly address: string;
  readonly args: (port: number) => readonly string[];
  /** What to do when there is no such command. */
  readonly remedy?: string;
  /** It talks although nothing is wrong: what it says is told only when it ends by itself. */
  readonly talkative?: boolean;
}

/** A server that runs until it is disposed of. */
export class ServerProcess implements AsyncDisposable {
  #ending = false;

  private constructor(
    readonly name: string,
    readonly child: ChildProcess,
    readonly pid: number,
    readonly address: string,
    readonly port: number,
  ) {}

  /** Starts one, and waits until it listens. @throws Error when it does not */
  static async start(options: ServerProcessOptions): Promise<ServerProcess> {
    const { name, command, address, args, remedy, talkative = false } = options;
    const port = await freePort(address);
    const output = talkative ? 'pipe' : process.stderr;
    const child = tie(spawn(command, args(port), { stdio: ['ignore', output, output] }));
    try {
      await once(child, 'spawn');
    } catch (error) {
      const what = `${name} cannot be started: ${error instanceof Error ? error.message : String(error)}`;
      throw new Error(remedy === undefined ? what : `${what}\n  remedy  ${remedy}`);
    }
    const server = new ServerProcess(name, child, child.pid ?? 0, address, port);
    server.#keepWhatItSays();
    try {
      await server.#listening();
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** `HOST:PORT`, or `[IPv6]:PORT`. */
  get hostPort(): string {
    return hostPort(this.address, this.port);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending = true;
    await end(this.child, 'SIGTERM');
  }

  /** Keeps the last that a talkative server says, and tells it when it ends too early. */
  #keepWhatItSays(): void {
    let said = '';
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        said = (said + text).slice(-SAID_LENGTH_MAX);
      });
    }
    this.child.once('exit', () => {
      if (this.#ending) return;
      this.child.once('close', () => process.stderr.write(said));
    });
  }

  async #listening(): Promise<void> {
    for (let waitedMs = 0; waitedMs < START_TIMEOUT_MS; waitedMs += POLL_MS) {
      if (hasEnded(this.child)) throw new Error(`${this.name} does not start; what it said is above`);
      if (await listens(this.port, this.address)) return;
      await delay(POLL_MS);
    }
    throw new Error(`${this.name} does not listen after ${START_TIMEOUT_MS} ms`);
  }
}

/** Options of {@link startKvServer}. */
export interface KvServerOptions {
  /** Where it listens. */
  readonly address: string;
  /** The arena; bytes. */
  readonly memoryBytes: number;
  /** Of the data plane, bound to {@link address}; by default what kv-server takes by itself. */
  readonly provider?: ProviderName;
  /** More settings. */
  readonly args?: readonly string[];
}

/** Starts a kv-server as users do: what is not named here is its default. @throws Error when it does not start */
export function startKvServer({ address, memoryBytes, provider, args = [] }: KvServerOptions): Promise<ServerProcess> {
  return ServerProcess.start({
    name: 'kv-server',
    command: process.execPath,
    address,
    args: (port) => {
      const settings: (readonly [string, string])[] = [
        ['listen-addr', hostPort(address, port)],
        ['memory', `${memoryBytes}B`],
        ['log-level', 'warn'],
      ];
      if (provider !== undefined) settings.push(['fabric-addr', address], ['provider', provider]);
      return [KV_SERVER, ...settings.flatMap(([name, value]) => [`--${name}`, value]), ...args];
    },
  });
}

function hasEnded({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null;
}

function hostPort(address: string, port: number): string {
  return `${address.includes(':') ? `[${address}]` : address}:${port}`;
}

/** A port that nobody listens at now: not every server can say which one it took. */
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
