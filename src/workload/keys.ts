/**
 * The keys and the value of a load.
 */

import { Random } from './random.js';

/** Random bytes are made up to here, and repeated from here on: nothing on the way looks for repetitions. */
const RANDOM_BYTES_MAX = 1024 * 1024;

/** Key 0 to key `keys` - 1: the prefix, and the number in as many decimal digits as the last one has. */
export function workloadKeys({ keys, keyPrefix }: { readonly keys: number; readonly keyPrefix: string }): Buffer[] {
  const digits = String(keys - 1).length;
  return Array.from({ length: keys }, (_, index) =>
    Buffer.from(keyPrefix + String(index).padStart(digits, '0'), 'utf8'),
  );
}

/** The bytes that are put under every key: the same for all, from the seed. */
export function workloadValue({ valueBytes, seed }: { readonly valueBytes: number; readonly seed: number }): Buffer {
  const value = Buffer.allocUnsafeSlow(valueBytes);
  const random = new Random(seed);
  const randomBytes = Math.min(valueBytes, RANDOM_BYTES_MAX);
  for (let at = 0; at < randomBytes; at++) value[at] = random.next() >>> 24;
  for (let filled = randomBytes; filled < valueBytes; filled *= 2) value.copyWithin(filled, 0, filled);
  return value;
}
