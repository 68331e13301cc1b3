/**
 * The life of a kv-server process, from its settings to its end.
 */

import type { Logger } from 'pino';
import { KvServer } from '../server/index.js';
import { clientSettings } from './client-settings.js';
import { SIGNAL_EXIT } from './exit-codes.js';
import type { CommandIo } from './io.js';
import { createLogger } from './logging.js';
import { type ServerSettings, serverSettings } from './server-settings.js';
import { variableOf } from './settings.js';
import { nearest } from './suggestion.js';

/**
 * Serves until the process is asked to stop.
 *
 * @returns 0 when it has stopped as asked
 * @throws what KvServer.start throws
 */
export async function serve({ values }: ServerSettings, io: CommandIo): Promise<number> {
  const { logger, flush } = await createLogger({
    name: 'kv-server',
    level: values['log-level'],
    format: values['log-format'],
    isTerminal: io.stderr.isTTY === true,
    sync: false,
  });
  const defect = (error: unknown): void => {
    logger.fatal({ err: error }, 'A defect of FabricKV ends the server; report it with this log');
    flush();
    process.exit(1);
  };
  process.on('uncaughtException', defect);
  const signals = listenForSignals(logger, flush);
  try {
    const starting = KvServer.start({
      listenAddr: values['listen-addr'],
      advertiseAddr: values['advertise-addr'],
      ...(values['fabric-addr'].length === 0 ? {} : { fabricAddrs: values['fabric-addr'] }),
      memoryBytes: values.memory,
      provider: values.provider,
      rails: values.rails,
      spinUs: values['spin-us'],
      eventLoopSpinUs: values['event-loop-spin-us'],
      progressCpus: values['progress-cpus'],
      numaNode: values['numa-node'],
      maxQuarantineBytes: values['max-quarantine'],
      fabricOptions: values['fabric-option'],
      inlineThreshold: values['inline-threshold'],
      maxValueBytes: values['max-value'],
      maxSessions: values['max-sessions'],
      maxInFlight: values['max-inflight'],
      maxWaiting: values['max-waiting'],
      drainMs: values.drain,
      logger,
      redactKeys: values['redact-keys'],
    });
    const server = await Promise.race([starting, signals.first]);
    // Nobody has been served yet, so there is nothing to drain.
    if (typeof server === 'string') return 0;
    warnAboutVariables(io, logger);
    const signal = await signals.first;
    logger.info({ signal, drainMs: values.drain }, 'Asked to stop');
    await server.stop();
    return 0;
  } finally {
    signals.end();
    process.off('uncaughtException', defect);
    flush();
  }
}

interface Signals {
  /** Settles at the first signal that asks the process to stop. */
  readonly first: Promise<NodeJS.Signals>;
  end(): void;
}

/** The first signal asks for a graceful end, the second one ends the process at once. */
function listenForSignals(logger: Logger, flush: () => void): Signals {
  const names = ['SIGTERM', 'SIGINT'] as const;
  let seen = false;
  let tell: (signal: NodeJS.Signals) => void = () => undefined;
  const first = new Promise<NodeJS.Signals>((resolve) => {
    tell = resolve;
  });
  const onSignal = (signal: NodeJS.Signals): void => {
    if (!seen) {
      seen = true;
      tell(signal);
      return;
    }
    logger.warn({ signal }, 'Stopping at once');
    flush();
    process.exit(signal === 'SIGINT' ? SIGNAL_EXIT.SIGINT : SIGNAL_EXIT.SIGTERM);
  };
  for (const name of names) process.on(name, onSignal);
  return {
    first,
    end: () => {
      for (const name of names) process.off(name, onSignal);
    },
  };
}

/** Variables that are no setting but ours all the same. */
const OTHER_VARIABLES = ['FABRICKV_CONFIG', 'FABRICKV_LIBFABRIC', 'FABRICKV_SERVER_LOG'];

/** A misspelt flag is an error; a misspelt variable can only be guessed at. */
function warnAboutVariables({ env }: CommandIo, logger: Logger): void {
  const known = [
    ...OTHER_VARIABLES,
    ...Object.keys({ ...serverSettings, ...clientSettings }).map((name) => variableOf(name)),
  ];
  for (const name of Object.keys(env)) {
    if (!name.startsWith('FABRICKV_') || known.includes(name)) continue;
    const meant = nearest(name, known);
    if (meant === undefined) continue;
    logger.warn({ variable: name, meant }, `${name} is no setting; did you mean ${meant}?`);
  }
}
