import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Core } from '../../src/client/client-core.js';
import { type PutOptions, parseCallOptions, parseClientOptions } from '../../src/client/options.js';
import { PutOperation } from '../../src/client/put.js';
import { memoryFeed } from '../../src/client/put-feed.js';
import { PutStreamOperation } from '../../src/client/put-stream.js';
import { UserRegion } from '../../src/client/region.js';
import type { StreamSource } from '../../src/client/stream-reader.js';
import type { PutInfo } from '../../src/client/value.js';
import { crc32c, mapMemory } from '../../src/fabric/index.js';
import { FabricKvError } from '../../src/index.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { STREAM_SILENCE_MS_MAX } from '../../src/protocol/limits.js';
import { toSafeInteger } from '../../src/protocol/wire.js';
import { waitFor } from '../support/wait-for.js';
import { type Answer, idOf, type PeerSession, TestPeer } from './client-test-peer.js';
import { ClientRail, fabricOf } from './support/client-rail.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const WINDOW_BYTES = 16 * MIB;

/** A client whose rail is a test's, with a region of 1 MiB. */
class WindowClient implements AsyncDisposable {
  crcBytes = 0;

  private constructor(
    readonly peer: TestPeer,
    readonly rail: ClientRail,
    readonly core: Core,
    readonly region: UserRegion,
  ) {}

  static async connect(answer: Answer, receiveMemory = 16 * MIB): Promise<WindowClient> {
    const peer = await TestPeer.start(answer);
    peer.takesProvider = true;
    const rail = new ClientRail();
    const core = new Core(parseClientOptions({ serverAddr: peer.addr, receiveMemory }), fabricOf(rail));
    await core.connection.connectFirst();
    const mapping = await mapMemory({ sizeBytes: MIB, prefault: false });
    const client = new WindowClient(peer, rail, core, new UserRegion(mapping, core, () => undefined));
    const compute = mapping.crc32c.bind(mapping);
    mapping.crc32c = (options) => {
      client.crcBytes += options.length;
      return compute(options);
    };
    return client;
  }

  /** Offers a window, and waits until the client knows of it. */
  async offer(windowId: number, sessionWindow: boolean, length = WINDOW_BYTES): Promise<void> {
    const { last } = this.peer;
    last.send({
      operationId: 0,
      windowOffer: { windowId, length, rails: [{ address: 0, rkey: windowId }], sessionWindow },
    });
    await this.settled();
  }

  /** Waits until the client has taken in what was sent to it. */
  async settled(): Promise<void> {
    const { session } = this.core.connection;
    assert.ok(session);
    const { last } = this.peer;
    const pinged = last.of('windowEnded').length;
    // A window that it cannot know is answered at once, after everything before.
    last.send({ operationId: 0, windowRevoke: { windowId: 999_999, reason: 'a question' } });
    await waitFor(() => last.of('windowEnded').length > pinged, { what: 'the answer', intervalMs: 1 });
  }

  put(options: PutOptions = {}, length = MIB): Promise<PutInfo> {
    const call = parseCallOptions({ timeoutMs: 5000, inlineThreshold: 0, ...options }, this.core.settings);
    const feed = memoryFeed({ kind: 'region', region: this.region, length });
    return new PutOperation(this.core, Buffer.from('k'), feed, call).start();
  }

  putStream(source: StreamSource, length?: number, options: PutOptions = {}): Promise<PutInfo> {
    const call = parseCallOptions({ timeoutMs: 5000, inlineThreshold: 0, ...options }, this.core.settings);
    return new PutStreamOperation(this.core, Buffer.from('k'), source, length, call).start();
  }

  /** Waits for so many messages of a kind in the last session. */
  async received(body: ClientMessage__Output['body'], count = 1): Promise<ClientMessage__Output> {
    await waitFor(() => this.peer.last.of(body).length >= count, { what: `${body} number ${count}`, intervalMs: 1 });
    const message = this.peer.last.of(body)[count - 1];
    assert.ok(message);
    return message;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const operation of this.core.operations.toArray()) operation.fail(new FabricKvError('ERR_FABRICKV_CLOSED'));
    await this.core.connection.close();
    this.core.close();
    this.region.close();
    this.peer.kill();
  }
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

