/**
 * The client: what applications use.
 */

import { defaultSourceAddress, mapMemory, sourceAddressFor } from '../fabric/index.js';
import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import { type Key, keyBytes } from '../protocol/keys.js';
import { hex64 } from '../protocol/wire.js';
import { type BatchResult, BatchRunner, batchEntries, batchKeys, distinctKeys, parseBatchOptions } from './batch.js';
import { Core } from './client-core.js';
import type { ConnectionState } from './connection.js';
import type { ClientCounters } from './counters.js';
import { toClientError } from './fabric-errors.js';
import { GetOperation } from './get.js';
import { GetIntoOperation } from './get-into.js';
import type { Operation } from './operation.js';
import {
  type BatchGetOptions,
  type BatchOptions,
  type BatchPutOptions,
  type CallOptions,
  type CallSettings,
  type ClientSettings,
  type GetOptions,
  type KvClientOptions,
  type PutOptions,
  type PutStreamOptions,
  parseCallOptions,
  parseClientOptions,
} from './options.js';
import type { Considered } from './protocol-values.js';
import { PutOperation } from './put.js';
import { memoryFeed } from './put-feed.js';
import type { PutSource } from './put-source.js';
import { PutStreamOperation } from './put-stream.js';
import { type Region, UserRegion } from './region.js';
import { acquireFabric, type FabricLease } from './shared-fabric.js';
import {
  DeleteOperation,
  ExistsOperation,
  type PingInfo,
  PingOperation,
  StatOperation,
  type ValueStat,
} from './simple-operations.js';
import { closeStream, type StreamSource } from './stream-reader.js';
import type { KvValue, PutInfo, ValueInfo } from './value.js';
import { GetStreamOperation, type ValueStream } from './value-stream.js';

/** What can be put: bytes, text as UTF-8, a whole region, or the first `length` bytes of one. They must not change until the call settles. */
export type PutValue = Uint8Array | string | Region | { readonly region: Region; readonly length: number };

/** What `mput` stores: `Object.entries(values)` and `[...map]` have this shape. */
export type PutEntry = readonly [key: Key, value: PutValue];

/** What a client knows of its connection. */
export interface ConnectionInfo {
  readonly state: ConnectionState;
  /** As it was given. */
  readonly serverAddr: string;
  /** 16 hexadecimal digits, of the last session; so is what follows. */
  readonly sessionId: string;
  /** Changes whenever the server process does. */
  readonly serverEpoch: string;
  readonly nodeId: string;
  readonly serverVersion: string;
  /** The longest value that the server takes; bytes. */
  readonly maxValueBytes: number;
  /** Of the data plane; undefined when the session is inline-only. */
  readonly provider: string | undefined;
  /** Why it is inline-only; undefined when it is not. */
  readonly inlineOnlyReason: string | undefined;
  /** What was found out about each provider on this machine. */
  readonly considered: readonly Considered[];
  readonly reconnects: number;
}

/** An operation in flight. */
export interface OperationInfo {
  readonly op: string;
  readonly key: string | undefined;
  readonly requestId: string;
  readonly stage: string;
  readonly stageAgeMs: number;
}

/**
 * A client of one FabricKV server. It keeps one session, opens it again when it is lost, and tries operations again where
 * that is safe. All methods reject with FabricKvError only. An open client keeps the process alive: {@link close} it.
 */
export class KvClient implements AsyncDisposable {
  readonly #core: Core;
  readonly #lease: FabricLease;
  readonly #regions = new Set<UserRegion>();
  readonly #batches: BatchRunner;
  #closing: Promise<void> | undefined;

  private constructor(core: Core, lease: FabricLease) {
    this.#core = core;
    this.#lease = lease;
    this.#batches = new BatchRunner(core);
  }

