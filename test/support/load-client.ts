/**
 * A client of the mixed load: `node load-client.js ADDR WRITER WRITERS SEED MS [FABRIC_ADDR…]`. It puts and gets values of 64 KiB to 64 MiB
 * (log-uniform) by every call there is, and checks every one. Prints what it did as JSON.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { FabricKvError, KvClient } from '../../src/index.js';
import { checkStamped, stamp } from './stamped.js';
import { randomFrom } from './values.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const LENGTH_MIN = 64 * KIB;
const LENGTH_MAX = 64 * MIB;
/** Keys of each writer. */
const KEYS = 3;

const [addr = '', writerText = '0', writersText = '1', seed = '0', ms = '1000', ...fabricAddrs] = process.argv.slice(2);
const writer = Number(writerText);
const random = randomFrom(Number(seed));
const done = { puts: 0, gets: 0, missing: 0, bytes: 0, full: 0, checked: 0 };

function lengthAtRandom(): number {
  return Math.floor(LENGTH_MIN * (LENGTH_MAX / LENGTH_MIN) ** random());
}

const client = await KvClient.connect({
  serverAddr: addr,
  provider: 'tcp',
  timeoutMs: 30_000,
  ...(fabricAddrs.length === 0 ? {} : { fabricAddr: fabricAddrs }),
});
const region = await client.allocate(LENGTH_MAX);
/** The newest sequence that is known to be stored, by key of ours: no older one may be read any more. */
const stored = new Map<string, number>();
let sequence = 0;

async function put(): Promise<void> {
  const key = `${writer}/${Math.floor(random() * KEYS)}`;
  const length = lengthAtRandom();
  const fromRegion = random() < 0.7;
  sequence += 1;
  const bytes = fromRegion ? region.view(0, length) : Buffer.alloc(length);
  stamp(bytes, { writer, sequence });
  try {
    await client.put(key, fromRegion ? { region, length } : bytes);
    stored.set(key, sequence);
    done.puts += 1;
    done.bytes += length;
  } catch (error) {
    // The arena is as full as the values of all may make it: the rest of the load goes on.
    if (!(error instanceof FabricKvError && error.code === 'ERR_FABRICKV_CAPACITY')) throw error;
    done.full += 1;
    await client.delete(key);
    stored.delete(key);
  }
}

async function get(): Promise<void> {
  const owner = Math.floor(random() * Number(writersText));
  const key = `${owner}/${Math.floor(random() * KEYS)}`;
  const atLeast = stored.get(key) ?? 0;
  const intoRegion = random() < 0.3;
  const verify = random() < 0.5;
  const value = intoRegion ? undefined : await client.get(key, { verify });
  const info = intoRegion ? await client.getInto(key, region, { verify }) : value;
  done.gets += 1;
  if (info === undefined) {
    if (atLeast > 0) throw new Error(`${key} was stored and is not there`);
    done.missing += 1;
    return;
  }
  const bytes = value?.bytes ?? region.view(0, info.length);
  const found = checkStamped(bytes);
  if (found.writer !== owner || (owner === writer && found.sequence < atLeast)) {
    throw new Error(`${key} holds value ${found.writer}/${found.sequence}; ${atLeast} was stored`);
  }
  done.checked += 1;
  done.bytes += info.length;
  value?.release();
}

const untilMs = performance.now() + Number(ms);
while (performance.now() < untilMs) {
  await (random() < 0.35 ? put() : get());
  // Now and then a client is idle, and its windows with it.
  if (random() < 0.05) await sleep(random() * 100);
}
for (const key of stored.keys()) await client.delete(key);
await client.close();
process.stdout.write(`${JSON.stringify(done)}\n`);
