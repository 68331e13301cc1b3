/**
 * The suite `peers`: FabricKV beside Redis and memcached, each server and each client in a process of its own.
 */

import { formatSize } from '../src/protocol/units.js';
import { arenaBytes, storedBytes } from './load-cases.js';
import { LoadClient } from './load-client.js';
import type { ConnectedTarget, LoadMeasurement, LoadTargetOptions } from './load-messages.js';
import { describeMachine } from './machine.js';
import type { Duration } from './measurement.js';
import { startMemcached, startRedis } from './peer-servers.js';
import {
  FABRICKV_VARIANTS,
  type FabricKvVariant,
  MEMCACHED_VALUE_BYTES_MAX,
  type PeerName,
  type PeersCase,
  takes,
  variantName,
} from './peers-cases.js';
import { type CaseSummary, type PeersReport, peersReport, summarizeCases } from './peers-report.js';
import { type CaseTurns, takeTurns } from './rounds.js';
import { type ServerProcess, startKvServer } from './server-process.js';

const ADDRESS = '127.0.0.1';

/** So often it is said how far it has come; in cases. */
const PROGRESS_CASES = 20;

/** Options of {@link runPeers}. */
export interface PeersOptions extends Duration {
  readonly cases: readonly PeersCase[];
  readonly peers: readonly PeerName[];
  readonly variants?: readonly FabricKvVariant[];
  readonly rounds: number;
  /** Called with what is being done, in a line. */
  readonly onProgress: (line: string) => void;
}

/** What {@link runPeers} found. */
export interface PeersOutcome {
  readonly report: PeersReport;
  readonly cases: readonly CaseSummary[];
  readonly turns: readonly CaseTurns<PeersCase, LoadMeasurement>[];
}

/** One of those that are measured. */
interface Contender {
  readonly client: LoadClient;
  readonly takes: (one: PeersCase) => boolean;
}

/** Runs the cases one after the other, in rounds in which everyone has a turn. @throws Error */
export async function runPeers(options: PeersOptions): Promise<PeersOutcome> {
  const { cases, peers, variants = FABRICKV_VARIANTS, rounds, onProgress } = options;
  const processes = new Processes();
  try {
    onProgress(`starting kv-server and ${peers.join(', ')}`);
    const contenders = [
      ...(await startFabricKv(processes, variants, cases)),
      ...(await startRedisClients(processes, peers, cases)),
      ...(await startMemcachedClient(processes, peers, cases)),
    ];
    onProgress('storing the values');
    for (const one of processes.loads) await one();

    onProgress('warming up');
    for (const one of cases) {
      for (const contender of contenders) {
        if (contender.takes(one)) await contender.client.compile(one, cases.length, options);
      }
    }
    const clients = new Map(contenders.map(({ client }) => [client.name, client]));
    const turns = await takeTurns<PeersCase, LoadMeasurement>({
      cases,
      rounds,
      sidesOf: (one) => contenders.filter((contender) => contender.takes(one)).map(({ client }) => client.name),
      measure: (one, side) => clientNamed(clients, side).measure(one, options),
      warmUp: (one, side) => clientNamed(clients, side).compile(one, cases.length, options),
      onCase: (index) => {
        if (index % PROGRESS_CASES === 0) onProgress(`${index} of ${cases.length} cases, ${rounds} rounds each`);
      },
    });
    const summaries = summarizeCases(turns, variants, peers);
    const report = peersReport({
      machine: describeMachine(),
      rounds,
      cases: summaries,
      sides: new Map([...clients].map(([name, { about }]) => [name, withSettings(name, about, variants)])),
      notes: notesOf(cases, peers),
    });
    return { report, cases: summaries, turns };
  } finally {
    await processes.end();
  }
}

/** What was started, to be ended newest first; and how each server gets its values. */
class Processes {
  readonly loads: (() => Promise<void>)[] = [];
  readonly #started: AsyncDisposable[] = [];

