/**
 * The limits of the protocol. What a server may set differently it tells in Welcome.
 */

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** The longest time for which an event loop may spin for one answer. */
export const EVENT_LOOP_SPIN_US_MAX = 10_000;

/** The only version of the wire protocol that this release speaks. */
export const PROTOCOL_VERSION = 1;

/** Keys are 1 to 1,024 bytes, any bytes. */
export const KEY_BYTES_MAX = 1024;

/** The largest gRPC message that either side accepts. */
export const FRAME_BYTES_MAX = 1.25 * MIB;

/** The most messages in one frame; counted before the frame is decoded, because decoding a hostile one blocks the loop. */
export const FRAME_MESSAGES_MAX = 4096;

/** A frame is closed and another begun when it has reached this size. Larger frames hurt latency (design notes). */
export const FRAME_BYTES_TARGET = 128 * KIB;

/** Inline values up to this length travel whole in one message, larger ones as Data of at most this length. */
export const DATA_BYTES_MAX = 64 * KIB;

/** The most Data of one session that is handed to gRPC and not yet written out. */
export const DATA_IN_FLIGHT_BYTES_MAX = 256 * KIB;

/** The longest value of the unary calls. */
export const UNARY_VALUE_BYTES_MAX = MIB;

/** The longest extent, and the longest write window. */
export const EXTENT_BYTES_MAX = 16 * MIB;

/** The arena is viewed and registered in segments of at most this size. */
export const ARENA_SEGMENT_BYTES_MAX = GIB;

/** The time that an operation has when its caller does not say. */
export const OPERATION_TIMEOUT_MS_DEFAULT = 30_000;

/** The longest time that an operation may ask for: a uint32 of milliseconds would allow 49 days. */
export const OPERATION_TIMEOUT_MS_MAX = 24 * 60 * 60 * 1000;

/**
 * The server takes the room of a `putStream` back when it has heard nothing of it for this long. The client renews it in time,
 * however long the source is silent.
 */
export const STREAM_SILENCE_MS_MAX = 30_000;

/** Values up to this length travel inline, unless the server or the caller says otherwise: docs/benchmarks.md, "inline-threshold". */
export const INLINE_THRESHOLD_DEFAULT = 32 * KIB;

/** The server keeps the results of a client's mutations this long, so that a retry gets the first result. */
export const MUTATION_RESULT_KEPT_MS = 120_000;

/** So many of a client's last mutation results are kept at least, and twice as many at most; more than it may have in flight and waiting. */
export const MUTATION_RESULTS_PER_CLIENT_MAX = 8192;

/** The most clients whose mutation results are kept. */
export const MUTATION_CLIENTS_MAX = 4096;

/** The most mutation results kept of all clients together, some 250 bytes each: past it the client that was quiet longest goes. */
export const MUTATION_RESULTS_MAX = 262_144;

/** HTTP/2 keepalive of both sides: a ping after this long without traffic, */
export const KEEPALIVE_TIME_MS = 20_000;

/** and the connection is lost when no answer has come after this long. */
export const KEEPALIVE_TIMEOUT_MS = 20_000;

/** A lease that no range has been read under for this long ends. */
export const LEASE_IDLE_MS = 30_000;

/** Leases that one session may have. */
export const LEASES_PER_SESSION_MAX = 256;
