import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  decodeClientFrame,
  decodeServerFrame,
  encodeClientFrame,
  encodeServerFrame,
} from '../../src/protocol/codec.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import type { ClientMessage } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { FRAME_BYTES_MAX, FRAME_MESSAGES_MAX } from '../../src/protocol/limits.js';
import { toSafeInteger } from '../../src/protocol/wire.js';
import { configureProperties } from './support/seed.js';

configureProperties(2000);

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let left = value;
  for (; left > 0x7f; left = Math.floor(left / 128)) bytes.push((left % 128) | 0x80);
  return Buffer.from([...bytes, left]);
}

/** A field with bytes (wire type 2). */
function field(number: number, bytes: Uint8Array): Buffer {
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

/** What is wrong with a client's frame. */
function problemOf(frame: Buffer): string | undefined {
  const decoded = decodeClientFrame(frame);
  return decoded instanceof FabricKvError ? decoded.message : undefined;
}

function repeat(unit: Uint8Array, sizeBytes: number): Buffer {
  return Buffer.alloc(Math.floor(sizeBytes / unit.length) * unit.length, unit);
}

const EMPTY = new Uint8Array(0);
const BODIES = { hello: 2, region: 5, railChanged: 8, get: 10, put: 11, putCommit: 14, data: 20 } as const;

function message(body: keyof typeof BODIES, content: Uint8Array): Buffer {
  return field(1, field(BODIES[body], content));
}

test('what is encoded is decoded, in order', () => {
  const messages: ClientMessage[] = [
    { operationId: 0, hello: { minVersion: 1, maxVersion: 1, clientName: 'ü', providers: [{ name: 'tcp' }] } },
    { operationId: 1, get: { key: Buffer.from('k'), sink: { regionId: 3, offset: 4, length: 5 } } },
    { operationId: 2 ** 53 - 1, put: { key: Buffer.from([0, 255]), value: Buffer.alloc(100, 7), crc32c: 0xffff_ffff } },
    { operationId: 3, bye: {} },
  ];
  const decoded = decodeClientFrame(encodeClientFrame(messages));
  assert.ok(!(decoded instanceof FabricKvError));
  assert.deepEqual(
    decoded.map(({ body }) => body),
    ['hello', 'get', 'put', 'bye'],
  );
  assert.deepEqual(
    decoded.map(({ operationId }) => toSafeInteger(operationId, 'id')),
    [0, 1, 2 ** 53 - 1, 3],
  );
  assert.equal(decoded[0]?.hello?.clientName, 'ü');
  assert.equal(decoded[1]?.get?.sink?.regionId, 3);
  assert.deepEqual(decoded[2]?.put?.key, Buffer.from([0, 255]));
  assert.equal(decoded[2]?.put?.crc32c, 0xffff_ffff);
});

test('a full frame of honest operations passes, with every field set', () => {
  const frame = encodeClientFrame(
    Array.from({ length: FRAME_MESSAGES_MAX }, (_, i) => ({
      operationId: i + 1,
      get: {
        key: Buffer.alloc(100, i),
        namespace: 1,
        deadlineMs: 30_000,
        inlineMax: 16_384,
        sink: { regionId: 1, offset: i * 4096, length: 4096 },
        rangeOffset: 0,
        rangeLength: 0,
        hold: false,
        leaseId: 0,
      },
    })),
  );
  assert.ok(frame.length <= FRAME_BYTES_MAX);
  assert.equal(problemOf(frame), undefined);
});

test('what waits keeps its key and not the frame that it came in', () => {
  const decoded = decodeClientFrame(
    encodeClientFrame([
      { operationId: 1, putOpen: { key: Buffer.from('key'), length: 1_000_000, path: 'RDMA' } },
      { operationId: 2, data: { bytes: Buffer.alloc(65_536) } },
    ]),
  );
  assert.ok(!(decoded instanceof FabricKvError));
  assert.ok((decoded[0]?.putOpen?.key.buffer.byteLength ?? 0) <= 8192);
});

test('what a later version means by a number is not taken for what is known', () => {
  // PutOptions.acknowledgement = 1, in a Put.
  const decoded = decodeClientFrame(message('put', field(6, Buffer.from([0x20, 0x01]))));
  assert.ok(!(decoded instanceof FabricKvError));
  assert.notEqual(decoded[0]?.put?.options?.acknowledgement, 'MEMORY');
});

test('fields that no message has are refused, and negative numbers keep their bits', () => {
  assert.match(problemOf(field(1, Buffer.from([0x02, 0x00]))) ?? '', /tag/);
  const minusOne = Buffer.from([0x10, ...Buffer.alloc(9, 0xff), 0x01]);
  const decoded = decodeClientFrame(message('get', minusOne));
  assert.ok(!(decoded instanceof FabricKvError));
  assert.equal(decoded[0]?.get?.namespace, 0xffff_ffff);
});

test('a server may grant tens of thousands of extents, and name its cluster', () => {
  const extents = Array.from({ length: 30_000 }, (_, i) => ({ windowId: i, windowOffset: 0, length: 65_536 }));
  const decoded = decodeServerFrame(
    encodeServerFrame([
      { operationId: 1, result: { grant: { extents } } },
      { operationId: 0, welcome: { clusterId: 'any text, which is no message' } },
    ]),
  );
  assert.ok(!(decoded instanceof FabricKvError), String(decoded));
  assert.equal(decoded[0]?.result?.grant?.extents.length, 30_000);
  assert.equal(decoded[1]?.welcome?.clusterId, 'any text, which is no message');
});

test('bytes of keys and values are never taken for messages', () => {
  // Wire type 7 everywhere: scanned as fields, it would be refused.
  const bytes = Buffer.alloc(1000, 0x0f);
  const frame = encodeClientFrame([
    { operationId: 1, put: { key: bytes, value: bytes } },
    { operationId: 2, data: { bytes } },
    { operationId: 3, hello: { clientName: '\u000f\u000f', providers: [{ rails: [{ address: bytes }] }] } },
  ]);
  assert.equal(problemOf(frame), undefined);
});

test('a frame with too many messages is refused', () => {
  assert.equal(problemOf(repeat(field(1, EMPTY), 2 * FRAME_MESSAGES_MAX)), undefined);
  assert.match(problemOf(repeat(field(1, EMPTY), 2 * FRAME_MESSAGES_MAX + 2)) ?? '', /messages/);
  // 1.25 MiB of empty messages.
  assert.match(problemOf(repeat(field(1, EMPTY), FRAME_BYTES_MAX)) ?? '', /messages/);
});

test('fields are counted wherever decoding them costs', () => {
  const space = FRAME_BYTES_MAX - 64;
  const hostile: Readonly<Record<string, Buffer>> = {
    'bodies in one message': field(1, repeat(field(BODIES.get, EMPTY), space)),
    'fields of a body': message('get', repeat(Buffer.from([0x10, 1]), space)),
    'fields of a sink': message('get', field(5, repeat(Buffer.from([0x10, 1]), space))),
    'sinks of a GET': message('get', repeat(field(5, EMPTY), space)),
    'options of a PUT': message('put', field(6, repeat(Buffer.from([0x08, 1]), space))),
    'options of a commit': message('putCommit', field(2, repeat(Buffer.from([0x08, 1]), space))),
    features: message('hello', repeat(field(3, EMPTY), space)),
    providers: message('hello', repeat(field(6, EMPTY), space)),
    'rails of a provider': message('hello', field(6, repeat(field(2, EMPTY), space))),
    'addresses of a rail': message('hello', field(6, field(2, repeat(field(1, EMPTY), space)))),
    'rails of a region': message('region', repeat(field(3, EMPTY), space)),
    'keys of a rail of a region': message('region', field(3, repeat(Buffer.from([0x10, 1]), space))),
    'addresses of a changed rail': message('railChanged', field(3, repeat(field(1, EMPTY), space))),
    'unknown fields': message('data', repeat(Buffer.from([0x78, 1]), space)),
  };
  for (const [what, frame] of Object.entries(hostile)) {
    assert.ok(frame.length <= FRAME_BYTES_MAX, what);
    assert.match(problemOf(frame) ?? '', /fields/, what);
    assert.ok(decodeClientFrame(frame) instanceof FabricKvError, what);
  }
});

test('what is cut off is refused, at every length', () => {
  const whole = encodeClientFrame([
    { operationId: 300, get: { key: Buffer.from('key'), sink: { regionId: 1, offset: 2, length: 3 } } },
    { operationId: 301, put: { key: Buffer.from('key'), value: Buffer.from('value'), crc32c: 4 } },
  ]);
  const ends = new Set<number>();
  // Where the first message ends, a shorter frame is whole.
  for (let end = 0; end <= whole.length; end++) if (problemOf(whole.subarray(0, end)) === undefined) ends.add(end);
  assert.equal(ends.size, 3);
  assert.ok(ends.has(0) && ends.has(whole.length));
});

test('malformed tags, numbers and wire types are refused', () => {
  const cases: readonly (readonly [string, Buffer, RegExp])[] = [
    ['a truncated tag', Buffer.from([0x80]), /tag/],
    ['a tag of eleven bytes', Buffer.alloc(11, 0xff), /tag/],
    ['a length beyond the frame', Buffer.from([0x0a, 0x05, 0x00]), /cut off/],
    ['a length beyond its parent', Buffer.concat([field(1, Buffer.from([0x52, 0x7f])), Buffer.alloc(200)]), /cut off/],
    ['a length of 2^63', Buffer.from([0x0a, ...Buffer.alloc(9, 0xff), 0x01]), /cut off/],
    ['a truncated number', field(1, Buffer.from([0x08, 0x80])), /number/],
    ['a truncated fixed64', field(1, Buffer.from([0x09, 1, 2, 3])), /cut off/],
    ['a truncated fixed32', field(1, Buffer.from([0x0d, 1])), /cut off/],
    ['the start of a group', Buffer.from([0x0b]), /wire type 3/],
    ['the end of a group', Buffer.from([0x0c]), /wire type 4/],
    ['wire type 6', Buffer.from([0x0e]), /wire type 6/],
    ['wire type 7', Buffer.from([0x0f]), /wire type 7/],
  ];
  for (const [what, frame, problem] of cases) {
    assert.match(problemOf(frame) ?? '', problem, what);
    const decoded = decodeClientFrame(frame);
    assert.ok(decoded instanceof FabricKvError, what);
    assert.equal(decoded.code, 'ERR_FABRICKV_PROTOCOL');
  }
});

test('deep nesting ends neither the scan nor the decoder', () => {
  // Messages in messages, as deep as they go, in both directions and in groups, whose skipping recurs in the decoder.
  let nested: Buffer = Buffer.alloc(0);
  while (nested.length < 100_000) nested = field(1, nested);
  const groups = field(1, field(10, field(1, field(99, Buffer.alloc(500_000, 0x0b)))));
  for (const frame of [nested, groups, field(1, nested), Buffer.alloc(1_000_000, 0x0b)]) {
    assert.doesNotThrow(() => decodeClientFrame(frame));
    assert.doesNotThrow(() => decodeServerFrame(frame));
  }
});

test('bodies of a later version decode as none', () => {
  const decoded = decodeClientFrame(field(1, Buffer.concat([Buffer.from([0x08, 9]), field(30, field(1, EMPTY))])));
  assert.ok(!(decoded instanceof FabricKvError));
  const [message, ...more] = decoded;
  assert.ok(message !== undefined && more.length === 0);
  assert.equal(message.body, undefined);
  assert.equal(toSafeInteger(message.operationId, 'id'), 9);
});

test('random bytes never throw, and what passes the scan has few messages', () => {
  // Bytes that look like tags and lengths come further than uniform ones.
  const likely = fc.constantFrom(0x0a, 0x08, 0x52, 0x5a, 0x12, 0x00, 0x01, 0x02, 0x04, 0x80, 0xff);
  const noise = fc.array(fc.oneof(likely, fc.integer({ min: 0, max: 255 })), { maxLength: 300 });
  fc.assert(
    fc.property(noise, (bytes) => {
      const frame = Buffer.from(bytes);
      for (const decoded of [decodeClientFrame(frame), decodeServerFrame(frame)]) {
        if (decoded instanceof FabricKvError) assert.equal(decoded.code, 'ERR_FABRICKV_PROTOCOL');
        else assert.ok(decoded.length <= bytes.length);
      }
    }),
  );
});

test('an honest frame with a byte changed never throws', () => {
  const honest = encodeClientFrame([
    {
      operationId: 1,
      hello: { minVersion: 1, maxVersion: 1, clientName: 'n', providers: [{ name: 'tcp', rails: [{}] }] },
    },
    { operationId: 2, region: { regionId: 1, length: 10, rails: [{ address: 1, rkey: 2 }] } },
    { operationId: 3, put: { key: Buffer.from('k'), value: Buffer.from('v'), options: { ttlMs: 5 } } },
  ]);
  fc.assert(
    fc.property(fc.nat(honest.length - 1), fc.integer({ min: 0, max: 255 }), (at, byte) => {
      const changed = Buffer.from(honest);
      changed[at] = byte;
      decodeClientFrame(changed);
      decodeServerFrame(changed);
    }),
  );
});
