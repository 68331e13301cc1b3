/**
 * One client's session: its handshake, its messages, what was granted to it, and its end, with which everything goes.
 */

import { IdTable } from '../collections/id-table.js';
import { FabricError, remoteAddress, remoteKey } from '../fabric/index.js';
import type { ChunkPool } from '../protocol/chunk-pool.js';
import { appendServerMessage } from '../protocol/codec.js';
import { FabricKvError, fromFabricError, toFabricKvError } from '../protocol/errors.js';
import { type DataSource, FrameWriter, type QueuedBytes } from '../protocol/frame-writer.js';
import type { ClientMessage__Output } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Hello__Output } from '../protocol/generated/fabrickv/v1/Hello.js';
import type { Region__Output } from '../protocol/generated/fabrickv/v1/Region.js';
import type { ServerMessage } from '../protocol/generated/fabrickv/v1/ServerMessage.js';
import {
  FRAME_BYTES_MAX,
  FRAME_MESSAGES_MAX,
  KEY_BYTES_MAX,
  OPERATION_TIMEOUT_MS_DEFAULT,
  OPERATION_TIMEOUT_MS_MAX,
  PROTOCOL_VERSION,
} from '../protocol/limits.js';
import { toFailure, toStatus } from '../protocol/rpc-errors.js';
import { type OperationKind, OperationTrace, type Stage, type TraceContext } from '../protocol/stages.js';
import { fromBigInt, fromThreshold, hex64, toBigInt, toSafeInteger, UINT64_MAX } from '../protocol/wire.js';
import type { Negotiated } from './data-plane.js';
import { LeaseTable } from './leases.js';
import type { ActiveOperation, OperationTable } from './operation.js';
import { OperationGate, type SharedGate } from './operation-gate.js';
import { REGIONS_PER_SESSION_MAX } from './options.js';
import type { Peer, PeerRegion } from './peers.js';
import type { ServerContext } from './server-context.js';
import { type InboxOwner, type InboxShare, SessionInbox, type SessionStream } from './session-inbox.js';
import { handleOperation } from './session-operations.js';
import { SessionWindows } from './session-windows.js';

/** What all sessions of a server have together. */
export interface SessionsShare extends InboxShare {
  readonly gate: SharedGate;
  readonly queued: QueuedBytes;
  readonly chunks: ChunkPool;
}

/** `opening` until Hello, `welcoming` until Welcome is sent, `open`, then `ended`. */
type SessionState = 'opening' | 'welcoming' | 'open' | 'ended';

/** What a session tells whoever keeps the sessions. */
export interface SessionEvents {
  /** It knows whose it is. */
  onHello(session: Session): void;
  /** A frame has come that is not handled yet. */
  onReceived(): void;
  /** Told at once; the promise resolves when the session's hold on the data plane is given back, and never rejects. */
  onEnded(session: Session, released: Promise<void>): void;
  /** Its stream is gone, after its end. */
  onGone(session: Session): void;
  /** It has ended, and its peer does not take its last words. @returns whether its connection was cut */
  onStuck(peer: string): boolean;
}

/** A client that says nothing after it has opened a stream is given this long. */
const HELLO_TIMEOUT_MS = 10_000;

const CLIENT_NAME_MAX = 128;

/** So much of the arena, one part in four, may be kept by one session's leases when no key leads to it any more. */
const LEASED_PART_OF_ARENA = 4;

/** One stream, from its Hello to its end. */
export class Session implements OperationTable, InboxOwner {
  readonly id: bigint;
  readonly gate: OperationGate;
  readonly leases: LeaseTable;
  clientId = 0n;
  private state: SessionState = 'opening';
  private readonly writer: FrameWriter<ServerMessage>;
  private readonly operations = new IdTable<ActiveOperation>();
  private readonly regions = new Map<number, PeerRegion>();
  private readonly helloTimer: NodeJS.Timeout;
  private negotiated: Negotiated = { provider: undefined, reason: 'no handshake yet' };
  private traceContext: TraceContext;
  private sessionWindows: SessionWindows | undefined;
  private readonly inbox: SessionInbox;
  private idleCallback: (() => void) | undefined;
  private lingerTimer: NodeJS.Timeout | undefined;
  private isGone = false;

