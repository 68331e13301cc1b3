/**
 * What a client counts.
 */

/** Counters of one client since it was connected, and, where it says so, what it holds now. */
export interface ClientCounters {
  /** Operations that were started, of every kind. */
  readonly operations: number;
  /** Operations that failed, for whatever reason. */
  readonly operationsFailed: number;
  /** Values received inside gRPC messages. */
  readonly getsInline: number;
  /** Values received by RDMA write. */
  readonly getsRdma: number;
  /** Values sent inside gRPC messages. */
  readonly putsInline: number;
  /** Values sent by RDMA write. */
  readonly putsRdma: number;
  /** Of those, the ones that went into the session window and needed no grant. */
  readonly putsInWindow: number;
  /** Bytes of values that were copied: into registered memory, out of it, or out of gRPC messages. */
  readonly bytesCopied: number;
  /** RDMA results that were copied into plain Buffers because less than a quarter of the receive memory was free. */
  readonly resultsCopied: number;
  /** RDMA writes that were submitted, each of a piece of a value, retries included. */
  readonly writesPosted: number;
  /** RDMA writes that the client's rails made of them: of all clients of the process that share its rails. */
  readonly chunks: number;
  /** Memory registrations that were made. */
  readonly registrations: number;
  /** Operations or transfers that were tried again. */
  readonly retries: number;
  /** GETs whose sink was too small, and which were asked again. */
  readonly sinksTooSmall: number;
  /** Operations that were given up while the server worked on them. */
  readonly cancels: number;
  /** Sessions that were opened after the first. */
  readonly reconnects: number;
  /** Now: bytes that a GET given up may still be written to. */
  readonly quarantinedBytes: number;
  /** Now: bytes of the receive memory that results handed to the caller hold. */
  readonly lentBytes: number;
  /** Now: bytes of the receive memory that are free. */
  readonly freeBytes: number;
}

type Counter = Exclude<keyof ClientCounters, 'chunks' | 'lentBytes' | 'freeBytes'>;

/** The counters, as their owner writes them. */
export class Counters implements Record<Counter, number> {
  operations = 0;
  operationsFailed = 0;
  getsInline = 0;
  getsRdma = 0;
  putsInline = 0;
  putsRdma = 0;
  putsInWindow = 0;
  bytesCopied = 0;
  resultsCopied = 0;
  writesPosted = 0;
  registrations = 0;
  retries = 0;
  sinksTooSmall = 0;
  cancels = 0;
  reconnects = 0;
  quarantinedBytes = 0;
}
