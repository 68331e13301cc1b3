/**
 * State machines as such: the states are one type, the transitions one table, and every transition is asserted.
 */

import { FabricKvError } from '../protocol/errors.js';

/** Which states may follow which. */
export type Transitions<State extends string> = Readonly<Record<State, readonly State[]>>;

/** Holds one state and lets it change only along its table. */
export class StateMachine<State extends string> {
  #state: State;

  constructor(
    private readonly what: string,
    first: State,
    private readonly transitions: Transitions<State>,
  ) {
    this.#state = first;
  }

  get state(): State {
    return this.#state;
  }

  /**
   * Moves on.
   *
   * @throws ERR_FABRICKV_INTERNAL when the table does not have the transition: a defect of ours
   */
  to(next: State): void {
    if (!this.transitions[this.#state].includes(next)) {
      throw new FabricKvError('ERR_FABRICKV_INTERNAL', `${this.what}: ${this.#state} → ${next} is not a transition`);
    }
    this.#state = next;
  }
}
