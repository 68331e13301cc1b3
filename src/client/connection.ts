/**
 * The connection of a client: one session at a time, opened again with backoff whenever it is lost.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Fabric, FabricProvider, Rail } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Hello } from '../protocol/generated/fabrickv/v1/Hello.js';
import { PROTOCOL_VERSION } from '../protocol/limits.js';
import { fromBigInt, hex64 } from '../protocol/wire.js';
import { explainConnectFailure } from './connect-error.js';
import type { Counters } from './counters.js';
import { DataPlane } from './data-plane.js';
import { toClientError } from './fabric-errors.js';
import type { ClientSettings } from './options.js';
import type { ServerGreeting } from './protocol-values.js';
import type { ReceivePool } from './receive-pool.js';
import type { Session } from './session.js';
import { openSession, SessionRefused } from './session-opener.js';
import { StateMachine, type Transitions } from './state-machine.js';
import { withTimeLimit } from './time-limit.js';

/**
 * - `connecting`: a session is being opened.
 * - `open`: operations go out at once.
 * - `draining`: the server stops; what is in flight ends, new operations wait for the next session.
 * - `lost`: between two attempts; operations wait.
 * - `closed`: for good.
 */
export type ConnectionState = 'connecting' | 'open' | 'draining' | 'lost' | 'closed';

const TRANSITIONS: Transitions<ConnectionState> = {
  connecting: ['open', 'lost', 'closed'],
  open: ['draining', 'lost', 'closed'],
  draining: ['lost', 'closed'],
  lost: ['connecting', 'closed'],
  closed: [],
};

/** Reconnecting waits a random time up to this, */
const BACKOFF_FIRST_MS = 50;
/** which doubles with each failure up to this. */
const BACKOFF_MAX_MS = 2000;

/** How long the proof that an ended session's memory is quiet may take before the next session goes without a data plane. */
const RETIRE_TIMEOUT_MS = 10_000;

/** A draining session is left this long after the time that the server gave it. */
const DRAIN_GRACE_MS = 1000;

/** The part of the time for the first connection that is kept for finding out why there is none. */
const PROBE_SHARE = 0.2;
const PROBE_MS_MAX = 1000;

/** A provider in Hello, with the rails that belong to the session. */
type Offer = Pick<FabricProvider, 'name' | 'rails'>;

/** What waits for a session. */
export interface SessionWaiter {
  /** Called once, with a session that is open. */
  onSession(session: Session): void;
}

/** Options of {@link Connection}. */
export interface ConnectionOptions {
  readonly settings: ClientSettings;
  readonly clientId: bigint;
  readonly fabric: Fabric;
  readonly counters: Counters;
  /** The client's receive pool; made when a session first has a data plane. */
  readonly receivePool: (regionBytesMax: number) => Promise<ReceivePool>;
  /** Welcome has come; before any operation is sent in the session. */
  readonly onGreeting: (greeting: ServerGreeting) => void;
}

