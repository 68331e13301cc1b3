/**
 * A process with a small load: `node small-load-client.js ADDR SESSIONS IN_FLIGHT VALUE_BYTES`. Each session is a client of its
 * own that gets, and puts one time in twenty, values of its own, and checks every one. Prints "ready" when all have a session,
 * begins with a line on standard input, ends with the next, and prints what each did as JSON.
 */

import { once } from 'node:events';
import { createHistogram } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { setImmediate as turn } from 'node:timers/promises';
import { KvClient } from '../../src/index.js';

/** One PUT in so many operations. */
const PUT_EVERY = 20;
const SESSIONS_AT_ONCE = 8;

/** What the process prints in the end. */
export interface SmallLoadDone {
  /** Operations of each session. */
  readonly operations: readonly number[];
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
}

const [addr = '', sessionsText = '1', inFlightText = '1', valueBytesText = '100'] = process.argv.slice(2);
const valueBytes = Number(valueBytesText);
const latencies = createHistogram();
let over = false;

interface Slot {
  readonly client: KvClient;
  readonly key: string;
  readonly value: Buffer;
  operations: number;
}

async function open(index: number): Promise<Slot> {
  const client = await KvClient.connect({
    serverAddr: addr,
    provider: 'none',
    inlineThreshold: Number.POSITIVE_INFINITY,
    connectTimeoutMs: 60_000,
  });
  const slot = { client, key: `${process.pid}/${index}`, value: Buffer.alloc(valueBytes, index), operations: 0 };
  await client.put(slot.key, slot.value);
  return slot;
}

async function work(slot: Slot): Promise<void> {
  const { client, key, value } = slot;
  while (!over) {
    const startedMs = performance.now();
    slot.operations += 1;
    if (slot.operations % PUT_EVERY === 0) {
      await client.put(key, value);
    } else {
      const got = await client.get(key);
      if (got?.bytes.equals(value) !== true) throw new Error(`${key} is not what was put`);
      got.release();
    }
    latencies.record(Math.max(1, Math.round((performance.now() - startedMs) * 1000)));
  }
}

const slots: Slot[] = [];
const indexes = Array.from({ length: Number(sessionsText) }, (_, index) => index);
await Promise.all(
  Array.from({ length: SESSIONS_AT_ONCE }, async () => {
    for (let index = indexes.pop(); index !== undefined; index = indexes.pop()) slots.push(await open(index));
  }),
);
const orders = createInterface({ input: process.stdin });
process.stdout.write('ready\n');
await once(orders, 'line');
const working = slots.flatMap((slot) => Array.from({ length: Number(inFlightText) }, () => work(slot)));
const failed = Promise.all(working).then(() => undefined);
await Promise.race([once(orders, 'line'), failed]);
over = true;
await failed;
const done: SmallLoadDone = {
  operations: slots.map(({ operations }) => operations),
  p50Us: latencies.percentile(50),
  p99Us: latencies.percentile(99),
  maxUs: latencies.max,
};
process.stdout.write(`${JSON.stringify(done)}\n`);
await Promise.all(slots.map(({ client }) => client.close()));
orders.close();
await turn();
process.exit(0);
