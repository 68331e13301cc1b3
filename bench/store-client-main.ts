/**
 * The client process of a benchmark: does what it is told over its channel, one request at a time, and ends with it.
 */

import { KvClient } from '../src/client/index.js';
import { serveRequests } from './serve-requests.js';
import { keyOf, measureStore } from './store-load.js';
import type { StoreReply, StoreRequest } from './store-messages.js';

const LOADS_IN_FLIGHT = 4;

let kv: KvClient | undefined;
let serverPid = 0;

serveRequests(answer);

async function answer(request: StoreRequest): Promise<StoreReply> {
  if (request.kind === 'connect') {
    const { kind: _, serverPid: pid, ...options } = request;
    kv = await KvClient.connect({ ...options, connectTimeoutMs: options.timeoutMs, clientName: 'bench' });
    serverPid = pid;
    return { kind: 'done' };
  }
  if (kv === undefined) throw new Error('not connected');
  if (request.kind === 'load') {
    await load(kv, request.sizeBytes, request.count);
    return { kind: 'done' };
  }
  return { kind: 'measured', measurement: await measureStore(kv, request.case, serverPid) };
}

/** Inline, so that the arena is as it was: what RDMA has written leaves quarantine behind. */
async function load(client: KvClient, sizeBytes: number, count: number): Promise<void> {
  const bytes = Buffer.alloc(sizeBytes, 0x5a);
  let next = 0;
  const runLane = async (): Promise<void> => {
    while (next < count)
      await client.put(keyOf(sizeBytes, next++), bytes, { inlineThreshold: Number.POSITIVE_INFINITY });
  };
  await Promise.all(Array.from({ length: LOADS_IN_FLIGHT }, runLane));
}
