import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { crc32c, type Fabric, type Mapping, mapMemory, openFabric, type Rail } from '../../src/fabric/index.js';
import type { Get } from '../../src/protocol/generated/fabrickv/v1/Get.js';
import type { GetResult__Output } from '../../src/protocol/generated/fabrickv/v1/GetResult.js';
import { DATA_BYTES_MAX } from '../../src/protocol/limits.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { startServer, type TestServer } from '../support/commands.js';
import { waitFor } from '../support/wait-for.js';
import { randomId, WireClient, type WireSession } from '../unit/support/session-client.js';

const MIB = 1024 * 1024;
const KEY = Buffer.from('shard');
const REGION_BYTES = 8 * MIB;
/** Over two extents of 16 MiB. */
const VALUE = bytes(33 * MIB + 12_345);
/** What a byte of the region is that nobody has written. */
const UNTOUCHED = 0xa5;

function bytes(length: number): Buffer {
  const block = createHash('sha512').update(String(length)).digest();
  const value = Buffer.alloc(length);
  for (let at = 0; at < length; at += 64) value.writeUInt32LE(at, block.copy(value, at) >= 4 ? at : 0);
  return value;
}

/** A client of the bare protocol with a data plane of its own, in this process; the server is another one. */
describe('ranges by RDMA', () => {
  let server: TestServer;
  let fabric: Fabric;
  let rail: Rail;
  let mapping: Mapping;
  let ids = 0;

  before(async () => {
    server = await startServer({ args: ['--provider', 'tcp', '--memory', '128MiB', '--log-level', 'info'] });
    fabric = await openFabric({ choice: 'tcp', sourceAddresses: ['127.0.0.1'] });
    const [opened] = fabric.providers[0]?.rails ?? [];
    assert.ok(opened !== undefined, 'no tcp rail');
    rail = opened;
    mapping = await mapMemory({ sizeBytes: REGION_BYTES, prefault: true });
  });

  after(async () => {
    await fabric?.close();
    mapping?.close();
    await server?.[Symbol.asyncDispose]();
  });

  async function connect(client: WireClient): Promise<WireSession> {
    const { address, addressFormat: format } = rail.info;
    const session = await client.connect({
      clientId: fromBigInt(randomId()),
      providers: [{ name: 'tcp', rails: [{ address, format }] }],
    });
    const { provider, rails, inlineOnlyReason } = await session.welcome();
    assert.equal(provider, 'tcp', inlineOnlyReason);
    for (const { address: serverAddress } of rails) await rail.insertPeer(serverAddress);
    const region = await rail.register({ mapping, offset: 0, length: REGION_BYTES, access: 'remote-write' });
    session.send({
      region: {
        regionId: 1,
        length: REGION_BYTES,
        rails: [{ address: fromBigInt(region.address), rkey: fromBigInt(region.key) }],
      },
    });
    return session;
  }

  function nextId(): number {
    ids += 1;
    return ids;
  }

  async function put(session: WireSession, value: Buffer): Promise<void> {
    const operationId = nextId();
    const { grant, failure } = await session.call(operationId, {
      putOpen: { key: KEY, length: value.length, path: 'INLINE' },
    });
    assert.ok(grant, failure?.message);
    for (let offset = 0; offset < value.length; offset += DATA_BYTES_MAX) {
      session.send({ operationId, data: { offset, bytes: value.subarray(offset, offset + DATA_BYTES_MAX) } });
    }
    session.send({ operationId, putCommit: { crc32c: crc32c(value) } });
    await session.find('the result of the PUT', ({ operationId: id, result }) =>
      toSafeInteger(id, '') === operationId ? result?.put : undefined,
    );
  }

  /** Reads a range into the region at an offset, and checks that exactly its bytes have changed there. */
  async function readInto(
    session: WireSession,
    offset: number,
    { rangeOffset, rangeLength, ...request }: Get & { rangeOffset: number; rangeLength: number },
  ): Promise<GetResult__Output> {
    mapping.buffer(0, REGION_BYTES).fill(UNTOUCHED);
    const { get, failure } = await session.call(nextId(), {
      get: {
        key: KEY,
        inlineMax: 0,
        sink: { regionId: 1, offset, length: rangeLength },
        rangeOffset,
        rangeLength,
        ...request,
      },
    });
    assert.ok(get?.found, failure?.message);
    assert.equal(get.path, 'RDMA');
    const landed = Math.min(rangeLength, VALUE.length - rangeOffset);
    assert.deepEqual(
      [toSafeInteger(get.length, ''), toSafeInteger(get.rangeOffset, ''), toSafeInteger(get.rangeLength, '')],
      [VALUE.length, rangeOffset, landed],
    );
    assert.equal(get.crc32c, crc32c(VALUE));
    const memory = mapping.buffer(0, REGION_BYTES);
    assert.ok(memory.subarray(offset, offset + landed).equals(VALUE.subarray(rangeOffset, rangeOffset + landed)));
    const around = [memory.subarray(0, offset), memory.subarray(offset + landed)];
    assert.ok(
      around.every((part) => part.equals(Buffer.alloc(part.length, UNTOUCHED))),
      'bytes beside the sink have changed',
    );
    return get;
  }

  test('of one version are read while it is overwritten, deleted and nobody else finds it', async () => {
    using client = new WireClient(server.addr);
    const session = await connect(client);
    await put(session, VALUE);
    const first = await readInto(session, 64, { rangeOffset: 0, rangeLength: 5 * MIB + 1, hold: true });
    const leaseId = toBigInt(first.leaseId);
    assert.notEqual(leaseId, 0n);

    const overwritten = await server.client(['put', KEY.toString(), 'short']);
    assert.equal(overwritten.code, 0, overwritten.stderr);
    const lease = { key: Buffer.alloc(0), leaseId: fromBigInt(leaseId) };
    // Over the border of two extents, at an odd place.
    await readInto(session, 1001, { ...lease, rangeOffset: 16 * MIB - 3333, rangeLength: 2 * MIB + 77 });
    const deleted = await server.client(['delete', KEY.toString()]);
    assert.equal(deleted.code, 0, deleted.stderr);
    await readInto(session, 0, { ...lease, rangeOffset: 25 * MIB, rangeLength: REGION_BYTES });
    await readInto(session, 0, { ...lease, rangeOffset: VALUE.length - 1, rangeLength: 100 });

    // Several at a time, into places beside each other.
    mapping.buffer(0, REGION_BYTES).fill(UNTOUCHED);
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, i) =>
        session.call(nextId(), {
          get: {
            ...lease,
            inlineMax: 0,
            sink: { regionId: 1, offset: i * MIB, length: MIB },
            rangeOffset: 12 * MIB + i * MIB,
            rangeLength: MIB,
          },
        }),
      ),
    );
    assert.ok(results.every(({ get }) => get?.path === 'RDMA'));
    assert.ok(mapping.buffer(0, REGION_BYTES).equals(VALUE.subarray(12 * MIB, 20 * MIB)));

    const held = await session.counters();
    assert.deepEqual([held['keys'], held['leases'], held['leasedBytes']], [0, 1, VALUE.length]);
    session.send({ leaseEnd: lease });
    const free = await session.counters();
    assert.deepEqual([free['leases'], free['leasedBytes'], free['memoryUsedBytes']], [0, 0, 0]);
    const { failure } = await session.call(nextId(), { get: { ...lease, inlineMax: 0 } });
    assert.equal(failure?.code, 'ERR_FABRICKV_LEASE_EXPIRED');
  });

  test('that no sink holds, and those beyond the end, write nothing', async () => {
    using client = new WireClient(server.addr);
    const session = await connect(client);
    await put(session, VALUE);
    mapping.buffer(0, REGION_BYTES).fill(UNTOUCHED);
    const before = await session.counters();
    const sink = { regionId: 1, offset: 0, length: MIB };
    const small = await session.call(nextId(), {
      get: { key: KEY, inlineMax: 0, sink, rangeOffset: 5, rangeLength: MIB + 1, hold: true },
    });
    assert.deepEqual(
      [small.sinkTooSmall?.rangeLength, small.sinkTooSmall?.length].map(
        (length) => length && toSafeInteger(length, ''),
      ),
      [MIB + 1, VALUE.length],
    );
    const beyond = await session.call(nextId(), {
      get: { key: KEY, inlineMax: 0, sink, rangeOffset: VALUE.length, rangeLength: MIB },
    });
    assert.deepEqual([beyond.get?.found, beyond.get?.path], [true, 'INLINE']);
    // The end of the value is shorter than what was asked for, and fits.
    await readInto(session, 0, { rangeOffset: VALUE.length - MIB, rangeLength: MIB, sink: { ...sink } });
    const after = await session.counters();
    assert.deepEqual([after['leases'], (after['transfers'] ?? 0) - (before['transfers'] ?? 0)], [0, 1]);
  });

  test('under way when the client goes give back what they held', async () => {
    const client = new WireClient(server.addr);
    const session = await connect(client);
    await put(session, VALUE);
    const { leaseId } = await readInto(session, 0, { rangeOffset: 0, rangeLength: 100, hold: true });
    const deleted = await server.client(['delete', KEY.toString()]);
    assert.equal(deleted.code, 0, deleted.stderr);
    for (let i = 0; i < 16; i++) {
      const sink = { regionId: 1, offset: 0, length: REGION_BYTES };
      const rangeOffset = i * MIB;
      session.send({
        operationId: nextId(),
        get: { leaseId, inlineMax: 0, sink, rangeOffset, rangeLength: REGION_BYTES },
      });
    }
    await session.find('the first of the ranges', ({ operationId, result }) =>
      toSafeInteger(operationId, '') > ids - 16 ? result?.get : undefined,
    );
    client[Symbol.dispose]();
    const counters = await waitFor(
      async () => {
        const seen = await server.counters();
        return seen['memoryUsedBytes'] === 0 && seen['operationsInFlight'] === 0 ? seen : undefined;
      },
      { what: 'the memory' },
    );
    assert.deepEqual([counters['leases'], counters['leasedBytes']], [0, 0]);
  });
});
