import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

/** How a process has ended. */
export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** What it wrote, and how it ended. */
export interface Finished extends Ended {
  readonly stdout: Buffer;
  readonly stderr: string;
  /** From its start to its end. */
  readonly ms: number;
}

/** Options of {@link Child}. */
export interface ChildOptions {
  readonly args?: readonly string[];
  /** Beside those of this process; undefined takes one away. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** Written to its standard input, which is then closed. Default: empty. `'open'` leaves it open. */
  readonly stdin?: Uint8Array | string | 'open';
  /** Put before the command, as in `['ip', 'netns', 'exec', 'name']`. */
  readonly prefix?: readonly string[];
  /** Called with each piece of standard output; it is then not kept. */
  readonly onStdout?: (chunk: Buffer) => void;
}

/** So much of a process's output belongs into the error of a test that failed. */
const TAIL_LENGTH = 8000;

const running = new Set<ChildProcess>();
// Whatever ends a test file, its processes end with it: also a runner that has waited long enough.
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
process.once('SIGTERM', () => process.exit(143));
process.once('SIGINT', () => process.exit(130));

/** A process of a test: its output is collected, its end is awaited with a deadline, and it never outlives the test. */
export class Child implements AsyncDisposable {
  readonly process: ChildProcess;
  /** Settles when the process has ended and its output has been read. */
  readonly ended: Promise<Finished>;
  private readonly stdoutChunks: Buffer[] = [];
  private readonly listeners = new Set<() => void>();
  private stderrText = '';
  /** How far {@link stderrText} has been read for records, and those that there were. */
  private parsedLength = 0;
  private readonly parsed: LogRecord[] = [];
  private end: Ended | undefined;

  constructor(
    readonly command: string,
    options: ChildOptions = {},
  ) {
    const [file = command, ...args] = [...(options.prefix ?? []), command, ...(options.args ?? [])];
    const startedAtMs = performance.now();
    const child = spawn(file, args, {
      env: environment(options.env),
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    this.process = child;
    running.add(child);
    child.stdout.on('data', (chunk: Buffer) => {
      if (options.onStdout === undefined) this.stdoutChunks.push(chunk);
      else options.onStdout(chunk);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.stderrText += text;
      for (const listener of this.listeners) listener();
    });
    // A process that ends without reading its input is no failure of the test.
    child.stdin.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE' && error.code !== 'ECONNRESET') throw error;
    });
    if (options.stdin !== 'open') child.stdin.end(options.stdin ?? '');
    this.ended = new Promise((resolve, reject) => {
      child.once('error', (error) => {
        running.delete(child);
        reject(error);
      });
      child.once('close', (code, signal) => {
        running.delete(child);
        this.end = { code, signal };
        for (const listener of this.listeners) listener();
        resolve({
          code,
          signal,
          stdout: Buffer.concat(this.stdoutChunks),
          stderr: this.stderrText,
          ms: performance.now() - startedAtMs,
        });
      });
    });
    // Whoever awaits it gets the error; a test that has failed elsewhere need not.
    this.ended.catch(() => undefined);
  }

  get pid(): number {
    const { pid } = this.process;
    if (pid === undefined) throw new Error(`${this.command} did not start`);
    return pid;
  }

  /** What it has written to standard error so far. */
  get stderr(): string {
    return this.stderrText;
  }

  /** The whole lines of standard error so far that are JSON objects: its log, where it logs as JSON. */
  get records(): readonly LogRecord[] {
    const whole = this.stderrText.lastIndexOf('\n') + 1;
    if (whole > this.parsedLength) {
      this.parsed.push(...parseRecords(this.stderrText.slice(this.parsedLength, whole)));
      this.parsedLength = whole;
    }
    return this.parsed;
  }

  /** The end of what it has written to standard error, for errors. */
  private get tail(): string {
    const start = this.stderrText.length - TAIL_LENGTH;
    return start <= 0 ? this.stderrText : `…${this.stderrText.slice(start)}`;
  }

  /**
   * Waits for a record of its log; one that has been written already counts, unless `after` says how many are old.
   *
   * @throws when it ends first, or the time is over, with what it wrote
   */
  waitForRecord(matches: (record: LogRecord) => boolean, timeoutMs = 20_000, after = 0): Promise<LogRecord> {
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        clearTimeout(timer);
        this.listeners.delete(look);
        settle();
      };
      const fail = (why: string): void =>
        finish(() => reject(new Error(`${this.command}: ${why}; it wrote:\n${this.tail}`)));
      const look = (): void => {
        const found = this.records.find((record, index) => index >= after && matches(record));
        if (found !== undefined) finish(() => resolve(found));
        else if (this.end !== undefined) fail('it ended without the record that was waited for');
      };
      const timer = setTimeout(() => fail(`no such record within ${timeoutMs} ms`), timeoutMs);
      this.listeners.add(look);
      look();
    });
  }

  kill(signal: NodeJS.Signals): void {
    this.process.kill(signal);
  }

  /**
   * Waits for its end.
   *
   * @throws when it still runs then, with what it wrote; it is killed
   */
  async waitForEnd(timeoutMs: number): Promise<Finished> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.kill('SIGKILL');
        reject(new Error(`${this.command} still ran after ${timeoutMs} ms; it wrote:\n${this.tail}`));
      }, timeoutMs);
    });
    try {
      return await Promise.race([this.ended, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Kills it, if it still runs, and waits until it is gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { process: child } = this;
    this.kill('SIGCONT');
    this.kill('SIGKILL');
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    // A process that it has left behind may hold its output open for ever.
    child.stdout?.destroy();
    child.stderr?.destroy();
    await this.ended.catch(() => undefined);
  }
}

/** One record of a log. */
export interface LogRecord {
  readonly level?: string;
  readonly msg?: string;
  readonly requestId?: string;
  readonly op?: string;
  readonly stage?: string;
  readonly [field: string]: unknown;
}

/** The whole lines of a text that are JSON objects. */
export function parseRecords(text: string): LogRecord[] {
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  return whole.split('\n').flatMap((line) => {
    if (!line.startsWith('{')) return [];
    try {
      return [JSON.parse(line) as LogRecord];
    } catch (error) {
      if (error instanceof SyntaxError) return [];
      throw error;
    }
  });
}

function environment(more: ChildOptions['env']): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {};
  for (const [name, value] of Object.entries(process.env)) {
    // A developer's own settings must not change what a test sees; where libfabric is, is the machine's business.
    const isSetting = name.startsWith('FABRICKV_') && name !== 'FABRICKV_LIBFABRIC';
    if (!isSetting && name !== 'NODE_TEST_CONTEXT') env[name] = value;
  }
  for (const [name, value] of Object.entries(more ?? {})) {
    if (value === undefined) delete env[name];
    else env[name] = value;
  }
  return env;
}
