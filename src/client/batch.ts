/**
 * Batches: many operations of one kind in one call. A session sends what is issued in one turn of the event loop in one frame
 * anyway; what is here is the check of the arguments as a whole, a window that keeps a long batch within the client's limits,
 * and the outcomes in the order of the keys.
 */

import { FabricKvError, toFabricKvError } from '../protocol/errors.js';
import { type Key, keyBytes } from '../protocol/keys.js';
import type { ClientCore, Operation } from './operation.js';
import {
  type BatchGetOptions,
  type BatchPutOptions,
  type CallDefaults,
  type CallSettings,
  parseCallOptions,
} from './options.js';
import type { KvValue } from './value.js';

/** Keys that one batch may have, and that all unfinished batches of one client may have together. */
export const BATCH_KEYS_MAX = 32_768;

/**
 * What became of one key of a batch. The shape is that of `Promise.allSettled`, so that what is written for its results works with
 * these; only the reason is typed.
 */
export type BatchResult<T> =
  | { readonly status: 'fulfilled'; readonly value: T }
  | { readonly status: 'rejected'; readonly reason: FabricKvError };

/** Gives back the memory of all values of an `mget`; see {@link KvValue.release}. */
export function releaseAll(results: readonly BatchResult<KvValue | undefined>[]): void {
  for (const result of results) if (result.status === 'fulfilled') result.value?.release();
}

/**
 * Checks a batch's options and fills in the client's defaults.
 *
 * @throws ERR_FABRICKV_INVALID_ARGUMENT naming the option
 */
export function parseBatchOptions(
  options: (BatchGetOptions & BatchPutOptions) | undefined,
  defaults: CallDefaults,
): CallSettings {
  if (options !== undefined && !(typeof options === 'object' && options !== null)) {
    throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `the options are ${String(options)}, no object`);
  }
  const call = parseCallOptions(options, defaults);
  if (call.onProgress !== undefined) {
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      'a batch takes no onProgress: call get or put for each key',
    );
  }
  return call;
}

/**
 * The keys of a batch as bytes.
 *
 * @throws ERR_FABRICKV_INVALID_KEY, ERR_FABRICKV_INVALID_ARGUMENT: with `details.index` when it is one key that is wrong
 */
export function batchKeys(keys: readonly Key[]): Buffer[] {
  checkArray(keys, 'keys');
  return Array.from(keys, (key, index) => checked(index, () => batchKey(key)));
}

/**
 * As {@link batchKeys}, each key once: mutations of one key that are in flight together have no order.
 *
 * @throws as {@link batchKeys}; for a key that comes again `details.firstIndex` says where it was before
 */
export function distinctKeys(keys: readonly Key[]): Buffer[] {
  const all = batchKeys(keys);
  checkDistinct(all);
  return all;
}

/** A key and what is to be stored under it. */
export interface BatchEntry<Source> {
  readonly key: Buffer;
  readonly source: Source;
}

/**
 * The entries of an `mput`, each key once, and each value through `toSource`.
 *
 * @throws as {@link distinctKeys}, and what `toSource` throws, with the index
 */
export function batchEntries<Value, Source>(
  entries: readonly (readonly [Key, Value])[],
  toSource: (value: Value) => Source,
): BatchEntry<Source>[] {
  checkArray(entries, 'entries');
  const all = Array.from(entries, (entry: unknown, index) =>
    checked(index, () => {
      if (!isPair<Value>(entry)) {
        throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the entry is no array of a key and a value');
      }
      const [key, value] = entry;
      return { key: batchKey(key), source: toSource(value) };
    }),
  );
  checkDistinct(all.map(({ key }) => key));
  return all;
}

/** Operations of one batch that have yet to set out. */
interface Waiting {
  readonly operations: readonly { start(): Promise<unknown> }[];
  next: number;
}

/**
 * Runs the batches of one client. Together they have no more operations under way than the client may have in flight, so that no batch, nor any
 * number of them, exhausts what may wait there. They take turns, key by key: a short one does not wait for a long one.
 */
export class BatchRunner {
  readonly #core: ClientCore;
  /** In the order of their turns. */
  readonly #waiting = new Set<Waiting>();
  /** Operations that have set out and not settled. */
  #underWay = 0;
  /** Operations of all batches that have not settled wholly. */
  #unfinished = 0;

  constructor(core: ClientCore) {
    this.#core = core;
  }

