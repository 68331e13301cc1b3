import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import {
  crc32c,
  FabricError,
  type FabricErrorCode,
  mapMemory,
  openRail,
  remoteAddress,
  remoteKey,
} from '../../src/fabric/index.js';
import { PortableMapping } from '../../src/fabric/portable-memory.js';
import { deferred, Pair } from './support/peer-process.js';

const MIB = 2 ** 20;

const hasCode =
  (...codes: FabricErrorCode[]) =>
  (error: unknown): boolean =>
    error instanceof FabricError && codes.includes(error.code);

test('a rail says what it is', async () => {
  const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1', chunkBytes: 65_536 });
  assert.equal(rail.state, 'open');
  assert.equal(rail.failure, undefined);
  const { address, addressText, ...rest } = rail.info;
  assert.equal(address.length, 16);
  assert.match(addressText, /^127\.0\.0\.1:\d+$/);
  assert.deepEqual([rest.provider, rest.libfabricProvider], ['tcp', 'tcp;ofi_rxm']);
  assert.equal(rest.quiescence, 'fence');
  assert.equal(rest.waitMode, 'fd');
  assert.equal(rest.chunkBytes, 65_536);
  assert.equal(rest.maxRegionBytes, 2 ** 30);
  assert.deepEqual(rest.mrMode, { local: false, virtAddr: false, allocated: false, provKey: false });
  await rail.close();
  await rail.close();
  assert.equal(rail.state, 'closed');
});

test('writes of every size arrive whole', async () => {
  await using pair = await Pair.open(32 * MIB);
  for (const length of [0, 1, 4097, MIB - 1, 5 * MIB + 3, 32 * MIB - 7]) {
    await pair.target.ask({ kind: 'fill', byte: 0xee });
    await pair.write(7, length);
    const crc = await pair.target.ask({ kind: 'crc', offset: 7, length });
    assert.equal(crc, crc32c(pair.view.subarray(7, 7 + length)), `${length} bytes`);
  }
  const stats = pair.rail.stats();
  assert.equal(stats.writesPosted, stats.writesCompleted);
  assert.equal(stats.bytesWritten, 1 + 4097 + MIB - 1 + 5 * MIB + 3 + 32 * MIB - 7);
  assert.equal(stats.peers, 1);
  assert.equal(stats.transfersActive, 0);
  assert.ok(stats.heartbeatAgeMs < 5000);
  assert.equal(await pair.target.finish(), 0);
});

test('packed segments, and many transfers at once', async () => {
  await using pair = await Pair.open(8 * MIB);
  const length = 8192;
  const writes = Array.from({ length: 500 }, (_, i) => {
    const { promise, settle } = deferred();
    const at = i * 16_384;
    const segments = new Float64Array([
      ...[pair.mapping.id, at, pair.remote, at + length, length],
      ...[pair.mapping.id, at + length, pair.remote, at, length],
    ]);
    pair.rail.write({ peer: pair.peer, segments, onDone: settle });
    return promise;
  });
  await Promise.all(writes);
  for (const i of [0, 250, 499]) {
    const first = await pair.target.ask({ kind: 'crc', offset: i * 16_384 + length, length });
    assert.equal(first, crc32c(pair.view.subarray(i * 16_384, i * 16_384 + length)));
  }
});

test('what is out of bounds is refused, and nothing is posted', async () => {
  await using pair = await Pair.open(MIB);
  const good = {
    mappingId: pair.mapping.id,
    localOffset: 0,
    remoteRegionId: pair.remote,
    remoteOffset: 0,
    length: 10,
  };
  for (const wrong of [
    { localOffset: MIB - 9 },
    { remoteOffset: MIB - 9 },
    { length: MIB + 1 },
    { length: -1 },
    { localOffset: -1 },
    { localOffset: 0.5 },
    { remoteOffset: Number.NaN },
    { mappingId: 123_456 },
    { remoteRegionId: 5 },
  ]) {
    const segments = [good, { ...good, ...wrong }];
    assert.throws(
      () => pair.rail.write({ peer: pair.peer, segments, onDone: assert.fail }),
      hasCode('INVALID_ARGUMENT'),
      JSON.stringify(wrong),
    );
  }
  assert.throws(() => pair.rail.write({ peer: 1, segments: [good], onDone: assert.fail }), hasCode('INVALID_ARGUMENT'));
  pair.rail.forgetRemote(pair.remote);
  pair.rail.forgetRemote(pair.remote);
  assert.throws(() => pair.start(0, 1), hasCode('INVALID_ARGUMENT'));
  assert.equal(pair.rail.stats().writesPosted, 0);
});

