/**
 * One session: one gRPC stream from Hello to its end. Frames out, messages in, each handed to the operation that it is for.
 */

import type { Client, ClientDuplexStream, ServiceError, StatusObject } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { Bag } from '../collections/bag.js';
import { IdTable } from '../collections/id-table.js';
import { appendClientMessage, type Received } from '../protocol/codec.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import { type DataSource, FrameWriter } from '../protocol/frame-writer.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Data__Output } from '../protocol/generated/fabrickv/v1/Data.js';
import type { RailChanged__Output } from '../protocol/generated/fabrickv/v1/RailChanged.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import type { ServerMessage__Output } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import { fromServiceError } from '../protocol/rpc-errors.js';
import { toSafeInteger } from '../protocol/wire.js';
import type { DataPlane, IntroducedMemory } from './data-plane.js';
import { HOLDS_IN_FLIGHT_MAX } from './limits.js';
import { OperationGate } from './operation-gate.js';
import { readGreeting, type ServerGreeting } from './protocol-values.js';
import { StateMachine, type Transitions } from './state-machine.js';

/**
 * - `greeting`: Hello is out.
 * - `open`: Welcome has come; operations may be sent.
 * - `draining`: nothing new is sent; what is in flight goes on.
 * - `ended`: the stream is over, or was given up.
 */
export type SessionState = 'greeting' | 'open' | 'draining' | 'ended';

const TRANSITIONS: Transitions<SessionState> = {
  greeting: ['open', 'ended'],
  open: ['draining', 'ended'],
  draining: ['ended'],
  ended: [],
};

/** What gets an operation's messages. */
export interface SessionHandler {
  /** Its place among those of its session: theirs. */
  sessionPlace: number;
  /** A Result of the operation; more may follow until the handler calls {@link Session.finish}. */
  onResult(result: Result__Output): void;
  /** A piece of an inline value. */
  onData(data: Data__Output): void;
  /** The session ended before the handler had left it. Nothing more comes. */
  onSessionEnd(): void;
}

/** What gets the messages of an operation that was given up, if they bring something that has to be given back. */
export interface LateHandler {
  /** A Result that has crossed the Cancel. */
  onLateResult(result: Result__Output): void;
  /** Nothing more comes. Not called when the session ends before. */
  onQuiesced(): void;
}

/** What a session's owner is told. */
export interface SessionEvents {
  /** Welcome has come. */
  onOpen(greeting: ServerGreeting): void;
  /** The server stops; nothing new may be sent. */
  onGoAway(reason: string, drainMs: number): void;
  /** The session ended. Comes once, after every handler's `onSessionEnd`. */
  onEnd(error: FabricKvError, status: StatusObject | undefined): void;
}

/** Sinks in quarantine whose Quiesced has not come; past it the session is ended, which is another proof. */
const QUIESCING_MAX = 4096;

/** A server that has not answered a cancellation after this long does not work; the session is ended, which is another proof. */
const QUIESCED_TIMEOUT_MS = 10_000;

/** How long a stream may take to end after Bye. */
const BYE_TIMEOUT_MS = 500;

type Stream = ClientDuplexStream<Buffer, Received<ServerMessage__Output>>;

/** Options of {@link Session}. */
export interface SessionOptions {
  /** The session's own; closed with it. */
  readonly client: Client;
  readonly stream: Stream;
  readonly hello: ClientMessage;
  readonly events: SessionEvents;
  readonly logger: Logger;
}

class Attached extends Bag<SessionHandler> {
  protected override placeOf(handler: SessionHandler): number {
    return handler.sessionPlace;
  }

  protected override setPlace(handler: SessionHandler, place: number): void {
    handler.sessionPlace = place;
  }
}

