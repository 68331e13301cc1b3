/**
 * One write to one peer over all of its paths. What fails on one goes on where it stopped, on those that are left.
 */

import { FabricError } from './errors.js';
import type { RemoteRegionId, TransferId } from './ids.js';
import type { PathTraffic, PeerPath, PeerPaths } from './paths.js';

/** Shorter writes go over one path. */
const STRIPED_BYTES_MIN = 256 * 1024;

/** Each path gets pieces of at most this length, in turn. */
const STRIPE_BYTES_MAX = 4 * 1024 * 1024;
/** Pieces are multiples of this, except the last. */
const STRIPE_BYTES_STEP = 64 * 1024;

/** A write that fails this often without a single byte of progress between fails for good. */
const FAILURES_MAX = 4;
/** After a failure with no other path left, wait this long times the number of failures: a connection is back after 20 ms. */
const RETRY_DELAY_MS = 25;

/** Memory of the peer. */
export interface RemoteMemory {
  /** Its id on a path's rail; undefined when it cannot be written on that path. */
  on(path: PeerPath): RemoteRegionId | undefined;
}

/** One contiguous piece of a write. Offsets and lengths in bytes. */
export interface StripedSegment {
  readonly mappingId: number;
  readonly localOffset: number;
  readonly remote: RemoteMemory;
  readonly remoteOffset: number;
  readonly length: number;
}

/** Options of {@link StripedWrite}. */
export interface StripedWriteOptions {
  readonly paths: PeerPaths;
  readonly segments: readonly StripedSegment[];
  /**
   * Called exactly once, never before {@link StripedWrite.start} has returned: without an error when every byte is visible
   * at the peer, else with the error that ended it. Nothing of it is in flight then.
   */
  readonly onDone: (error?: FabricError) => void;
  /** A part of it failed and goes on. */
  readonly onRetry?: ((error: FabricError) => void) | undefined;
}

/** The part of a write that one path carries. */
class Part implements PathTraffic {
  trafficPlace = -1;
  transfer: TransferId | undefined;

  constructor(
    readonly path: PeerPath,
    readonly segments: readonly StripedSegment[],
    readonly length: number,
  ) {}

  get landedBytes(): number {
    return this.transfer === undefined ? 0 : this.path.rail.bytesCompleted(this.transfer);
  }

  cut(): void {
    if (this.transfer !== undefined) this.path.rail.cancel(this.transfer);
  }
}

/** - `running`. - `stopping`: nothing new is posted. - `over`: `onDone` is called, or about to be. */
type WriteState = 'running' | 'stopping' | 'over';

/** A write in flight. */
export class StripedWrite {
  readonly #options: StripedWriteOptions;
  /** In flight: one for each path that it goes over, and few. */
  readonly #parts: Part[] = [];
  #state: WriteState = 'running';
  #landedBytes = 0;
  #error: FabricError | undefined;
  #failures = 0;
  #waiting: StripedSegment[] = [];
  #retryTimer: NodeJS.Timeout | undefined;
  #starting = true;

  constructor(options: StripedWriteOptions) {
    this.#options = options;
  }

  /** Bytes that have landed. */
  get landedBytes(): number {
    let sum = this.#landedBytes;
    for (const part of this.#parts) sum += part.landedBytes;
    return sum;
  }

  /** Posts it. */
  start(): void {
    this.#options.paths.watch();
    this.#distribute(this.#options.segments);
    this.#starting = false;
    this.#endIfQuiet();
  }

  /**
   * Posts nothing more; `onDone` is called with `CANCELLED` when nothing is in flight. Of a peer that does not answer that can
   * take as long as a path may stall.
   */
  cancel(): void {
    this.#stop(new FabricError({ code: 'CANCELLED', call: 'cancel', text: 'the write was cancelled' }));
  }

  #distribute(segments: readonly StripedSegment[]): void {
    const { paths } = this.#options;
    const length = lengthOf(segments);
    let usable = paths.usable();
    if (paths.all.length > 1) {
      // Memory that was introduced while a rail was down is not known there.
      usable = usable.filter((path) => isKnown(segments, path));
      if (length < STRIPED_BYTES_MIN) usable = paths.oneOf(usable);
    }
    if (usable.length === 0) {
      this.#stop(new FabricError({ code: 'RAIL_CLOSED', call: 'write', text: 'no rail to the peer is open' }));
      return;
    }
    const [first] = usable;
    if (usable.length === 1 && first !== undefined) {
      this.#post(first, segments, length);
      return;
    }
    for (const [i, share] of stripe(segments, length, usable.length).entries()) {
      // A share that cannot be posted may have ended the whole write.
      if (this.#state !== 'running') return;
      const path = usable[i];
      if (path !== undefined && share.length > 0) this.#post(path, share, lengthOf(share));
    }
  }

  #post(path: PeerPath, segments: readonly StripedSegment[], length: number): void {
    const part = new Part(path, segments, length);
    try {
      part.transfer = path.rail.write({
        peer: path.peer,
        segments: segments.map(({ mappingId, localOffset, remote, remoteOffset, length: bytes }) => {
          const remoteRegionId = remote.on(path);
          if (remoteRegionId === undefined) throw notThere();
          return { mappingId, localOffset, remoteRegionId, remoteOffset, length: bytes };
        }),
        onDone: (error) => this.#ended(part, error),
      });
    } catch (error) {
      if (!(error instanceof FabricError)) throw error;
      this.#failed(part, error, 0);
      return;
    }
    this.#parts.push(part);
    path.enter(part);
  }