/** Keeps a session. */
export class Connection {
  /** How many sessions were opened after the first. */
  reconnects = 0;
  readonly #machine = new StateMachine<ConnectionState>('connection', 'connecting', TRANSITIONS);
  readonly #options: ConnectionOptions;
  readonly #logger: Logger;
  readonly #waiters = new Set<SessionWaiter>();
  readonly #closing = new AbortController();
  #session: Session | undefined;
  #greeting: ServerGreeting | undefined;
  #inlineOnlyReason: string | undefined;
  #lastError: FabricKvError | undefined;
  #drainTimer: NodeJS.Timeout | undefined;
  /** Resolves with whether the memory of all earlier sessions is proved quiet; the next session begins after it. */
  #retired: Promise<boolean> = Promise.resolve(true);
  /** Ended sessions whose memory is not proved quiet. */
  readonly #unproved = new Set<Session>();

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#logger = options.settings.logger;
  }

  get state(): ConnectionState {
    return this.#machine.state;
  }

  /** The last Welcome; undefined before the first. */
  get greeting(): ServerGreeting | undefined {
    return this.#greeting;
  }

  /** The open session, if there is one. */
  get session(): Session | undefined {
    return this.state === 'open' && this.#session?.state === 'open' ? this.#session : undefined;
  }

  /** Why the session has no data plane; undefined when it has one. */
  get inlineOnlyReason(): string | undefined {
    return this.#inlineOnlyReason;
  }

  /** Why there is no session now. */
  get lastError(): FabricKvError | undefined {
    return this.#lastError;
  }

  /**
   * The first connection, which fails fast instead of trying again.
   *
   * @throws ERR_FABRICKV_CONNECT, ERR_FABRICKV_NOT_FABRICKV, ERR_FABRICKV_PROTOCOL_VERSION, or what the server answers
   */
  async connectFirst(): Promise<void> {
    const { server, serverAddr, connectTimeoutMs } = this.#options.settings;
    const probeMs = Math.min(PROBE_MS_MAX, connectTimeoutMs * PROBE_SHARE);
    try {
      await this.#establish(connectTimeoutMs - probeMs);
    } catch (error) {
      const failure =
        error instanceof SessionRefused && isUnexplained(error)
          ? await explainConnectFailure(server, error.status, probeMs)
          : error instanceof SessionRefused
            ? error.error
            : toClientError(error);
      throw failure.with({ peer: serverAddr });
    }
  }

  /** Hands over the open session: at once, or when there is one again. */
  whenOpen(waiter: SessionWaiter): void {
    const session = this.session;
    if (session === undefined) this.#waiters.add(waiter);
    else waiter.onSession(session);
  }

  /** Waits no more. */
  forget(waiter: SessionWaiter): void {
    this.#waiters.delete(waiter);
  }

  /** Leaves the server. Resolves when the stream is over and the session's memory is given back. */
  async close(): Promise<void> {
    if (this.state === 'closed') return;
    this.#machine.to('closed');
    this.#waiters.clear();
    this.#closing.abort();
    clearTimeout(this.#drainTimer);
    const session = this.#session;
    session?.leave('the client is closed');
    await session?.streamEnd();
    await this.#earlierMemoryIsQuiet();
  }

  /** The rails are closed: what no session could prove is so now. */
  railsClosed(): void {
    for (const session of this.#unproved) session.proved();
    this.#unproved.clear();
  }

  async #establish(timeoutMs: number): Promise<void> {
    const { settings } = this.#options;
    const mayUseFabric = await this.#earlierMemoryIsQuiet();
    this.#assertNotClosed();
    const offers = mayUseFabric ? this.#openRails() : [];
    const session = await openSession({
      serverAddr: settings.serverAddr,
      hello: this.#hello(offers),
      timeoutMs,
      logger: this.#logger,
      onCreated: (created) => {
        this.#session = created;
      },
      events: {
        onOpen: (opened, greeting) => this.#onWelcome(opened, greeting, offers, mayUseFabric),
        onGoAway: (_session, reason, drainMs) => this.#onGoAway(reason, drainMs),
        onEnd: (ended, error) => this.#onSessionEnd(ended, error),
      },
    });
    await this.#prepareDataPlane(session);
    this.#assertNotClosed();
    if (session.state !== 'open') throw new FabricKvError('ERR_FABRICKV_CONNECTION_LOST', 'the session ended at once');
    this.#machine.to('open');
    this.#lastError = undefined;
    this.#logConnected(session);
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    // A waiter that finds the session gone again comes back by whenOpen.
    for (const waiter of waiters) this.whenOpen(waiter);
  }

  #assertNotClosed(): void {
    if (this.state === 'closed') throw new FabricKvError('ERR_FABRICKV_CLOSED');
  }

  async #earlierMemoryIsQuiet(): Promise<boolean> {
    try {
      const late = (): Error => new Error('the proof of quiescence takes too long');
      return await withTimeLimit(this.#retired, RETIRE_TIMEOUT_MS, late);
    } catch (error) {
      this.#logger.warn({ err: error }, 'Memory of the last session is not proved quiet');
      return false;
    }
  }

  /** What there is to offer: a rail that has failed by itself is not part of the next session. */
  #openRails(): Offer[] {
    return this.#options.fabric.providers
      .map(({ name, rails }) => ({ name, rails: rails.filter(({ state }) => state === 'open') }))
      .filter(({ rails }) => rails.length > 0);
  }

  #hello(offers: readonly Offer[]): Hello {
    const { settings, clientId } = this.#options;
    return {
      minVersion: PROTOCOL_VERSION,
      maxVersion: PROTOCOL_VERSION,
      features: [],
      clientId: fromBigInt(clientId),
      clientName: settings.clientName,
      providers: offers.map(({ name, rails }) => ({
        name,
        rails: rails.map(({ info }) => ({ address: info.address, format: info.addressFormat })),
      })),
    };
  }

  #onWelcome(session: Session, greeting: ServerGreeting, offers: readonly Offer[], mayUseFabric: boolean): void {
    const { counters, onGreeting } = this.#options;
    this.#greeting = greeting;
    onGreeting(greeting);
    if (greeting.provider === undefined) {
      this.#inlineOnlyReason = this.#reasonForNone(mayUseFabric, greeting.inlineOnlyReason);
      return;
    }
    const [first, ...others]: readonly Rail[] = offers.find(({ name }) => name === greeting.provider)?.rails ?? [];
    if (first === undefined) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server chose ${greeting.provider}, which was not offered`);
    }
    session.dataPlane = new DataPlane({
      provider: greeting.provider,
      rails: [first, ...others],
      serverRails: greeting.rails,
      regionsMax: greeting.regionsMax,
      send: (message) => session.send(message),
      counters,
      logger: this.#logger,
    });
  }

  #reasonForNone(mayUseFabric: boolean, serverReason: string): string {
    const { fabric } = this.#options;
    if (!mayUseFabric) return 'memory of an earlier session is not proved quiet yet';
    if (fabric.choice === 'none') return "the client's provider is none";
    if (fabric.missing !== undefined) return fabric.missing.message;
    if (this.#openRails().length === 0) return "the client's rails have failed";
    return serverReason || 'the server does not say why';
  }

  async #prepareDataPlane(session: Session): Promise<void> {
    const { dataPlane } = session;
    if (dataPlane === undefined) return;
    const { settings, receivePool } = this.#options;
    let isLate = false;
    const late = (): FabricKvError => {
      isLate = true;
      return new FabricKvError(
        'ERR_FABRICKV_REGISTRATION',
        `the data plane was not ready in ${settings.connectTimeoutMs} ms`,
      );
    };
    const prepare = async (): Promise<void> => {
      await dataPlane.insertServer();
      const pool = await receivePool(dataPlane.regionBytesMax);
      await dataPlane.prepareSource(pool.mapping);
      if (isLate) return;
      const memory = await dataPlane.introduce(pool.mapping);
      if (isLate) await dataPlane.withdraw(memory);
      else session.receiveMemory = memory;
    };
    try {
      await withTimeLimit(prepare(), settings.connectTimeoutMs, late);
      this.#inlineOnlyReason = undefined;
    } catch (error) {
      // A provider that was named is never silently done without.
      if (settings.provider !== 'auto') {
        session.end(toClientError(error));
        throw error;
      }
      this.#inlineOnlyReason = toClientError(error).message;
      this.#logger.warn({ err: error }, 'The data plane cannot be used: the session is inline-only');
    }
  }

  #onGoAway(reason: string, drainMs: number): void {
    if (this.state !== 'open') {
      this.#session?.drain();
      return;
    }
    this.#logger.info({ reason, drainMs, peer: this.#options.settings.serverAddr }, 'The server is stopping');
    this.#machine.to('draining');
    const session = this.#session;
    this.#drainTimer = setTimeout(() => session?.leave('the server stopped draining'), drainMs + DRAIN_GRACE_MS);
    session?.drain();
  }

  #onSessionEnd(session: Session, error: FabricKvError): void {
    clearTimeout(this.#drainTimer);
    this.#lastError = error;
    this.#retired = this.#retire(session, this.#retired);
    // While it was being prepared, establish() notices; after close(), nobody has to.
    if (this.state !== 'open' && this.state !== 'draining') return;
    this.#machine.to('lost');
    this.#logger.warn(
      { code: error.code, error: error.message, peer: this.#options.settings.serverAddr },
      'Connection lost',
    );
    void this.#reconnect();
  }

  async #retire(session: Session, earlier: Promise<boolean>): Promise<boolean> {
    this.#unproved.add(session);
    const proved = await session.retire();
    if (proved) this.#unproved.delete(session);
    return (await earlier) && proved;
  }

  async #reconnect(): Promise<void> {
    const { settings, counters } = this.#options;
    for (let failures = 0; ; failures += 1) {
      const backoffMs = Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** failures);
      try {
        await sleep(backoffMs, undefined, { signal: this.#closing.signal });
        this.#machine.to('connecting');
        await this.#establish(settings.connectTimeoutMs);
        this.reconnects += 1;
        counters.reconnects += 1;
        return;
      } catch (error) {
        if (this.#isClosed()) return;
        this.#lastError = error instanceof SessionRefused ? error.error : toClientError(error);
        this.#logger.debug({ err: this.#lastError, failures: failures + 1 }, 'Reconnecting failed');
        if (this.state === 'connecting') this.#machine.to('lost');
      }
    }
  }

  // A method of its own, because the compiler takes a state that was tested once for unchanged over an await.
  #isClosed(): boolean {
    return this.state === 'closed';
  }

  #logConnected(session: Session): void {
    const { settings, fabric } = this.#options;
    const { greeting, dataPlane } = session;
    this.#logger.info(
      {
        peer: settings.serverAddr,
        sessionId: hex64(greeting.sessionId),
        serverEpoch: hex64(greeting.serverEpoch),
        nodeId: greeting.nodeId,
        serverVersion: greeting.serverVersion,
        provider: session.receiveMemory === undefined ? undefined : dataPlane?.provider,
        rails: session.receiveMemory === undefined ? undefined : dataPlane?.railNames,
        inlineOnlyReason: this.#inlineOnlyReason,
        considered: fabric.considered,
      },
      'Connected',
    );
  }
}

/** Whether the error only says that there is no session, and not why. */
function isUnexplained({ error }: SessionRefused): boolean {
  return error.code === 'ERR_FABRICKV_CONNECTION_LOST' || error.code === 'ERR_FABRICKV_CONNECT';
}
