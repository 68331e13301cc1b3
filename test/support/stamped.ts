/**
 * Values that tell of every page which value it belongs to and which page of it it is; the rest of a page is noise that
 * all processes know. Making and checking one costs little more than a copy.
 */

import { randomFrom } from './values.js';

const PAGE_BYTES = 4096;
const STAMP_BYTES = 12;

const noise = Buffer.alloc(PAGE_BYTES);
const random = randomFrom(0x5eed);
for (let at = 0; at < noise.length; at++) noise[at] = random() * 256;

/** Which value it is: two numbers below 2^32. */
export interface Stamp {
  readonly writer: number;
  readonly sequence: number;
}

/** Fills bytes with the value of that stamp and length. */
export function stamp(target: Buffer, { writer, sequence }: Stamp): void {
  for (let offset = 0, page = 0; offset < target.length; offset += PAGE_BYTES, page++) {
    noise.copy(target, offset);
    if (offset + STAMP_BYTES > target.length) break;
    target.writeUInt32LE(writer, offset);
    target.writeUInt32LE(sequence, offset + 4);
    target.writeUInt32LE(page, offset + 8);
  }
}

/**
 * Checks that bytes are one value, whole, and tells which.
 *
 * @throws when a page is of another value, of another place, or not as it was written
 */
export function checkStamped(bytes: Buffer): Stamp {
  const writer = bytes.readUInt32LE(0);
  const sequence = bytes.readUInt32LE(4);
  for (let offset = 0, page = 0; offset < bytes.length; offset += PAGE_BYTES, page++) {
    const end = Math.min(offset + PAGE_BYTES, bytes.length);
    const stamped = offset + STAMP_BYTES <= bytes.length;
    const as =
      !stamped ||
      (bytes.readUInt32LE(offset) === writer &&
        bytes.readUInt32LE(offset + 4) === sequence &&
        bytes.readUInt32LE(offset + 8) === page);
    const from = stamped ? STAMP_BYTES : 0;
    if (as && bytes.compare(noise, from, end - offset, offset + from, end) === 0) continue;
    throw new Error(
      `page ${page} of ${bytes.length} bytes of value ${writer}/${sequence} is not its own: ` +
        bytes.subarray(offset, Math.min(end, offset + 32)).toString('hex'),
    );
  }
  return { writer, sequence };
}
