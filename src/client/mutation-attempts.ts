/**
 * At most once: what a mutation may do after a reconnect, and what is known when it fails.
 */

import { FabricKvError, type MutationOutcome } from '../protocol/errors.js';
import { MUTATION_RESULT_KEPT_MS } from '../protocol/limits.js';
import type { Session } from './session.js';

/** The server may have begun to count earlier than the answer was sent: a margin on {@link MUTATION_RESULT_KEPT_MS}. */
const KEPT_MARGIN_MS = 10_000;

/** Follows the message that applies a mutation (Put, PutCommit, Delete) over the attempts to send it. */
export class MutationAttempts {
  /** Of the server process that may have applied it; undefined while nothing that could be applied is out. */
  #sentTo: bigint | undefined;
  #firstSentAtMs = 0;

  /** What is known of the mutation if it fails now. */
  get outcome(): MutationOutcome {
    return this.#sentTo === undefined ? 'not-applied' : 'unknown';
  }

  /** The applying message is about to be sent. */
  sending(session: Session): void {
    if (this.#sentTo !== undefined) return;
    this.#sentTo = session.greeting.serverEpoch;
    this.#firstSentAtMs = performance.now();
  }

  /** The server has answered it with an error: if it says so, nothing was applied and nothing is out any more. */
  answered(error: FabricKvError): void {
    if (error.outcome === 'not-applied') this.#sentTo = undefined;
  }

  /**
   * Why the applying message must not be sent (again) in this session; undefined when it may: it never was, or the
   * server still knows the first result.
   */
  mayApply(session: Session): FabricKvError | undefined {
    if (this.#sentTo === undefined) return undefined;
    if (this.#sentTo !== session.greeting.serverEpoch) {
      return new FabricKvError(
        'ERR_FABRICKV_CONNECTION_LOST',
        'the server was restarted while it worked on the mutation: nobody knows whether it was applied',
        { outcome: 'unknown' },
      );
    }
    if (performance.now() - this.#firstSentAtMs > MUTATION_RESULT_KEPT_MS - KEPT_MARGIN_MS) {
      return new FabricKvError(
        'ERR_FABRICKV_CONNECTION_LOST',
        'the connection was lost for longer than the server remembers results of mutations',
        { outcome: 'unknown' },
      );
    }
    return undefined;
  }
}