  constructor(
    readonly context: ServerContext,
    share: SessionsShare,
    private readonly stream: SessionStream,
    id: bigint,
    private readonly events: SessionEvents,
  ) {
    this.id = id;
    this.gate = new OperationGate(context.settings.maxInFlight, context.settings.maxWaiting, share.gate);
    this.leases = new LeaseTable({
      supersededBytesMax: context.store.arena.sizeBytes / LEASED_PART_OF_ARENA,
      counters: context.counters,
      onEmpty: () => this.tellIfIdle(),
    });
    this.inbox = new SessionInbox(stream, share, this);
    const onWritable = (writable: boolean): void => this.onWritable(writable);
    this.writer = new FrameWriter(stream, appendServerMessage, onWritable, share.queued, share.chunks);
    this.traceContext = {
      side: 'server',
      requestIdPrefix: '',
      logger: context.logger,
      formatKey: context.formatKey,
      peer: stream.getPeer(),
      provider: undefined,
    };
    this.helloTimer = setTimeout(
      () => this.refuse(new FabricKvError('ERR_FABRICKV_PROTOCOL', `no Hello within ${HELLO_TIMEOUT_MS} ms`)),
      HELLO_TIMEOUT_MS,
    );
    stream.on('end', () => this.end('the client ended the stream'));
    // Also when everything has been said: it is the last that a stream says.
    stream.on('cancelled', () => {
      this.isGone = true;
      this.end('the connection was lost or the client gave it up');
      this.gone();
    });
    stream.on('error', (error: Error) => this.end(error.message));
  }

  /** The data plane of this session, unless it is inline-only. */
  get peer(): Peer | undefined {
    return this.negotiated.provider === undefined ? undefined : this.negotiated.peer;
  }

  get windows(): SessionWindows | undefined {
    return this.sessionWindows;
  }

  /** Operations in flight. */
  get operationsInFlight(): number {
    return this.operations.size;
  }

  get ended(): boolean {
    return this.state === 'ended';
  }

  /** What its requests that wait take. */
  get receivedBytes(): number {
    return this.inbox.heldBytes;
  }

  region(regionId: number): PeerRegion | undefined {
    return this.regions.get(regionId);
  }

  operation(operationId: number): ActiveOperation | undefined {
    return this.operations.get(operationId);
  }

  trace(op: OperationKind, operationId: number, key: Uint8Array | undefined, first: Stage): OperationTrace {
    return new OperationTrace(this.traceContext, op, operationId, key, first);
  }

  send(operationId: number, message: ServerMessage): void {
    message.operationId = operationId;
    this.writer.send(message);
  }

  sendData(source: DataSource<ServerMessage>): void {
    this.writer.sendData(source);
  }

  fail(operationId: number, error: FabricKvError, sinkBusy = false): void {
    if (error.code === 'ERR_FABRICKV_INTERNAL') {
      this.context.logger.error({ err: error, requestId: `${hex64(this.clientId)}-${operationId}` }, 'Internal error');
    }
    this.send(operationId, { result: { failure: toFailure(error, sinkBusy) } });
  }

  /** An operation goes on beyond this turn. */
  started(operationId: number, operation: ActiveOperation): void {
    this.operations.set(operationId, operation);
  }

  finished(operationId: number): void {
    this.operations.delete(operationId);
    this.tellIfIdle();
  }

  /** The time that an operation asks for, within bounds. */
  timeoutMs(deadlineMs: number): number {
    return deadlineMs === 0 ? OPERATION_TIMEOUT_MS_DEFAULT : Math.min(deadlineMs, OPERATION_TIMEOUT_MS_MAX);
  }

  /** The server stops: say so, and end when nothing is in flight or being read any more, or after `drainMs`. */
  async drain(drainMs: number): Promise<void> {
    if (this.state === 'ended') return;
    if (this.state === 'open') {
      this.send(0, { goAway: { reason: 'the server is stopping', drainMs } });
      await this.idle(drainMs);
    }
    this.end('the server is stopping');
  }

  /** Ends the session, and all that was granted to it. Idempotent. */
  end(reason: string, error?: FabricKvError): void {
    if (this.state === 'ended') return;
    this.state = 'ended';
    clearTimeout(this.helloTimer);
    this.writer.flush();
    this.writer.end();
    // What waits must not begin in the place of what is stopped.
    this.gate.close();
    for (const operation of this.operations.toArray()) operation.stop({ kind: 'session-ended' });
    this.leases.close();
    this.idleCallback?.();
    if (error === undefined) this.stream.end();
    else this.stream.emit('error', toStatus(error));
    this.inbox.close();
    this.context.logger.info({ sessionId: hex64(this.id), peer: this.traceContext.peer, reason }, 'Session ended');
    this.events.onEnded(this, this.releasePeer());
    if (!this.isGone) this.lingerTimer = setTimeout(() => this.onLingered(), this.context.settings.limits.lingerMs);
  }

