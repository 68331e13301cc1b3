import type { FabricError } from './errors.js';
import type { LocalRegionId, PeerId, RemoteAddress, RemoteKey, RemoteRegionId } from './ids.js';
import type { Mapping } from './mapping.js';
import type { ProviderName } from './providers.js';

/** What shapes a rail's traffic; every field has a default per provider. */
export interface RailTuning {
  /**
   * How long the progress thread spins, yielding, after the last event before it sleeps on the CQ's fd; microseconds.
   * `auto`, the default: 50 µs, and 1 ms while it is busy: woken within 1 ms three times in a row.
   */
  readonly spinUs?: number | 'auto';
  /** The longest single write; bytes, 1 MiB by default (512 KiB on EFA), never above the provider's `max_msg_size`. */
  readonly chunkBytes?: number;
  /** Chunks of one transfer that may be in flight; 4 by default (16 on verbs and EFA). */
  readonly chunksInFlight?: number;
  /**
   * Full-size chunks to one peer that may be in flight, counted in bytes, so that small writes pipeline deeper; 4 by
   * default (32 on verbs and EFA).
   */
  readonly chunksInFlightPerPeer?: number;
  /** For tests: say and do what a provider does where only closing the endpoint proves anything. */
  readonly forceQuiescence?: 'close-endpoint';
}

/** Options of {@link openRail}. */
export interface OpenRailOptions extends RailTuning {
  readonly provider: ProviderName;
  /** A numeric local address to bind; tcp and verbs. */
  readonly sourceAddress?: string;
  /** The domain (`rdmap0s6-rdm`, `eth0`) where a provider offers several. */
  readonly domain?: string;
  /** The CPU that the progress thread is bound to; none by default. */
  readonly cpu?: number;
  /** Called once, on the JS thread, when the rail fails by itself. Everything that was pending has been settled then. */
  readonly onFailure?: (failure: FabricError) => void;
  /** For tests: demand local registrations of a provider that needs none. */
  readonly forceLocalRegistration?: boolean;
}

/**
 * What proves that no write of anybody's to a closed region can still land.
 *
 * - `close-region`: `deregister` has resolved.
 * - `fence`: `deregister` and then {@link Rail.prove} have resolved.
 * - `close-endpoint`: only `Rail.close`.
 */
export type QuiescenceProof = 'close-region' | 'fence' | 'close-endpoint';

/** What is peculiar to a rail on EFA. Never run on EFA hardware: docs/efa.md. */
export interface EfaRailInfo {
  /** The libfabric fabric; peers have to use the same one. */
  readonly fabric: 'efa' | 'efa-direct';
  /** Whether reads and writes travel as packets that the target's CPU copies; then only closing the rail proves quiescence. */
  readonly emulatedRead: boolean;
  readonly emulatedWrite: boolean;
  /** Whether every registration is open to remote reads and writes, whatever `register` was asked for: libfabric < 2.5. */
  readonly exposesLocalRegions: boolean;
  /** Sentences for the operator: what was changed in the environment, what is slow, what is open. */
  readonly remarks: readonly string[];
}

/** What a rail turned out to be. */
export interface RailInfo {
  readonly provider: ProviderName;
  /** libfabric's name, as in `tcp;ofi_rxm`. */
  readonly libfabricProvider: string;
  readonly domain: string;
  /** `fi_getname`, and on EFA one byte more: what a peer gives to its `insertPeer`. */
  readonly address: Buffer;
  /** The same in words, for logs. */
  readonly addressText: string;
  /** As in `FI_SOCKADDR_IN`. */
  readonly addressFormat: string;
  readonly maxMessageBytes: number;
  /** Writes that may be in flight at once on this rail. */
  readonly transmitCredits: number;
  /** The longest region that `register` takes; 1 GiB, or what the device takes where that is less. */
  readonly maxRegionBytes: number;
  readonly mrMode: {
    readonly local: boolean;
    readonly virtAddr: boolean;
    readonly allocated: boolean;
    readonly provKey: boolean;
  };
  readonly keyBytes: number;
  /** Whether the source of a write must be registered with `access: "local"`. */
  readonly needsLocalRegistration: boolean;
  readonly quiescence: QuiescenceProof;
  /** How the progress thread waits: on the CQ's fd, or, where there is none, spinning while anything may move. */
  readonly waitMode: 'fd' | 'spin';
  /** The longest single write that this rail posts. */
  readonly chunkBytes: number;
  /** Only on EFA. */
  readonly efa?: EfaRailInfo;
}

