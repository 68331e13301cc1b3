import assert from 'node:assert/strict';
import { crc32c } from '../../../src/fabric/index.js';
import { DATA_BYTES_MAX } from '../../../src/protocol/limits.js';
import { fromBigInt } from '../../../src/protocol/wire.js';
import type { WireSession } from './session-client.js';

/** The key of most tests. */
export const KEY = Buffer.from('key');
/** For `inlineMax`: all of it inline. */
export const EVERYTHING = fromBigInt(2n ** 64n - 1n);

/** Bytes of which neighbours, and pieces, differ. */
export function bytes(length: number, fill = 7): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * fill + (i >> 8)) % 256));
}

/** A PUT of one message. */
export function putBody(value: Buffer, key = KEY): { put: { key: Buffer; value: Buffer; crc32c: number } } {
  return { put: { key, value, crc32c: crc32c(value) } };
}

/** Sends a value as Data, in pieces, and commits it. */
export function sendData(session: WireSession, operationId: number, value: Buffer, pieceBytes = DATA_BYTES_MAX): void {
  for (let offset = 0; offset < value.length; offset += pieceBytes) {
    session.send({ operationId, data: { offset, bytes: value.subarray(offset, offset + pieceBytes) } });
  }
  session.send({ operationId, putCommit: { crc32c: crc32c(value) } });
}

/** Puts a value of any length as Data. */
export async function putInline(session: WireSession, operationId: number, value: Buffer, key = KEY): Promise<void> {
  const { grant, failure } = await session.call(operationId, {
    putOpen: { key, length: value.length, path: 'INLINE' },
  });
  assert.ok(grant !== null && grant !== undefined, failure?.message);
  sendData(session, operationId, value);
  await session.find('the result of the PUT', (message) => message.result?.put);
}