  /** Ends the session for what its client has done. */
  refuse(error: FabricKvError): void {
    if (this.ended) return;
    if (error.code === 'ERR_FABRICKV_INTERNAL') this.context.logger.error({ err: error }, 'Internal error');
    this.context.logger.warn(
      { peer: this.traceContext.peer, code: error.code, error: error.message },
      'Session refused',
    );
    this.context.counters.failures += 1;
    this.end(error.message, error);
  }

  /** A frame waits, whole or in part. */
  onReceived(): void {
    this.events.onReceived();
  }

  /** All that has come is handled. */
  onEmptied(): void {
    this.tellIfIdle();
  }

  onDecoded(messages: number): void {
    this.context.lastFrameMessages = messages;
    this.context.spin.begin();
  }

  private onWritable(writable: boolean): void {
    // A client that does not read is not read from: its results would pile up here.
    if (!writable) this.context.counters.sessionsHeldBack += 1;
    this.inbox.setWritable(writable);
  }

  private gone(): void {
    clearTimeout(this.lingerTimer);
    this.writer.forget();
    this.events.onGone(this);
  }

  private onLingered(): void {
    const peer = this.stream.getPeer();
    const isCut = this.events.onStuck(peer);
    this.context.logger.warn(
      { sessionId: hex64(this.id), peer },
      isCut
        ? 'Nobody reads the last words of a session: its connection is cut'
        : 'Nobody reads the last words of a session, and its connection cannot be told from others: it counts until its client closes it',
    );
  }

  onMessage(message: ClientMessage__Output): void {
    if (this.state === 'opening' && message.body === 'hello' && message.hello) {
      this.state = 'welcoming';
      clearTimeout(this.helloTimer);
      void this.welcome(message.hello);
      return;
    }
    if (this.state !== 'open') {
      this.refuse(new FabricKvError('ERR_FABRICKV_PROTOCOL', 'a session begins with one Hello and waits for Welcome'));
      return;
    }
    try {
      switch (message.body) {
        case 'hello':
          throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'a second Hello in one session');
        case 'bye':
          this.end('the client said Bye');
          break;
        case 'region':
          if (message.region) this.onRegion(message.region);
          break;
        case 'regionEnded':
          if (message.regionEnded) this.onRegionEnded(message.regionEnded.regionId);
          break;
        case 'windowEnded':
          if (message.windowEnded) this.windows?.onEnded(message.windowEnded.windowId);
          break;
        default:
          handleOperation(this, toSafeInteger(message.operationId, 'operation_id'), message);
      }
    } catch (error) {
      this.refuse(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
    }
  }

