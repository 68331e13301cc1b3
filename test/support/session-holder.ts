/**
 * A process with many sessions: `node session-holder.js ADDR COUNT`. Each session puts a value, gets it and deletes it,
 * by RDMA. Prints "ready"; closes all sessions when its standard input ends, and leaves a transfer in the middle when it is killed.
 */

import { once } from 'node:events';
import { KvClient } from '../../src/index.js';

const LENGTH = 256 * 1024;
const MIB = 1024 * 1024;
/** So many sessions are opened at a time. */
const AT_ONCE = 8;

const [addr = '', countText = '1'] = process.argv.slice(2);
const count = Number(countText);
const clients: KvClient[] = [];
const value = Buffer.alloc(LENGTH, process.pid & 0xff);

async function open(index: number): Promise<void> {
  const client = await KvClient.connect({
    serverAddr: addr,
    provider: 'tcp',
    inlineThreshold: 0,
    receiveMemory: 2 * MIB,
    timeoutMs: 60_000,
    connectTimeoutMs: 60_000,
  });
  clients.push(client);
  const key = `${process.pid}/${index}`;
  const { path } = await client.put(key, value);
  const got = await client.get(key, { verify: true });
  if (path !== 'rdma' || got?.path !== 'rdma' || !got.bytes.equals(value))
    throw new Error(`${key} is not what was put`);
  got.release();
  await client.delete(key);
}

const indexes = Array.from({ length: count }, (_, index) => index);
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let index = indexes.pop(); index !== undefined; index = indexes.pop()) await open(index);
  }),
);
process.stdout.write('ready\n');
await once(process.stdin.resume(), 'end');
await Promise.all(clients.map((client) => client.close()));
