import { IdTable } from '../collections/id-table.js';

/**
 * The loans that are out, whichever backend lent them. A loan is settled by whoever comes first, `release()` or the
 * garbage collector, and by nobody twice.
 */
export class LoanTable {
  readonly #out = new IdTable<() => void>();
  #next = 1;

  /** Enters a loan and names it. */
  add(onReturned: () => void): number {
    const loan = this.#next++;
    this.#out.set(loan, onReturned);
    return loan;
  }

  /** Strikes a loan that never came about, without telling its owner. */
  forget(loan: number): void {
    this.#out.delete(loan);
  }

  /** Tells the owner of a loan that its bytes are back; does nothing when it has been told before. */
  settle(loan: number): void {
    const onReturned = this.#out.get(loan);
    if (onReturned === undefined) return;
    this.#out.delete(loan);
    onReturned();
  }
}
