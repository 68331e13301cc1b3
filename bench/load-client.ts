/**
 * A load client and what it is connected to.
 */

import { fileURLToPath } from 'node:url';
import { ClientProcess } from './client-process.js';
import { type LoadCase, storedKeys, type Turn, turnOf } from './load-cases.js';
import type { ConnectedTarget, LoadMeasurement, LoadReply, LoadRequest, LoadTargetOptions } from './load-messages.js';
import type { Duration } from './measurement.js';
import type { ServerProcess } from './server-process.js';

const MAIN = fileURLToPath(new URL('load-client-main.js', import.meta.url));

/** How long a case runs each time that it warms up: its share of the first, but at least the second, and never so many turns. */
const COMPILE_SECONDS = 1.5;
const COMPILE_SECONDS_MIN = 0.3;
const COMPILE_TURNS_MAX = 10;

/** One client in a process of its own, for as many turns as are wanted. */
export class LoadClient implements AsyncDisposable {
  readonly #process: ClientProcess<LoadRequest, LoadReply>;
  #about: ConnectedTarget | undefined;
  /** By the case's name; operations per second, as its first run had them. */
  readonly #rates = new Map<string, number>();

  private constructor(
    readonly name: string,
    process: ClientProcess<LoadRequest, LoadReply>,
  ) {
    this.#process = process;
  }

  /** Forks and connects. @throws Error when it does not reach the server */
  static async start(name: string, target: LoadTargetOptions, server: ServerProcess): Promise<LoadClient> {
    const client = new LoadClient(name, ClientProcess.start<LoadRequest, LoadReply>(name, MAIN, server));
    try {
      const reply = await client.#process.ask({ kind: 'connect', target, serverPid: server.pid });
      if (reply.kind !== 'connected') throw new Error(`${name} answered ${reply.kind}`);
      client.#about = reply.target;
      return client;
    } catch (error) {
      await client[Symbol.asyncDispose]();
      throw error;
    }
  }

  get about(): ConnectedTarget {
    if (this.#about === undefined) throw new Error(`${this.name} is not connected`);
    return this.#about;
  }

  /** Stores the values of these cases. @throws Error with what the client said */
  async load(cases: readonly LoadCase[]): Promise<void> {
    for (const [sizeBytes, count] of storedKeys(cases)) await this.#process.ask({ kind: 'load', sizeBytes, count });
  }

  /**
   * Runs a case before it counts, `caseCount` being how many there are: JavaScript takes some thousand operations until it
   * is compiled, and how long a turn must be depends on how quick it is then.
   *
   * @throws Error with what the client said
   */
  async compile(one: LoadCase, caseCount: number, turn: Duration): Promise<void> {
    const wanted = Math.max(COMPILE_SECONDS_MIN, COMPILE_SECONDS / caseCount);
    const seconds = Math.min(wanted, COMPILE_TURNS_MAX * turn.seconds);
    const measured = await this.#measure({ case: one, seconds, warmupSeconds: 0 });
    this.#rates.set(one.name, measured.values / measured.seconds);
  }

  /** Takes one turn; {@link compile} comes first. @throws Error with what the client said */
  measure(one: LoadCase, asked: Duration): Promise<LoadMeasurement> {
    return this.#measure(turnOf(one, asked, this.#rates.get(one.name) ?? Number.POSITIVE_INFINITY));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }

  async #measure(turn: Turn): Promise<LoadMeasurement> {
    const reply = await this.#process.ask({ kind: 'measure', ...turn });
    if (reply.kind !== 'measured') throw new Error(`${this.name} answered ${reply.kind}`);
    return reply.measurement;
  }
}