test('bad registrations, addresses and options are refused', async () => {
  const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
  const mapping = await mapMemory({ sizeBytes: MIB, prefault: false });
  const register = (offset: number, length: number): Promise<unknown> =>
    rail.register({ mapping, offset, length, access: 'remote-write' });
  await assert.rejects(register(0, 0), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(register(1, MIB), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(register(-1, 2), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(
    rail.register({ mapping: new PortableMapping(4096), offset: 0, length: 1, access: 'local' }),
    hasCode('INVALID_ARGUMENT'),
  );
  const region = await rail.register({ mapping, offset: 0, length: MIB, access: 'remote-write' });
  assert.equal(rail.stats().regionsOpen, 1);
  await rail.deregister(region);
  await assert.rejects(rail.deregister(region), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(rail.insertPeer(Buffer.alloc(3)), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(rail.removePeer(77), hasCode('INVALID_ARGUMENT'));
  const nowhere = { peer: 77, address: remoteAddress(0n), key: remoteKey(1n), length: 1 };
  assert.throws(() => rail.defineRemote(nowhere), hasCode('INVALID_ARGUMENT'));
  assert.throws(() => remoteKey(2n ** 64n), hasCode('INVALID_ARGUMENT'));
  mapping.close();
  await assert.rejects(register(0, 1), hasCode('INVALID_ARGUMENT'));
  await rail.close();
  await assert.rejects(openRail({ provider: 'tcp', chunkBytes: 0 }), hasCode('INVALID_ARGUMENT'));
  await assert.rejects(openRail({ provider: 'tcp', spinUs: -1 }), hasCode('INVALID_ARGUMENT'));
});

test('a rail that cannot be opened says why', async () => {
  await assert.rejects(openRail({ provider: 'tcp', sourceAddress: '203.0.113.1' }), (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'PROVIDER_MISSING');
    assert.equal(error.call, 'fi_endpoint');
    assert.equal(error.provider, 'tcp;ofi_rxm');
    assert.equal(error.errnoName, 'EADDRNOTAVAIL');
    assert.match(error.text, /203\.0\.113\.1/);
    assert.match(error.hint ?? '', /source address/);
    return true;
  });
});

test('an error names the call, the errno and the provider; others go on, and the next write reconnects', async () => {
  await using pair = await Pair.open(MIB);
  await pair.write(0, 4096);
  const { peer, target } = pair;
  const wrong = pair.rail.defineRemote({
    peer,
    address: target.remoteAddress,
    key: remoteKey(BigInt.asUintN(64, target.key + 1n)),
    length: MIB,
  });
  await assert.rejects(pair.start(0, 65_536, wrong).done, (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'TRANSFER_FAILED');
    assert.equal(error.call, 'fi_writemsg');
    assert.ok(error.errno > 0 && error.errnoName !== '' && error.text !== '');
    assert.equal(error.provider, 'tcp;ofi_rxm');
    assert.ok(error.message.includes('fi_writemsg [tcp;ofi_rxm]'));
    return true;
  });
  await pair.write(0, MIB);
  assert.equal(await pair.target.ask({ kind: 'crc', offset: 0, length: MIB }), crc32c(pair.view));
});

test('an onDone that throws is an uncaught exception, and the rest of its batch is settled', async () => {
  // In a process of its own, since the test runner takes uncaught exceptions for failures.
  const script = `
    const { mapMemory, openRail, remoteAddress, remoteKey } = await import(process.argv[1]);
    const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
    const mapping = await mapMemory({ sizeBytes: 4096, prefault: true });
    const peer = await rail.insertPeer(rail.info.address);
    const remoteRegionId = rail.defineRemote({ peer, address: remoteAddress(0n), key: remoteKey(0n), length: 4096 });
    const segments = [{ mappingId: mapping.id, localOffset: 0, remoteRegionId, remoteOffset: 0, length: 0 }];
    const result = { settled: 0, uncaught: [] };
    process.on('uncaughtException', (error) => result.uncaught.push(error.message));
    for (let i = 0; i < 10; i++) {
      rail.write({ peer, segments, onDone: () => {
        result.settled++;
        if (i === 3) throw new Error('the fourth');
      } });
    }
    await rail.close();
    console.log(JSON.stringify(result));`;
  const face = new URL('../../src/fabric/index.js', import.meta.url).href;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script, face]);
  assert.deepEqual(JSON.parse(stdout), { settled: 10, uncaught: ['the fourth'] });
});
