/**
 * The loans that are out, whichever backend lent them. A loan is settled by whoever comes first, `release()` or the
 * garbage collector, and by nobody twice.
 */
export class LoanTable {
  readonly #out = new Map<number, { readonly token: number; readonly onReturned: (token: number) => void }>();
  #next = 1;

  /** Enters a loan and names it. */
  add(token: number, onReturned: (token: number) => void): number {
    const loan = this.#next++;
    this.#out.set(loan, { token, onReturned });
    return loan;
  }

  /** Strikes a loan that never came about, without telling its owner. */
  forget(loan: number): void {
    this.#out.delete(loan);
  }

  /** Tells the owner of a loan that its bytes are back; does nothing when it has been told before. */
  settle(loan: number): void {
    const entry = this.#out.get(loan);
    if (entry === undefined) return;
    this.#out.delete(loan);
    entry.onReturned(entry.token);
  }
}
