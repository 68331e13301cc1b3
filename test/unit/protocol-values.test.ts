import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Long } from '@grpc/proto-loader';
import fc from 'fast-check';
import { formatControlAddress, isLoopback, isWildcard, parseControlAddress } from '../../src/protocol/address.js';
import { displayKey, keyBytes, redactKey } from '../../src/protocol/keys.js';
import { formatDuration, formatSize, parseDurationMs, parseSizeBytes } from '../../src/protocol/units.js';
import { fromBigInt, fromThreshold, hex64, toBigInt, toSafeInteger, toThreshold } from '../../src/protocol/wire.js';
import { configureProperties } from './support/seed.js';

configureProperties(300);

test('sizes are read with every unit, in any case', () => {
  const cases: readonly (readonly [string, number | undefined])[] = [
    ['0', 0],
    ['17', 17],
    ['17B', 17],
    ['64KiB', 65_536],
    ['64 kib', 65_536],
    [' 1GiB ', 1024 ** 3],
    ['1.5MiB', 1.5 * 1024 ** 2],
    ['1.1GiB', 1_181_116_006],
    ['2TiB', 2 * 1024 ** 4],
    ['1kB', 1000],
    ['1MB', 1e6],
    ['1GB', 1e9],
    ['1TB', 1e12],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
    ['9007199254740992', undefined],
    ['8192TiB', undefined],
    ['1.5', undefined],
    ['', undefined],
    ['-1', undefined],
    ['1e3', undefined],
    ['0x10', undefined],
    ['KiB', undefined],
    ['1 KiB 2', undefined],
    ['5constructor', undefined],
    ['5PiB', undefined],
    ['1.KiB', undefined],
  ];
  for (const [text, expected] of cases) assert.equal(parseSizeBytes(text), expected, text);
});

test('durations need a unit, except 0', () => {
  const cases: readonly (readonly [string, number | undefined])[] = [
    ['0', 0],
    ['250ms', 250],
    ['5s', 5000],
    ['1.5s', 1500],
    ['2m', 120_000],
    ['2min', 120_000],
    ['1h', 3_600_000],
    ['1d', 86_400_000],
    ['500us', 0.5],
    ['5', undefined],
    ['', undefined],
    ['s', undefined],
    ['-5s', undefined],
    ['5constructor', undefined],
    [`${'9'.repeat(400)}s`, undefined],
  ];
  for (const [text, expected] of cases) assert.equal(parseDurationMs(text), expected, text);
});

test('what is written is read back', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 1023 }), fc.constantFrom(1, 1024, 1024 ** 2, 1024 ** 3), (n, unit) => {
      assert.equal(parseSizeBytes(formatSize(n * unit)), n * unit);
    }),
  );
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 10_000_000 }), (ms) => {
      assert.equal(parseDurationMs(formatDuration(ms)), ms);
    }),
  );
  assert.equal(formatSize(Number.POSITIVE_INFINITY), 'max');
  assert.equal(formatSize(1536), '1.5KiB');
});

test('addresses are read, and written as gRPC takes them', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['127.0.0.1:50051', '127.0.0.1:50051'],
    ['[::1]:0', '[::1]:0'],
    ['localhost:1', 'localhost:1'],
    ['node-1.example_x.com:65535', 'node-1.example_x.com:65535'],
    ['unix:/run/x.sock', 'unix:/run/x.sock'],
    ['unix:///run/x.sock', 'unix:/run/x.sock'],
  ];
  for (const [text, written] of cases) {
    const address = parseControlAddress(text);
    assert.equal(formatControlAddress(address), written);
    assert.deepEqual(parseControlAddress(written), address);
  }
  assert.deepEqual(parseControlAddress('[fd00::1]:7'), { kind: 'tcp', host: 'fd00::1', port: 7 });
});

test('what is no address is refused with a hint', () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['', /HOST:PORT/],
    ['localhost', /HOST:PORT/],
    [':50051', /HOST:PORT/],
    ['::1', /brackets/],
    ['[::1]', /HOST:PORT/],
    ['[127.0.0.1]:1', /neither/],
    ['127.0.0.1:65536', /65535/],
    ['127.0.0.1:port', /HOST:PORT/],
    ['256.1.1.1:1', /neither/],
    ['1.2.3:1', /neither/],
    ['-bad-:1', /neither/],
    ['a b:1', /neither/],
    ['unix:relative.sock', /absolute/],
    ['http://host:1', /HOST:PORT/],
  ];
  for (const [text, hint] of cases) {
    assert.throws(() => parseControlAddress(text), { code: 'ERR_FABRICKV_SETTING', message: hint }, text);
  }
});

test('wildcards and loopback addresses are known', () => {
  assert.deepEqual(['0.0.0.0', '::', '127.0.0.1', '10.0.0.1'].map(isWildcard), [true, true, false, false]);
  assert.deepEqual(['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1', '10.0.0.1', '0.0.0.0'].map(isLoopback), [
    true,
    true,
    true,
    true,
    false,
    false,
  ]);
});

test('keys have 1 to 1,024 bytes, whatever they are', () => {
  assert.equal(keyBytes('ü').length, 2);
  assert.equal(keyBytes('x'.repeat(1024)).length, 1024);
  for (const key of ['', 'x'.repeat(1025), 'ü'.repeat(513), new Uint8Array(0)]) {
    assert.throws(() => keyBytes(key), { code: 'ERR_FABRICKV_INVALID_KEY' });
  }
  // A view of a larger buffer is only its own bytes.
  const view = new Uint8Array(Buffer.from('--key--')).subarray(2, 5);
  assert.equal(keyBytes(view).toString(), 'key');
});

test('keys are shown readably, and never with control characters', () => {
  assert.equal(displayKey(Buffer.from('models/llama-3 ü')), 'models/llama-3 ü');
  assert.equal(displayKey(Buffer.from([0, 1, 255])), 'hex:0001ff');
  assert.equal(displayKey(Buffer.from('red\x1b[31m')), `hex:${Buffer.from('red\x1b[31m').toString('hex')}`);
  assert.equal(displayKey(Buffer.from('x'.repeat(100))), `${'x'.repeat(64)}… (100 bytes)`);
  // 64 is not a multiple of 3: the cut would go through a character.
  assert.equal(displayKey(Buffer.from('語'.repeat(40))), `${'語'.repeat(21)}… (120 bytes)`);
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 200 }), (bytes) => {
      assert.doesNotMatch(displayKey(bytes), /\p{Cc}/u);
    }),
  );
  assert.equal(redactKey(Buffer.from('a')), redactKey(Buffer.from('a')));
  assert.notEqual(redactKey(Buffer.from('a')), redactKey(Buffer.from('b')));
});

test('64 bits cross the proto boundary unharmed', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
      const long = fromBigInt(value);
      assert.equal(toBigInt(long), value);
      assert.equal(BigInt(`0x${hex64(value)}`), value);
      assert.equal(hex64(value).length, 16);
      if (value <= BigInt(Number.MAX_SAFE_INTEGER)) assert.equal(toSafeInteger(long, 'field'), Number(value));
      else assert.throws(() => toSafeInteger(long, 'field'), { code: 'ERR_FABRICKV_PROTOCOL', message: /field/ });
    }),
  );
  assert.equal(toThreshold(fromThreshold(Number.POSITIVE_INFINITY) as Long), Number.POSITIVE_INFINITY);
  assert.equal(toThreshold(fromBigInt(16_384n)), 16_384);
  assert.equal(fromThreshold(16_384), 16_384);
});