  /**
   * Connects, and fails fast if that is not possible.
   *
   * @throws ERR_FABRICKV_SETTING, ERR_FABRICKV_CONNECT (saying what can be ruled out), ERR_FABRICKV_NOT_FABRICKV,
   * ERR_FABRICKV_PROTOCOL_VERSION; when a provider is named: ERR_FABRICKV_PROVIDER_MISSING, ERR_FABRICKV_LIBFABRIC_MISSING,
   * ERR_FABRICKV_REGISTRATION
   */
  static async connect(options: KvClientOptions = {}): Promise<KvClient> {
    const settings = parseClientOptions(options);
    const lease = await acquireFabric({
      choice: settings.provider,
      sourceAddresses: await sourceAddressesOf(settings),
      rails: settings.rails,
      spinUs: settings.spinUs,
      cpus: settings.cpus,
      environment: settings.fabricOptions,
    });
    const client = new KvClient(new Core(settings, lease.fabric), lease);
    try {
      await client.#core.connection.connectFirst();
    } catch (error) {
      await client.close();
      throw error;
    }
    return client;
  }

  /** Where and how the client is connected now. */
  get connection(): ConnectionInfo {
    const { connection, settings, fabric, trace } = this.#core;
    const { greeting } = connection;
    return {
      state: connection.state,
      serverAddr: settings.serverAddr,
      sessionId: hex64(greeting?.sessionId ?? 0n),
      serverEpoch: hex64(greeting?.serverEpoch ?? 0n),
      nodeId: greeting?.nodeId ?? '',
      serverVersion: greeting?.serverVersion ?? '',
      maxValueBytes: greeting?.valueBytesMax ?? Number.POSITIVE_INFINITY,
      provider: trace.provider,
      inlineOnlyReason: connection.inlineOnlyReason,
      considered: fabric.considered,
      reconnects: connection.reconnects,
    };
  }

  /**
   * Reads a value; undefined when there is none. Release the result, or drop it.
   *
   * @throws ERR_FABRICKV_CHECKSUM (with `verify`), ERR_FABRICKV_TOO_LARGE_FOR_BUFFER, ERR_FABRICKV_DATA_PLANE, and what every call may fail with:
   * ERR_FABRICKV_INVALID_KEY, ERR_FABRICKV_INVALID_ARGUMENT, ERR_FABRICKV_DEADLINE, ERR_FABRICKV_CANCELLED, ERR_FABRICKV_CONNECTION_LOST,
   * ERR_FABRICKV_RESOURCE_EXHAUSTED, ERR_FABRICKV_CLOSED
   */
  get(key: Key, options?: GetOptions): Promise<KvValue | undefined> {
    return this.#run(options, (call) => new GetOperation(this.#core, keyBytes(key), call));
  }

  /**
   * Reads a value of any length in constant memory, as a stream; undefined when there is none. The stream reads the version that
   * is there now, also when it is overwritten or deleted meanwhile, and goes on after a lost connection with what is
   * missing of it. It always checks the CRC-32C, if the value was stored with one.
   *
   * `timeoutMs` is the time until the promise settles; a stream has no deadline as a whole, but fails when nothing arrives
   * for so long while something should. A consumer may be as slow as it likes.
   *
   * @throws as {@link get}. The stream fails with the same, and with ERR_FABRICKV_VERSION_CHANGED when the connection was lost
   * and the version is gone; with ERR_FABRICKV_CANCELLED when `signal` is aborted
   */
  getStream(key: Key, options?: CallOptions): Promise<ValueStream | undefined> {
    return this.#run(options, (call) => new GetStreamOperation(this.#core, keyBytes(key), call));
  }

  /**
   * Reads a value into the start of a region; undefined when there is none. Zero copy for values that come by RDMA. When the
   * call fails, the region may stay busy: see {@link Region.quiesced}.
   *
   * @throws ERR_FABRICKV_SINK_TOO_SMALL with `details.length`, ERR_FABRICKV_REGION_BUSY, and as {@link get}
   */
  getInto(key: Key, region: Region, options?: GetOptions): Promise<ValueInfo | undefined> {
    return this.#run(options, (call) => new GetIntoOperation(this.#core, keyBytes(key), this.#own(region), call));
  }

