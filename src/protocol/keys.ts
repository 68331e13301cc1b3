/**
 * Keys: 1 to 1,024 bytes, any bytes.
 */

import { createHash } from 'node:crypto';
import { FabricKvError } from './errors.js';
import { KEY_BYTES_MAX } from './limits.js';

/** A key as callers give it; a string stands for its UTF-8 bytes. Bytes are not copied: they stay as they are until the call has settled. */
export type Key = string | Uint8Array;

/**
 * A key as bytes: a view of the caller's, where it gives bytes.
 *
 * @throws ERR_FABRICKV_INVALID_KEY when it is empty or too long
 */
export function keyBytes(key: Key): Buffer {
  let bytes: Buffer;
  if (typeof key === 'string') bytes = Buffer.from(key, 'utf8');
  else bytes = Buffer.isBuffer(key) ? key : Buffer.from(key.buffer, key.byteOffset, key.length);
  checkKey(bytes);
  return bytes;
}

/**
 * @throws ERR_FABRICKV_INVALID_KEY when the key is empty or too long
 */
export function checkKey(key: Uint8Array): void {
  if (key.length === 0) throw new FabricKvError('ERR_FABRICKV_INVALID_KEY', 'the key is empty');
  if (key.length > KEY_BYTES_MAX) {
    throw new FabricKvError(
      'ERR_FABRICKV_INVALID_KEY',
      `the key has ${key.length} bytes; the most is ${KEY_BYTES_MAX}`,
    );
  }
}

/** How keys appear in logs and errors. */
export type KeyFormatter = (key: Uint8Array) => string;

const DISPLAYED_BYTES_MAX = 64;
const UTF8_BYTES_MAX = 4;

/** Printable UTF-8 as it is, other bytes as `hex:…`; long ones are cut. */
export function displayKey(key: Uint8Array): string {
  const bytes = Buffer.from(key.buffer, key.byteOffset, displayedLength(key));
  const text = bytes.toString('utf8');
  const printable = !/[\p{Cc}\p{Cf}\ufffd]/u.test(text);
  const shown = printable ? text : `hex:${bytes.subarray(0, DISPLAYED_BYTES_MAX / 2).toString('hex')}`;
  return key.length > DISPLAYED_BYTES_MAX ? `${shown}… (${key.length} bytes)` : shown;
}

/** Not into the middle of a character, which would make the rest look like no text. */
function displayedLength(key: Uint8Array): number {
  if (key.length <= DISPLAYED_BYTES_MAX) return key.length;
  let length = DISPLAYED_BYTES_MAX;
  while (length > DISPLAYED_BYTES_MAX - UTF8_BYTES_MAX && ((key[length] ?? 0) & 0xc0) === 0x80) length -= 1;
  return length;
}

/** For `--redact-keys`: the same key always has the same name, which tells nothing of the key but that. */
export function redactKey(key: Uint8Array): string {
  return `sha256:${createHash('sha256').update(key).digest('hex').slice(0, 12)}`;
}
