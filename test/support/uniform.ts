/** A value in which every 32-bit word is the same number: a mixture of two such values shows. */
export function uniformValue(word: number, length: number): Buffer {
  const pattern = Buffer.alloc(4);
  pattern.writeUInt32LE(word);
  return Buffer.alloc(length, pattern);
}

/** The word of a {@link uniformValue}, or undefined when it is none. */
export function wordOf(value: Buffer): number | undefined {
  if (value.length < 4) return undefined;
  // Every word equals the one before it: one comparison of the value with itself, shifted.
  if (!value.subarray(4).equals(value.subarray(0, value.length - 4))) return undefined;
  return value.readUInt32LE();
}
