import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { crc32c } from '../../src/fabric/index.js';
import { FabricKvError, KvClient, type KvClientOptions } from '../../src/index.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { fromBigInt } from '../../src/protocol/wire.js';
import { waitFor } from '../support/wait-for.js';
import { type Answer, idOf, type PeerSession, TestPeer } from './client-test-peer.js';

const SLACK_MS = 100;

function connect(peer: TestPeer, options: KvClientOptions = {}): Promise<KvClient> {
  return KvClient.connect({ serverAddr: peer.addr, provider: 'none', timeoutMs: 5000, ...options });
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

/** A little store, for the inline path only. */
function store(values = new Map<string, Buffer>()): Answer {
  let version = 0n;
  const open = new Map<number, { key: string; parts: Buffer[] }>();
  return (message, session) => {
    const id = idOf(message);
    const stored = (key: string, value: Buffer): void => {
      values.set(key, Buffer.from(value));
      version += 1n;
      session.result(message, { put: { version: fromBigInt(version), path: 'INLINE' } });
    };
    if (message.put) stored(message.put.key.toString(), message.put.value);
    else if (message.putOpen) {
      open.set(id, { key: message.putOpen.key.toString(), parts: [] });
      session.result(message, { grant: { extents: [], expiresInMs: 1000 } });
    } else if (message.data) open.get(id)?.parts.push(message.data.bytes);
    else if (message.putCommit) {
      const { key, parts } = open.get(id) ?? { key: '', parts: [] };
      const value = Buffer.concat(parts);
      assert.equal(crc32c(value), message.putCommit.crc32c);
      stored(key, value);
    } else if (message.get) {
      const value = values.get(message.get.key.toString());
      if (value === undefined) session.result(message, { get: { found: false } });
      else if (value.length <= 65_536) session.result(message, { get: inlineResult(value, value) });
      else {
        for (let offset = 0; offset < value.length; offset += 65_536) {
          const bytes = value.subarray(offset, offset + 65_536);
          session.send({ operationId: message.operationId, data: { offset, bytes, totalLength: value.length } });
        }
        session.result(message, { get: inlineResult(value, Buffer.alloc(0)) });
      }
    } else if (message.delete) {
      const deleted = values.delete(message.delete.key.toString());
      session.result(message, { delete: { deleted, version: 1 } });
    } else if (message.exists) {
      session.result(message, { exists: { exists: values.has(message.exists.key.toString()) } });
    } else if (message.stat) {
      const value = values.get(message.stat.key.toString());
      session.result(message, {
        stat:
          value === undefined
            ? { found: false }
            : { found: true, length: value.length, version: 1, crc32c: crc32c(value), storedUnixMs: 1000 },
      });
    } else if (message.ping) {
      session.result(message, { pong: { serverVersion: 'x', uptimeMs: 5, sessions: 1, counters: { keys: 3 } } });
    } else if (message.cancel) session.send({ operationId: message.operationId, quiesced: {} });
  };
}

function inlineResult(value: Buffer, inMessage: Buffer): object {
  return {
    found: true,
    length: value.length,
    version: 1,
    crc32c: crc32c(value),
    path: 'INLINE',
    value: inMessage,
  };
}

describe('inline operations, with a peer of the protocol over gRPC', () => {
  test('values of every shape come back as they were', async () => {
    await using peer = await TestPeer.start(store());
    await using client = await connect(peer);
    assert.equal(client.connection.inlineOnlyReason, "the client's provider is none");
    for (const length of [0, 1, 1000, 65_536, 65_537, 300_001]) {
      const value = Buffer.alloc(length, `${length}`);
      const put = await client.put(`k${length}`, value);
      assert.deepEqual([put.length, put.crc32c, put.path], [length, crc32c(value), 'inline']);
      const got = await client.get(`k${length}`, { verify: true });
      assert.ok(got?.bytes.equals(value));
      const region = await client.allocate(Math.max(1, length));
      const info = await client.getInto(`k${length}`, region, { verify: true });
      assert.equal(info?.length, length);
      assert.ok(region.view(0, length).equals(value));
      assert.equal(region.busy, false);
      const again = await client.put(`r${length}`, { region, length });
      assert.equal(again.crc32c, crc32c(value));
      assert.equal((await client.stat(`r${length}`))?.length, length);
      await region.release();
    }
    assert.equal(await client.get('nothing'), undefined);
    assert.equal(await client.stat('nothing'), undefined);
    assert.deepEqual(
      [await client.exists('k1'), await client.delete('k1'), await client.exists('k1')],
      [true, true, false],
    );
    assert.equal((await client.ping()).counters['keys'], 3);
    assert.deepEqual(client.operations(), []);
  });

  test('what one turn issues leaves in one frame, microtasks included', async () => {
    await using peer = await TestPeer.start(store());
    await using client = await connect(peer);
    await client.ping();
    const before = peer.last.frameSizes.length;
    const calls = Array.from({ length: 100 }, (_, index) => client.exists(`k${index}`));
    await Promise.all(calls);
    assert.deepEqual(peer.last.frameSizes.slice(before), [100]);
  });

  test('operation ids ascend and are never used twice', async () => {
    await using peer = await TestPeer.start(store());
    await using client = await connect(peer);
    await Promise.all([client.put('a', '1'), client.get('a'), client.delete('a'), client.get('a'), client.ping()]);
    const ids = peer.last.received.filter(({ body }) => body !== 'bye').map(idOf);
    assert.deepEqual(ids, [...new Set(ids)]);
    assert.ok(ids.every((id) => id > 0));
  });

  test('a result with the wrong CRC is refused when it is to be verified', async () => {
    await using peer = await TestPeer.start((message, session) => {
      const value = Buffer.from('bad');
      session.result(message, { get: { ...inlineResult(value, value), crc32c: 1 } });
    });
    await using client = await connect(peer);
    assert.equal((await client.get('k'))?.bytes.toString(), 'bad');
    const error = await rejection(client.get('k', { verify: true }));
    assert.equal(error.code, 'ERR_FABRICKV_CHECKSUM');
  });

  test('wrong arguments reject, and nothing is sent', async () => {
    await using peer = await TestPeer.start(store());
    await using client = await connect(peer);
    const calls: readonly [string, () => Promise<unknown>][] = [
      ['ERR_FABRICKV_INVALID_KEY', () => client.get('')],
      ['ERR_FABRICKV_INVALID_KEY', () => client.put(Buffer.alloc(1025), 'x')],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.get('k', { timeoutMs: 0 })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.get('k', { timeoutMs: Number.POSITIVE_INFINITY })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.get('k', { inlineThreshold: -1 })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.get('k', { namespace: 2 ** 32 })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.put('k', 5 as unknown as string)],
      ['ERR_FABRICKV_INVALID_ARGUMENT', () => client.allocate(0)],
    ];
    for (const [code, call] of calls) assert.equal((await rejection(call())).code, code);
    assert.equal(peer.last.received.length, 0);
  });
});

