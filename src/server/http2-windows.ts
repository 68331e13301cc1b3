/**
 * The HTTP/2 receive windows of the server. grpc-js has an option for a client's windows and none for a server's, which
 * stay at 64 KiB: a PUT of some tens of KiB then waits for the client's reading of WINDOW_UPDATE, and 64 of them do so in turn.
 */

import type { EventEmitter } from 'node:events';
import type { ServerHttp2Session } from 'node:http2';
import type { Server } from '@grpc/grpc-js';
import type { Logger } from 'pino';

/**
 * Of a connection, and of each stream in it. A client can make the server hold so much of each call that it does not read: with
 * the most sessions, 1,024 by default, 512 MiB.
 */
export const RECEIVE_WINDOW_BYTES = 512 * 1024;

/** What grpc-js 1.14 keeps to itself. */
interface ServerInternals {
  readonly commonServerOptions?: { settings?: Record<string, number> };
  readonly http2Servers?: Map<EventEmitter, unknown>;
}

/**
 * Sets the windows of a server's streams; to be called before it listens. Where this grpc-js is another one inside, the
 * windows stay as they are, and the log says so.
 *
 * @returns sets the windows of its connections; to be called when it listens, or has its connection injector
 */
export function growReceiveWindows(grpc: Server, logger: Logger): () => void {
  const { commonServerOptions, http2Servers } = grpc as unknown as ServerInternals;
  if (typeof commonServerOptions !== 'object' || !(http2Servers instanceof Map)) {
    logger.warn('The HTTP/2 windows stay at 64 KiB: this release of @grpc/grpc-js is not known');
    return () => undefined;
  }
  commonServerOptions.settings = { ...commonServerOptions.settings, initialWindowSize: RECEIVE_WINDOW_BYTES };
  return () => {
    for (const server of http2Servers.keys()) {
      server.on('session', (session: ServerHttp2Session) => session.setLocalWindowSize(RECEIVE_WINDOW_BYTES));
    }
  };
}