/** One session. */
export class Session {
  /** Set by the owner when Welcome names a provider. */
  dataPlane: DataPlane | undefined;
  /** The receive pool as the server knows it; set by the owner when the data plane is ready. Without it the session is inline-only. */
  receiveMemory: IntroducedMemory | undefined;
  /** What requests that take a lease pass. */
  readonly holds = new OperationGate({
    inFlightMax: HOLDS_IN_FLIGHT_MAX,
    // As many as there are operations, which have a limit of their own.
    waitingMax: Number.POSITIVE_INFINITY,
    what: 'requests for a lease',
  });
  readonly #machine = new StateMachine<SessionState>('session', 'greeting', TRANSITIONS);
  readonly #client: Client;
  readonly #stream: Stream;
  readonly #writer: FrameWriter<ClientMessage>;
  readonly #events: SessionEvents;
  readonly #logger: Logger;
  /** All whose operation this session has, whether it has sent something for them or not. */
  readonly #attached = new Attached();
  /** Those of them that wait for the server. */
  readonly #handlers = new IdTable<SessionHandler>();
  /** Of operations that were given up, until Quiesced. */
  readonly #late = new Map<number, LateHandler>();
  readonly #quiescing = new Map<number, { readonly onQuiet: () => void; readonly sinceMs: number }>();
  /** What may be done once it is proved that the server writes no more. */
  readonly #whenProved: (() => void)[] = [];
  #isProved = false;
  #greeting: ServerGreeting | undefined;
  #byeTimer: NodeJS.Timeout | undefined;
  #quiescedTimer: NodeJS.Timeout | undefined;
  #streamEnded = false;
  #onStreamEnd: (() => void) | undefined;

