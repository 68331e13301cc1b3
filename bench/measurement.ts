/** What one run of one case came to, on either side. */
export interface Measurement {
  readonly values: number;
  readonly bytes: number;
  readonly seconds: number;
  /** Of the time from the beginning of a value to its end; microseconds. */
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  /** Of both processes together. */
  readonly cpuSeconds: number;
}

/** How long values are begun. */
export interface Duration {
  readonly seconds: number;
  /** The same, before it counts. */
  readonly warmupSeconds: number;
}
