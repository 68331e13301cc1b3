/**
 * The listening socket, ours rather than gRPC's, so that a port in use, an address of another host or a stale Unix
 * socket is told as what it is.
 */

import { lstat, readdir, readFile, readlink, unlink } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { type ControlAddress, formatControlAddress } from '../protocol/address.js';
import { FabricKvError } from '../protocol/errors.js';

/** What becomes of connections. */
export interface ConnectionHandlers {
  readonly onConnection: (socket: Socket) => void;
  /** A connection broke, or one could not be accepted; the listener goes on. */
  readonly onError: (error: Error) => void;
  /** The most connections at a time. */
  readonly connectionsMax: number;
  /** One more was closed as soon as it had come. */
  readonly onRefused: () => void;
}

/** A bound socket that accepts from the moment it is asked to. */
export interface Listener {
  /** The address with the port that was really taken. */
  readonly address: ControlAddress;
  /** Hands over connections, those that have come already first. */
  accept(handlers: ConnectionHandlers): void;
  /** Accepts no more; connections that were handed over stay. Resolves when none is left. */
  close(): Promise<void>;
  /** Cuts every connection that is left: a frozen peer would never close its own. */
  cut(): void;
  /** Cuts the connection from an address and port. @returns whether there was one; those of Unix sockets have no names */
  cutPeer(peer: string): boolean;
}

/**
 * Binds an address.
 *
 * @throws ERR_FABRICKV_ADDRESS_IN_USE, ERR_FABRICKV_ADDRESS_UNAVAILABLE
 */
export async function listen(address: ControlAddress): Promise<Listener> {
  const early = new Set<Socket>();
  const connections = new Set<Socket>();
  // One that breaks before anybody has seen it is of no interest.
  let handlers: ConnectionHandlers = {
    onConnection: (socket) => early.add(socket),
    onError: () => undefined,
    connectionsMax: Number.POSITIVE_INFINITY,
    onRefused: () => undefined,
  };
  // Not half-open: a reset that a failed write has swallowed shows as an end, and the session must end with it.
  const server = createServer({ noDelay: true }, (socket) => {
    if (connections.size >= handlers.connectionsMax) {
      socket.destroy();
      handlers.onRefused();
      return;
    }
    connections.add(socket);
    socket.once('close', () => {
      connections.delete(socket);
      early.delete(socket);
    });
    socket.on('error', (error) => handlers.onError(error));
    handlers.onConnection(socket);
  });
  if (address.kind === 'unix') await removeStaleSocket(address);
  await bind(server, address);
  // Such as EMFILE, when there are too many connections to accept one more.
  server.on('error', (error) => handlers.onError(error));
  const bound = server.address();
  return {
    address:
      address.kind === 'tcp' && bound !== null && typeof bound === 'object'
        ? { ...address, port: bound.port }
        : address,
    accept(given) {
      handlers = given;
      for (const socket of early) given.onConnection(socket);
      early.clear();
    },
    close: () =>
      new Promise((resolve) => {
        for (const socket of early) socket.destroy();
        server.close(() => resolve());
      }),
    cut() {
      for (const socket of connections) socket.destroy();
    },
    cutPeer(peer) {
      for (const socket of connections) {
        if (socket.remoteAddress === undefined || `${socket.remoteAddress}:${socket.remotePort}` !== peer) continue;
        socket.destroy();
        return true;
      }
      return false;
    },
  };
}

async function bind(server: Server, address: ControlAddress): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(
        address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port },
        () => {
          server.removeListener('error', reject);
          resolve();
        },
      );
    });
  } catch (error) {
    throw await explain(error, address);
  }
}

async function explain(error: unknown, address: ControlAddress): Promise<FabricKvError> {
  let code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
  // libuv says EACCES for a directory that is not there.
  if (address.kind === 'unix' && code === 'EACCES' && !(await exists(dirname(address.path)))) code = 'ENOENT';
  const where = formatControlAddress(address);
  if (code === 'EADDRINUSE') {
    const holder = address.kind === 'tcp' ? await holderOf(address.port) : undefined;
    const by = holder === undefined ? 'another process' : holder;
    return new FabricKvError('ERR_FABRICKV_ADDRESS_IN_USE', `${where} is in use by ${by}`, { cause: error });
  }
  const reasons: Readonly<Record<string, string>> = {
    EADDRNOTAVAIL: 'is not an address of this machine',
    EACCES:
      address.kind === 'unix'
        ? 'may not be made by this user'
        : 'may not be used by this user (ports below 1024 need a capability)',
    ENOTFOUND: 'is a name that does not resolve',
    EAI_AGAIN: 'is a name that does not resolve at the moment',
    ENOENT: 'is in a directory that does not exist',
  };
  return new FabricKvError(
    'ERR_FABRICKV_ADDRESS_UNAVAILABLE',
    `${where} ${reasons[code] ?? `cannot be used (${code})`}`,
    {
      cause: error,
    },
  );
}

function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}

/** A socket file that nobody listens on any more would be "in use" for ever. Anything else at the path is not ours. */
async function removeStaleSocket(address: ControlAddress & { kind: 'unix' }): Promise<void> {
  const { path } = address;
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new FabricKvError(
      'ERR_FABRICKV_ADDRESS_UNAVAILABLE',
      `${formatControlAddress(address)} is there already, and is no socket`,
    );
  }
  const refused = await new Promise<boolean>((resolve) => {
    const probe = connect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(false);
    });
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
  if (refused) await unlink(path);
}

/** The process that listens on a port, where /proc lets us see it. */
async function holderOf(port: number): Promise<string | undefined> {
  const inode = await listeningInode(port);
  if (inode === undefined) return undefined;
  const processes = (await readdir('/proc').catch(() => [])).filter((name) => /^\d+$/.test(name));
  for (const pid of processes) {
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '');
      if (target !== `socket:[${inode}]`) continue;
      const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'a process');
      return `${name.trim()} (pid ${pid})`;
    }
  }
  return undefined;
}

const LISTEN_STATE = '0A';

async function listeningInode(port: number): Promise<string | undefined> {
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
    const text = await readFile(table, 'utf8').catch(() => '');
    for (const line of text.split('\n').slice(1)) {
      const columns = line.trim().split(/\s+/);
      if (columns[1]?.endsWith(suffix) && columns[3] === LISTEN_STATE) return columns[9];
    }
  }
  return undefined;
}
