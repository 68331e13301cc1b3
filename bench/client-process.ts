/**
 * A client of a benchmark: a forked process that does what it is told over its channel, one request at a time.
 */

import { type ChildProcess, fork, type Serializable } from 'node:child_process';
import { once } from 'node:events';
import { end, tie } from './processes.js';
import type { ServerProcess } from './server-process.js';

/** What a client process answers when it could not do what it was asked for. */
export interface FailedReply {
  readonly kind: 'failed';
  readonly message: string;
}

/** The parent's end of the channel; {@link serveRequests} is the other one. */
export class ClientProcess<Request extends Serializable, Reply extends { readonly kind: string }>
  implements AsyncDisposable
{
  readonly #name: string;
  readonly #child: ChildProcess;
  readonly #server: ServerProcess;

  private constructor(name: string, child: ChildProcess, server: ServerProcess) {
    this.#name = name;
    this.#child = child;
    this.#server = server;
  }

  /** Forks a module. `name` is how errors call it; the end of the server is an error of whatever is asked for then. */
  static start<Request extends Serializable, Reply extends { readonly kind: string }>(
    name: string,
    main: string,
    server: ServerProcess,
  ): ClientProcess<Request, Reply> {
    // Options may hold Infinity, which JSON does not know.
    const stdio = ['ignore', process.stderr, process.stderr, 'ipc'] as const;
    const child = tie(fork(main, { stdio: [...stdio], serialization: 'advanced' }));
    return new ClientProcess(name, child, server);
  }

  /** @throws Error with what the client said, or who has ended */
  async ask(request: Request): Promise<Exclude<Reply, FailedReply>> {
    const over = new AbortController();
    const { signal } = over;
    const gone = async (child: ChildProcess, who: string): Promise<never> => {
      const [code, by] = (await once(child, 'exit', { signal })) as [number | null, NodeJS.Signals | null];
      throw new Error(`${who} ended with ${code ?? by}; what it said is above`);
    };
    const clientName = `the client process of ${this.#name}`;
    for (const [child, who] of [
      [this.#server.child, this.#server.name],
      [this.#child, clientName],
    ] as const) {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${who} has ended`);
    }
    try {
      this.#child.send(request);
      // No answer can have come yet: messages are read in later turns of the event loop.
      const [reply] = (await Promise.race([
        once(this.#child, 'message', { signal }),
        gone(this.#server.child, this.#server.name),
        gone(this.#child, clientName),
      ])) as [Reply | FailedReply];
      if (isFailed(reply)) throw new Error(`${this.#name} failed: ${reply.message}`);
      return reply as Exclude<Reply, FailedReply>;
    } finally {
      over.abort();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    await end(this.#child);
  }
}

function isFailed(reply: { readonly kind: string }): reply is FailedReply {
  return reply.kind === 'failed';
}
