/** What is put under load. Both resolve when the store has answered. */
export interface WorkloadTarget {
  /** @returns the value's length in bytes; -1 when nothing is there. The value's memory is given back before it resolves. */
  get(key: Buffer): Promise<number>;
  put(key: Buffer, value: Buffer): Promise<void>;
}