  private async welcome(hello: Hello__Output): Promise<void> {
    const { context } = this;
    const { settings } = context;
    try {
      if (context.stopping !== undefined) throw context.stopping;
      if (hello.minVersion > PROTOCOL_VERSION || hello.maxVersion < PROTOCOL_VERSION) {
        throw new FabricKvError(
          'ERR_FABRICKV_PROTOCOL_VERSION',
          `the client speaks versions ${hello.minVersion} to ${hello.maxVersion} of the protocol, the server ${PROTOCOL_VERSION}`,
        );
      }
      this.clientId = toBigInt(hello.clientId);
      if (this.clientId === 0n) throw new FabricKvError('ERR_FABRICKV_PROTOCOL', 'Hello without a client_id');
      this.events.onHello(this);
      const negotiated = await this.negotiate(hello);
      if (this.state !== 'welcoming') {
        if (negotiated.provider !== undefined) await negotiated.table.release(negotiated.peer);
        return;
      }
      this.negotiated = negotiated;
      if (negotiated.provider !== undefined) {
        this.sessionWindows = new SessionWindows(this, negotiated.table.rails);
        context.dataPlane.addWindows(this.sessionWindows);
      }
    } catch (error) {
      this.refuse(error instanceof FabricError ? fromFabricError(error) : toFabricKvError(error));
      return;
    }
    const { negotiated } = this;
    const rails = negotiated.provider === undefined ? [] : negotiated.table.rails.map(({ rail }) => rail.info);
    const name = hello.clientName.slice(0, CLIENT_NAME_MAX);
    this.traceContext = {
      ...this.traceContext,
      requestIdPrefix: hex64(this.clientId),
      peer: name === '' ? this.traceContext.peer : `${name}@${this.traceContext.peer}`,
      provider: negotiated.provider,
    };
    this.state = 'open';
    this.send(0, {
      welcome: {
        version: PROTOCOL_VERSION,
        features: [],
        sessionId: fromBigInt(this.id),
        serverEpoch: fromBigInt(context.serverEpoch),
        nodeId: context.nodeId,
        clusterId: '',
        provider: negotiated.provider ?? '',
        rails: rails.map(({ address, addressFormat }) => ({ address, format: addressFormat })),
        inlineOnlyReason: negotiated.provider === undefined ? negotiated.reason : '',
        getInlineThreshold: fromThreshold(settings.getInlineThreshold),
        putInlineThreshold: fromThreshold(settings.putInlineThreshold),
        limits: {
          maxValueBytes: settings.maxValueBytes,
          maxKeyBytes: KEY_BYTES_MAX,
          maxFrameBytes: FRAME_BYTES_MAX,
          maxMessagesPerFrame: FRAME_MESSAGES_MAX,
          maxOperationsInFlight: settings.maxInFlight,
          maxOperationsWaiting: settings.maxWaiting,
          maxRegions: REGIONS_PER_SESSION_MAX,
        },
        advertiseAddr: context.advertiseAddr,
        serverVersion: context.version,
        serverTimeUnixUs: Math.round((performance.timeOrigin + performance.now()) * 1000),
      },
    });
    context.logger.info(
      {
        sessionId: hex64(this.id),
        clientId: hex64(this.clientId),
        peer: this.traceContext.peer,
        provider: negotiated.provider,
        inlineOnlyReason: negotiated.provider === undefined ? negotiated.reason : undefined,
      },
      negotiated.provider === undefined ? 'Session opened, inline only' : 'Session opened',
    );
  }

  private async negotiate(hello: Hello__Output): Promise<Negotiated> {
    try {
      return await this.context.dataPlane.negotiate(hello.providers);
    } catch (error) {
      if (!(error instanceof FabricError)) throw error;
      // The address cannot be a peer's: the control plane still works.
      return { provider: undefined, reason: `the client's fabric address was not accepted: ${error.message}` };
    }
  }

  private onRegion({ regionId, length, rails }: Region__Output): void {
    const { peer } = this;
    if (peer === undefined || rails.length !== peer.railCount) {
      throw new FabricKvError(
        'ERR_FABRICKV_PROTOCOL',
        'Region in a session without a data plane, or without one key for each rail of the client',
      );
    }
    if (this.regions.has(regionId)) throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `region ${regionId} exists`);
    if (this.regions.size >= REGIONS_PER_SESSION_MAX) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        `over ${REGIONS_PER_SESSION_MAX} regions in a session`,
      );
    }
    const lengthBytes = toSafeInteger(length, 'Region.length');
    const keys = rails.map(({ address, rkey }) => ({
      address: remoteAddress(toBigInt(address)),
      key: remoteKey(toBigInt(rkey)),
    }));
    // The rail's table refuses them too, but as a defect of ours.
    if (lengthBytes === 0 || keys.some(({ address }) => address + BigInt(lengthBytes) > UINT64_MAX)) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `region ${regionId} has no bytes, or ends beyond 2^64`);
    }
    this.regions.set(regionId, peer.addRegion(keys, lengthBytes));
  }

  private onRegionEnded(regionId: number): void {
    const region = this.regions.get(regionId);
    if (region === undefined) return;
    this.regions.delete(regionId);
    void region.unused().then(() => {
      this.peer?.removeRegions([region]);
      this.send(0, { regionEnded: { regionId } });
    });
  }

  private async releasePeer(): Promise<void> {
    const { negotiated, windows } = this;
    if (negotiated.provider === undefined) return;
    negotiated.peer.removeRegions(this.regions.values());
    this.regions.clear();
    await Promise.all([windows?.end(), negotiated.table.release(negotiated.peer)]);
    if (windows !== undefined) this.context.dataPlane.forgetWindows(windows);
  }

  /** A client that reads under a lease has more to ask for. */
  private get isIdle(): boolean {
    return this.operations.size === 0 && this.leases.count === 0 && this.inbox.heldBytes === 0;
  }

  private tellIfIdle(): void {
    if (this.idleCallback !== undefined && this.isIdle) this.idleCallback();
  }

  private idle(timeoutMs: number): Promise<void> {
    if (this.isIdle) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.idleCallback = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
