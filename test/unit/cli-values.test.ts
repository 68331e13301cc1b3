import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { z } from 'zod';
import {
  count,
  duration,
  fabricOptions,
  grpcAddress,
  ipAddress,
  listOf,
  oneOf,
  size,
  threshold,
} from '../../src/cli/values.js';

/** What a schema makes of a text, or what it says is wrong. */
function read<Value, Input>(schema: z.ZodType<Value, Input>, given: unknown): Value | string {
  const parsed = schema.safeParse(given);
  return parsed.success ? parsed.data : `wrong: ${parsed.error.issues[0]?.message}`;
}

describe('values of settings', () => {
  it('reads sizes with units', () => {
    for (const [text, bytes] of [
      ['0', 0],
      ['17', 17],
      ['17B', 17],
      ['64KiB', 65_536],
      ['64kib', 65_536],
      ['1.5GiB', 1.5 * 1024 ** 3],
      ['1GB', 1e9],
      [' 2 MiB ', 2 * 1024 ** 2],
    ] as const) {
      assert.equal(read(size(), text), bytes, text);
    }
  });

  it('refuses what is no size, and quotes it', () => {
    for (const text of ['', 'x', '-1', '1e3', '0x10', '12XB', '1.3', '64 K iB', 'max', '99999999999TiB', 'NaN', '∞']) {
      assert.match(String(read(size(), text)), /^wrong: ".*" is not a size$/s, text);
    }
    assert.equal(read(size({ minBytes: 1024 }), '1023'), 'wrong: "1023" is less than 1KiB');
    assert.equal(read(size({ maxBytes: 1024 }), '2KiB'), 'wrong: "2KiB" is more than 1KiB');
  });

  it('reads thresholds: a size, max or 0', () => {
    assert.equal(read(threshold(), '0'), 0);
    assert.equal(read(threshold(), 'max'), Number.POSITIVE_INFINITY);
    assert.equal(read(threshold(), 'MAX'), Number.POSITIVE_INFINITY);
    assert.equal(read(threshold(), '16KiB'), 16_384);
    assert.equal(read(threshold(), 'all'), 'wrong: "all" is neither a size nor max');
    assert.equal(read(threshold(), '-1'), 'wrong: "-1" is neither a size nor max');
  });

  it('reads times with units, and refuses those without', () => {
    assert.equal(read(duration(), '250ms'), 250);
    assert.equal(read(duration(), '5s'), 5000);
    assert.equal(read(duration(), '2m'), 120_000);
    assert.equal(read(duration(), '0'), 0);
    assert.equal(read(duration(), '5'), 'wrong: "5" has no unit');
    assert.equal(read(duration(), '5 parsecs'), 'wrong: "5 parsecs" is not a time');
    assert.equal(read(duration({ minMs: 1 }), '0'), 'wrong: "0" is less than 1ms');
    assert.match(String(read(duration(), '25h')), /is more than/);
  });

  it('reads whole numbers in their bounds', () => {
    const schema = count({ min: 1, max: 10 });
    assert.equal(read(schema, '10'), 10);
    for (const text of ['0', '11', '1.5', '-1', 'ten', '', '1e1', '0x5', '99999999999999999999']) {
      assert.match(String(read(schema, text)), /^wrong: /, text);
    }
  });

  it('reads one of several words', () => {
    assert.equal(read(oneOf(['auto', 'tcp']), 'tcp'), 'tcp');
    assert.equal(read(oneOf(['auto', 'tcp']), 'TCP'), 'wrong: "TCP" is none of auto, tcp');
  });

  it('reads gRPC addresses', () => {
    for (const text of ['127.0.0.1:50051', 'localhost:0', '[::1]:50051', 'kv.example.com:443', 'unix:/run/kv.sock']) {
      assert.equal(read(grpcAddress({ portMin: 0 }), text), text);
    }
    for (const text of [
      '',
      'localhost',
      ':50051',
      '127.0.0.1',
      '127.0.0.1:',
      '127.0.0.1:x',
      '127.0.0.1:65536',
      '127.0.0.300:1',
      '1.2.3:1',
      '::1:50051',
      '[::1]',
      '[127.0.0.1]:1',
      'unix:relative',
      'unix:',
      'http://host:1',
      'host:1/path',
      'a b:1',
      `unix:/${'x'.repeat(107)}`,
    ]) {
      assert.match(String(read(grpcAddress({ portMin: 0 }), text)), /^wrong: /, text);
    }
    assert.match(String(read(grpcAddress({ portMin: 1 }), 'host:0')), /no port from 1/);
    assert.match(String(read(grpcAddress({ portMin: 1, unix: false }), 'unix:/a')), /not a network address/);
  });

  it('reads IP addresses, and lists of them', () => {
    assert.equal(read(ipAddress(), '10.0.0.5'), '10.0.0.5');
    assert.equal(read(ipAddress(), 'fe80::1'), 'fe80::1');
    assert.deepEqual(read(listOf(ipAddress()), ['10.0.0.5', '::1']), ['10.0.0.5', '::1']);
    assert.equal(read(listOf(ipAddress()), ['10.0.0.5', 'eth0']), 'wrong: "eth0" is not an IP address');
  });

  it("reads libfabric's variables, but not the one that must stay", () => {
    assert.deepEqual(read(fabricOptions(), ['FI_A=1', 'FI_B=a=b', 'FI_C=']), { FI_A: '1', FI_B: 'a=b', FI_C: '' });
    for (const text of ['FI_A', '=1', '1A=2', 'A B=1']) {
      assert.equal(read(fabricOptions(), [text]), `wrong: "${text}" is not NAME=VALUE`);
    }
    assert.match(String(read(fabricOptions(), ['FI_AV_REMOVE_CLEANUP=0'])), /stays 1/);
  });
});
