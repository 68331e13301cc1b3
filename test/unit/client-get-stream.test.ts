import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HOLDS_IN_FLIGHT_MAX } from '../../src/client/limits.js';
import { crc32c } from '../../src/fabric/index.js';
import { FabricKvError, KvClient, type KvClientOptions, type ValueStream } from '../../src/index.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { fromBigInt, toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { SETTLE_SLACK_MS } from '../support/mode.js';
import { makeValue } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';
import { type PeerSession, TestPeer } from './client-test-peer.js';

const MIB = 1024 * 1024;
/** Of a client without receive memory. */
const PIECE = MIB;
const DATA = 64 * 1024;
const LENGTH = 9 * PIECE + 12_345;

/** A request for a range, as the peer saw it. */
interface Asked {
  readonly session: number;
  readonly offset: number;
  readonly length: number;
  readonly hold: boolean;
  readonly leaseId: bigint;
  readonly onlyVersion: bigint;
}

/** One value that is served in ranges, inline, and what a test wants otherwise. */
class RangedPeer {
  value: Buffer;
  version = 7n;
  withoutCrc = false;
  crc: number | undefined;
  readonly asked: Asked[] = [];
  /** Offsets of the ranges that were answered whole. */
  readonly served: number[] = [];
  readonly leases = new Map<bigint, PeerSession>();
  readonly leasesEnded: bigint[] = [];
  readonly cancelled: number[] = [];
  /** Answers a range otherwise, or not at all: then it returns true. */
  intercept: (asked: Asked, message: ClientMessage__Output, session: PeerSession) => boolean = () => false;
  #lastLease = 100n;
  #computed: { readonly value: Buffer; readonly crc: number } | undefined;

  private constructor(
    readonly peer: TestPeer,
    value: Buffer,
  ) {
    this.value = value;
    peer.answer = (message, session) => this.#answer(message, session);
  }

  static async start(value: Buffer): Promise<RangedPeer> {
    return new RangedPeer(await TestPeer.start(() => undefined), value);
  }

  fail(message: ClientMessage__Output, session: PeerSession, code: string): true {
    session.result(message, { failure: { code, message: 'as the test wants it', retryable: true } });
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.peer[Symbol.asyncDispose]();
  }

  #crcOf(value: Buffer): number {
    if (this.#computed?.value !== value) this.#computed = { value, crc: crc32c(value) };
    return this.#computed.crc;
  }

  #answer(message: ClientMessage__Output, session: PeerSession): void {
    if (message.leaseEnd) {
      const id = toBigInt(message.leaseEnd.leaseId);
      this.leasesEnded.push(id);
      this.leases.delete(id);
    } else if (message.cancel) {
      this.cancelled.push(toSafeInteger(message.operationId, 'operation_id'));
      session.send({ operationId: message.operationId, quiesced: {} });
    } else if (message.get) this.#get(message, session);
  }

  #get(message: ClientMessage__Output, session: PeerSession): void {
    const { get } = message;
    if (!get) return;
    const asked: Asked = {
      session: this.peer.sessions.indexOf(session),
      offset: toSafeInteger(get.rangeOffset, 'range_offset'),
      length: toSafeInteger(get.rangeLength, 'range_length'),
      hold: get.hold,
      leaseId: toBigInt(get.leaseId),
      onlyVersion: toBigInt(get.onlyVersion),
    };
    this.asked.push(asked);
    if (this.intercept(asked, message, session)) return;
    if (asked.leaseId !== 0n && this.leases.get(asked.leaseId) !== session) {
      this.fail(message, session, 'ERR_FABRICKV_LEASE_EXPIRED');
    } else if (asked.onlyVersion !== 0n && asked.onlyVersion !== this.version) {
      this.fail(message, session, 'ERR_FABRICKV_VERSION_CHANGED');
    } else this.serve(asked, message, session);
  }

  serve({ offset, length, hold, leaseId }: Asked, message: ClientMessage__Output, session: PeerSession): void {
    const { value } = this;
    const end = length === 0 ? value.length : Math.min(value.length, offset + length);
    const rangeLength = Math.max(0, end - offset);
    let lease = leaseId;
    if (hold) {
      this.#lastLease += 1n;
      lease = this.#lastLease;
      this.leases.set(lease, session);
    }
    const inMessage = rangeLength <= DATA;
    for (let at = offset; at < end && !inMessage; at += DATA) {
      const bytes = value.subarray(at, Math.min(end, at + DATA));
      session.send({ operationId: message.operationId, data: { offset: at, bytes, totalLength: value.length } });
    }
    this.served.push(offset);
    session.result(message, {
      get: {
        found: true,
        length: value.length,
        version: fromBigInt(this.version),
        crc32c: this.withoutCrc ? 0 : (this.crc ?? this.#crcOf(value)),
        withoutCrc: this.withoutCrc,
        path: 'INLINE',
        value: inMessage ? value.subarray(offset, end) : Buffer.alloc(0),
        leaseId: fromBigInt(lease),
        rangeOffset: offset,
        rangeLength,
      },
    });
  }
}