  /** Keeps what is being started. */
  async add<Started extends AsyncDisposable>(starting: Promise<Started>): Promise<Started> {
    const started = await starting;
    this.#started.push(started);
    return started;
  }

  async end(): Promise<void> {
    for (const started of this.#started.toReversed()) await started[Symbol.asyncDispose]();
  }
}

/** A server with a client of its own for each variant, so that none is bothered by another's settings. */
async function startFabricKv(
  processes: Processes,
  variants: readonly FabricKvVariant[],
  cases: readonly PeersCase[],
): Promise<Contender[]> {
  const contenders: Contender[] = [];
  for (const variant of variants) {
    const taken = cases.filter(variant.takes);
    if (taken.length === 0) continue;
    const kvServer = { address: ADDRESS, memoryBytes: arenaBytes(taken), args: variant.serverArgs };
    const server = await processes.add(startKvServer(kvServer));
    const options = { serverAddr: server.hostPort, ...variant.clientOptions };
    const client = await processes.add(LoadClient.start(variantName(variant), { kind: 'fabrickv', options }, server));
    processes.loads.push(() => client.load(taken));
    contenders.push({ client, takes: variant.takes });
  }
  return contenders;
}

/** Both clients share a server: an idle connection costs it nothing. */
async function startRedisClients(
  processes: Processes,
  peers: readonly PeerName[],
  cases: readonly PeersCase[],
): Promise<Contender[]> {
  const names = peers.filter((name) => name !== 'memcached');
  if (names.length === 0) return [];
  const server = await processes.add(startRedis(storedBytes(cases)));
  const contenders: Contender[] = [];
  for (const name of names) {
    const target = { kind: 'redis', ...placeOf(server), autoPipelining: name === 'redis-auto' } as const;
    contenders.push(await startPeer(processes, name, target, server));
  }
  processes.loads.push(async () => contenders[0]?.client.load(cases));
  return contenders;
}

async function startMemcachedClient(
  processes: Processes,
  peers: readonly PeerName[],
  cases: readonly PeersCase[],
): Promise<Contender[]> {
  const taken = cases.filter((one) => takes('memcached', one));
  if (!peers.includes('memcached') || taken.length === 0) return [];
  const server = await processes.add(startMemcached(storedBytes(taken)));
  const contender = await startPeer(processes, 'memcached', { kind: 'memcached', ...placeOf(server) }, server);
  processes.loads.push(() => contender.client.load(taken));
  return [contender];
}

async function startPeer(
  processes: Processes,
  name: PeerName,
  target: LoadTargetOptions,
  server: ServerProcess,
): Promise<Contender> {
  const client = await processes.add(LoadClient.start(name, target, server));
  return { client, takes: (one) => takes(name, one) };
}

function placeOf({ address, port }: ServerProcess): { readonly host: string; readonly port: number } {
  return { host: address, port };
}

/** The server of a variant with the settings that it was given. */
function withSettings(name: string, about: ConnectedTarget, variants: readonly FabricKvVariant[]): ConnectedTarget {
  const { serverArgs = [] } = variants.find((variant) => variantName(variant) === name) ?? {};
  return serverArgs.length === 0 ? about : { ...about, server: `${about.server}, ${serverArgs.join(' ')}` };
}

function notesOf(cases: readonly PeersCase[], peers: readonly PeerName[]): string[] {
  const leftOut = cases.filter((one) => !takes('memcached', one));
  if (!peers.includes('memcached') || leftOut.length === 0) return [];
  return [`memcached is measured with values up to ${formatSize(MEMCACHED_VALUE_BYTES_MAX)}: its item limit here.`];
}

function clientNamed(clients: ReadonlyMap<string, LoadClient>, name: string): LoadClient {
  const client = clients.get(name);
  if (client === undefined) throw new Error(`there is no ${name}`);
  return client;
}
