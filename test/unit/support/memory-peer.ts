import { FabricError } from '../../../src/fabric/index.js';
import type { Peer, PeerWriteOptions, PeerWriteSegment } from '../../../src/server/peers.js';

/** A write that was begun and is not done. */
export class MemoryWrite {
  landedBytes = 0;
  cancels = 0;

  constructor(
    private readonly peer: MemoryPeer,
    private readonly options: PeerWriteOptions,
  ) {}

  get segments(): readonly PeerWriteSegment[] {
    return this.options.segments;
  }

  cancel(): void {
    this.cancels += 1;
  }

  /** A part of it failed, and goes on. */
  retry(): void {
    this.options.onRetry?.(failure('TRANSFER_FAILED'));
  }

  /** Nothing of it is in flight any more. */
  done(code?: FabricError['code']): void {
    this.peer.writes.splice(this.peer.writes.indexOf(this), 1);
    this.options.onDone(code === undefined ? undefined : failure(code));
  }
}

/**
 * A peer whose writes end when the test says so: for the operations above it. Claims about the data plane are tested on a
 * real one.
 */
export class MemoryPeer {
  readonly writes: MemoryWrite[] = [];
  /** Thrown by the next write that is begun. */
  broken: Error | undefined;
  /** Whether a rail's table has room for its regions. */
  reachable = true;
  pings = 0;

  /** The double as the peer that the code under test takes. */
  get peer(): Peer {
    return this as unknown as Peer;
  }

  reaches(): boolean {
    return this.reachable;
  }

  ping(): void {
    this.pings += 1;
  }

  beginWrite(options: PeerWriteOptions): MemoryWrite {
    if (this.broken !== undefined) throw this.broken;
    const write = new MemoryWrite(this, options);
    this.writes.push(write);
    return write;
  }
}

function failure(code: FabricError['code']): FabricError {
  return new FabricError({ code, call: 'fi_writemsg', text: 'as the test wants it' });
}
