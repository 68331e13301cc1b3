/**
 * A process of its own that overwrites one value again and again, until its standard input ends:
 * `node overwriter.js ADDR KEY SEED`. Version `n` has every 32-bit word equal to `n`. Prints the number of versions.
 */

import { KvClient } from '../../src/index.js';
import { uniformValue } from './uniform.js';
import { randomFrom } from './values.js';

const SIZES = [100, 40_000, 256 * 1024, 3 * 1024 * 1024, 20 * 1024 * 1024];

const [addr = '', key = '', seed = '0'] = process.argv.slice(2);
const random = randomFrom(Number(seed));
let stopped = false;
process.stdin.resume().on('end', () => {
  stopped = true;
});

const client = await KvClient.connect({ serverAddr: addr, provider: 'tcp' });
let written = 0;
let last = 0n;
while (!stopped) {
  written += 1;
  const length = SIZES[Math.floor(random() * SIZES.length)] ?? 100;
  const { version } = await client.put(key, uniformValue(written, length));
  if (version <= last) throw new Error(`version ${version} follows ${last}`);
  last = version;
}
await client.close();
process.stdout.write(`${written}\n`);
