/**
 * Why a first connection did not come about: what can be ruled out is ruled out by trying it, not by reading messages.
 */

import { lookup } from 'node:dns/promises';
import { connect } from 'node:http2';
import { type StatusObject, status } from '@grpc/grpc-js';
import { type ControlAddress, formatControlAddress } from '../protocol/address.js';
import { FabricKvError } from '../protocol/errors.js';

/** How far a bare HTTP/2 connection came. */
type Reached =
  | { readonly step: 'unresolved' | 'refused' | 'unreachable'; readonly error: Error }
  | { readonly step: 'silent' | 'accepted' | 'http2' }
  | { readonly step: 'not-http2'; readonly error: Error };

/**
 * Says what is wrong with an address that gave no session.
 *
 * @param ended how the gRPC call ended; undefined when it did not within its time
 * @param budgetMs how long the probe may take
 */
export async function explainConnectFailure(
  address: ControlAddress,
  ended: StatusObject | undefined,
  budgetMs: number,
): Promise<FabricKvError> {
  const at = formatControlAddress(address);
  if (ended !== undefined && ended.code !== status.UNAVAILABLE && ended.code !== status.CANCELLED) {
    return new FabricKvError(
      'ERR_FABRICKV_NOT_FABRICKV',
      `${at} answers, but not as a FabricKV server: gRPC status ${status[ended.code]}${ended.details && `, "${ended.details}"`}`,
      { peer: at },
    );
  }
  const reached = await probe(address, budgetMs);
  switch (reached.step) {
    case 'unresolved':
      return failure(at, `the name in ${at} does not resolve (${codeOf(reached.error)})`, reached.error);
    case 'refused':
      return failure(
        at,
        `connection to ${at} refused (${codeOf(reached.error)}): the machine answers, so the network and any firewall that drops packets are ruled out; no server listens at that port`,
        reached.error,
      );
    case 'unreachable':
      return failure(at, `${at} cannot be reached (${codeOf(reached.error)})`, reached.error);
    case 'silent':
      return failure(
        at,
        `no answer from ${at}: packets are dropped, by a firewall or security group, or because the machine is down; a server that is merely not running would have refused`,
      );
    case 'accepted':
      return failure(
        at,
        `${at} accepts TCP connections but does not answer: the process there is frozen or overloaded, or is another kind of server; the network is ruled out`,
      );
    case 'not-http2':
      return new FabricKvError('ERR_FABRICKV_NOT_FABRICKV', `${at} accepts connections but does not speak HTTP/2`, {
        peer: at,
        cause: reached.error,
      });
    case 'http2':
      return failure(
        at,
        `${at} speaks HTTP/2, but the session did not open${ended === undefined ? ' in time' : `: ${ended.details}`}`,
      );
  }
}

function failure(peer: string, message: string, cause?: Error): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_CONNECT', message, { peer, cause });
}

function codeOf(error: Error): string {
  return 'code' in error ? String(error.code) : error.message;
}

const UNREACHABLE: readonly string[] = ['EHOSTUNREACH', 'ENETUNREACH', 'EADDRNOTAVAIL', 'EACCES', 'ETIMEDOUT'];
const REFUSED: readonly string[] = ['ECONNREFUSED', 'ENOENT'];

async function probe(address: ControlAddress, budgetMs: number): Promise<Reached> {
  if (address.kind === 'tcp') {
    try {
      await lookup(address.host);
    } catch (error) {
      return { step: 'unresolved', error: error instanceof Error ? error : new Error(String(error)) };
    }
  }
  return new Promise((resolve) => {
    let connected = false;
    const session =
      address.kind === 'unix'
        ? connect('http://localhost', { path: address.path })
        : connect(`http://${formatControlAddress(address)}`);
    const done = (reached: Reached): void => {
      clearTimeout(timer);
      session.destroy();
      resolve(reached);
    };
    const timer = setTimeout(() => done({ step: connected ? 'accepted' : 'silent' }), budgetMs);
    session.once('connect', () => {
      connected = true;
    });
    session.once('remoteSettings', () => done({ step: 'http2' }));
    session.once('close', () => {
      done(
        connected ? { step: 'not-http2', error: new Error('the connection was closed at once') } : { step: 'silent' },
      );
    });
    // Stays for what comes after the first one: an 'error' without a listener would end the process.
    session.on('error', (error: Error) => {
      const code = codeOf(error);
      if (REFUSED.includes(code)) done({ step: 'refused', error });
      else if (UNREACHABLE.includes(code)) done({ step: 'unreachable', error });
      else done({ step: connected ? 'not-http2' : 'unreachable', error });
    });
  });
}
