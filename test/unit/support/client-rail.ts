import {
  type Fabric,
  FabricError,
  type LocalRegion,
  type Rail,
  type RailInfo,
  type RailStats,
  type WriteOptions,
} from '../../../src/fabric/index.js';

const MIB = 1024 * 1024;

/** A write of a client's that was posted and has not come back. */
export interface PostedWrite {
  readonly peer: number;
  readonly length: number;
  /** Of the first segment. */
  readonly remoteOffset: number;
  readonly remoteRegionId: number;
  cancelled: boolean;
  /** It comes back. */
  end(code?: FabricError['code']): void;
}

/** The part of a rail that a client uses, for the state machines above it: no byte moves, and writes end when a test says so. */
export class ClientRail {
  readonly info: Partial<RailInfo>;
  state: 'open' | 'closed' = 'open';
  /** Posted and not back, in order. */
  readonly writes: PostedWrite[] = [];
  /** How many were posted. */
  posted = 0;
  /** Whether writes end by themselves. */
  completes = false;
  readonly peers = new Map<number, string>();
  readonly removedPeers: number[] = [];
  readonly remotes = new Map<number, { readonly peer: number; readonly key: bigint }>();
  #ids = 0;
  readonly #byTransfer = new Map<number, PostedWrite>();

  constructor(more: Partial<RailInfo> = {}) {
    this.info = {
      provider: 'tcp',
      domain: 'test',
      address: Buffer.from('address'),
      addressText: 'address',
      addressFormat: 'FI_SOCKADDR_IN',
      maxRegionBytes: 1024 * MIB,
      needsLocalRegistration: false,
      quiescence: 'fence',
      ...more,
    };
  }

  get rail(): Rail {
    return this as unknown as Rail;
  }

  insertPeer(address: Uint8Array): Promise<number> {
    const id = ++this.#ids;
    this.peers.set(id, Buffer.from(address).toString());
    return Promise.resolve(id);
  }

  removePeer(id: number): Promise<void> {
    this.peers.delete(id);
    this.removedPeers.push(id);
    for (const write of this.writes.filter(({ peer }) => peer === id)) write.end('CANCELLED');
    return Promise.resolve();
  }

  disconnectPeer(): Promise<void> {
    return Promise.resolve();
  }

  prove(): Promise<void> {
    return Promise.resolve();
  }

  register({ length }: { length: number }): Promise<LocalRegion> {
    const id = ++this.#ids;
    return Promise.resolve({ id, address: 0n, key: BigInt(id), length } as LocalRegion);
  }

  deregister(): Promise<void> {
    return Promise.resolve();
  }

  defineRemote({ peer, key }: { readonly peer: number; readonly key: bigint }): number {
    const id = ++this.#ids;
    this.remotes.set(id, { peer, key });
    return id;
  }

  forgetRemote(id: number): void {
    this.remotes.delete(id);
  }

  stats(): Pick<RailStats, 'bytesWritten'> {
    return { bytesWritten: 0 };
  }

  bytesCompleted(): number {
    return 0;
  }

  write({ peer, segments, onDone }: WriteOptions): number {
    if (segments instanceof Float64Array) throw new Error('nobody packs them here');
    const [first] = segments;
    if (first === undefined) throw new Error('a write of nothing');
    for (const { remoteRegionId } of segments) {
      if (this.remotes.get(remoteRegionId)?.peer !== peer) throw new Error(`no region ${remoteRegionId} of that peer`);
    }
    const id = ++this.#ids;
    let isOver = false;
    const write: PostedWrite = {
      peer,
      length: segments.reduce((sum, { length }) => sum + length, 0),
      remoteOffset: first.remoteOffset,
      remoteRegionId: first.remoteRegionId,
      cancelled: false,
      end: (code) => {
        if (isOver) throw new Error('the write has come back already');
        isOver = true;
        this.writes.splice(this.writes.indexOf(write), 1);
        onDone(code === undefined ? undefined : new FabricError({ code, call: 'write', text: 'as the test wants it' }));
      },
    };
    this.posted += 1;
    this.writes.push(write);
    this.#byTransfer.set(id, write);
    if (this.completes) queueMicrotask(() => write.end());
    return id;
  }

  cancel(id: number): void {
    const write = this.#byTransfer.get(id);
    if (write !== undefined) write.cancelled = true;
  }
}

/** A fabric of these rails. */
export function fabricOf(...rails: readonly { readonly rail: Rail }[]): Fabric {
  return {
    choice: 'auto',
    considered: [],
    providers: [{ name: 'tcp', rails: rails.map(({ rail }) => rail) }],
    libfabric: undefined,
    missing: undefined,
    replaceRail: () => Promise.reject(new Error('no client replaces a rail')),
    close: () => Promise.resolve(),
  };
}
