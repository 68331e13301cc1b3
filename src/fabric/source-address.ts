import { createSocket } from 'node:dgram';
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';

/** Documentation addresses (RFC 5737, RFC 3849): no packet is sent to them, only the route is looked up. */
const ANYWHERE_V4 = '192.0.2.1';
const ANYWHERE_V6 = '2001:db8::1';

/**
 * The local address from which this host reaches another: the route is looked up by connecting a UDP socket, which sends
 * nothing.
 *
 * @throws the system's error (`ENETUNREACH`, `ENOTFOUND`) when there is no route or no such host.
 */
export async function sourceAddressFor(host: string, port: number): Promise<string> {
  const { address, family } = isIP(host) ? { address: host, family: isIP(host) } : await lookup(host);
  return new Promise((resolve, reject) => {
    const socket = createSocket(family === 6 ? 'udp6' : 'udp4');
    let failed = false;
    const fail = (error: Error): void => {
      if (failed) return;
      failed = true;
      socket.close();
      reject(error);
    };
    socket.once('error', fail);
    // The callback form reports a failure through it in some versions of Node and through `error` in others.
    socket.connect(port === 0 ? 9 : port, address, (error?: Error) => {
      if (error) {
        fail(error);
        return;
      }
      const local = socket.address().address;
      socket.close();
      resolve(local);
    });
  });
}

/**
 * The address of the default route's interface; without a default route the first address that is not loopback; on a
 * host that has none, 127.0.0.1.
 */
export async function defaultSourceAddress(): Promise<string> {
  for (const anywhere of [ANYWHERE_V4, ANYWHERE_V6]) {
    try {
      return await sourceAddressFor(anywhere, 9);
    } catch (error) {
      // No route in this address family; anything else is not ours to hide.
      if (!(error instanceof Error && 'code' in error)) throw error;
    }
  }
  for (const addresses of Object.values(networkInterfaces())) {
    for (const entry of addresses ?? []) {
      if (!entry.internal && !entry.address.startsWith('fe80:')) return entry.address;
    }
  }
  return '127.0.0.1';
}