  constructor({ client, stream, hello, events, logger }: SessionOptions) {
    this.#client = client;
    this.#stream = stream;
    this.#events = events;
    this.#logger = logger;
    this.#writer = new FrameWriter(stream, appendClientMessage);
    stream.on('data', (received: Received<ServerMessage__Output>) => this.#receive(received));
    // Always followed by 'status', which says the same.
    stream.on('error', (error: ServiceError) => this.#logger.debug({ err: error }, 'Session stream failed'));
    stream.on('status', (status: StatusObject) => this.#onStatus(status));
    this.#writer.send(hello);
  }

  get state(): SessionState {
    return this.#machine.state;
  }

  /** What the server said in Welcome. */
  get greeting(): ServerGreeting {
    if (this.#greeting === undefined) throw new FabricKvError('ERR_FABRICKV_INTERNAL', 'no Welcome yet');
    return this.#greeting;
  }

  /** An operation is to run in this session: it is told when the session ends, until {@link detach}. */
  attach(handler: SessionHandler): void {
    this.#attached.add(handler);
  }

  /** The operation wants nothing more of the session. A draining session ends with the last one. Idempotent. */
  detach(handler: SessionHandler): void {
    this.#attached.delete(handler);
    if (this.state === 'draining' && this.#attached.size === 0) this.leave('drained');
  }

  /**
   * Sends the first message of an attached operation, whose answers go to the handler. In a draining session only what
   * belongs to something begun before: a range under a lease.
   */
  begin(handler: SessionHandler, operationId: number, message: ClientMessage): void {
    if (this.state !== 'open' && this.state !== 'draining') {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', `begin in a session that is ${this.state}`);
    }
    this.#handlers.set(operationId, handler);
    this.send(message);
  }

  /** Sends a further message. Does nothing when the session is over. */
  send(message: ClientMessage): void {
    if (this.state === 'ended') return;
    this.#writer.send(message);
  }

  /** Sends a large value, piece by piece, behind everything else, until the source has no more. */
  sendData(source: DataSource<ClientMessage>): void {
    this.#writer.sendData(source);
  }

  /** The request is over: what still comes for it is dropped. */
  finish(operationId: number): void {
    this.#handlers.delete(operationId);
  }

  /** Gives an operation up that the server may be working on; {@link awaitQuiesced} tells when it does so no more. */
  cancel(operationId: number, late?: LateHandler): void {
    if (this.state === 'ended') return;
    this.send({ operationId, cancel: {} });
    this.finish(operationId);
    if (late !== undefined) this.#late.set(operationId, late);
  }

  /** Calls back when Quiesced has come for the operation, or the session is over and its quiescence proved. */
  awaitQuiesced(operationId: number, onQuiet: () => void): void {
    if (this.state !== 'ended') {
      this.#quiescing.set(operationId, { onQuiet, sinceMs: performance.now() });
      this.#quiescedTimer ??= setTimeout(() => this.#checkQuiescing(), QUIESCED_TIMEOUT_MS);
      if (this.#quiescing.size > QUIESCING_MAX) this.#endUnquiesced(`${QUIESCING_MAX} cancellations`);
    } else if (this.#isProved) onQuiet();
    else this.#whenProved.push(onQuiet);
  }

  /** Nothing new may be sent. Ends the session when no operation is in it. */
  drain(): void {
    if (this.state !== 'open') return;
    this.#machine.to('draining');
    // Those who wait for their turn find the next session.
    this.holds.open();
    if (this.#attached.size === 0) this.leave('drained');
  }

  /** Says Bye and ends the session at once, for us. */
  leave(reason: string): void {
    if (this.state === 'ended') return;
    const greeted = this.state !== 'greeting';
    if (greeted) {
      this.send({ operationId: 0, bye: {} });
      this.#writer.flush();
    }
    this.#finishSession(
      new FabricKvError('ERR_FABRICKV_CONNECTION_LOST', `the session has ended: ${reason}`),
      undefined,
    );
    if (this.#streamEnded) return;
    if (!greeted) {
      this.#stream.cancel();
      return;
    }
    this.#stream.end();
    this.#byeTimer = setTimeout(() => this.#stream.cancel(), BYE_TIMEOUT_MS);
  }

  /** Ends the session because of an error, ours or the server's. */
  end(error: FabricKvError): void {
    if (this.state === 'ended') return;
    this.#finishSession(error, undefined);
    if (!this.#streamEnded) this.#stream.cancel();
  }

  /** Resolves when the stream is over and its connection closed; at most 500 ms after {@link leave}. */
  streamEnd(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#streamEnded) resolve();
      else this.#onStreamEnd = resolve;
    });
  }

  /**
   * Ends the session's data plane. To be called once, after the end.
   *
   * @returns whether nothing is written any more: that is proved, and what waited for it has been called, or nothing was
   * waiting for it. What does wait is called by {@link proved}
   */
  async retire(): Promise<boolean> {
    const proved = await this.#retireDataPlane();
    if (proved) this.proved();
    if (this.#whenProved.length === 0) return true;
    this.#logger.warn(
      { sinks: this.#whenProved.length },
      'Receive memory stays in quarantine: it cannot be proved that the server writes to it no more',
    );
    return false;
  }

  /** Nothing is written any more: calls what waited for that. */
  proved(): void {
    this.#isProved = true;
    for (const onQuiet of this.#whenProved.splice(0)) {
      try {
        onQuiet();
      } catch (error) {
        this.#logger.error({ err: toFabricKvError(error) }, 'Giving memory back after the end of a session failed');
      }
    }
  }

  async #retireDataPlane(): Promise<boolean> {
    if (this.dataPlane === undefined) return true;
    try {
      return await this.dataPlane.retire();
    } catch (error) {
      this.#logger.error({ err: error }, 'Ending the data plane failed');
      return false;
    }
  }

  #receive(received: Received<ServerMessage__Output>): void {
    if (this.state === 'ended') return;
    if (received instanceof FabricKvError) {
      this.end(received);
      return;
    }
    try {
      for (const message of received) this.#dispatch(message);
    } catch (error) {
      this.end(toFabricKvError(error));
    }
  }

  #dispatch(message: ServerMessage__Output): void {
    const operationId = toSafeInteger(message.operationId, 'operation_id');
    switch (message.body) {
      case 'result':
        if (message.result) this.#onResult(operationId, message.result);
        break;
      case 'data':
        if (message.data) this.#handlers.get(operationId)?.onData(message.data);
        break;
      case 'quiesced': {
        const quiescing = this.#quiescing.get(operationId);
        this.#quiescing.delete(operationId);
        this.#late.get(operationId)?.onQuiesced();
        this.#late.delete(operationId);
        quiescing?.onQuiet();
        break;
      }
      case 'welcome':
        if (!message.welcome || this.state !== 'greeting') throw outOfTurn('Welcome');
        this.#greeting = readGreeting(message.welcome);
        this.#machine.to('open');
        this.#events.onOpen(this.#greeting);
        break;
      case 'goAway':
        this.#events.onGoAway(message.goAway?.reason ?? '', message.goAway?.drainMs ?? 0);
        break;
      case 'regionEnded':
        if (message.regionEnded) this.dataPlane?.onRegionEnded(message.regionEnded.regionId);
        break;
      case 'windowOffer':
        if (!message.windowOffer || this.dataPlane === undefined) throw outOfTurn('WindowOffer');
        this.dataPlane.windows.offered(message.windowOffer);
        break;
      case 'windowRevoke':
        if (message.windowRevoke) this.dataPlane?.windows.revoked(message.windowRevoke);
        break;
      case 'railChanged':
        if (!message.railChanged || this.dataPlane === undefined) throw outOfTurn('RailChanged');
        void this.#onRailChanged(this.dataPlane, message.railChanged);
        break;
      default:
        // A later release's message: never the end of a session.
        this.#logger.debug({ body: message.body }, 'Ignored a message of an unknown kind');
    }
    if (this.#greeting === undefined) throw outOfTurn(message.body ?? 'an empty message');
  }

  #onResult(operationId: number, result: Result__Output): void {
    const handler = this.#handlers.get(operationId);
    if (handler === undefined) this.#late.get(operationId)?.onLateResult(result);
    else handler.onResult(result);
  }

  async #onRailChanged(dataPlane: DataPlane, changed: RailChanged__Output): Promise<void> {
    try {
      await dataPlane.onRailChanged(changed);
    } catch (error) {
      // A session that cannot write any more begins anew.
      this.end(toFabricKvError(error));
    }
  }

  #checkQuiescing(): void {
    this.#quiescedTimer = undefined;
    const [oldest] = this.#quiescing.values();
    if (oldest === undefined) return;
    const leftMs = oldest.sinceMs + QUIESCED_TIMEOUT_MS - performance.now();
    if (leftMs <= 1) this.#endUnquiesced('a cancellation');
    else this.#quiescedTimer = setTimeout(() => this.#checkQuiescing(), leftMs);
  }

  #endUnquiesced(what: string): void {
    this.end(new FabricKvError('ERR_FABRICKV_CONNECTION_LOST', `the server did not answer ${what}`));
  }

  #onStatus(status: StatusObject): void {
    this.#streamEnded = true;
    clearTimeout(this.#byeTimer);
    const said = errorInside(status);
    const what = this.state === 'greeting' ? 'no session' : 'the session has ended';
    const lost = new FabricKvError(
      'ERR_FABRICKV_CONNECTION_LOST',
      `${what}: ${status.details || 'the server ended it'}`,
    );
    this.#finishSession(said ?? lost, status);
    this.#client.close();
    this.#onStreamEnd?.();
  }

  #finishSession(error: FabricKvError, status: StatusObject | undefined): void {
    if (this.state === 'ended') return;
    this.#machine.to('ended');
    this.#writer.end();
    clearTimeout(this.#quiescedTimer);
    for (const { onQuiet } of this.#quiescing.values()) this.#whenProved.push(onQuiet);
    this.#quiescing.clear();
    this.#late.clear();
    const handlers = this.#attached.takeAll();
    this.#handlers.clear();
    for (const handler of handlers) handler.onSessionEnd();
    this.holds.open();
    this.#events.onEnd(error, status);
  }
}

/** Details that cannot be read are as good as none. */
function errorInside(status: StatusObject): FabricKvError | undefined {
  try {
    return fromServiceError(Object.assign(new Error(status.details), status));
  } catch (error) {
    return new FabricKvError('ERR_FABRICKV_PROTOCOL', 'the status of the session cannot be read', { cause: error });
  }
}

function outOfTurn(what: string): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server sent ${what} out of turn`);
}