  /**
   * Stores a value. A region is sent without a copy. On failure the error's `outcome` says whether the old value is
   * certainly untouched.
   *
   * @throws ERR_FABRICKV_CAPACITY, ERR_FABRICKV_VALUE_TOO_LARGE, ERR_FABRICKV_CHECKSUM, ERR_FABRICKV_GRANT_ENDED, ERR_FABRICKV_REGION_BUSY, and as {@link get}
   */
  put(key: Key, value: PutValue, options?: PutOptions): Promise<PutInfo> {
    return this.#run(options, (call) => {
      const bytes = keyBytes(key);
      return new PutOperation(this.#core, bytes, memoryFeed(this.#source(value)), call);
    });
  }

  /**
   * Stores a value that need not be in memory, in constant memory: a `Readable`, a web `ReadableStream`, an async generator
   * of bytes. It is read no faster than it is sent, and destroyed when the call fails. Given as a function that begins the stream, it is
   * begun anew where the call has to be, after a lost connection; otherwise the call fails then. Values of up to 64 KiB are collected
   * and put as by {@link put}.
   *
   * `timeoutMs` is how long there may be no connection or no progress; the whole may take longer. Time in which there is nothing to do
   * but to wait for the source does not count: abort `signal` to end that.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT when the source gives something else than bytes, not the `length` that was announced, or, to go
   * inline, more than 64 MiB without one; ERR_FABRICKV_SOURCE when it fails, with its error as the cause: these leave the old value
   * untouched. And as {@link put}, where `outcome` says whether it is
   */
  putStream(key: Key, source: StreamSource, options: PutStreamOptions = {}): Promise<PutInfo> {
    const { length, ...rest } = options;
    let begun = false;
    const stored = this.#run(rest, (call) => {
      if (length !== undefined && !(Number.isSafeInteger(length) && length >= 0)) {
        throw new FabricKvError(
          'ERR_FABRICKV_INVALID_ARGUMENT',
          `length is ${length}; it must be an integer from 0 on`,
        );
      }
      const operation = new PutStreamOperation(this.#core, keyBytes(key), source, length, call);
      begun = true;
      return operation;
    });
    if (!begun) closeStream(source);
    return stored;
  }

  /** Deletes a value; resolves with whether there was one. */
  delete(key: Key, options?: CallOptions): Promise<boolean> {
    return this.#run(options, (call) => new DeleteOperation(this.#core, keyBytes(key), call));
  }

  /** Whether there is a value. */
  exists(key: Key, options?: CallOptions): Promise<boolean> {
    return this.#run(options, (call) => new ExistsOperation(this.#core, keyBytes(key), call));
  }

  /**
   * Reads several values; one outcome for each key, in their order, undefined as the value where there is none. Keys may come twice, and are
   * then read twice. What one key fails with fails no other, so the promise is fulfilled also when the time is over or `signal` is aborted:
   * both are those of the whole batch, and what had arrived stays. It is rejected, before anything is sent, when the call makes no sense
   * as a whole; then `details.index` says which key is wrong.
   *
   * No more are under way than the client may have in flight (`maxInFlight`), however many keys there are, up to 32,768
   * (`BATCH_KEYS_MAX`). Keys must not change until it settles.
   *
   * Each large value holds receive memory until it is released (`releaseAll(results)` does it for all); when less than a quarter of that is
   * free, values are copied out, which is slower and takes plain memory. All values are in memory at the same time.
   *
   * @throws ERR_FABRICKV_INVALID_KEY, ERR_FABRICKV_INVALID_ARGUMENT, ERR_FABRICKV_CLOSED; ERR_FABRICKV_RESOURCE_EXHAUSTED when other batches have too many
   * unfinished keys. Each key's reason: as {@link get}
   */
  mget(keys: readonly Key[], options?: BatchGetOptions): Promise<BatchResult<KvValue | undefined>[]> {
    return this.#runBatch(
      options,
      () => batchKeys(keys),
      (key, call) => new GetOperation(this.#core, key, call),
    );
  }

  /**
   * Stores several values, each by itself: some may be stored and others not. Limits, outcomes and rejections are as of {@link mget}. A key that
   * comes twice is refused, since PUTs that are in flight together have no order. Values must not change until it settles, and regions
   * are busy from now on; one that was busy or released already fails its key only.
   *
   * @throws as {@link mget}. Each key's reason: as {@link put}; its `outcome` says whether the old value is certainly untouched
   */
  mput(entries: readonly PutEntry[], options?: BatchPutOptions): Promise<BatchResult<PutInfo>[]> {
    return this.#runBatch(
      options,
      () => batchEntries(entries, (value) => this.#source(value)),
      ({ key, source }, call) => this.#putOperation(key, source, call),
    );
  }

  /**
   * Deletes several values; for each key whether there was one. As {@link mget}, but a key that comes twice is refused.
   *
   * @throws as {@link mget}. Each key's reason: as {@link delete}
   */
  mdelete(keys: readonly Key[], options?: BatchOptions): Promise<BatchResult<boolean>[]> {
    return this.#runBatch(
      options,
      () => distinctKeys(keys),
      (key, call) => new DeleteOperation(this.#core, key, call),
    );
  }

  /**
   * For each of several keys, whether there is a value. As {@link mget}.
   *
   * @throws as {@link mget}. Each key's reason: as {@link exists}
   */
  mexists(keys: readonly Key[], options?: BatchOptions): Promise<BatchResult<boolean>[]> {
    return this.#runBatch(
      options,
      () => batchKeys(keys),
      (key, call) => new ExistsOperation(this.#core, key, call),
    );
  }

  /** What is known of a value without reading it; undefined when there is none. */
  stat(key: Key, options?: CallOptions): Promise<ValueStat | undefined> {
    return this.#run(options, (call) => new StatOperation(this.#core, keyBytes(key), call));
  }

  /** Asks the server how it is. */
  ping(options?: CallOptions): Promise<PingInfo> {
    return this.#run(options, (call) => new PingOperation(this.#core, call));
  }

  /**
   * Memory for {@link getInto} and {@link put}, zeroed, of this client's own.
   *
   * @throws ERR_FABRICKV_INVALID_ARGUMENT, ERR_FABRICKV_MEMORY, ERR_FABRICKV_CLOSED
   */
  async allocate(sizeBytes: number): Promise<Region> {
    this.#assertOpen();
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 1) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        `sizeBytes is ${sizeBytes}; it must be a positive integer`,
      );
    }
    try {
      const mapping = await mapMemory({ sizeBytes, prefault: false });
      const region = new UserRegion(mapping, this, (released) => this.#regions.delete(released));
      if (this.#core.closed) region.close();
      this.#assertOpen();
      this.#regions.add(region);
      return region;
    } catch (error) {
      throw toClientError(error);
    }
  }

  /** What the client has counted. */
  counters(): ClientCounters {
    const { counters, pool, fabric } = this.#core;
    let chunks = 0;
    for (const { rails } of fabric.providers) {
      for (const rail of rails) if (rail.state !== 'closed') chunks += rail.stats().writesPosted;
    }
    return {
      ...counters,
      chunks,
      lentBytes: pool?.lentBytes ?? 0,
      freeBytes: pool?.freeBytes ?? 0,
    };
  }

  /** The operations in flight and waiting, with the stage that each has reached and for how long. */
  operations(): OperationInfo[] {
    return this.#core.operations.toArray().map((operation) => operation.describe());
  }

  /**
   * Ends everything: what is pending rejects with ERR_FABRICKV_CLOSED, memory is given back. Results that were handed out
   * stay valid. Idempotent; takes milliseconds, at most some seconds when the server does not answer.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    const core = this.#core;
    core.closed = true;
    for (const operation of core.operations.toArray()) operation.fail(new FabricKvError('ERR_FABRICKV_CLOSED'));
    try {
      await core.connection.close();
    } finally {
      core.close();
      for (const region of this.#regions) region.close();
      this.#regions.clear();
      await this.#lease.release(() => core.connection.railsClosed());
    }
  }

  #assertOpen(): void {
    if (this.#core.closed) {
      throw new FabricKvError('ERR_FABRICKV_CLOSED', undefined, { peer: this.#core.settings.serverAddr });
    }
  }

  /** Starts an operation; what is wrong with its arguments rejects it too. */
  #run<T>(options: (GetOptions & PutOptions) | undefined, create: (call: CallSettings) => Operation<T>): Promise<T> {
    try {
      this.#assertOpen();
      return create(parseCallOptions(options, this.#core.settings)).start();
    } catch (error) {
      return Promise.reject(toFabricKvError(error));
    }
  }

  /** Starts a batch; what is wrong with the call as a whole rejects it before anything is begun. */
  #runBatch<Item, T>(
    options: (BatchGetOptions & BatchPutOptions) | undefined,
    parse: () => readonly Item[],
    create: (item: Item, call: CallSettings) => Operation<T>,
  ): Promise<BatchResult<T>[]> {
    try {
      this.#assertOpen();
      const call = parseBatchOptions(options, this.#core.settings);
      return this.#batches.run(parse(), call, create);
    } catch (error) {
      return Promise.reject(toFabricKvError(error));
    }
  }

  /** A PUT of a batch: where a region is busy or was released, one that has failed. */
  #putOperation(key: Buffer, source: PutSource, call: CallSettings): PutOperation {
    try {
      return new PutOperation(this.#core, key, memoryFeed(source), call);
    } catch (error) {
      const nothing = memoryFeed({ kind: 'bytes', bytes: new Uint8Array(), length: 0 });
      const failed = new PutOperation(this.#core, key, nothing, call);
      failed.fail(toFabricKvError(error));
      return failed;
    }
  }

  #own(region: Region): UserRegion {
    if (region instanceof UserRegion && region.owner === this) return region;
    throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', "the region is not from this client's allocate()");
  }

  #source(value: PutValue): PutSource {
    if (typeof value === 'string') {
      const bytes = Buffer.from(value, 'utf8');
      return { kind: 'bytes', bytes, length: bytes.length };
    }
    if (value instanceof Uint8Array) return { kind: 'bytes', bytes: value, length: value.length };
    if (value instanceof UserRegion) return { kind: 'region', region: this.#own(value), length: value.sizeBytes };
    if (!(value instanceof Object && 'region' in value)) {
      throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the value is no Uint8Array, string or region');
    }
    const region = this.#own(value.region);
    const { length } = value;
    if (!(Number.isSafeInteger(length) && length >= 0 && length <= region.sizeBytes)) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        `length is ${length}; it must be an integer from 0 to the region's ${region.sizeBytes}`,
      );
    }
    return { kind: 'region', region, length };
  }
}

/** The local addresses of the data plane: as named, or that of the route to the server. */
async function sourceAddressesOf({
  provider,
  fabricAddrs,
  server,
  serverAddr,
}: ClientSettings): Promise<readonly string[]> {
  if (provider === 'none' || fabricAddrs.length > 0) return fabricAddrs;
  if (server.kind === 'unix') return [await defaultSourceAddress()];
  try {
    return [await sourceAddressFor(server.host, server.port)];
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
    const why = code === 'ENOTFOUND' || code.startsWith('EAI') ? 'does not resolve' : 'cannot be reached: no route';
    throw new FabricKvError('ERR_FABRICKV_CONNECT', `the server address ${serverAddr} ${why} (${code})`, {
      peer: serverAddr,
      cause: error,
    });
  }
}
