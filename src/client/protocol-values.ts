/**
 * What the server says, converted once from the wire.
 */

import type { ConsideredProvider, ProviderName } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Welcome__Output } from '../protocol/generated/fabrickv/v1/Welcome.js';
import { PROTOCOL_VERSION } from '../protocol/limits.js';
import { toBigInt, toThreshold } from '../protocol/wire.js';

/** One of the server's rails. */
export interface PeerRail {
  readonly address: Buffer;
  readonly format: string;
}

/** Welcome, converted. */
export interface ServerGreeting {
  readonly sessionId: bigint;
  readonly serverEpoch: bigint;
  readonly nodeId: string;
  /** undefined in an inline-only session. */
  readonly provider: ProviderName | undefined;
  readonly rails: readonly PeerRail[];
  readonly inlineOnlyReason: string;
  readonly getInlineThreshold: number;
  readonly putInlineThreshold: number;
  /** 0 where the server does not say. */
  readonly operationsInFlightMax: number;
  readonly regionsMax: number;
  /** Infinity where the server does not say. */
  readonly valueBytesMax: number;
  readonly advertiseAddr: string;
  readonly serverVersion: string;
}

/** Without what doctor alone wants to know. */
export type Considered = Pick<ConsideredProvider, 'provider' | 'available' | 'reason'>;

const PROVIDERS: readonly string[] = ['efa', 'verbs', 'tcp'] satisfies ProviderName[];

/**
 * Converts a Welcome.
 *
 * @throws ERR_FABRICKV_PROTOCOL_VERSION, ERR_FABRICKV_PROTOCOL
 */
export function readGreeting(welcome: Welcome__Output): ServerGreeting {
  if (welcome.version !== PROTOCOL_VERSION) {
    throw new FabricKvError(
      'ERR_FABRICKV_PROTOCOL_VERSION',
      `the server chose version ${welcome.version} of the protocol; this client speaks ${PROTOCOL_VERSION}`,
    );
  }
  const { provider, limits } = welcome;
  if (provider !== '' && (!PROVIDERS.includes(provider) || welcome.rails.length === 0)) {
    throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the server chose provider "${provider}" without rails of it`);
  }
  return {
    sessionId: toBigInt(welcome.sessionId),
    serverEpoch: toBigInt(welcome.serverEpoch),
    nodeId: welcome.nodeId,
    provider: provider === '' ? undefined : (provider as ProviderName),
    rails: welcome.rails.map(({ address, format }) => ({ address, format })),
    inlineOnlyReason: welcome.inlineOnlyReason,
    getInlineThreshold: toThreshold(welcome.getInlineThreshold),
    putInlineThreshold: toThreshold(welcome.putInlineThreshold),
    operationsInFlightMax: limits?.maxOperationsInFlight ?? 0,
    regionsMax: limits?.maxRegions ?? 0,
    valueBytesMax: limits === null ? Number.POSITIVE_INFINITY : toThreshold(limits.maxValueBytes),
    advertiseAddr: welcome.advertiseAddr,
    serverVersion: welcome.serverVersion,
  };
}
