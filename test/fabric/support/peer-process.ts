import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import {
  type Mapping,
  mapMemory,
  openRail,
  type PeerId,
  type Rail,
  type RailTuning,
  type RemoteKey,
  type RemoteRegionId,
  remoteAddress,
  remoteKey,
  type TransferId,
} from '../../../src/fabric/index.js';
import type { Introduction, PeerRequest } from './peer-program.js';

/** Nothing here takes a fraction of it; reaching it is a failure. */
export const DEADLINE_MS = 20_000;

/** A second process with a rail, and memory that is open for remote writes. */
export class PeerProcess {
  readonly child: ChildProcess;
  readonly address: Buffer;
  readonly remoteAddress;
  readonly key: RemoteKey;

  private constructor(child: ChildProcess, introduction: Introduction) {
    this.child = child;
    this.address = Buffer.from(introduction.address, 'hex');
    this.remoteAddress = remoteAddress(BigInt(introduction.remoteAddress));
    this.key = remoteKey(BigInt(introduction.key));
  }

  static async start(sizeBytes: number): Promise<PeerProcess> {
    const child = fork(new URL('./peer-program.js', import.meta.url), [String(sizeBytes)]);
    return new PeerProcess(child, await nextMessage<Introduction>(child));
  }

  ask(request: PeerRequest): Promise<number> {
    const answer = nextMessage<number>(this.child);
    this.child.send(request);
    return answer;
  }

  /** Ends it in order, and gives its exit code. */
  async finish(): Promise<number | null> {
    const exited = once(this.child, 'exit');
    await this.ask({ kind: 'finish' });
    await exited;
    return this.child.exitCode;
  }

  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exited;
  }
}

/** A writer in this process and a target in another, which know each other. */
export class Pair implements AsyncDisposable {
  readonly target: PeerProcess;
  readonly rail: Rail;
  readonly mapping: Mapping;
  readonly view: Buffer;
  readonly peer: PeerId;
  readonly remote: RemoteRegionId;

  private constructor(target: PeerProcess, rail: Rail, mapping: Mapping, sizeBytes: number, peer: PeerId) {
    this.target = target;
    this.rail = rail;
    this.mapping = mapping;
    this.peer = peer;
    this.view = mapping.buffer(0, sizeBytes);
    this.remote = rail.defineRemote({ peer, address: target.remoteAddress, key: target.key, length: sizeBytes });
  }

  static async open(sizeBytes: number, tuning: RailTuning = {}): Promise<Pair> {
    const target = await PeerProcess.start(sizeBytes);
    const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1', ...tuning });
    const mapping = await mapMemory({ sizeBytes, prefault: true });
    await target.ask({ kind: 'insert', address: rail.info.address.toString('hex') });
    const pair = new Pair(target, rail, mapping, sizeBytes, await rail.insertPeer(target.address));
    for (let i = 0; i < sizeBytes; i++) pair.view[i] = (i * 31 + (i >>> 11)) & 0xff;
    return pair;
  }

  /** Writes to the same place as it comes from. */
  start(offset: number, length: number, remote = this.remote): { transfer: TransferId; done: Promise<void> } {
    const { promise, settle } = deferred();
    const transfer = this.rail.write({
      peer: this.peer,
      segments: [
        { mappingId: this.mapping.id, localOffset: offset, remoteRegionId: remote, remoteOffset: offset, length },
      ],
      onDone: settle,
    });
    return { transfer, done: promise };
  }

  write(offset: number, length: number): Promise<void> {
    return this.start(offset, length).done;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.rail.close();
    await this.target.kill();
    this.mapping.close();
  }
}

/** A promise, and the callback with an optional error that settles it. */
export function deferred(): { promise: Promise<void>; settle: (error?: Error) => void } {
  let settle: (error?: Error) => void = () => undefined;
  const promise = new Promise<void>((resolve, reject) => {
    settle = (error) => (error === undefined ? resolve() : reject(error));
  });
  // A test may look at it late.
  promise.catch(() => undefined);
  return { promise, settle };
}

/** Waits until something is true, at most {@link DEADLINE_MS}. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

async function nextMessage<T>(child: ChildProcess): Promise<T> {
  const [message] = (await once(child, 'message', { signal: AbortSignal.timeout(DEADLINE_MS) })) as [T];
  return message;
}
