import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { combineCrc32c } from '../../src/fabric/index.js';
import { crc32cOf } from '../support/values.js';
import { configureProperties } from './support/seed.js';

configureProperties(200);

test('the CRC-32C of a whole follows from those of its parts, wherever it is divided', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 5000 }), fc.nat(), (bytes, cut) => {
      const at = bytes.length === 0 ? 0 : cut % (bytes.length + 1);
      const [first, second] = [bytes.subarray(0, at), bytes.subarray(at)];
      assert.equal(combineCrc32c(crc32cOf(first), crc32cOf(second), second.length), crc32cOf(bytes));
    }),
  );
});

test('lengths beyond 2^32 bits and beyond 2^32 bytes are no exception', () => {
  // A long run of zeros is divided once more: both ways must agree, and the independent one is feasible for 768 MiB only.
  const zeros = (length: number): number => combineCrc32c(0xffffffff, 0, length);
  for (const length of [2 ** 29, 2 ** 32 + 1, 2 ** 35 + 12_345, 2 ** 52]) {
    const half = Math.floor(length / 2);
    assert.equal(combineCrc32c(zeros(half), 0, length - half), zeros(length), `${length}`);
  }
  let crc = 0xffffffff;
  const block = new Uint8Array(1024 * 1024);
  for (let at = 0; at < 8; at++) crc = crc32cOf(block, crc);
  assert.equal(combineCrc32c(0xffffffff, crc32cOf(new Uint8Array(8 * 1024 * 1024)), 8 * 1024 * 1024) >>> 0, crc);
});
