/**
 * All sessions of a server, up to --max-sessions.
 */

import { randomBytes } from 'node:crypto';
import { FabricKvError } from '../protocol/errors.js';
import { toStatus } from '../protocol/rpc-errors.js';
import type { ServerContext } from './server-context.js';
import { Session, type SessionStream } from './session.js';

/** Opens sessions and ends them. */
export class Sessions {
  private readonly open = new Set<Session>();
  /** Of sessions that have ended: what they held of the data plane is being given back. */
  private readonly releasing = new Set<Promise<void>>();

  constructor(private readonly context: ServerContext) {}

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
      this.open.size >= settings.maxSessions
        ? new FabricKvError(
            'ERR_FABRICKV_RESOURCE_EXHAUSTED',
            `the server has ${settings.maxSessions} sessions (--max-sessions)`,
          )
        : stopping;
    if (refusal !== undefined) {
      counters.failures += 1;
      stream.on('error', () => stream.destroy());
      stream.emit('error', toStatus(refusal));
      return;
    }
    counters.sessionsOpened += 1;
    this.open.add(
      new Session(this.context, stream, randomBytes(8).readBigUInt64LE(), {
        onHello: (session) => this.replaceEarlier(session),
        onEnded: (session, released) => {
          this.open.delete(session);
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

  /** Lets every session end what is in flight, for at most `drainMs`, ends it, and waits for what they all held. */
  async drain(drainMs: number): Promise<void> {
    await Promise.all([...this.open].map((session) => session.drain(drainMs)));
    await Promise.all(this.releasing);
  }
}
