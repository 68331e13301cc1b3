import assert from 'node:assert/strict';
import { Child, type ChildOptions, type Finished, type LogRecord } from './child.js';
import { BIN } from './paths.js';

const READY_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 20_000;
const CLIENT_TIMEOUT_MS = 60_000;

/** Options of {@link startServer}. */
export interface ServerOptions {
  /** Beside `--listen-addr 127.0.0.1:0 --memory 64MiB --log-level debug --log-format json`, which later flags replace. */
  readonly args?: readonly string[];
  readonly env?: ChildOptions['env'];
  /** Put before the command, as in `['ip', 'netns', 'exec', 'name']`. */
  readonly prefix?: readonly string[];
  /** Default 30 s. */
  readonly readyTimeoutMs?: number;
}

/** A real kv-server process. */
export class TestServer implements AsyncDisposable {
  constructor(
    readonly child: Child,
    /** Its record "Listening". */
    readonly listening: LogRecord,
  ) {}

  /** Where it listens, with the port that it got: what `--server-addr` takes. */
  get addr(): string {
    return String(this.listening['boundAddr']);
  }

  get pid(): number {
    return this.child.pid;
  }

  /** Its log so far. */
  get records(): readonly LogRecord[] {
    return this.child.records;
  }

  /** The stages that it has logged of one operation, or of all. */
  stages(requestId?: string): string[] {
    return stagesOf(this.records, requestId);
  }

  /** Waits for a record of its log; one that has been written already counts. */
  waitForRecord(matches: (record: LogRecord) => boolean, timeoutMs?: number, after?: number): Promise<LogRecord> {
    return this.child.waitForRecord(matches, timeoutMs, after);
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Asks it to stop and waits for its end. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', timeoutMs = STOP_TIMEOUT_MS): Promise<Finished> {
    this.child.kill('SIGCONT');
    this.child.kill(signal);
    return this.child.waitForEnd(timeoutMs);
  }

  /** Runs kv-client against it. */
  client(args: readonly string[], options: ClientOptions = {}): Promise<ClientRun> {
    return runClient(['--server-addr', this.addr, ...args], options);
  }

  /** Its counters, as `kv-client ping --json` tells them. */
  async counters(): Promise<Readonly<Record<string, number>>> {
    const run = await this.client(['ping', '--json']);
    assert.equal(run.code, 0, run.stderr);
    return (run.json() as { counters: Record<string, number> }).counters;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.child[Symbol.asyncDispose]();
  }
}

/**
 * Starts kv-server on a free port and waits until it listens: `await using server = await startServer()`. When the test
 * ends it is killed, if it has not been stopped.
 *
 * @throws when it ends or is not ready in time, with what it wrote
 */
export async function startServer(options: ServerOptions = {}): Promise<TestServer> {
  const child = spawnServer(options);
  try {
    const ready = (record: LogRecord): boolean => record.msg === 'Listening';
    return new TestServer(child, await child.waitForRecord(ready, options.readyTimeoutMs ?? READY_TIMEOUT_MS));
  } catch (error) {
    await child[Symbol.asyncDispose]();
    throw error;
  }
}

/** Starts kv-server without waiting: for one that cannot start. */
export function spawnServer({ args = [], env, prefix }: ServerOptions = {}): Child {
  const defaults: readonly (readonly [string, string])[] = [
    ['--listen-addr', '127.0.0.1:0'],
    ['--memory', '64MiB'],
    ['--log-level', 'debug'],
    ['--log-format', 'json'],
  ];
  const own = defaults.filter(([flag]) => !args.includes(flag)).flat();
  return new Child(process.execPath, {
    args: [BIN['kv-server'], ...args, ...own],
    ...(env === undefined ? {} : { env }),
    ...(prefix === undefined ? {} : { prefix }),
  });
}

/** Runs `kv-server` with exactly these arguments to its end: for `config`, `--help` and what cannot start. */
export function runServer(args: readonly string[], options: ClientOptions = {}): Promise<ClientRun> {
  return finish(spawnCommand('kv-server', args, options), options.timeoutMs);
}

/** Options of {@link runClient}. */
export interface ClientOptions extends Omit<ChildOptions, 'args'> {
  /** After which it is killed and the test fails. Default 60 s. */
  readonly timeoutMs?: number;
}

/** A kv-client (or another command) that has run to its end. */
export interface ClientRun extends Finished {
  /** Its standard output as text. */
  readonly text: string;
  /** Its standard output as one JSON value. */
  json(): unknown;
  /** Its log, where it was asked for as JSON. */
  readonly records: readonly LogRecord[];
}

/** Runs kv-client to its end: `await runClient(['--server-addr', addr, 'get', 'key'], { stdin, timeoutMs })`. */
export function runClient(args: readonly string[], options: ClientOptions = {}): Promise<ClientRun> {
  return finish(spawnClient(args, options), options.timeoutMs);
}

/** Starts kv-client without waiting: for one that is to be killed or interrupted. */
export function spawnClient(args: readonly string[], options: Omit<ChildOptions, 'args'> = {}): Child {
  return spawnCommand('kv-client', args, options);
}

function spawnCommand(name: keyof typeof BIN, args: readonly string[], options: Omit<ChildOptions, 'args'>): Child {
  return new Child(process.execPath, { ...options, args: [BIN[name], ...args] });
}

async function finish(child: Child, timeoutMs = CLIENT_TIMEOUT_MS): Promise<ClientRun> {
  const ended = await child.waitForEnd(timeoutMs);
  return {
    ...ended,
    text: ended.stdout.toString('utf8'),
    json: () => JSON.parse(ended.stdout.toString('utf8')),
    records: child.records,
  };
}

/** The stages in a log, of one operation or of all, in their order. */
export function stagesOf(records: readonly LogRecord[], requestId?: string): string[] {
  return records.flatMap((record) =>
    record.stage !== undefined && (requestId === undefined || record.requestId === requestId) ? [record.stage] : [],
  );
}