/** A memory region that this process registered. */
export interface LocalRegion {
  readonly id: LocalRegionId;
  /** With `key`, what a peer gives to its `defineRemote`. */
  readonly address: RemoteAddress;
  readonly key: RemoteKey;
  readonly length: number;
}

/** Options of {@link Rail.register}. */
export interface RegisterOptions {
  readonly mapping: Mapping;
  readonly offset: number;
  /** At least 1, at most `RailInfo.maxRegionBytes`. */
  readonly length: number;
  /** `local`: the source of our own writes. `remote-write`: peers may write into it, and nothing else. */
  readonly access: 'local' | 'remote-write';
}

/** Options of {@link Rail.defineRemote}. */
export interface RemoteRegionOptions {
  readonly peer: PeerId;
  readonly address: RemoteAddress;
  readonly key: RemoteKey;
  readonly length: number;
}

/** One contiguous piece of a write; offsets and lengths in bytes. */
export interface WriteSegment {
  readonly mappingId: number;
  readonly localOffset: number;
  readonly remoteRegionId: RemoteRegionId;
  readonly remoteOffset: number;
  readonly length: number;
}

/** Options of {@link Rail.write}. */
export interface WriteOptions {
  readonly peer: PeerId;
  /**
   * The pieces, posted in order and completed in any. A Float64Array holds five numbers per piece, in the order of
   * {@link WriteSegment}'s fields; it is read before `write` returns.
   */
  readonly segments: readonly WriteSegment[] | Float64Array;
  /**
   * Called exactly once, on the JS thread, never before `write` has returned: without an error when every byte is
   * visible at the target, else with the first error, after the last chunk in flight has come back.
   */
  readonly onDone: (error?: FabricError) => void;
}

/** Options of {@link Rail.pingPeer}. */
export interface PingOptions {
  readonly peer: PeerId;
  /** A region of the peer's; nothing is written into it, but the peer must have it registered. */
  readonly remoteRegionId: RemoteRegionId;
  /** As in {@link WriteOptions}. */
  readonly onDone: (error?: FabricError) => void;
}

/** A rail's counters since it was opened, and what it holds now. */
export interface RailStats {
  /** Since the progress thread last went round; above some hundred ms, it hangs. */
  readonly heartbeatAgeMs: number;
  readonly writesPosted: number;
  readonly writesCompleted: number;
  readonly writesFailed: number;
  readonly bytesWritten: number;
  /** Posts that the provider put off. */
  readonly eagain: number;
  readonly registrations: number;
  readonly deregistrations: number;
  readonly regionsOpen: number;
  readonly peers: number;
  readonly transfersActive: number;
  /** Wake-ups of the JS thread that were asked for. */
  readonly wakeups: number;
  /** Calls into JavaScript. */
  readonly batches: number;
  /** Times the progress thread slept on the CQ's fd. */
  readonly sleeps: number;
  /** Closes that libfabric refused; each was reported by the call that asked for it. */
  readonly closeFailures: number;
  /** Rounds of {@link Rail.prove} that have ended with a proof. */
  readonly proofs: number;
  /** Connections that were ended to prove something, or by {@link Rail.disconnectPeer}. */
  readonly peersDisconnected: number;
  /** Inbound connections that a proof ended. */
  readonly connectionsEnded: number;
}

/** The fields of {@link RailStats} in the order in which the addon fills them in. */
export const RAIL_STATS_FIELDS = [
  'heartbeatAgeMs',
  'writesPosted',
  'writesCompleted',
  'writesFailed',
  'bytesWritten',
  'eagain',
  'registrations',
  'deregistrations',
  'regionsOpen',
  'peers',
  'transfersActive',
  'wakeups',
  'batches',
  'sleeps',
  'closeFailures',
  'proofs',
  'peersDisconnected',
  'connectionsEnded',
] as const satisfies readonly (keyof RailStats)[];