function connect({ peer }: RangedPeer, options: KvClientOptions = {}): Promise<KvClient> {
  return KvClient.connect({ serverAddr: peer.addr, provider: 'none', timeoutMs: 5000, ...options });
}

async function open(client: KvClient, options: Parameters<KvClient['getStream']>[1] = {}): Promise<ValueStream> {
  const stream = await client.getStream('k', options);
  assert.ok(stream !== undefined);
  return stream;
}

async function collect(pieces: AsyncIterable<unknown>): Promise<Buffer> {
  const copies: Buffer[] = [];
  for await (const piece of pieces) copies.push(Buffer.from(piece as Buffer));
  return Buffer.concat(copies);
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

const ascending = (numbers: readonly number[]): number[] => [...numbers].sort((a, b) => a - b);
const OFFSETS = Array.from({ length: 10 }, (_, index) => index * PIECE);

describe('a stream of a value', () => {
  test('is read in ranges under one lease, which it ends; a few at a time', async () => {
    const value = makeValue(LENGTH, 1);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    const progress: number[] = [];
    const stream = await open(client, { onProgress: (done, total) => void progress.push(done, total) });
    assert.deepEqual(
      [stream.length, stream.version, stream.crc32c, stream.path],
      [LENGTH, 7n, crc32c(value), 'inline'],
    );
    assert.equal(client.operations().length, 1, 'an open stream is an operation in flight');
    // Nobody reads: so much is asked for ahead, and no more.
    await waitFor(() => peer.served.length === 4, { what: 'the ranges ahead' });
    await sleep(50);
    assert.equal(peer.asked.length, 4);
    assert.ok((await collect(stream.pieces())).equals(value));
    assert.deepEqual(ascending(peer.served), OFFSETS);
    assert.deepEqual(
      peer.asked.map(({ hold, leaseId, onlyVersion }) => [hold, leaseId, onlyVersion]),
      OFFSETS.map((offset) => (offset === 0 ? [true, 0n, 0n] : [false, 101n, 0n])),
    );
    await waitFor(() => peer.leasesEnded.length === 1, { what: 'the end of the lease' });
    assert.deepEqual(progress.slice(-2), [LENGTH, LENGTH]);
    assert.deepEqual(client.operations(), []);
    assert.equal(client.counters().cancels, 0);
    assert.equal(client.counters().getsInline, 1, 'one value, whatever the number of ranges');
  });

  test('is a Readable, whose chunks stay what they are', async () => {
    const value = makeValue(LENGTH, 2);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    const stream = await open(client);
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    await once(stream, 'close');
    assert.ok(Buffer.concat(chunks).equals(value));
    assert.throws(() => stream.pieces(), { code: 'ERR_FABRICKV_INVALID_ARGUMENT' });
  });

  test('of nothing, of an empty value, of one byte, and of one without a CRC', async () => {
    await using peer = await RangedPeer.start(Buffer.alloc(0));
    await using client = await connect(peer);
    assert.equal((await collect((await open(client)).pieces())).length, 0);
    assert.equal((await collect(await open(client))).length, 0);
    peer.value = Buffer.from('x');
    assert.equal((await collect(await open(client))).toString(), 'x');
    peer.withoutCrc = true;
    const stream = await open(client);
    assert.equal(stream.crc32c, undefined);
    assert.equal((await collect(stream.pieces())).toString(), 'x');
    peer.intercept = (_asked, message, session) => {
      session.result(message, { get: { found: false } });
      return true;
    };
    assert.equal(await client.getStream('k'), undefined);
    await waitFor(() => peer.leases.size === 0, { what: 'the end of all leases' });
  });

  test('after a lost session asks for what is missing, of the same version, and for nothing twice', async () => {
    const value = makeValue(LENGTH, 3);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    peer.intercept = ({ session, offset }) => session === 0 && offset >= 3 * PIECE;
    const stream = await open(client);
    const pieces = stream.pieces();
    const first = Buffer.from((await pieces.next()).value as Buffer);
    // The three that follow are here or asked for; what was asked for is lost.
    await waitFor(() => peer.asked.length >= 4, { what: 'a request that is not answered' });
    peer.peer.last.crash();
    const rest = await collect(pieces);
    assert.ok(Buffer.concat([first, rest]).equals(value));
    assert.deepEqual(ascending(peer.served), OFFSETS, 'every range once');
    const again = peer.asked.filter(({ session }) => session === 1);
    assert.deepEqual(
      again.map(({ hold, leaseId, onlyVersion }) => [hold, leaseId, onlyVersion]),
      again.map((_, index) => (index === 0 ? [true, 0n, 7n] : [false, 102n, 0n])),
    );
    assert.equal(client.counters().reconnects, 1);
  });

  test('whose version is gone when the session was lost says so', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 4));
    await using client = await connect(peer);
    peer.intercept = ({ session, offset }) => session === 0 && offset >= 3 * PIECE;
    const stream = await open(client);
    await waitFor(() => peer.asked.length === 4, { what: 'a request that is not answered' });
    peer.version = 8n;
    peer.peer.last.crash();
    const error = await rejection(collect(stream.pieces()));
    assert.equal(error.code, 'ERR_FABRICKV_VERSION_CHANGED');
    assert.deepEqual(error.details['bytesTotal'], String(LENGTH));
    assert.ok(error.requestId !== undefined && error.peer !== undefined);
    assert.deepEqual(client.operations(), []);
  });

  test('takes another lease when its own has run out', async () => {
    const value = makeValue(LENGTH, 5);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    const stream = await open(client);
    await waitFor(() => peer.served.length === 4, { what: 'the ranges ahead' });
    peer.leases.clear();
    assert.ok((await collect(stream.pieces())).equals(value));
    assert.deepEqual(ascending(peer.served), OFFSETS);
    assert.deepEqual(
      peer.asked.filter(({ hold }) => hold).map(({ onlyVersion }) => onlyVersion),
      [0n, 7n],
    );
  });

  test('asks again for the one range whose transfer failed', async () => {
    const value = makeValue(LENGTH, 6);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    let failures = 2;
    peer.intercept = ({ offset }, message, session) =>
      offset === 2 * PIECE && failures-- > 0 && peer.fail(message, session, 'ERR_FABRICKV_DATA_PLANE');
    assert.ok((await collect((await open(client)).pieces())).equals(value));
    assert.deepEqual(ascending(peer.served), OFFSETS);
    assert.deepEqual(
      peer.asked.filter(({ offset }) => offset === 2 * PIECE).map(({ length }) => length),
      [PIECE, PIECE, PIECE],
    );
  });

  test('fails when that does not help', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 6));
    await using client = await connect(peer);
    peer.intercept = ({ offset }, message, session) =>
      offset >= 2 * PIECE && peer.fail(message, session, 'ERR_FABRICKV_DATA_PLANE');
    const error = await rejection(collect((await open(client)).pieces()));
    assert.equal(error.code, 'ERR_FABRICKV_DATA_PLANE');
  });

  test('with a wrong CRC fails before its last bytes', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 7));
    await using client = await connect(peer);
    peer.crc = 1;
    let received = 0;
    const reading = async (): Promise<void> => {
      for await (const piece of (await open(client)).pieces()) received += piece.length;
    };
    assert.equal((await rejection(reading())).code, 'ERR_FABRICKV_CHECKSUM');
    assert.equal(received, 9 * PIECE);

    const stream = await open(client);
    let ended = false;
    stream.on('end', () => {
      ended = true;
    });
    stream.resume();
    const [error] = (await once(stream, 'error')) as [FabricKvError];
    assert.deepEqual([error.code, ended], ['ERR_FABRICKV_CHECKSUM', false]);
  });

  test('that is destroyed gives up what is in flight, and its lease', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 8));
    await using client = await connect(peer);
    peer.intercept = ({ offset }) => offset >= 2 * PIECE;
    const stream = await open(client);
    await waitFor(() => peer.asked.length === 4, { what: 'requests that are not answered' });
    stream.destroy();
    await waitFor(() => peer.cancelled.length >= 2 && peer.leasesEnded.length === 1, { what: 'the cancels' });
    assert.deepEqual(client.operations(), []);

    // Leaving the loop is the same.
    for await (const _piece of (await open(client)).pieces()) break;
    await waitFor(() => peer.leasesEnded.length === 2, { what: 'the end of the second lease' });

    // A loop whose stream is destroyed elsewhere must not take what has come for all of it.
    const other = await open(client);
    const reading = rejection(collect(other.pieces()));
    await sleep(20);
    other.destroy();
    assert.equal((await reading).code, 'ERR_FABRICKV_CANCELLED');
  });

  test('fails when nothing arrives for the timeout, and never because its consumer is slow', async () => {
    const value = makeValue(LENGTH, 9);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    const slow = await open(client, { timeoutMs: 1000 });
    const copies: Buffer[] = [];
    for await (const piece of slow.pieces()) {
      if (copies.length < 1) await sleep(1500);
      copies.push(Buffer.from(piece));
    }
    assert.ok(Buffer.concat(copies).equals(value));

    peer.intercept = ({ offset }) => offset >= 2 * PIECE;
    const stream = await open(client, { timeoutMs: 1000 });
    let lastAtMs = 0;
    const reading = async (): Promise<void> => {
      for await (const _piece of stream.pieces()) lastAtMs = performance.now();
    };
    const error = await rejection(reading());
    const tookMs = performance.now() - lastAtMs;
    assert.equal(error.code, 'ERR_FABRICKV_DEADLINE');
    assert.ok(tookMs <= 1000 + SETTLE_SLACK_MS, `it took ${tookMs} ms (I1)`);
    assert.deepEqual([error.details['bytesDone'], error.details['bytesTotal']], [String(2 * PIECE), String(LENGTH)]);
  });

  test('fails in time also when every request of it ends with its session', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 11));
    await using client = await connect(peer);
    peer.intercept = ({ offset }, _message, session) => {
      if (offset < 2 * PIECE) return false;
      session.crash();
      return true;
    };
    const stream = await open(client, { timeoutMs: 1000 });
    let lastAtMs = performance.now();
    const reading = async (): Promise<void> => {
      for await (const _piece of stream.pieces()) lastAtMs = performance.now();
    };
    const late = sleep(6000).then(() => stream.destroy());
    const error = await rejection(reading());
    const tookMs = performance.now() - lastAtMs;
    assert.ok(['ERR_FABRICKV_DEADLINE', 'ERR_FABRICKV_CONNECTION_LOST'].includes(error.code), error.code);
    assert.ok(tookMs <= 1000 + SETTLE_SLACK_MS, `it took ${tookMs} ms (I1)`);
    assert.ok(peer.peer.sessions.length > 2, `${peer.peer.sessions.length} sessions`);
    void late;
  });

  test('gives back a lease that comes after it was given up', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 12));
    await using client = await connect(peer);
    let serve = (): void => undefined;
    peer.intercept = (asked, message, session) => {
      serve = () => peer.serve(asked, message, session);
      return true;
    };
    const controller = new AbortController();
    const pending = rejection(client.getStream('k', { signal: controller.signal }));
    await waitFor(() => peer.asked.length === 1, { what: 'the request' });
    const { answer } = peer.peer;
    peer.peer.answer = (message, session) => {
      // The result was on its way already.
      if (message.cancel) serve();
      answer(message, session);
    };
    controller.abort();
    assert.equal((await pending).code, 'ERR_FABRICKV_CANCELLED');
    await waitFor(() => peer.leasesEnded.length === 1, { what: 'the end of the lease' });
    assert.equal(peer.leases.size, 0);
  });

  test('asks for no more leases at a time than the server gives, and goes on in the next session', async () => {
    const value = makeValue(1000, 14);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer);
    peer.intercept = ({ session }) => session === 0;
    const pending = Array.from({ length: 300 }, () => open(client));
    await waitFor(() => peer.asked.length > 0, { what: 'the first requests' });
    await sleep(50);
    assert.equal(peer.asked.length, HOLDS_IN_FLIGHT_MAX);
    peer.peer.last.crash();
    const streams = await Promise.all(pending);
    assert.equal(peer.asked.length, 300 + HOLDS_IN_FLIGHT_MAX);
    for (const stream of streams) assert.ok((await collect(stream)).equals(value));
    await waitFor(() => peer.leases.size === 0, { what: 'the end of the leases' });
  });

  test('whose pieces are given up before the first was asked for is destroyed', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 13));
    await using client = await connect(peer);
    const stream = await open(client);
    await stream.pieces().return?.();
    assert.equal(stream.destroyed, true);
    await waitFor(() => peer.leases.size === 0, { what: 'the end of the lease' });
  });

  test('that cannot be opened in time, or is aborted, rejects', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 9));
    await using client = await connect(peer);
    peer.intercept = () => true;
    const late = await rejection(client.getStream('k', { timeoutMs: 100 }));
    assert.equal(late.code, 'ERR_FABRICKV_DEADLINE');
    await waitFor(() => peer.cancelled.length === 1, { what: 'the cancel' });
    assert.equal((await rejection(client.getStream(''))).code, 'ERR_FABRICKV_INVALID_KEY');

    peer.intercept = ({ offset }) => offset >= 2 * PIECE;
    const controller = new AbortController();
    const reason = new Error('no more');
    const stream = await open(client, { signal: controller.signal });
    const reading = rejection(collect(stream.pieces()));
    await waitFor(() => peer.asked.length >= 5, { what: 'requests that are not answered' });
    controller.abort(reason);
    const error = await reading;
    assert.deepEqual([error.code, error.cause], ['ERR_FABRICKV_CANCELLED', reason]);
  });

  test('ends with its client', async () => {
    await using peer = await RangedPeer.start(makeValue(LENGTH, 9));
    const client = await connect(peer);
    peer.intercept = ({ offset }) => offset >= 2 * PIECE;
    const reading = rejection(collect((await open(client)).pieces()));
    await waitFor(() => peer.asked.length >= 4, { what: 'requests that are not answered' });
    await client.close();
    assert.equal((await reading).code, 'ERR_FABRICKV_CLOSED');
  });
});

