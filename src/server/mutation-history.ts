/**
 * The recent results of each client's mutations, so that a retry after a reconnect gets the first result and is not
 * applied again. Bounded in clients, in results per client, and in time.
 */

import type { Result } from '../protocol/generated/fabrickv/v1/Result.js';
import { MUTATION_CLIENTS_MAX, MUTATION_RESULT_KEPT_MS, MUTATION_RESULTS_PER_CLIENT_MAX } from '../protocol/limits.js';

interface Entry {
  /** Undefined while the mutation is being applied. */
  result: Result | undefined;
  readonly waiting: ((result: Result | undefined) => void)[];
  readonly atMs: number;
}

/** Results by client id and operation id. */
export class MutationHistory {
  // Maps keep insertion order: the first is the oldest.
  private readonly clients = new Map<bigint, Map<number, Entry>>();

  constructor(private readonly nowMs: () => number = () => performance.now()) {}

  /**
   * Looks for an earlier request with the same ids.
   *
   * @param onResult called with its result: at once when it is known, otherwise when it is; with undefined when that
   *   earlier request did not change anything, so that this one may be applied
   * @returns false when there was none; `onResult` is never called then
   */
  find(clientId: bigint, operationId: number, onResult: (result: Result | undefined) => void): boolean {
    const entry = this.clients.get(clientId)?.get(operationId);
    if (entry === undefined || this.nowMs() - entry.atMs > MUTATION_RESULT_KEPT_MS) return false;
    if (entry.result === undefined) entry.waiting.push(onResult);
    else onResult(entry.result);
    return true;
  }

  /** A mutation is being applied; its outcome follows with {@link settle}. */
  begin(clientId: bigint, operationId: number): void {
    this.entriesOf(clientId).set(operationId, { result: undefined, waiting: [], atMs: this.nowMs() });
  }

  /** What became of a mutation: its result, or undefined when it changed nothing. */
  settle(clientId: bigint, operationId: number, result: Result | undefined): void {
    const entries = this.entriesOf(clientId);
    const waiting = entries.get(operationId)?.waiting ?? [];
    entries.delete(operationId);
    if (result !== undefined) {
      entries.set(operationId, { result, waiting: [], atMs: this.nowMs() });
      this.trim(entries);
    }
    for (const onResult of waiting) onResult(result);
  }

  private entriesOf(clientId: bigint): Map<number, Entry> {
    const entries = this.clients.get(clientId) ?? new Map<number, Entry>();
    // The client that was used last stands last.
    this.clients.delete(clientId);
    this.clients.set(clientId, entries);
    if (this.clients.size > MUTATION_CLIENTS_MAX) {
      const [oldest] = this.clients.keys();
      if (oldest !== undefined) this.clients.delete(oldest);
    }
    return entries;
  }

  private trim(entries: Map<number, Entry>): void {
    const expiredBefore = this.nowMs() - MUTATION_RESULT_KEPT_MS;
    for (const [operationId, entry] of entries) {
      if (entries.size <= MUTATION_RESULTS_PER_CLIENT_MAX && entry.atMs >= expiredBefore) return;
      if (entry.result !== undefined) entries.delete(operationId);
    }
  }
}
