import {
  FabricError,
  type FabricErrorDetails,
  type Rail,
  type RailInfo,
  type RailStats,
  remoteAddress,
  remoteKey,
} from '../../../src/fabric/index.js';

/** A write that was posted and has not come back. */
export interface PendingWrite {
  readonly id: number;
  readonly peer: number;
  readonly regions: readonly number[];
  readonly onDone: (error?: FabricError) => void;
}

/** A piece of a mapping. */
export interface MappedRange {
  readonly offset: number;
  readonly length: number;
}

interface Command {
  readonly name: string;
  readonly settle: () => void;
}

/**
 * The order of a rail's commands, and nothing of what they do: for the state machines above it. Claims about the data
 * plane are tested on a real one. Commands are answered in order, at once or, while `held`, one by one by {@link next}.
 */
export class MemoryRail {
  readonly info = {
    quiescence: 'fence',
    provider: 'tcp',
    address: Buffer.from('server'),
    addressFormat: 'FI_SOCKADDR_IN',
    needsLocalRegistration: false,
  } as Pick<RailInfo, 'quiescence' | 'provider' | 'address' | 'addressFormat' | 'needsLocalRegistration'>;
  state: 'open' | 'failed' | 'closed' = 'open';
  held = false;
  /** Commands in the order in which they were asked for. */
  readonly log: string[] = [];
  /** Names of commands that fail from now on. */
  readonly failing = new Set<string>();
  /** And those that fail in another way than `TRANSFER_FAILED`. */
  readonly refusals = new Map<string, Pick<FabricErrorDetails, 'code' | 'errno'>>();
  /** The most remote regions that the table holds. */
  remotesMax = Number.POSITIVE_INFINITY;
  readonly writes: PendingWrite[] = [];
  readonly cancelled: number[] = [];
  /** Peers that were pinged. */
  readonly pings: number[] = [];
  /** Of the address vector. */
  readonly peers = new Set<number>();
  /** What is registered for the writes of others, as ranges of its mapping. */
  readonly regions = new Map<number, MappedRange>();
  /** What was deregistered, and no proof that was asked for since has come. */
  readonly unproven = new Set<MappedRange>();
  readonly remotes = new Map<number, { readonly peer: number; readonly key: bigint }>();
  /** What {@link stats} tells beside what there is. */
  counted: Partial<RailStats> = {};
  private readonly queue: Command[] = [];
  private ids = 0;

  /** The double as the rail that the code under test takes. */
  get rail(): Rail {
    return this as unknown as Rail;
  }

  /** Commands that wait for {@link next}. */
  get waiting(): string[] {
    return this.queue.map(({ name }) => name);
  }

  /** Answers the oldest command that waits. */
  async next(): Promise<void> {
    this.queue.shift()?.settle();
    await turn();
  }

  register(range: MappedRange = { offset: 0, length: 1 }): Promise<object> {
    const id = ++this.ids;
    return this.command('register', () => {
      this.regions.set(id, { offset: range.offset, length: range.length });
      return { id, address: remoteAddress(0n), key: remoteKey(BigInt(id)), length: 1 };
    });
  }

  deregister(region: { readonly id: number }): Promise<unknown> {
    return this.command('deregister', () => {
      const range = this.regions.get(region.id);
      if (range === undefined) throw new Error(`region ${region.id} is closed twice`);
      this.regions.delete(region.id);
      if (this.info.quiescence !== 'close-region') this.unproven.add(range);
    });
  }

  insertPeer(): Promise<number> {
    const id = ++this.ids;
    return this.command('insertPeer', () => {
      this.peers.add(id);
      return id;
    });
  }

  removePeer(id: number): Promise<unknown> {
    return this.command('removePeer', () => {
      if (!this.peers.delete(id)) throw new Error(`peer ${id} is removed twice`);
      for (const write of this.writes.filter(({ peer }) => peer === id)) this.complete(write, 'CANCELLED');
    });
  }

  /** What is in flight to the peer comes back; the peer stays. */
  disconnectPeer(id: number): Promise<unknown> {
    return this.command('disconnectPeer', () => {
      for (const write of this.writes.filter(({ peer }) => peer === id)) this.complete(write, 'TRANSFER_FAILED');
    });
  }

  prove(): Promise<unknown> {
    if (this.info.quiescence === 'close-endpoint') return Promise.reject(fabricError('prove', 'UNPROVABLE'));
    const covered = [...this.unproven];
    return this.command('prove', () => {
      for (const range of covered) this.unproven.delete(range);
    });
  }

  pingPeer({ peer, remoteRegionId, onDone }: Parameters<Rail['pingPeer']>[0]): number {
    if (this.remotes.get(remoteRegionId)?.peer !== peer) throw new Error(`no region ${remoteRegionId} of that peer`);
    this.pings.push(peer);
    queueMicrotask(() => onDone());
    return ++this.ids;
  }

  bytesCompleted(): number {
    return 0;
  }

  stats(): RailStats {
    const { peers, regions } = this;
    return { ...this.counted, peers: peers.size, regionsOpen: regions.size } as RailStats;
  }

  close(): Promise<void> {
    this.log.push('close');
    this.state = 'closed';
    for (const write of [...this.writes]) this.complete(write, 'RAIL_CLOSED');
    this.regions.clear();
    this.unproven.clear();
    this.peers.clear();
    return Promise.resolve();
  }

  defineRemote({ peer, key }: { readonly peer: number; readonly key: bigint }): number {
    if (!this.peers.has(peer)) throw new Error(`peer ${peer} is not there`);
    if (this.failing.has('defineRemote') || this.remotes.size >= this.remotesMax)
      throw fabricError('defineRemote', 'BUSY');
    const id = ++this.ids;
    this.remotes.set(id, { peer, key });
    return id;
  }

  forgetRemote(id: number): void {
    this.remotes.delete(id);
  }

  write({
    peer,
    segments,
    onDone,
  }: {
    readonly peer: number;
    readonly segments: readonly { readonly remoteRegionId: number }[];
    readonly onDone: (error?: FabricError) => void;
  }): number {
    if (this.failing.has('write')) throw fabricError('write', 'RAIL_CLOSED');
    for (const { remoteRegionId } of segments) {
      if (this.remotes.get(remoteRegionId)?.peer !== peer) throw new Error(`no region ${remoteRegionId} of that peer`);
    }
    const id = ++this.ids;
    this.writes.push({ id, peer, regions: segments.map(({ remoteRegionId }) => remoteRegionId), onDone });
    return id;
  }

  cancel(id: number): void {
    this.cancelled.push(id);
  }

  /** A write comes back. */
  complete(write: PendingWrite | undefined, code?: FabricError['code']): void {
    if (write === undefined) throw new Error('no such write');
    this.writes.splice(this.writes.indexOf(write), 1);
    write.onDone(code === undefined ? undefined : fabricError('fi_writemsg', code));
  }

  private command<Answer>(name: string, work: () => Answer): Promise<Answer> {
    this.log.push(name);
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        const refusal = this.refusals.get(name);
        if (this.state !== 'open') reject(fabricError(name, 'RAIL_CLOSED'));
        else if (refusal !== undefined)
          reject(new FabricError({ call: name, text: 'as the test wants it', ...refusal }));
        else if (this.failing.has(name)) reject(fabricError(name, 'TRANSFER_FAILED'));
        else resolve(work());
      };
      if (this.held) this.queue.push({ name, settle });
      else settle();
    });
  }
}

function fabricError(call: string, code: FabricError['code']): FabricError {
  return new FabricError({ code, call, text: 'as the test wants it' });
}

/** Everything that can go on without an event from outside has gone on. */
export async function turn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}