  /**
   * Makes an operation of each item and starts them, at once as far as the window goes. All have the same deadline, since all begin
   * now; one that is waiting for its turn ends at it like any other, and when the client is closed.
   *
   * @returns the outcomes in the order of the items
   * @throws ERR_FABRICKV_RESOURCE_EXHAUSTED when other batches have too many unfinished keys
   */
  run<Item, T>(
    items: readonly Item[],
    call: CallSettings,
    create: (item: Item, call: CallSettings) => Operation<T>,
  ): Promise<BatchResult<T>[]> {
    if (this.#unfinished + items.length > BATCH_KEYS_MAX) {
      throw new FabricKvError(
        'ERR_FABRICKV_RESOURCE_EXHAUSTED',
        `batches with ${this.#unfinished} keys are under way: ${items.length} more would be over ${BATCH_KEYS_MAX}`,
        { outcome: 'not-applied', details: { unfinished: String(this.#unfinished) } },
      );
    }
    const { signal, ...rest } = call;
    // One listener for all: each more on a signal takes longer to add and to remove.
    const each = { ...rest, signal: undefined };
    const operations = items.map((item) => create(item, each));
    return this.#run(operations, signal);
  }

  async #run<T>(operations: readonly Operation<T>[], signal: AbortSignal | undefined): Promise<BatchResult<T>[]> {
    const settled = Promise.allSettled(operations.map(({ promise }) => promise));
    const onAbort = (): void => {
      const error = new FabricKvError('ERR_FABRICKV_CANCELLED', undefined, { cause: signal?.reason });
      // Last ones first: what has not been sent must not be, in the place of one that is given up.
      for (const operation of operations.toReversed()) operation.fail(error);
    };
    this.#unfinished += operations.length;
    if (signal?.aborted === true) onAbort();
    else signal?.addEventListener('abort', onAbort, { once: true });
    if (operations.length > 0) this.#waiting.add({ operations, next: 0 });
    this.#fill();
    const results = await settled;
    signal?.removeEventListener('abort', onAbort);
    this.#unfinished -= operations.length;
    return results;
  }

  #fill(): void {
    while (this.#mayStart()) {
      const [batch] = this.#waiting;
      const operation = batch?.operations[batch.next];
      if (batch === undefined || operation === undefined) return;
      batch.next += 1;
      // Behind the others, or away.
      this.#waiting.delete(batch);
      if (batch.next < batch.operations.length) this.#waiting.add(batch);
      this.#underWay += 1;
      // What has settled meanwhile sends nothing, and is back at once.
      operation.start().then(this.#onSettled, this.#onSettled);
    }
  }

  readonly #onSettled = (): void => {
    this.#underWay -= 1;
    this.#fill();
  };

  /**
   * Whether one more finds a place at the client's gate, which other calls enter as well. With none under way there is nothing to wait
   * for: where others have taken every place, it fails as they would.
   */
  #mayStart(): boolean {
    if (this.#underWay === 0) return true;
    const { gate, settings, connection } = this.#core;
    const ofServer = connection.greeting?.operationsInFlightMax ?? 0;
    const inFlightMax = ofServer > 0 ? Math.min(settings.maxInFlight, ofServer) : settings.maxInFlight;
    return this.#underWay < inFlightMax && gate.inFlight + gate.waiting < inFlightMax + settings.maxWaiting;
  }
}

function checkArray(items: readonly unknown[], name: string): void {
  if (!Array.isArray(items)) throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', `${name} is no array`);
  if (items.length > BATCH_KEYS_MAX) {
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_ARGUMENT',
      `${name} has ${items.length} elements; a batch may have ${BATCH_KEYS_MAX}`,
      { remedy: 'Split it into several batches, one after the other.' },
    );
  }
}

function checkDistinct(keys: readonly Buffer[]): void {
  const seen = new Map<string, number>();
  for (const [index, key] of keys.entries()) {
    // A character for each byte, whatever the bytes are.
    const text = key.toString('latin1');
    const firstIndex = seen.get(text);
    if (firstIndex !== undefined) {
      throw new FabricKvError(
        'ERR_FABRICKV_INVALID_ARGUMENT',
        `index ${index}: the key is that of index ${firstIndex}, and which of the two would be last is not defined`,
        { details: { index: String(index), firstIndex: String(firstIndex) } },
      );
    }
    seen.set(text, index);
  }
}

function batchKey(key: unknown): Buffer {
  if (typeof key === 'string' || key instanceof Uint8Array) return keyBytes(key);
  throw new FabricKvError('ERR_FABRICKV_INVALID_ARGUMENT', 'the key is no string or Uint8Array');
}

function isPair<Value>(entry: unknown): entry is readonly [unknown, Value] {
  return Array.isArray(entry) && entry.length === 2;
}

/** Names the index in what is thrown. */
function checked<T>(index: number, check: () => T): T {
  try {
    return check();
  } catch (error) {
    const { code, message, details } = toFabricKvError(error);
    throw new FabricKvError(code, `index ${index}: ${message}`, {
      cause: error,
      details: { ...details, index: String(index) },
    });
  }
}
