/**
 * Opens one session: dials, says Hello, waits for Welcome.
 */

import { Client, credentials, Metadata, type StatusObject } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { clientSessionMethod } from '../protocol/codec.js';
import { FabricKvError } from '../protocol/errors.js';
import type { Hello } from '../protocol/generated/fabrickv/v1/Hello.js';
import { FRAME_BYTES_MAX, KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS } from '../protocol/limits.js';
import type { ServerGreeting } from './protocol-values.js';
import { Session } from './session.js';

/** HTTP/2 windows: with the default 64 KiB inline values are two to four times slower (measured). */
const FLOW_CONTROL_WINDOW_BYTES = 8 * 1024 * 1024;

/** An attempt that gave no session. */
export class SessionRefused extends Error {
  override readonly name = 'SessionRefused';
  constructor(
    /** What the server said, or what we make of it. */
    readonly error: FabricKvError,
    /** How the call ended; undefined when it had not. */
    readonly status: StatusObject | undefined,
  ) {
    super(error.message, { cause: error });
  }
}

/** What the session's owner is told after it has opened. */
export interface OpenSessionEvents {
  /** In the turn in which Welcome has come, before any message after it. */
  onOpen(session: Session, greeting: ServerGreeting): void;
  onGoAway(session: Session, reason: string, drainMs: number): void;
  /** A session that had opened has ended. */
  onEnd(session: Session, error: FabricKvError): void;
}

/** Options of {@link openSession}. */
export interface OpenSessionOptions {
  /** As gRPC takes it. */
  readonly serverAddr: string;
  readonly hello: Hello;
  readonly timeoutMs: number;
  readonly events: OpenSessionEvents;
  readonly logger: Logger;
  /** Gets the session at once, so that its owner can give it up while it opens. */
  readonly onCreated: (session: Session) => void;
}

/**
 * Opens a session over a connection of its own, so that neither another channel's backoff nor its failure is shared.
 *
 * @throws SessionRefused
 */
export function openSession(options: OpenSessionOptions): Promise<Session> {
  const { serverAddr, hello, timeoutMs, events, logger, onCreated } = options;
  const client = new Client(serverAddr, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_retries': 0,
    'grpc.service_config_disable_resolution': 1,
    'grpc.max_receive_message_length': FRAME_BYTES_MAX,
    'grpc.max_send_message_length': FRAME_BYTES_MAX,
    'grpc.keepalive_time_ms': KEEPALIVE_TIME_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc-node.flow_control_window': FLOW_CONTROL_WINDOW_BYTES,
  });
  const { path, serialize, deserialize } = clientSessionMethod;
  const stream = client.makeBidiStreamRequest(path, serialize, deserialize, new Metadata(), {});
  return new Promise((resolve, reject) => {
    let opened = false;
    const timer = setTimeout(() => {
      const late = new FabricKvError('ERR_FABRICKV_CONNECT', `no session within ${timeoutMs} ms`, {
        peer: serverAddr,
      });
      reject(new SessionRefused(late, undefined));
      session.end(late);
    }, timeoutMs);
    const session = new Session({
      client,
      stream,
      logger,
      hello: { operationId: 0, hello },
      events: {
        onOpen: (greeting) => {
          events.onOpen(session, greeting);
          opened = true;
          clearTimeout(timer);
          resolve(session);
        },
        onGoAway: (reason, drainMs) => events.onGoAway(session, reason, drainMs),
        onEnd: (error, status) => {
          clearTimeout(timer);
          if (opened) events.onEnd(session, error);
          else reject(new SessionRefused(error, status));
        },
      },
    });
    onCreated(session);
  });
}
