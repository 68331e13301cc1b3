/**
 * The peers' servers, as they are best: in memory alone, without persistence.
 */

import { MIB } from './load-cases.js';
import { MEMCACHED_VALUE_BYTES_MAX } from './peers-cases.js';
import { ServerProcess } from './server-process.js';

const ADDRESS = '127.0.0.1';

/** Allocators and hash tables need room beside the values, and an overwritten value may outlive its successor's arrival. */
const ROOM_FACTOR = 1.5;
const ROOM_BYTES = 512 * MIB;

/** memcached's item limit counts the key and its own header too. */
const ITEM_BYTES_MAX = 2 * MEMCACHED_VALUE_BYTES_MAX;

/** Starts a redis-server for so many bytes of values. @throws Error when there is none, or it does not start */
export function startRedis(storedBytes: number): Promise<ServerProcess> {
  return ServerProcess.start({
    name: 'redis-server',
    command: 'redis-server',
    address: ADDRESS,
    remedy: remedyFor('redis-server'),
    // Its start and its end in ten lines, whatever --loglevel is.
    talkative: true,
    args: (port) => [
      ...['--bind', ADDRESS, '--port', String(port)],
      ...['--save', '', '--appendonly', 'no'],
      ...['--maxmemory', String(roomFor(storedBytes))],
    ],
  });
}

/** Starts a memcached, with its default number of threads, for so many bytes of values. @throws Error as above */
export function startMemcached(storedBytes: number): Promise<ServerProcess> {
  return ServerProcess.start({
    name: 'memcached',
    command: 'memcached',
    address: ADDRESS,
    remedy: remedyFor('memcached'),
    args: (port) => [
      ...['-l', ADDRESS, '-p', String(port)],
      ...['-m', String(roomFor(storedBytes) / MIB), '-I', String(ITEM_BYTES_MAX)],
      // It refuses to run as root unless a user is named.
      ...(process.getuid?.() === 0 ? ['-u', 'nobody'] : []),
    ],
  });
}

/** Whole MiB. */
function roomFor(storedBytes: number): number {
  return Math.ceil((storedBytes * ROOM_FACTOR + ROOM_BYTES) / MIB) * MIB;
}

function remedyFor(debianPackage: string): string {
  return `install what Debian calls ${debianPackage}, or name the other peers with --peer`;
}
