/**
 * A load client: one process, one client of one store, and src/workload as what is asked of it.
 */

import type { WorkloadTarget } from '../src/workload/target.js';
import { loadKeys, runWorkload } from '../src/workload/workload.js';
import type { Turn } from './load-cases.js';
import { keysOf, type LoadMeasurement, type LoadReply, type LoadRequest } from './load-messages.js';
import { connectTarget, type LoadTarget } from './load-targets.js';
import { cpuSecondsOf } from './machine-load.js';
import { serveRequests } from './serve-requests.js';

const LOADS_IN_FLIGHT = 8;

let connected: LoadTarget | undefined;
let serverPid = 0;

serveRequests(answer);

async function answer(request: LoadRequest): Promise<LoadReply> {
  if (request.kind === 'connect') {
    connected = await connectTarget(request.target);
    serverPid = request.serverPid;
    return { kind: 'connected', target: connected.about };
  }
  if (connected === undefined) throw new Error('not connected');
  if (request.kind === 'load') {
    const { sizeBytes, count } = request;
    await loadKeys(connected, { ...keysOf({ sizeBytes, keys: count }), concurrency: LOADS_IN_FLIGHT });
    return { kind: 'done' };
  }
  return { kind: 'measured', measurement: await measure(connected, request) };
}

/** @throws Error when a value was missing; whatever an operation fails with */
async function measure(target: WorkloadTarget, turn: Turn): Promise<LoadMeasurement> {
  const { inFlight, readRatio, distribution, name } = turn.case;
  const load = { ...keysOf(turn.case), concurrency: inFlight, readRatio, distribution, warmupMs: 0 };
  // A run of its own, so that the CPU time of what is counted can be told from it.
  if (turn.warmupSeconds > 0) await runWorkload(target, { ...load, durationMs: turn.warmupSeconds * 1000 });
  const serverBefore = await cpuSecondsOf(serverPid);
  const client = new CpuMeter(target);
  const result = await runWorkload(client, { ...load, durationMs: turn.seconds * 1000 });
  const clientCpuSeconds = client.seconds();
  const serverCpuSeconds = (await cpuSecondsOf(serverPid)) - serverBefore;
  if (result.misses > 0) throw new Error(`${name}: ${result.misses} values were missing`);
  const { operations, bytes, seconds, latency } = result;
  return {
    values: operations,
    bytes,
    seconds,
    p50Us: latency.p50Us,
    p99Us: latency.p99Us,
    p999Us: latency.p999Us,
    cpuSeconds: clientCpuSeconds + serverCpuSeconds,
    clientCpuSeconds,
    serverCpuSeconds,
  };
}

/** Counts this process's CPU time from the first operation on: keys and values are made before it. */
class CpuMeter implements WorkloadTarget {
  #before: NodeJS.CpuUsage | undefined;

  constructor(private readonly target: WorkloadTarget) {}

  get(key: Buffer): Promise<number> {
    this.#before ??= process.cpuUsage();
    return this.target.get(key);
  }

  put(key: Buffer, value: Buffer): Promise<void> {
    this.#before ??= process.cpuUsage();
    return this.target.put(key, value);
  }

  seconds(): number {
    const { user, system } = process.cpuUsage(this.#before);
    return (user + system) / 1e6;
  }
}
