/**
 * All sessions of a server, up to --max-sessions.
 */

import { randomBytes } from 'node:crypto';
import { ChunkPool } from '../protocol/chunk-pool.js';
import { FabricKvError } from '../protocol/errors.js';
import { QueuedBytes } from '../protocol/frame-writer.js';
import { toStatus } from '../protocol/rpc-errors.js';
import { SharedGate } from './operation-gate.js';
import type { ServerContext } from './server-context.js';
import { Session, type SessionsShare } from './session.js';
import type { SessionStream } from './session-inbox.js';
import { Turns } from './turns.js';

/** Memory for frames that is kept while no session needs it: 4 MiB. */
const CHUNKS_KEPT_MAX = 16;

/** Opens sessions and ends them. */
export class Sessions {
  private readonly open = new Set<Session>();
  /** Of sessions that have ended: what they held of the data plane is being given back. */
  private readonly releasing = new Set<Promise<void>>();
  /** Sessions that have ended, and whose streams still have something to say. */
  private readonly lingering = new Set<Session>();
  private readonly share: SessionsShare;

  constructor(
    private readonly context: ServerContext,
    /** Cuts the connection of a peer. @returns whether there was one by that name */
    private readonly cutPeer: (peer: string) => boolean,
  ) {
    const { limits } = context.settings;
    this.share = {
      gate: new SharedGate(limits.transfersInFlightMax, limits.transfersWaitingMax),
      queued: new QueuedBytes(limits.queuedBytesMax),
      chunks: new ChunkPool(CHUNKS_KEPT_MAX),
      received: { bytes: 0, bytesShared: limits.receivedBytesShared },
      turns: new Turns(),
    };
  }

  /** What all sessions have in hand, for the report. */
  get held(): { readonly transfersWaiting: number; readonly queuedBytes: number; readonly receivedBytes: number } {
    const { gate, queued, received } = this.share;
    return { transfersWaiting: gate.waiting, queuedBytes: queued.bytes, receivedBytes: received.bytes };
  }

  /** How many there are. */
  get count(): number {
    return this.open.size;
  }

  /** Transfers in flight and waiting, of all sessions. */
  get operationsInFlight(): number {
    let sum = 0;
    for (const session of this.open) sum += session.operationsInFlight;
    return sum;
  }

  /** Leases of all sessions. */
  get leases(): number {
    let sum = 0;
    for (const session of this.open) sum += session.leases.count;
    return sum;
  }

  /** The handler of the Session call. */
  readonly handler = (stream: SessionStream): void => {
    const { settings, stopping, counters } = this.context;
    const refusal =
      this.open.size + this.lingering.size >= settings.maxSessions
        ? new FabricKvError(
            'ERR_FABRICKV_RESOURCE_EXHAUSTED',
            `the server has ${settings.maxSessions} sessions (--max-sessions)`,
          )
        : stopping;
    if (refusal !== undefined) {
      counters.failures += 1;
      counters.sessionsRefused += 1;
      stream.on('error', () => stream.destroy());
      stream.emit('error', toStatus(refusal));
      return;
    }
    counters.sessionsOpened += 1;
    this.open.add(
      new Session(this.context, this.share, stream, randomBytes(8).readBigUInt64LE(), {
        onHello: (session) => this.replaceEarlier(session),
        onReceived: () => this.relieve(),
        onGone: (session) => this.lingering.delete(session),
        onStuck: (peer) => {
          const isCut = this.cutPeer(peer);
          if (isCut) counters.connectionsCut += 1;
          return isCut;
        },
        onEnded: (session, released) => {
          this.open.delete(session);
          this.lingering.add(session);
          this.releasing.add(released);
          void released.then(() => this.releasing.delete(released));
        },
      }),
    );
  };

  /**
   * A client has one session. When it comes back before its lost connection is noticed here, the old session ends first:
   * what it still had to read, such as a commit, would otherwise be done beside the client's retry of the same.
   */
  private replaceEarlier(session: Session): void {
    for (const other of [...this.open]) {
      if (other !== session && other.clientId === session.clientId) other.end('the client has opened another session');
    }
  }

  /** What is received and not handled is the memory of the server: when it is too much, whoever has most of it gives it back. */
  private relieve(): void {
    const { receivedBytesMax } = this.context.settings.limits;
    while (this.share.received.bytes > receivedBytesMax) {
      let greediest: Session | undefined;
      for (const session of this.open) {
        if (session.receivedBytes > (greediest?.receivedBytes ?? 0)) greediest = session;
      }
      if (greediest === undefined) return;
      this.context.counters.sessionsEndedForMemory += 1;
      greediest.refuse(
        new FabricKvError(
          'ERR_FABRICKV_RESOURCE_EXHAUSTED',
          `the server holds ${this.share.received.bytes} bytes of requests that wait, ${greediest.receivedBytes} of them of this session`,
        ),
      );
    }
  }

  /** Lets every session end what is in flight, for at most `drainMs`, ends it, and waits for what they all held. */
  async drain(drainMs: number): Promise<void> {
    await Promise.all([...this.open].map((session) => session.drain(drainMs)));
    await Promise.all(this.releasing);
  }
}