  #ended(part: Part, error: FabricError | undefined): void {
    const { path } = part;
    const place = this.#parts.indexOf(part);
    if (place >= 0) this.#parts.splice(place, 1);
    const landedBytes = error === undefined ? part.length : error.landedBytes;
    path.leave(part, landedBytes);
    this.#landedBytes += landedBytes;
    if (error === undefined) this.#failures = 0;
    else this.#failed(part, error, landedBytes);
    this.#endIfQuiet();
  }

  #failed(part: Part, error: FabricError, landedBytes: number): void {
    if (this.#state !== 'running') return;
    const { paths, onRetry } = this.#options;
    this.#failures = landedBytes > 0 ? 1 : this.#failures + 1;
    const gone = error.code === 'RAIL_CLOSED';
    if (!(gone || isTransient(error)) || this.#failures > FAILURES_MAX) {
      this.#stop(error);
      return;
    }
    paths.failed(part.path, error);
    const left = after(part.segments, landedBytes);
    const others = paths.usable().filter((path) => path !== part.path);
    if (gone && others.length === 0) {
      this.#stop(error);
      return;
    }
    onRetry?.(error);
    this.#waiting.push(...left);
    this.#retryTimer ??= setTimeout(() => this.#retry(), others.length > 0 ? 0 : RETRY_DELAY_MS * this.#failures);
  }

  #retry(): void {
    this.#retryTimer = undefined;
    const segments = this.#waiting;
    this.#waiting = [];
    if (this.#state === 'running') this.#distribute(segments);
    this.#endIfQuiet();
  }

  #stop(error: FabricError): void {
    if (this.#state !== 'running') return;
    this.#state = 'stopping';
    this.#error = error;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    for (const { path, transfer } of this.#parts) if (transfer !== undefined) path.rail.cancel(transfer);
    this.#endIfQuiet();
  }

  #endIfQuiet(): void {
    if (this.#starting || this.#parts.length > 0 || this.#retryTimer !== undefined || this.#state === 'over') return;
    this.#state = 'over';
    queueMicrotask(() => this.#options.onDone(this.#error));
  }
}

/** Whether all of the memory can be written on a path. A rail that is just being closed knows nothing. */
function isKnown(segments: readonly StripedSegment[], path: PeerPath): boolean {
  try {
    return segments.every(({ remote }) => remote.on(path) !== undefined);
  } catch (error) {
    if (!(error instanceof FabricError)) throw error;
    return false;
  }
}

function isTransient({ code }: FabricError): boolean {
  return code === 'TRANSFER_FAILED' || code === 'CANCELLED' || code === 'BUSY';
}

function notThere(): FabricError {
  return new FabricError({
    code: 'INVALID_ARGUMENT',
    call: 'write',
    text: 'the memory cannot be written on this rail',
  });
}

function lengthOf(segments: readonly StripedSegment[]): number {
  let sum = 0;
  for (const { length } of segments) sum += length;
  return sum;
}

/** The segments without their first `skip` bytes. */
function after(segments: readonly StripedSegment[], skip: number): StripedSegment[] {
  const left: StripedSegment[] = [];
  let toSkip = skip;
  for (const segment of segments) {
    const skipped = Math.min(toSkip, segment.length);
    toSkip -= skipped;
    if (skipped < segment.length) left.push(part(segment, skipped, segment.length - skipped));
  }
  return left;
}

function part(segment: StripedSegment, from: number, length: number): StripedSegment {
  const { localOffset, remoteOffset } = segment;
  return { ...segment, localOffset: localOffset + from, remoteOffset: remoteOffset + from, length };
}

/** Deals the bytes out in equal pieces, the remainder included: share i of `shares` gets every i-th piece. */
function stripe(segments: readonly StripedSegment[], length: number, shares: number): StripedSegment[][] {
  const even = Math.ceil(length / shares / STRIPE_BYTES_STEP) * STRIPE_BYTES_STEP;
  const pieceBytes = Math.min(STRIPE_BYTES_MAX, even);
  const dealt: StripedSegment[][] = Array.from({ length: shares }, () => []);
  let at = 0;
  for (const segment of segments) {
    for (let from = 0; from < segment.length; ) {
      const take = Math.min(segment.length - from, pieceBytes - (at % pieceBytes));
      dealt[Math.floor(at / pieceBytes) % shares]?.push(part(segment, from, take));
      from += take;
      at += take;
    }
  }
  return dealt;
}