const silent: Answer = () => undefined;

function stored(session: PeerSession, message: ClientMessage__Output): void {
  session.result(message, { put: { version: 7, path: 'RDMA' } });
}

function grantEnded(session: PeerSession, message: ClientMessage__Output): void {
  session.result(message, {
    failure: { code: 'ERR_FABRICKV_GRANT_ENDED', message: 'sealed', outcome: 'NOT_APPLIED', retryable: true },
  });
}

function grant(session: PeerSession, message: ClientMessage__Output, extents: [number, number, number][]): void {
  session.result(message, {
    grant: {
      extents: extents.map(([windowId, windowOffset, length]) => ({ windowId, windowOffset, length })),
      expiresInMs: 5000,
    },
  });
}

describe('a PUT into the session window', () => {
  test('is one write and one message', async () => {
    await using client = await WindowClient.connect(silent);
    await client.offer(1, true);
    const pending = client.put();
    assert.deepEqual(
      client.rail.writes.map(({ length, remoteOffset }) => [length, remoteOffset]),
      [[MIB, 0]],
    );
    assert.deepEqual(client.peer.last.of('putWritten'), [], 'it is announced before it has landed');
    client.rail.writes[0]?.end();
    const { putWritten } = await client.received('putWritten');
    assert.deepEqual(
      [putWritten?.windowId, putWritten?.crc32c, putWritten?.withoutCrc],
      [1, crc32c(client.region.buffer), false],
    );
    const messages = client.peer.last.received.filter(({ operationId }) => toSafeInteger(operationId, 'id') !== 0);
    assert.deepEqual(
      messages.map(({ body }) => body),
      ['putWritten'],
    );
    stored(client.peer.last, messages[0] as ClientMessage__Output);
    assert.deepEqual([(await pending).path, client.core.counters.putsInWindow], ['rdma', 1]);
    assert.equal(client.region.busy, false);
  });

  test('values lie at multiples of 64, and are announced in that order, whichever lands first', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true);
    const puts = [100, 5000, 64, 1].map((length) => client.put({}, length));
    const [first, second, third, fourth] = client.rail.writes;
    assert.deepEqual(
      client.rail.writes.map(({ remoteOffset }) => remoteOffset),
      [0, 128, 5184, 5248],
    );
    third?.end();
    second?.end();
    await client.settled();
    assert.equal(client.peer.last.of('putWritten').length, 0);
    first?.end();
    fourth?.end();
    await Promise.all(puts);
    assert.deepEqual(
      client.peer.last
        .of('putWritten')
        .map(({ putWritten }) => toSafeInteger(putWritten?.windowOffset ?? nothing(), '')),
      [0, 128, 5184, 5248],
    );
  });

  test('one that is given up keeps nobody waiting, is not announced, and keeps its region until its write has ended', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true);
    const late = rejection(client.put({ timeoutMs: 100 }, 1000));
    const other = client.put({}, 1000);
    const [first, second] = client.rail.writes;
    second?.end();
    const error = await late;
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_DEADLINE', 'not-applied']);
    await other;
    assert.equal(client.region.busy, true, 'the write still reads it');
    assert.equal(first?.cancelled, true);
    first?.end('CANCELLED');
    await client.region.quiesced();
    assert.deepEqual([client.peer.last.of('putWritten').length, client.peer.last.of('cancel').length], [1, 0]);
  });

  test('goes on with a grant, under the same id, when the window was sealed; the CRC is computed once', async () => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putWritten) grantEnded(session, message);
      else if (message.putOpen) grant(session, message, [[2, 64, MIB]]);
      else if (message.putCommit) stored(session, message);
    });
    client.rail.completes = true;
    await client.offer(1, true);
    await client.offer(2, false);
    const info = await client.put();
    const ids = new Set(
      ['putWritten', 'putOpen', 'putCommit'].map((body) =>
        idOf(client.peer.last.of(body as 'put')[0] as ClientMessage__Output),
      ),
    );
    assert.equal(ids.size, 1);
    assert.equal(info.crc32c, crc32c(client.region.buffer));
    assert.equal(client.crcBytes, MIB);
    assert.deepEqual([client.core.counters.putsInWindow, client.core.counters.putsRdma], [0, 1]);
  });

  test('a window that is revoked in the middle of a write is ended when the value has been announced', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true);
    const pending = client.put();
    const { last } = client.peer;
    last.send({ operationId: 0, windowRevoke: { windowId: 1, reason: 'idle' } });
    await client.settled();
    const isEnded = (): boolean => last.of('windowEnded').some(({ windowEnded }) => windowEnded?.windowId === 1);
    assert.equal(isEnded(), false);
    client.rail.writes[0]?.end();
    await pending;
    await waitFor(isEnded, { what: 'WindowEnded' });
    const bodies = last.received.map(({ body }) => body);
    assert.ok(bodies.indexOf('putWritten') < bodies.lastIndexOf('windowEnded'));
    const next = rejection(client.put({ timeoutMs: 100 }));
    await client.received('putOpen');
    await next;
  });

  test('a write to a window that was sealed is not tried again there', async () => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putOpen) grant(session, message, [[2, 0, MIB]]);
      else if (message.putCommit) stored(session, message);
    });
    await client.offer(1, true);
    await client.offer(2, false);
    const pending = client.put();
    client.peer.last.send({ operationId: 0, windowRevoke: { windowId: 1, reason: 'a hostile sign', closed: true } });
    await client.settled();
    client.rail.completes = true;
    client.rail.writes[0]?.end('TRANSFER_FAILED');
    await pending;
    assert.deepEqual([client.rail.posted, client.peer.last.of('putWritten').length], [2, 0]);
  });

  test('after a lost session the result is asked for by PutCommit: its window id may be another one by now', async () => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putCommit && session !== client.peer.sessions[0]) stored(session, message);
    });
    client.rail.completes = true;
    await client.offer(1, true);
    const pending = client.put();
    const first = await client.received('putWritten');
    client.peer.last.crash();
    assert.equal((await pending).crc32c, crc32c(client.region.buffer));
    const { last } = client.peer;
    assert.equal(last.of('putWritten').length, 0);
    assert.deepEqual(last.of('putCommit').map(idOf), [idOf(first)]);
  });

  test('one that does not fit any more asks for a grant', async () => {
    await using client = await WindowClient.connect(silent);
    await client.offer(1, true, MIB + 64);
    const fits = rejection(client.put({ timeoutMs: 200 }));
    const fitsNoMore = rejection(client.put({ timeoutMs: 200 }));
    await client.received('putOpen');
    assert.equal(client.rail.writes.length, 1);
    client.rail.writes[0]?.end();
    await Promise.all([fits, fitsNoMore]);
  });

  test('one that takes most of a window goes where nothing is on its way, and a full window is ended with its word', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true, 2 * MIB);
    await client.offer(2, true, MIB);
    const small = client.put({}, 64);
    const large = client.put();
    assert.deepEqual(
      client.rail.writes.map(({ length, remoteOffset }) => [length, remoteOffset]),
      [
        [64, 0],
        [MIB, 0],
      ],
    );
    for (const write of [...client.rail.writes]) write.end();
    await Promise.all([small, large]);
    const { last } = client.peer;
    const full = (): boolean => last.of('windowEnded').some(({ windowEnded }) => windowEnded?.windowId === 2);
    await waitFor(full, { what: 'WindowEnded' });
    const bodies = last.received.map(({ body }) => body);
    assert.ok(bodies.lastIndexOf('putWritten') < bodies.lastIndexOf('windowEnded'));
  });

  test('a small value does not wait behind a large one, and the room beside that is used again', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true, 3 * MIB);
    await client.offer(2, true, 3 * MIB);
    const large = client.put();
    const small = client.put({}, 64);
    const [first, second] = client.rail.writes;
    second?.end();
    await small;
    first?.end();
    await large;
    const { last } = client.peer;
    const placed = (): [number, number][] =>
      last
        .of('putWritten')
        .map(({ putWritten }) => [putWritten?.windowId ?? 0, toSafeInteger(putWritten?.windowOffset ?? nothing(), '')]);
    assert.deepEqual(placed(), [
      [2, 0],
      [1, 0],
    ]);
    const next = client.put({}, 64);
    client.rail.writes[0]?.end();
    await next;
    assert.deepEqual(placed()[2], [1, MIB]);
  });

  test('a value that is on its way when its window is revoked is written to its end there', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    await client.offer(1, true);
    const pending = client.put();
    client.peer.last.send({ operationId: 0, windowRevoke: { windowId: 1, reason: 'idle' } });
    await client.settled();
    // Tried again on the same path.
    client.rail.writes[0]?.end('TRANSFER_FAILED');
    await waitFor(() => client.rail.posted === 2, { what: 'the second try' });
    client.rail.writes[0]?.end();
    await pending;
    assert.equal(client.peer.last.of('putWritten').length, 1);
  });

  test('nothing is said of a window that the server has closed', async () => {
    await using client = await WindowClient.connect(silent);
    await client.offer(1, true);
    client.peer.last.send({ operationId: 0, windowRevoke: { windowId: 1, reason: 'full', closed: true } });
    client.peer.last.send({ operationId: 0, windowRevoke: { windowId: 7, reason: 'unknown', closed: true } });
    await client.settled();
    assert.deepEqual(
      client.peer.last.of('windowEnded').map(({ windowEnded }) => windowEnded?.windowId),
      [999_999, 999_999],
    );
  });

  test('without a checksum nothing computes one', async () => {
    await using client = await WindowClient.connect(stopAt('putWritten', stored));
    client.rail.completes = true;
    await client.offer(1, true);
    assert.equal((await client.put({ checksum: false })).crc32c, undefined);
    const { putWritten } = await client.received('putWritten');
    assert.deepEqual([putWritten?.withoutCrc, putWritten?.crc32c, client.crcBytes], [true, 0, 0]);
  });
});