describe('getInto of a large region', () => {
  const SIZE = 65 * MIB;

  test('reads in ranges too, and after a lost session only what is missing', async () => {
    const value = makeValue(20 * MIB + 5, 10);
    await using peer = await RangedPeer.start(value);
    await using client = await connect(peer, { timeoutMs: 20_000 });
    peer.intercept = ({ session, offset }) => session === 0 && offset >= 8 * MIB;
    const region = await client.allocate(SIZE);
    const reading = client.getInto('k', region, { verify: true });
    await waitFor(() => peer.asked.length === 3, { what: 'three requests' });
    peer.peer.last.crash();
    const info = await reading;
    assert.deepEqual([info?.length, info?.version], [value.length, 7n]);
    assert.ok(region.view(0, value.length).equals(value));
    assert.equal(region.busy, false);
    assert.deepEqual(ascending(peer.served), [0, 8 * MIB, 16 * MIB]);
    await waitFor(() => peer.leases.size === 1 && peer.leasesEnded.length === 1, { what: 'the end of the lease' });
  });

  test('begins anew when the version that it had begun is gone: it was promised to nobody', async () => {
    await using peer = await RangedPeer.start(makeValue(20 * MIB, 10));
    await using client = await connect(peer, { timeoutMs: 20_000 });
    peer.intercept = ({ session, offset }) => session === 0 && offset >= 8 * MIB;
    const region = await client.allocate(SIZE);
    const reading = client.getInto('k', region, { verify: true });
    await waitFor(() => peer.asked.length === 3, { what: 'three requests' });
    peer.value = makeValue(17 * MIB, 11);
    peer.version = 8n;
    peer.peer.last.crash();
    const info = await reading;
    assert.deepEqual([info?.length, info?.version], [17 * MIB, 8n]);
    assert.ok(region.view(0, 17 * MIB).equals(peer.value));
  });

  test('says when the value does not fit, and gives up in time', async () => {
    await using peer = await RangedPeer.start(makeValue(66 * MIB, 10));
    await using client = await connect(peer, { timeoutMs: 20_000 });
    const region = await client.allocate(SIZE);
    const error = await rejection(client.getInto('k', region));
    assert.deepEqual([error.code, error.details['length']], ['ERR_FABRICKV_SINK_TOO_SMALL', String(66 * MIB)]);
    peer.value = makeValue(20 * MIB, 10);
    peer.intercept = ({ offset }) => offset >= 8 * MIB;
    const late = await rejection(client.getInto('k', region, { timeoutMs: 1000 }));
    assert.equal(late.code, 'ERR_FABRICKV_DEADLINE');
    assert.deepEqual([late.details['bytesDone'], late.details['bytesTotal']], [String(8 * MIB), String(20 * MIB)]);
    await waitFor(() => !region.busy, { what: 'the region to be quiet' });
  });
});
