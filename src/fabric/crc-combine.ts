/**
 * The CRC-32C of a whole from those of its parts, so that the parts can be checked in any order and on any thread.
 */

/** Castagnoli's polynomial, bits reversed. */
const POLYNOMIAL = 0x82f63b78;

/** x^0, bits reversed. */
const ONE = 0x8000_0000;

/**
 * x^(2^n) modulo the polynomial, by n. Enough for 2^53 bytes and the factor of 8 to bits. This polynomial is not primitive, so
 * the table does not begin again after 32 entries, as that of the CRC of zlib does.
 */
const POWERS = ((): Uint32Array => {
  const powers = new Uint32Array(57);
  let power = ONE >>> 1;
  for (let n = 0; n < powers.length; n++) {
    powers[n] = power;
    power = multiply(power, power);
  }
  return powers;
})();

/** `a × b` modulo the polynomial. */
function multiply(a: number, b: number): number {
  let product = 0;
  let factor = b;
  for (let bit = ONE; bit !== 0; bit >>>= 1) {
    if ((a & bit) !== 0) product ^= factor;
    factor = (factor & 1) === 0 ? factor >>> 1 : (factor >>> 1) ^ POLYNOMIAL;
  }
  return product >>> 0;
}

/**
 * The CRC-32C of `ab` from that of `a`, that of `b`, and the length of `b` in bytes. Some microseconds, whatever the length.
 * After Mark Adler's crc32_combine in zlib.
 */
export function combineCrc32c(first: number, second: number, secondLength: number): number {
  let shift = ONE;
  // One byte is 2^3 bits.
  let power = 3;
  for (let left = secondLength; left > 0; left = Math.floor(left / 2)) {
    if (left % 2 === 1) shift = multiply(POWERS[power] ?? 0, shift);
    power += 1;
  }
  return (multiply(shift, first) ^ second) >>> 0;
}
