/**
 * The load of one case on the store: so many values in flight, each followed at once by the next.
 */

import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import type { KvClient, Region } from '../src/client/index.js';
import { cpuSecondsOf } from './machine-load.js';
import type { Duration, Measurement } from './measurement.js';
import type { StoreCase } from './store-messages.js';

const NS_PER_MS = 1e6;

/** The keys of the values of one size. */
export function keyOf(sizeBytes: number, index: number): string {
  return `${sizeBytes}/${index}`;
}

/** Moves one value, in place `lane` of those in flight. */
type Move = (lane: number) => Promise<void>;

/** Measures a case. @throws Error when a value is missing or did not travel by RDMA; FabricKvError */
export async function measureStore(kv: KvClient, what: StoreCase, serverPid: number): Promise<Measurement> {
  const regions = what.operation === 'get' ? [] : await allocate(kv, what);
  try {
    const move = moveOf(kv, what, regions);
    await runLanes(move, what.inFlight, what.warmupSeconds);
    const cpuBefore = await cpuSeconds(serverPid);
    const startedAtMs = performance.now();
    const histogram = await runLanes(move, what.inFlight, what.seconds);
    const seconds = (performance.now() - startedAtMs) / 1000;
    const values = histogram.count;
    return {
      values,
      bytes: values * what.sizeBytes,
      seconds,
      p50Us: histogram.percentile(50) / 1000,
      p99Us: histogram.percentile(99) / 1000,
      p999Us: histogram.percentile(99.9) / 1000,
      cpuSeconds: (await cpuSeconds(serverPid)) - cpuBefore,
    };
  } finally {
    for (const region of regions) region.release();
  }
}

/** At least one value for each place in flight, however short the time; their latencies in nanoseconds. */
async function runLanes(move: Move, inFlight: number, seconds: Duration['seconds']): Promise<RecordableHistogram> {
  const histogram = createHistogram({ figures: 3 });
  const endMs = performance.now() + seconds * 1000;
  const runLane = async (lane: number): Promise<void> => {
    let now = performance.now();
    do {
      const startedAt = now;
      await move(lane);
      now = performance.now();
      histogram.record(Math.max(1, Math.round((now - startedAt) * NS_PER_MS)));
    } while (now < endMs);
  };
  await Promise.all(Array.from({ length: inFlight }, (_, lane) => runLane(lane)));
  return histogram;
}

function moveOf(kv: KvClient, what: StoreCase, regions: readonly Region[]): Move {
  const { operation, sizeBytes, keys, checksum } = what;
  const regionOf = (lane: number): Region => {
    const region = regions[lane];
    if (region === undefined) throw new Error(`no region for lane ${lane}`);
    return region;
  };
  if (operation === 'put') {
    return async (lane) => {
      const { path } = await kv.put(`put/${sizeBytes}/${lane}`, regionOf(lane), { checksum });
      assertRdma(path);
    };
  }
  let next = 0;
  const nextKey = (): string => keyOf(sizeBytes, next++ % keys);
  if (operation === 'get') {
    return async () => {
      const value = await kv.get(nextKey());
      assertRdma(value?.path);
      value?.release();
    };
  }
  return async (lane) => {
    const info = await kv.getInto(nextKey(), regionOf(lane));
    assertRdma(info?.path);
  };
}

function assertRdma(path: 'rdma' | 'inline' | undefined): void {
  if (path !== 'rdma') throw new Error(path === undefined ? 'a value is missing' : 'a value did not travel by RDMA');
}

/** One region for each place in flight, with bytes in it: pages that were never written to are all the same one. */
async function allocate(kv: KvClient, { sizeBytes, inFlight }: StoreCase): Promise<Region[]> {
  const regions = await Promise.all(Array.from({ length: inFlight }, () => kv.allocate(sizeBytes)));
  for (const region of regions) region.buffer.fill(0x5a);
  return regions;
}

/** Of this process and the server. */
async function cpuSeconds(serverPid: number): Promise<number> {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6 + (await cpuSecondsOf(serverPid));
}