describe('a PUT into a grant', () => {
  test('begins before all of its windows are there', async () => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putOpen) {
        grant(session, message, [
          [5, 0, MIB / 2],
          [6, 128, MIB / 2],
        ]);
      } else if (message.putCommit) stored(session, message);
    });
    client.rail.completes = true;
    await client.offer(5, false);
    async function* halves(): AsyncGenerator<Buffer> {
      yield client.region.view(0, MIB);
    }
    // A region goes as one piece, which needs both; a staged piece that ends before needs one only.
    const pending = client.putStream(halves, MIB);
    await client.received('putOpen');
    await client.settled();
    assert.equal(client.rail.posted, 0);
    await client.offer(6, false);
    assert.equal((await pending).length, MIB);
    assert.equal(client.peer.last.of('putOpen').length, 1);
  });

  test('begins anew when a rail of the server has a new address', async () => {
    let opened = 0;
    await using client = await WindowClient.connect((message, session) => {
      if (message.putOpen) grant(session, message, [[++opened === 1 ? 1 : 2, 0, MIB]]);
      else if (message.putCommit) stored(session, message);
    });
    await client.offer(1, false);
    const pending = client.put();
    await waitFor(() => client.rail.writes.length === 1, { what: 'the write' });
    const [old] = client.rail.peers.keys();
    const { last } = client.peer;
    const address = { address: Buffer.from('new address'), format: 'FI_SOCKADDR_IN' };
    last.send({ operationId: 0, railChanged: { rail: 0, generation: 2, address } });
    await client.offer(2, false);
    assert.equal(client.rail.writes[0]?.cancelled, true);
    client.rail.completes = true;
    client.rail.writes[0]?.end('CANCELLED');
    await pending;
    assert.deepEqual([client.rail.posted, opened], [2, 2]);
    assert.deepEqual([...client.rail.peers.values()], ['address', 'new address']);
    // One that is not newer changes nothing.
    last.send({ operationId: 0, railChanged: { rail: 0, generation: 2, address } });
    await client.settled();
    assert.equal(client.rail.peers.size, 2);
    await client[Symbol.asyncDispose]();
    assert.equal(client.rail.peers.size, 0);
    assert.ok(old !== undefined && client.rail.removedPeers.includes(old));
  });
});

