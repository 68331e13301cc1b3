/**
 * gRPC addresses as users write them: `HOST:PORT`, `[IPV6]:PORT`, `unix:/path`.
 */

import { isIP } from 'node:net';
import { FabricKvError } from './errors.js';

/** An address of the control plane. */
export type ControlAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

const HOST_AND_PORT = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/;
const HOST_NAME = /^(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\.?$/i;

/**
 * Reads an address.
 *
 * @throws ERR_FABRICKV_SETTING with what is wrong with it
 */
export function parseControlAddress(text: string): ControlAddress {
  if (text.startsWith('unix:')) {
    const path = text.slice('unix:'.length).replace(/^\/\/(?=\/)/, '');
    if (!path.startsWith('/'))
      throw malformed(text, 'a Unix socket needs an absolute path, as in unix:/run/fabrickv.sock');
    return { kind: 'unix', path };
  }
  const match = HOST_AND_PORT.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (match === null || host === undefined) {
    const hint =
      isIP(text) === 6
        ? `an IPv6 address needs brackets and a port: [${text}]:50051`
        : 'write HOST:PORT, [IPV6]:PORT or unix:/path';
    throw malformed(text, hint);
  }
  if (port > 65_535) throw malformed(text, 'ports go up to 65535');
  const isAddress = match[1] === undefined ? isIP(host) === 4 : isIP(host) === 6;
  if (!isAddress && (match[1] !== undefined || /^[\d.]+$/.test(host) || !HOST_NAME.test(host))) {
    throw malformed(text, `${host} is neither an address nor a host name`);
  }
  return { kind: 'tcp', host, port };
}

/** The address as gRPC takes it, and as people read it. */
export function formatControlAddress(address: ControlAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return isIP(address.host) === 6 ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Whether an IP address listens on every interface. */
export function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}

/** Whether an IP address never leaves the machine. */
export function isLoopback(host: string): boolean {
  return host.startsWith('127.') || host === '::1' || host.startsWith('::ffff:127.');
}

function malformed(text: string, hint: string): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_SETTING', `${JSON.stringify(text)} is not an address: ${hint}`);
}
