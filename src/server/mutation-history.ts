/**
 * The recent results of each client's mutations, so that a retry after a reconnect gets the first result and is not
 * applied again. Bounded in clients, in results per client and of all, and in time. Mutations that are being applied are
 * kept apart, and as long as that takes: they are bounded by the operations in flight.
 */

import { IdTable } from '../collections/id-table.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import {
  MUTATION_CLIENTS_MAX,
  MUTATION_RESULT_KEPT_MS,
  MUTATION_RESULTS_MAX,
  MUTATION_RESULTS_PER_CLIENT_MAX,
} from '../protocol/limits.js';
import { turnNowMs } from '../protocol/turn-clock.js';

/** Retries of one mutation that wait for it: a client has one for each session that it lost meanwhile. */
const WAITERS_MAX = 64;

/** Clients that have a table of mutations that are being applied, with none in it. */
const IDLE_TABLES_MAX = 64;

type Waiter = (result: Result | undefined) => void;

/**
 * One client's results, in two generations: the older one goes as a whole when the younger is full or as old as results have
 * to be kept. To strike the oldest off a Map one by one would cost more than a small PUT does, since a Map looks at all that it
 * had before.
 */
class ClientResults {
  private young = new Map<number, Result>();
  private old = new Map<number, Result>();
  private youngSinceMs = 0;
  private lastAtMs = 0;
  /** No result has a higher id: most requests are told by that to be no retries. */
  private idMax = 0;

  get size(): number {
    return this.young.size + this.old.size;
  }

  get(operationId: number, nowMs: number): Result | undefined {
    if (operationId > this.idMax || this.lastAtMs < nowMs - MUTATION_RESULT_KEPT_MS) return undefined;
    return this.young.get(operationId) ?? this.old.get(operationId);
  }

  /** Returns by how much the number of results has changed. */
  add(operationId: number, result: Result, nowMs: number): number {
    const before = this.size;
    const expiredBefore = nowMs - MUTATION_RESULT_KEPT_MS;
    if (this.lastAtMs < expiredBefore) {
      this.old = new Map();
      this.young = new Map();
    } else if (this.young.size >= MUTATION_RESULTS_PER_CLIENT_MAX || this.youngSinceMs < expiredBefore) {
      this.old = this.young;
      this.young = new Map();
    }
    if (this.young.size === 0) this.youngSinceMs = nowMs;
    this.lastAtMs = nowMs;
    if (operationId > this.idMax) this.idMax = operationId;
    else this.old.delete(operationId);
    this.young.set(operationId, result);
    return this.size - before;
  }
}

/** Results by client id and operation id. */
export class MutationHistory {
  // Maps keep insertion order: the first is the oldest.
  private readonly clients = new Map<bigint, ClientResults>();
  /** Tables stay when nothing is left in them, as long as they are few: most clients begin another mutation soon. */
  private readonly pending = new Map<bigint, IdTable<Waiter[]>>();
  /** In all of them. */
  private applying = 0;
  private results = 0;
  /** The client that was used last, which stands last in the map. */
  private last: { readonly clientId: bigint; readonly results: ClientResults } | undefined;

  constructor(private readonly nowMs: () => number = turnNowMs) {}

  /** How many results are kept. */
  get size(): number {
    return this.results;
  }

  /**
   * Looks for an earlier request with the same ids.
   *
   * @param onResult called with its result: at once when it is known, otherwise when it is; with undefined when that
   *   earlier request did not change anything, so that this one may be applied
   * @returns false when there was none; `onResult` is never called then
   */
  find(clientId: bigint, operationId: number, onResult: Waiter): boolean {
    const waiting = this.waiting(clientId, operationId);
    if (waiting !== undefined) {
      waiting.push(onResult);
      return true;
    }
    const results = this.last?.clientId === clientId ? this.last.results : this.clients.get(clientId);
    const result = results?.get(operationId, this.nowMs());
    if (result === undefined) return false;
    onResult(result);
    return true;
  }

  /**
   * Asked before {@link find}: requests that wait for the same mutation are bounded, and wait as long as it takes.
   *
   * @returns the error of one more; undefined while there may be more
   */
  crowd(clientId: bigint, operationId: number): FabricKvError | undefined {
    const waiting = this.waiting(clientId, operationId);
    if (waiting === undefined || waiting.length < WAITERS_MAX) return undefined;
    return new FabricKvError(
      'ERR_FABRICKV_RESOURCE_EXHAUSTED',
      `${WAITERS_MAX} retries of operation ${operationId} wait for its result already`,
      { outcome: 'unknown' },
    );
  }

  /** A mutation that {@link find} does not know is being applied; its outcome follows with {@link settle}. */
  begin(clientId: bigint, operationId: number): void {
    let pending = this.pending.get(clientId);
    if (pending === undefined) {
      pending = new IdTable();
      this.pending.set(clientId, pending);
    }
    if (pending.get(operationId) !== undefined) throw new Error(`mutation ${operationId} is begun twice`);
    pending.set(operationId, []);
    this.applying += 1;
  }

  /** What became of a mutation: its result, or undefined when it changed nothing. */
  settle(clientId: bigint, operationId: number, result: Result | undefined): void {
    const waiting = this.endPending(clientId, operationId);
    if (result !== undefined) this.keep(clientId, operationId, result);
    // The first one may begin it anew; the others then wait for that.
    for (const onResult of waiting) {
      if (result !== undefined || !this.find(clientId, operationId, onResult)) onResult(result);
    }
  }

  private waiting(clientId: bigint, operationId: number): Waiter[] | undefined {
    return this.applying === 0 ? undefined : this.pending.get(clientId)?.get(operationId);
  }

  private endPending(clientId: bigint, operationId: number): readonly Waiter[] {
    if (this.applying === 0) return [];
    const pending = this.pending.get(clientId);
    const waiting = pending?.get(operationId);
    if (pending === undefined || waiting === undefined) return [];
    pending.delete(operationId);
    this.applying -= 1;
    if (pending.size === 0 && this.pending.size > IDLE_TABLES_MAX) this.pending.delete(clientId);
    return waiting;
  }

  private keep(clientId: bigint, operationId: number, result: Result): void {
    let results = this.last?.clientId === clientId ? this.last.results : undefined;
    if (results === undefined) {
      results = this.clients.get(clientId) ?? new ClientResults();
      this.clients.delete(clientId);
      this.clients.set(clientId, results);
      this.last = { clientId, results };
    }
    this.results += results.add(operationId, result, this.nowMs());
    while (this.clients.size > MUTATION_CLIENTS_MAX || this.results > MUTATION_RESULTS_MAX) this.dropOldestClient();
  }

  private dropOldestClient(): void {
    for (const [clientId, results] of this.clients) {
      this.clients.delete(clientId);
      this.results -= results.size;
      if (this.last?.clientId === clientId) this.last = undefined;
      return;
    }
  }
}
