import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { Child } from './child.js';
import type { SmallLoadDone } from './small-load-client.js';
import { waitFor } from './wait-for.js';

const CLIENT = fileURLToPath(new URL('./small-load-client.js', import.meta.url));
const READY_TIMEOUT_MS = 60_000;
const END_TIMEOUT_MS = 60_000;

/** What one process of a small load does. */
export interface SmallLoadOptions {
  readonly addr: string;
  readonly sessions: number;
  /** Of each session. */
  readonly inFlight: number;
  /** Default 100. */
  readonly valueBytes?: number;
}

/** A process with sessions that begin and end their load when they are told to. */
export class SmallLoad implements AsyncDisposable {
  private text = '';
  private readonly child: Child;

  private constructor({ addr, sessions, inFlight, valueBytes = 100 }: SmallLoadOptions) {
    this.child = new Child(process.execPath, {
      args: [CLIENT, addr, String(sessions), String(inFlight), String(valueBytes)],
      stdin: 'open',
      onStdout: (chunk) => {
        this.text += chunk.toString();
      },
    });
  }

  /** Starts the process, and waits until all its sessions are open. */
  static async open(options: SmallLoadOptions): Promise<SmallLoad> {
    const load = new SmallLoad(options);
    try {
      const ready = waitFor(() => load.text.includes('ready'), { what: 'the sessions', timeoutMs: READY_TIMEOUT_MS });
      const ended = load.child.ended.then(({ stderr }) => Promise.reject(new Error(stderr)));
      await Promise.race([ready, ended]);
      return load;
    } catch (error) {
      await load[Symbol.asyncDispose]();
      throw error;
    }
  }

  begin(): void {
    this.child.process.stdin?.write('begin\n');
  }

  /** Ends the load; nothing may have failed. */
  async end(): Promise<SmallLoadDone> {
    this.child.process.stdin?.write('end\n');
    const { code, stderr } = await this.child.waitForEnd(END_TIMEOUT_MS);
    assert.equal(code, 0, stderr);
    const [, line = ''] = this.text.split('\n');
    return JSON.parse(line) as SmallLoadDone;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.child[Symbol.asyncDispose]();
  }
}

/** How many times as many operations the busiest session had as the one with the fewest. */
export function unfairness(done: readonly SmallLoadDone[]): number {
  const operations = done.flatMap((one) => one.operations);
  return Math.max(...operations) / Math.min(...operations);
}
