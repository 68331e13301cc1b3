/**
 * The raw side: native/bench/raw_write, two processes that write to each other with nothing of the store around them.
 */

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { Duration, Measurement } from './measurement.js';
import { ROOT } from './paths.js';
import { end, run, tie } from './processes.js';

const BUILD = 'native/build-bench';

/** Builds the program, if it is not up to date. @throws Error when there is no compiler, or no libfabric to build with */
export async function buildRawPair(): Promise<void> {
  await run('cmake', ['-S', 'native', '-B', BUILD, '-DFABRICKV_BENCH=ON', '--log-level=WARNING'], ROOT);
  await run('cmake', ['--build', BUILD, '--parallel', '--', '--quiet'], ROOT);
}

/** Options of {@link RawPair.start}. */
export interface RawPairOptions {
  /** libfabric's own name. */
  readonly provider: string;
  readonly sourceAddress: string;
  /** Registered memory of each process. */
  readonly memoryBytes: number;
}

/** The limits on what is in flight; `RailTuning` of src/fabric means the same by them. */
export interface RawTuning {
  readonly chunkBytes: number;
  readonly chunksInFlight: number;
  readonly chunksInFlightPerPeer: number;
  readonly spinUs: number;
}

/** One case. */
export interface RawCase extends RawTuning, Duration {
  readonly sizeBytes: number;
  readonly inFlight: number;
  /** The memory that values are taken from, and written to, in turn. */
  readonly sourceBytes: number;
  readonly sinkBytes: number;
}

const fabricSchema = z.object({ provider: z.string(), libfabric: z.string() });
const measurementSchema = z.object({
  values: z.number().int().positive(),
  bytes: z.number().int().positive(),
  seconds: z.number().positive(),
  p50Us: z.number().nonnegative(),
  p99Us: z.number().nonnegative(),
  p999Us: z.number().nonnegative(),
  cpuSeconds: z.number().nonnegative(),
});

/** What the pair opened. */
export type RawFabric = z.infer<typeof fabricSchema>;

/** Both processes, connected, for as many cases as are wanted. */
export class RawPair implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  #fabric: RawFabric | undefined;

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    this.#lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  }

  /** Starts them; {@link buildRawPair} comes first. @throws Error when the fabric cannot be opened */
  static async start({ provider, sourceAddress, memoryBytes }: RawPairOptions): Promise<RawPair> {
    const args = [
      '--stdin',
      '--provider',
      provider,
      '--source-address',
      sourceAddress,
      '--memory',
      String(memoryBytes),
    ];
    const child = tie(spawn(`${ROOT}${BUILD}/bench/raw_write`, args, { stdio: ['pipe', 'pipe', 'pipe'] }));
    child.stderr.pipe(process.stderr, { end: false });
    // That it is gone is told by the answer that does not come.
    child.stdin.on('error', () => undefined);
    await once(child, 'spawn');
    const pair = new RawPair(child);
    try {
      pair.#fabric = fabricSchema.parse(await pair.#next());
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  get fabric(): RawFabric {
    if (this.#fabric === undefined) throw new Error('the raw pair has not started');
    return this.#fabric;
  }

  /** @throws Error when a write fails, or the case does not fit into the memory */
  async measure(what: RawCase): Promise<Measurement> {
    const options: readonly (readonly [string, number])[] = [
      ['size', what.sizeBytes],
      ['in-flight', what.inFlight],
      ['chunk', what.chunkBytes],
      ['chunks-in-flight', what.chunksInFlight],
      ['chunks-in-flight-per-peer', what.chunksInFlightPerPeer],
      ['spin-us', what.spinUs],
      ['source-bytes', what.sourceBytes],
      ['sink-bytes', what.sinkBytes],
      ['seconds', what.seconds],
      ['warmup', what.warmupSeconds],
    ];
    this.#child.stdin.write(`${options.map(([name, value]) => `--${name} ${value}`).join(' ')}\n`);
    return measurementSchema.parse(await this.#next());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end();
    await end(this.#child);
  }

  async #next(): Promise<unknown> {
    const line = await this.#lines.next();
    if (line.done) throw new Error('raw_write has ended; what it said is above');
    return JSON.parse(line.value);
  }
}
