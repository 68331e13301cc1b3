import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';

const BLOCK_BYTES = 1024 * 1024;
const PAGE_BYTES = 4096;

/** A generator of numbers that a seed decides (mulberry32): `next()` is in [0, 1). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A seed for a test that chooses at random: FABRICKV_TEST_SEED, or a new one. The test prints it. */
export function testSeed(): number {
  const given = process.env['FABRICKV_TEST_SEED'];
  return given === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(given);
}

/**
 * Bytes that a seed decides, no two pages alike: a page, a chunk or an extent in the wrong place shows, and so does one
 * of another value.
 */
export function* valueBlocks(length: number, seed: number): Generator<Buffer> {
  const random = randomFrom(seed);
  const noise = Buffer.alloc(Math.min(BLOCK_BYTES, Math.max(length, 1)));
  for (let at = 0; at < noise.length; at++) noise[at] = random() * 256;
  for (let offset = 0; offset < length; offset += BLOCK_BYTES) {
    const block = Buffer.from(noise.subarray(0, Math.min(BLOCK_BYTES, length - offset)));
    for (let page = 0; page + 8 <= block.length; page += PAGE_BYTES) {
      block.writeUInt32LE((offset + page) / PAGE_BYTES, page);
      block.writeUInt32LE(seed >>> 0, page + 4);
    }
    yield block;
  }
}

/** {@link valueBlocks} in one Buffer. */
export function makeValue(length: number, seed: number): Buffer {
  return Buffer.concat([...valueBlocks(length, seed)]);
}

/** {@link valueBlocks} in a file. */
export async function writeValueFile(path: string, length: number, seed: number): Promise<void> {
  const file = await open(path, 'w');
  try {
    for (const block of valueBlocks(length, seed)) await file.write(block);
  } finally {
    await file.close();
  }
}

// CRC-32C once more, by tables and by eight bytes at a time: what checks the product must not be the product.
const TABLES = Array.from({ length: 8 }, () => new Uint32Array(256));
for (let byte = 0; byte < 256; byte++) {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  table(0)[byte] = crc >>> 0;
}
for (let level = 1; level < 8; level++) {
  for (let byte = 0; byte < 256; byte++) {
    const previous = at(level - 1, byte);
    table(level)[byte] = ((previous >>> 8) ^ at(0, previous & 0xff)) >>> 0;
  }
}

function table(level: number): Uint32Array {
  const found = TABLES[level];
  if (found === undefined) throw new RangeError(`no table ${level}`);
  return found;
}

function at(level: number, byte: number): number {
  return table(level)[byte] ?? 0;
}

/** CRC-32C (Castagnoli), independent of src and native. */
export function crc32cOf(bytes: Uint8Array, seed = 0): number {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = TABLES as [
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
  ];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let crc = ~seed;
  let offset = 0;
  for (; offset + 8 <= bytes.length; offset += 8) {
    const low = view.getUint32(offset, true) ^ crc;
    const high = view.getUint32(offset + 4, true);
    crc =
      (t7[low & 0xff] ?? 0) ^
      (t6[(low >>> 8) & 0xff] ?? 0) ^
      (t5[(low >>> 16) & 0xff] ?? 0) ^
      (t4[low >>> 24] ?? 0) ^
      (t3[high & 0xff] ?? 0) ^
      (t2[(high >>> 8) & 0xff] ?? 0) ^
      (t1[(high >>> 16) & 0xff] ?? 0) ^
      (t0[high >>> 24] ?? 0);
  }
  for (; offset < bytes.length; offset++) crc = (t0[(crc ^ (bytes[offset] ?? 0)) & 0xff] ?? 0) ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** A CRC-32C as the eight digits that the commands print. */
export function crcText(crc32c: number): string {
  return crc32c.toString(16).padStart(8, '0');
}

/** {@link crc32cOf} of a file, in digits. */
export async function crcTextOfFile(path: string): Promise<string> {
  let crc = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: BLOCK_BYTES })) {
    crc = crc32cOf(chunk as Buffer, crc);
  }
  return crcText(crc);
}

/** The value at a fraction of the sorted samples: `percentile(samples, 0.99)`. */
export function percentile(samples: readonly number[], fraction: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const index = Math.min(sorted.length - 1, Math.max(0, Math.ceil(sorted.length * fraction) - 1));
  const found = sorted[index];
  if (found === undefined) throw new RangeError('no samples');
  return found;
}