describe('deadlines, aborts and closing', () => {
  const silent: Answer = () => undefined;

  test('every kind of call ends at its deadline when the server never answers, and is cancelled', async () => {
    await using peer = await TestPeer.start(silent);
    await using client = await connect(peer, { timeoutMs: 150 });
    const region = await client.allocate(100);
    const calls: Readonly<Record<string, () => Promise<unknown>>> = {
      get: () => client.get('k'),
      getInto: () => client.getInto('k', region),
      put: () => client.put('k', 'v'),
      'large put': () => client.put('k', Buffer.alloc(100_000)),
      delete: () => client.delete('k'),
      exists: () => client.exists('k'),
      stat: () => client.stat('k'),
      ping: () => client.ping(),
    };
    await Promise.all(
      Object.entries(calls).map(async ([name, call]) => {
        const startedAtMs = performance.now();
        const error = await rejection(call());
        const tookMs = performance.now() - startedAtMs;
        assert.ok(tookMs >= 145 && tookMs <= 150 + SLACK_MS, `${name} took ${tookMs} ms`);
        assert.equal(error.code, 'ERR_FABRICKV_DEADLINE', name);
        assert.ok(error.requestId !== undefined && error.peer === peer.addr && error.stage !== undefined, name);
        const outcome = { put: 'unknown', delete: 'unknown', 'large put': 'not-applied' }[name];
        assert.equal(error.outcome, outcome, name);
      }),
    );
    await waitFor(() => peer.last.of('cancel').length === 8, { what: 'eight cancels' });
    assert.equal(region.busy, false, 'nothing could be written into it');
    assert.equal(client.connection.state, 'open');
  });

  test('an abort rejects at once, before and after the request was sent', async () => {
    await using peer = await TestPeer.start(silent);
    await using client = await connect(peer);
    const reason = new Error('no more');
    const aborted = await rejection(client.get('k', { signal: AbortSignal.abort(reason) }));
    assert.deepEqual([aborted.code, aborted.cause], ['ERR_FABRICKV_CANCELLED', reason]);
    const controller = new AbortController();
    const pending = rejection(client.put('k', 'v', { signal: controller.signal }));
    await waitFor(() => peer.last.of('put').length === 1, { what: 'the put' });
    controller.abort(reason);
    const error = await pending;
    assert.deepEqual([error.code, error.outcome, error.cause], ['ERR_FABRICKV_CANCELLED', 'unknown', reason]);
    await waitFor(() => peer.last.of('cancel').length === 1, { what: 'the cancel' });
  });

  test('a large inline PUT that is aborted sends no more Data', async () => {
    await using peer = await TestPeer.start((message, session) => {
      if (message.putOpen) session.result(message, { grant: { extents: [], expiresInMs: 1000 } });
    });
    await using client = await connect(peer);
    const controller = new AbortController();
    const pending = rejection(client.put('k', Buffer.alloc(64 * 1024 * 1024), { signal: controller.signal }));
    await waitFor(() => peer.last.of('data').length > 3, { what: 'some data' });
    controller.abort();
    const error = await pending;
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_CANCELLED', 'not-applied']);
    await waitFor(() => peer.last.of('cancel').length === 1, { what: 'the cancel' });
    const sent = peer.last.of('data').length;
    assert.ok(sent < 1024);
    await client.exists('x', { timeoutMs: 50 }).catch(() => undefined);
    assert.equal(
      peer.last.received.findLastIndex(({ body }) => body === 'data') <
        peer.last.received.findIndex(({ body }) => body === 'cancel'),
      true,
    );
  });

  test('closing rejects what is in flight and what waits, and what comes after', async () => {
    await using peer = await TestPeer.start(silent);
    const client = await connect(peer, { maxInFlight: 2 });
    const settled = Promise.allSettled([client.put('a', 'x'), client.get('b'), client.put('c', 'x'), client.get('d')]);
    await waitFor(() => peer.last.received.length === 2, { what: 'two requests' });
    const startedAtMs = performance.now();
    await Promise.all([client.close(), client.close()]);
    assert.ok(performance.now() - startedAtMs < 2000);
    const outcomes = (await settled).map((outcome) => {
      assert.ok(outcome.status === 'rejected');
      const error = outcome.reason as FabricKvError;
      return [error.code, error.outcome];
    });
    assert.deepEqual(outcomes, [
      ['ERR_FABRICKV_CLOSED', 'unknown'],
      ['ERR_FABRICKV_CLOSED', undefined],
      ['ERR_FABRICKV_CLOSED', 'not-applied'],
      ['ERR_FABRICKV_CLOSED', undefined],
    ]);
    for (const call of [() => client.get('k'), () => client.ping(), () => client.allocate(1)]) {
      assert.equal((await rejection(call())).code, 'ERR_FABRICKV_CLOSED');
    }
    assert.equal(client.connection.state, 'closed');
    assert.equal(peer.last.of('bye').length, 1);
  });

  test('too many calls are refused at once, saying what ran out', async () => {
    await using peer = await TestPeer.start(silent);
    await using client = await connect(peer, { maxInFlight: 2, maxWaiting: 1, timeoutMs: 200 });
    const settled = Promise.allSettled([client.get('a'), client.get('b'), client.get('c')]);
    const error = await rejection(client.get('d'));
    assert.equal(error.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.match(error.message, /2 operations are in flight and 1 wait/);
    await settled;
  });
});

describe('losing the connection', () => {
  /** Stores answers only from the session with this index on. */
  function answeringFrom(first: number, answer: Answer, peerOf: () => TestPeer): Answer {
    return (message, session) => {
      if (peerOf().sessions.indexOf(session) >= first) answer(message, session);
    };
  }

  async function withTwoSessions(
    run: (peer: TestPeer, client: KvClient) => Promise<void>,
    options: KvClientOptions = {},
  ): Promise<void> {
    const holder: { peer?: TestPeer } = {};
    const values = new Map([['k', Buffer.from('v')]]);
    const peerOf = (): TestPeer => holder.peer ?? assert.fail('no peer');
    await using peer = await TestPeer.start(answeringFrom(1, store(values), peerOf));
    holder.peer = peer;
    await using client = await connect(peer, options);
    await run(peer, client);
  }

  const mutations = (session: PeerSession): ClientMessage__Output[] =>
    session.received.filter(({ body }) => body === 'put' || body === 'delete' || body === 'putCommit');

  test('reads are asked again, mutations are sent again with the same id', async () => {
    await withTwoSessions(async (peer, client) => {
      const all = Promise.all([client.get('k'), client.put('p', 'x'), client.delete('k'), client.stat('k')]);
      await waitFor(() => peer.last.received.length === 4, { what: 'four requests' });
      const [first] = peer.sessions;
      first?.crash();
      const [got, put, deleted] = await all;
      assert.equal(got?.bytes.toString(), 'v');
      assert.equal(put.path, 'inline');
      assert.equal(deleted, true);
      assert.equal(client.connection.reconnects, 1);
      assert.ok(first !== undefined);
      const [again] = [peer.last];
      assert.notEqual(again, first);
      const ids = (session: PeerSession): unknown[] => mutations(session).map((m) => [m.body, idOf(m)]);
      assert.deepEqual(ids(again), ids(first));
      assert.equal(client.counters().reconnects, 1);
    });
  });

  test('when the server was restarted, mutations that were sent are unknown, and reads go on', async () => {
    await withTwoSessions(async (peer, client) => {
      const get = client.get('k');
      const put = rejection(client.put('p', 'x'));
      const remove = rejection(client.delete('k'));
      const large = client.put('large', Buffer.alloc(100_000));
      await waitFor(() => peer.last.received.length === 4, { what: 'four requests' });
      peer.epoch = 2n;
      peer.last.crash();
      for (const error of await Promise.all([put, remove])) {
        assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_CONNECTION_LOST', 'unknown']);
      }
      assert.equal((await get)?.bytes.toString(), 'v');
      assert.equal((await large).length, 100_000, 'its commit had not been sent, so it is begun again');
      assert.deepEqual(
        mutations(peer.last).map(({ body }) => body),
        ['putCommit'],
      );
    });
  });

  test('a commit whose answer was lost is committed again; a grant that is gone is opened again', async () => {
    let commits = 0;
    const values = new Map<string, Buffer>();
    const answer = store(values);
    await using peer = await TestPeer.start((message, session) => {
      if (message.putCommit) commits += 1;
      if (message.putCommit && commits === 1) session.crash();
      else if (message.putCommit && commits === 2) {
        session.result(message, {
          failure: { code: 'ERR_FABRICKV_GRANT_ENDED', message: 'gone', retryable: true, outcome: 'NOT_APPLIED' },
        });
      } else answer(message, session);
    });
    await using client = await connect(peer);
    const value = Buffer.alloc(200_000, 'z');
    const info = await client.put('k', value);
    assert.equal(info.crc32c, crc32c(value));
    assert.ok(values.get('k')?.equals(value));
    assert.deepEqual(
      peer.last.received.filter(({ body }) => body !== 'data').map(({ body }) => body),
      ['putCommit', 'putOpen', 'putCommit'],
    );
    assert.equal(new Set(peer.sessions.flatMap((session) => session.of('putCommit').map(idOf))).size, 1);
  });

  test('GoAway: what is in flight ends, what is new waits for the next session', async () => {
    let held: ClientMessage__Output | undefined;
    const answer = store(new Map([['k', Buffer.from('v')]]));
    await using peer = await TestPeer.start((message, session) => {
      if (message.stat) held = message;
      else answer(message, session);
    });
    await using client = await connect(peer);
    const inFlight = client.stat('k');
    await waitFor(() => held !== undefined, { what: 'the stat' });
    const first = peer.last;
    first.send({ goAway: { reason: 'test', drainMs: 5000 } });
    await waitFor(() => client.connection.state === 'draining', { what: 'draining' });
    const later = client.get('k');
    await sleep(20);
    assert.equal(first.of('get').length, 0);
    assert.equal(peer.sessions.length, 1);
    assert.ok(held !== undefined);
    first.result(held, { stat: { found: true, length: 1, version: 1, crc32c: 1, storedUnixMs: 1 } });
    assert.equal((await inFlight)?.length, 1);
    assert.equal((await later)?.bytes.toString(), 'v');
    assert.equal(first.of('bye').length, 1);
    assert.equal(peer.sessions.length, 2);
  });

  test('while there is no server, calls wait until their deadline and then say that the connection is lost', async () => {
    const peer = await TestPeer.start(store(new Map([['k', Buffer.from('v')]])));
    await using client = await connect(peer);
    peer.kill();
    await waitFor(() => client.connection.state !== 'open', { what: 'the loss' });
    const startedAtMs = performance.now();
    const error = await rejection(client.put('k', 'x', { timeoutMs: 300 }));
    assert.ok(performance.now() - startedAtMs <= 300 + SLACK_MS);
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_CONNECTION_LOST', 'not-applied']);
    const waiting = client.get('k');
    await peer.listen(peer.port);
    assert.equal((await waiting)?.bytes.toString(), 'v');
    peer.kill();
  });

  test('a server that is stopping is asked again after it', async () => {
    let refused = 0;
    const answer = store(new Map([['k', Buffer.from('v')]]));
    await using peer = await TestPeer.start((message, session) => {
      if (message.get && refused === 0) {
        refused += 1;
        session.result(message, { failure: { code: 'ERR_FABRICKV_SHUTTING_DOWN', message: 'bye', retryable: true } });
      } else answer(message, session);
    });
    await using client = await connect(peer);
    assert.equal((await client.get('k'))?.bytes.toString(), 'v');
    assert.equal(peer.sessions.length, 2);
  });

  test('a server that breaks the protocol loses its session, not the process', async () => {
    let broken = false;
    const answer = store(new Map([['k', Buffer.from('v')]]));
    await using peer = await TestPeer.start((message, session) => {
      if (broken) answer(message, session);
      else {
        broken = true;
        session.stream.write(Buffer.from([0xff, 0xff, 0xff]));
      }
    });
    await using client = await connect(peer);
    assert.equal((await client.get('k'))?.bytes.toString(), 'v');
    assert.equal(client.connection.reconnects, 1);
  });
});
