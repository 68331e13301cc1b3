/**
 * A client that PUTs and GETs a large value by RDMA at the same time, again and again, whatever comes of it; for a test that
 * has put something between it and the server. Arguments: server address, rounds.
 */

import { KvClient } from '../../src/index.js';

const TIMEOUT_MS = 700;
const LARGE_BYTES = 4 * 1024 * 1024;

const [serverAddr = '', rounds = '1'] = process.argv.slice(2);
await using client = await KvClient.connect({ serverAddr, provider: 'tcp' });
const value = Buffer.alloc(LARGE_BYTES, 'x');
await client.put('large', value, { inlineThreshold: Number.POSITIVE_INFINITY });
const outcomes: string[] = [];
for (let round = 0; round < Number(rounds); round++) {
  const both = await Promise.allSettled([
    client.put('other', value, { timeoutMs: TIMEOUT_MS, inlineThreshold: 0 }),
    client.get('large', { timeoutMs: TIMEOUT_MS, inlineThreshold: 0 }),
  ]);
  outcomes.push(...both.map(({ status }) => status));
}
process.stdout.write(`${outcomes.join(' ')}\n`);