describe('a stream into a grant', () => {
  const room: Answer = (message, session) => {
    if (message.putOpen) grant(session, message, []);
    else if (message.putMore) grant(session, message, [[1, 0, toSafeInteger(message.putMore.length, '')]]);
  };

  async function* blocks(count: number): AsyncGenerator<Buffer> {
    for (let i = 0; i < count; i++) yield Buffer.alloc(300_000, i);
  }

  test('that ends in the middle ends the call, unless the stream can be begun anew', async () => {
    for (const restartable of [false, true]) {
      let failed = false;
      await using client = await WindowClient.connect((message, session) => {
        if (message.putCommit && failed) stored(session, message);
        else if (message.putCommit) {
          failed = true;
          grantEnded(session, message);
        } else room(message, session);
      });
      client.rail.completes = true;
      await client.offer(1, false, 64 * MIB);
      let begun = 0;
      const begin = (): AsyncGenerator<Buffer> => {
        begun += 1;
        return blocks(5);
      };
      const pending = client.putStream(restartable ? begin : begin());
      if (restartable) {
        const info = await pending;
        assert.deepEqual([begun, info.length], [2, 1_500_000]);
        assert.equal(info.crc32c, crc32c(Buffer.concat([0, 1, 2, 3, 4].map((i) => Buffer.alloc(300_000, i)))));
        const commits = client.peer.last.of('putCommit');
        assert.deepEqual(
          commits.map(({ putCommit }) => toSafeInteger(putCommit?.length ?? nothing(), '')),
          [1_500_000, 1_500_000],
        );
      } else {
        const error = await rejection(pending);
        assert.deepEqual([begun, error.code, error.outcome], [1, 'ERR_FABRICKV_GRANT_ENDED', 'not-applied']);
      }
      assert.equal(client.core.pool?.transitBytes, 0);
    }
  });

  test('holds staging until its writes have ended, and the source no longer than the call', async () => {
    await using client = await WindowClient.connect(room);
    await client.offer(1, false, 64 * MIB);
    let given = 0;
    let closed = false;
    async function* endless(): AsyncGenerator<Buffer> {
      try {
        for (;;) {
          given += 1;
          yield Buffer.alloc(MIB);
        }
      } finally {
        closed = true;
      }
    }
    const controller = new AbortController();
    const pending = rejection(client.putStream(endless(), undefined, { signal: controller.signal }));
    await waitFor(() => client.rail.writes.length === 4, { what: 'four writes' });
    controller.abort();
    assert.equal((await pending).code, 'ERR_FABRICKV_CANCELLED');
    await waitFor(() => closed, { what: 'the source to be closed' });
    assert.ok(given <= 6, `${given} MiB were read ahead`);
    assert.ok((client.core.pool?.transitBytes ?? 0) > 0);
    for (const write of [...client.rail.writes]) write.end('CANCELLED');
    await waitFor(() => client.core.pool?.transitBytes === 0, { what: 'the staging to be free' });
  });

  test('whose source is slow is written in smaller pieces, which hold no staging while it is silent', async () => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putCommit) stored(session, message);
      else room(message, session);
    });
    await client.offer(1, false, 64 * MIB);
    let goOn = (): void => undefined;
    async function* pausing(): AsyncGenerator<Buffer> {
      yield Buffer.alloc(100_000, 1);
      await new Promise<void>((resolve) => {
        goOn = resolve;
      });
      yield Buffer.alloc(100_000, 2);
    }
    const pending = client.putStream(pausing(), undefined, { timeoutMs: 300 });
    await waitFor(() => client.rail.writes.length === 1, { what: 'the first piece' });
    assert.equal(client.rail.writes[0]?.length, 100_000);
    client.rail.writes[0]?.end();
    await waitFor(() => client.core.pool?.transitBytes === 0, { what: 'the staging to be free' });
    await sleep(500);
    client.rail.completes = true;
    goOn();
    const info = await pending;
    assert.deepEqual(
      [info.length, info.crc32c],
      [200_000, crc32c(Buffer.concat([Buffer.alloc(100_000, 1), Buffer.alloc(100_000, 2)]))],
    );
  });

  test('tells the server while it waits that it is there, with what has landed', async (t) => {
    await using client = await WindowClient.connect((message, session) => {
      if (message.putCommit) stored(session, message);
      else room(message, session);
    });
    await client.offer(1, false, 64 * MIB);
    t.mock.timers.enable({ apis: ['setInterval'] });
    let goOn = (): void => undefined;
    async function* pausing(): AsyncGenerator<Buffer> {
      yield Buffer.alloc(100_000, 1);
      await new Promise<void>((resolve) => {
        goOn = resolve;
      });
      yield Buffer.alloc(100_000, 2);
    }
    const pending = client.putStream(pausing());
    await waitFor(() => client.rail.writes.length === 1, { what: 'the first piece' });
    t.mock.timers.tick(STREAM_SILENCE_MS_MAX / 3);
    const { putProgress: first } = await client.received('putProgress');
    assert.equal(toSafeInteger(first?.bytesWritten ?? nothing(), ''), 0, 'the write may still be on its way');
    client.rail.writes[0]?.end();
    await waitFor(() => client.core.pool?.transitBytes === 0, { what: 'the write to be known' });
    t.mock.timers.tick(STREAM_SILENCE_MS_MAX / 3);
    const { putProgress: second } = await client.received('putProgress', 2);
    assert.equal(toSafeInteger(second?.bytesWritten ?? nothing(), ''), 100_000);
    client.rail.completes = true;
    goOn();
    assert.equal((await pending).length, 200_000);
    assert.equal(client.peer.last.of('putOpen')[0]?.putOpen?.deadlineMs, STREAM_SILENCE_MS_MAX);
  });

  test('fails when a write does not end in time, although its source is silent too', async () => {
    await using client = await WindowClient.connect(room);
    await client.offer(1, false, 64 * MIB);
    async function* silent(): AsyncGenerator<Buffer> {
      yield Buffer.alloc(100_000);
      await new Promise(() => undefined);
    }
    const pending = rejection(client.putStream(silent(), undefined, { timeoutMs: 300 }));
    await waitFor(() => client.rail.writes.length === 1, { what: 'the first piece' });
    assert.equal((await pending).code, 'ERR_FABRICKV_DEADLINE');
    for (const write of [...client.rail.writes]) write.end('CANCELLED');
  });

  test('waits for staging that others have, and no longer than its deadline', async () => {
    await using client = await WindowClient.connect(room, MIB);
    await client.offer(1, false, 64 * MIB);
    const { pool } = client.core;
    assert.ok(pool);
    const taken = Array.from({ length: 4 }, () => pool.tryAllocate(MIB / 4));
    const late = rejection(client.putStream(blocks(5), undefined, { timeoutMs: 100 }));
    assert.equal((await late).code, 'ERR_FABRICKV_DEADLINE');
    const pending = client.putStream(blocks(5));
    await client.received('putMore', 2);
    for (const block of taken) if (block !== undefined) pool.free(block);
    client.rail.completes = true;
    const commit = await client.received('putCommit');
    stored(client.peer.last, commit);
    assert.equal((await pending).length, 1_500_000);
  });
});

/** Answers one kind of message only. */
function stopAt(body: 'putWritten', answer: (session: PeerSession, message: ClientMessage__Output) => void): Answer {
  return (message, session) => {
    if (message.body === body) answer(session, message);
  };
}

function nothing(): never {
  throw new Error('the field is not there');
}
