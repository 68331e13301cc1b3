import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BATCH_KEYS_MAX, type BatchResult, FabricKvError, KvClient, type KvClientOptions } from '../../src/index.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { waitFor } from '../support/wait-for.js';
import { type Answer, type PeerSession, TestPeer } from './client-test-peer.js';

function connect(peer: TestPeer, options: KvClientOptions = {}): Promise<KvClient> {
  return KvClient.connect({ serverAddr: peer.addr, provider: 'none', timeoutMs: 5000, ...options });
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

function keysOf(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `k${index}`);
}

/** The values of what was fulfilled, the codes of what was not. */
function outcomesOf<T>(results: readonly BatchResult<T>[]): (T | string)[] {
  return results.map((result) => (result.status === 'fulfilled' ? result.value : result.reason.code));
}

function reasonsOf<T>(results: readonly BatchResult<T>[]): FabricKvError[] {
  return results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []));
}

/** The key of a request that has one. */
function keyOf({ get, put, delete: remove, exists }: ClientMessage__Output): string {
  return String((get ?? put ?? remove ?? exists)?.key ?? '');
}

const FAILURE = { code: 'ERR_FABRICKV_CAPACITY', message: 'full', outcome: 'NOT_APPLIED' } as const;

/** One version of every value: the key itself. Keys with `no` are not there, keys with `bad` fail. */
function reply(message: ClientMessage__Output, session: PeerSession): void {
  const key = keyOf(message);
  const found = !key.includes('no');
  if (key.includes('bad')) session.result(message, { failure: FAILURE });
  else if (message.get) {
    const value = Buffer.from(key);
    const length = value.length;
    session.result(message, { get: found ? { found, length, version: 1, path: 'INLINE', value } : { found } });
  } else if (message.put) session.result(message, { put: { version: message.put.value.length, path: 'INLINE' } });
  else if (message.delete) session.result(message, { delete: { deleted: found, version: 1 } });
  else if (message.exists) session.result(message, { exists: { exists: found } });
}

/** Keeps requests until it is told to answer them. */
class Held {
  readonly waiting: { readonly message: ClientMessage__Output; readonly session: PeerSession }[] = [];
  /** The most that ever waited at a time. */
  most = 0;
  readonly answer: Answer = (message, session) => {
    if (keyOf(message) === '') return;
    this.waiting.push({ message, session });
    this.most = Math.max(this.most, this.waiting.length);
  };

  /** Waits for so many requests and answers them, the last one first. */
  async release(count: number): Promise<void> {
    await waitFor(() => this.waiting.length >= count, { what: `${count} requests` });
    for (const { message, session } of this.waiting.splice(0, count).reverse()) reply(message, session);
  }
}

describe('batches', () => {
  test('outcomes come in the order of the keys, whatever the order of the answers, from one frame', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer);
    const calls: readonly [() => Promise<BatchResult<unknown>[]>, unknown[]][] = [
      [
        async () => {
          const results = await client.mget(['a', 'no', Buffer.from('c'), 'bad', 'a'], { verify: false });
          return results.map((result) =>
            result.status === 'fulfilled' ? { ...result, value: result.value?.bytes.toString() } : result,
          );
        },
        ['a', undefined, 'c', 'ERR_FABRICKV_CAPACITY', 'a'],
      ],
      [
        async () => {
          const results = await client.mput([
            ['a', '1'],
            ['bad', '22'],
            [Buffer.from('c'), Buffer.from('333')],
          ]);
          return results.map((result) =>
            result.status === 'fulfilled' ? { ...result, value: Number(result.value.version) } : result,
          );
        },
        [1, 'ERR_FABRICKV_CAPACITY', 3],
      ],
      [() => client.mdelete(['a', 'no', 'bad']), [true, false, 'ERR_FABRICKV_CAPACITY']],
      [() => client.mexists(['no', 'a', 'bad', 'a']), [false, true, 'ERR_FABRICKV_CAPACITY', true]],
    ];
    for (const [call, expected] of calls) {
      const before = peer.last.frameSizes.length;
      const results = call();
      await held.release(expected.length);
      assert.deepEqual(outcomesOf(await results), expected);
      assert.deepEqual(peer.last.frameSizes.slice(before), [expected.length]);
    }
    assert.deepEqual(client.operations(), []);
  });

  test("a key's failure is as that of a single call", async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer);
    const [reason] = reasonsOf(await client.mdelete(['good', 'bad']));
    assert.ok(reason instanceof FabricKvError);
    assert.equal(reason.peer, peer.addr);
    assert.equal(reason.outcome, 'not-applied');
    assert.equal(reason.requestId, (await rejection(client.delete('bad'))).requestId?.replace(/\d+$/, '2'));
  });

  test('the options are those of each call', async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer, { namespace: 3 });
    await client.mexists(['a', 'b'], { namespace: 7 });
    await client.mget(['a']);
    const namespaces = peer.last.received.map(({ exists, get }) => (exists ?? get)?.namespace);
    assert.deepEqual(namespaces, [7, 7, 3]);
    // The answers of this peer have no CRC of their own: that of `a` is not 0.
    assert.deepEqual(outcomesOf(await client.mget(['a'], { verify: true })), ['ERR_FABRICKV_CHECKSUM']);
  });

  test('an empty batch is fulfilled with nothing', async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer);
    const empty = [client.mget([]), client.mput([]), client.mdelete([]), client.mexists([])];
    assert.deepEqual(await Promise.all<unknown>(empty), [[], [], [], []]);
    assert.equal(peer.last.received.length, 0);
  });
});

describe('a batch that makes no sense as a whole', () => {
  // What a caller without types, or with a cast, may pass.
  const anything = (value: unknown): never => value as never;

  test('is refused before anything is sent, naming what is wrong', async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer);
    const region = await client.allocate(10);
    const calls: readonly [string, RegExp, () => Promise<unknown>][] = [
      ['ERR_FABRICKV_INVALID_ARGUMENT', /keys is no array/, () => client.mget(anything('key'))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /entries is no array/, () => client.mput(anything(new Map([['a', 'b']])))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /keys is no array/, () => client.mdelete(anything(undefined))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /timeoutMs is 0/, () => client.mget(['a'], { timeoutMs: 0 })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /namespace is -1/, () => client.mexists(['a'], { namespace: -1 })],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /options are null/, () => client.mget(['a'], anything(null))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', /onProgress/, () => client.mget(['a'], anything({ onProgress: () => 0 }))],
      [
        'ERR_FABRICKV_INVALID_ARGUMENT',
        new RegExp(`keys has ${BATCH_KEYS_MAX + 1} elements`),
        () => client.mexists(new Array<string>(BATCH_KEYS_MAX + 1).fill('a')),
      ],
    ];
    for (const [code, message, call] of calls) {
      const error = await rejection(call());
      assert.equal(error.code, code);
      assert.match(error.message, message);
    }
    const holes: string[] = ['a'];
    holes[2] = 'c';
    const indexed: readonly [string, number, RegExp, () => Promise<unknown>][] = [
      ['ERR_FABRICKV_INVALID_KEY', 1, /index 1: the key is empty/, () => client.mget(['a', '', 'b'])],
      ['ERR_FABRICKV_INVALID_KEY', 2, /1025 bytes/, () => client.mdelete(['a', 'b', Buffer.alloc(1025)])],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 0, /the key is no string/, () => client.mexists(anything([5]))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 1, /the key is no string/, () => client.mget(holes)],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 0, /no array of a key and a value/, () => client.mput(anything(['ab']))],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 0, /no array of a key and a value/, () => client.mput(anything([['a']]))],
      ['ERR_FABRICKV_INVALID_KEY', 0, /empty/, () => client.mput([['', 'x']])],
      [
        'ERR_FABRICKV_INVALID_ARGUMENT',
        1,
        /the value is no Uint8Array/,
        () =>
          client.mput([
            ['a', 'x'],
            ['b', anything(5)],
          ]),
      ],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 0, /length is 11/, () => client.mput([['a', { region, length: 11 }]])],
      [
        'ERR_FABRICKV_INVALID_ARGUMENT',
        2,
        /the key is that of index 0/,
        () =>
          client.mput([
            ['ä', 'x'],
            ['b', 'x'],
            [Buffer.from('ä'), 'y'],
          ]),
      ],
      ['ERR_FABRICKV_INVALID_ARGUMENT', 1, /the key is that of index 0/, () => client.mdelete(['a', 'a'])],
    ];
    for (const [code, index, message, call] of indexed) {
      const error = await rejection(call());
      assert.deepEqual([error.code, error.details['index']], [code, String(index)], String(message));
      assert.match(error.message, message);
    }
    assert.equal(region.busy, false);
    assert.equal(peer.last.received.length, 0);
    assert.equal(client.counters().operations, 0);
  });

  test('keys that differ in a byte that is no text are not the same', async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer);
    const results = await client.mdelete([Uint8Array.of(0xff), Uint8Array.of(0xfe), Uint8Array.of(0xff, 0)]);
    assert.deepEqual(outcomesOf(results), [true, true, true]);
  });

  test('one more than all batches may have unfinished is refused at once, until they are done', async () => {
    await using peer = await TestPeer.start(() => undefined);
    await using client = await connect(peer, { maxInFlight: 1 });
    const controller = new AbortController();
    const first = client.mexists(new Array<string>(BATCH_KEYS_MAX).fill('a'), { signal: controller.signal });
    const error = await rejection(client.mdelete(['b']));
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_RESOURCE_EXHAUSTED', 'not-applied']);
    controller.abort();
    assert.equal(reasonsOf(await first).length, BATCH_KEYS_MAX);
    peer.answer = reply;
    assert.deepEqual(outcomesOf(await client.mdelete(['b'])), [true]);
    assert.ok(peer.last.of('exists').length <= 1);
  });
});

describe('the window of batches', () => {
  test('a batch of more keys than may be in flight and wait succeeds, a window at a time', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer, { maxInFlight: 4, maxWaiting: 0 });
    const results = client.mexists(keysOf(50));
    for (let answered = 0; answered < 50; answered += 2) await held.release(2);
    assert.deepEqual(outcomesOf(await results), new Array(50).fill(true));
    assert.equal(held.most, 4);
  });

  test("the server's limit counts too", async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    peer.welcome = {
      limits: { maxValueBytes: 2 ** 40, maxOperationsInFlight: 3, maxOperationsWaiting: 10, maxRegions: 64 },
    };
    await using client = await connect(peer, { maxInFlight: 100, maxWaiting: 0 });
    const results = client.mexists(keysOf(20));
    for (let answered = 0; answered < 20; answered++) await held.release(1);
    assert.deepEqual(outcomesOf(await results), new Array(20).fill(true));
    assert.equal(held.most, 3);
  });

  test('a batch makes do with the places that other calls have left', async () => {
    const held = new Held();
    await using peer = await TestPeer.start((message, session) => {
      if (!keyOf(message).startsWith('stays')) held.answer(message, session);
    });
    await using client = await connect(peer, { maxInFlight: 4, maxWaiting: 0 });
    const controller = new AbortController();
    const { signal } = controller;
    const others = Promise.allSettled(['stays1', 'stays2', 'stays3'].map((key) => client.exists(key, { signal })));
    const results = client.mexists(keysOf(20));
    for (let answered = 0; answered < 20; answered++) await held.release(1);
    assert.deepEqual(outcomesOf(await results), new Array(20).fill(true));
    assert.equal(held.most, 1);
    controller.abort();
    await others;
  });

  test('where other calls have taken every place, a batch fails as they would', async () => {
    await using peer = await TestPeer.start(() => undefined);
    await using client = await connect(peer, { maxInFlight: 2, maxWaiting: 1, timeoutMs: 200 });
    const others = Promise.allSettled(['a', 'b', 'c'].map((key) => client.exists(key)));
    const reasons = reasonsOf(await client.mdelete(['d', 'e']));
    assert.deepEqual(
      reasons.map(({ code, outcome }) => [code, outcome]),
      new Array(2).fill(['ERR_FABRICKV_RESOURCE_EXHAUSTED', 'not-applied']),
    );
    await others;
  });

  test('batches share the window and take turns in it', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer, { maxInFlight: 2, maxWaiting: 0 });
    const long = client.mexists(keysOf(40));
    const short = client.mget(['s0', 's1', 's2']);
    const shortDone = short.then(() => peer.last.of('exists').length);
    for (let answered = 0; answered < 43; answered++) await held.release(1);
    assert.equal(reasonsOf(await long).length + reasonsOf(await short).length, 0);
    assert.equal(held.most, 2);
    // The two that had the window, and one for each of the three.
    assert.ok((await shortDone) <= 6, `${await shortDone} keys of the long batch went before`);
  });
});

describe('the end of a batch', () => {
  test('the time is that of the whole batch: what came in it stays, the rest fails at its end', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer, { maxInFlight: 2 });
    const results = client.mdelete(keysOf(7), { timeoutMs: 400 });
    await waitFor(() => held.waiting.length === 2, { what: 'the window' });
    await sleep(100);
    await held.release(2);
    await waitFor(() => held.waiting.length === 2, { what: 'the next window' });
    const settled = await results;
    assert.deepEqual(outcomesOf(settled), [true, true, ...new Array<string>(5).fill('ERR_FABRICKV_DEADLINE')]);
    assert.deepEqual(
      reasonsOf(settled).map(({ outcome }) => outcome),
      ['unknown', 'unknown', 'not-applied', 'not-applied', 'not-applied'],
    );
    const deadlines = peer.last.of('delete').map((message) => message.delete?.deadlineMs ?? 0);
    const [first = 0, , third = 0] = deadlines;
    assert.equal(deadlines.length, 4, 'nothing is sent after the end');
    // A timer may fire a millisecond early.
    assert.ok(first <= 400 && third <= first - 98, `deadlines of ${deadlines} ms`);
    assert.deepEqual(client.operations(), []);
  });

  test('an abort ends what is under way and what waits, and what had come stays', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer, { maxInFlight: 2 });
    const controller = new AbortController();
    const { signal } = controller;
    const results = client.mput(
      keysOf(5).map((key) => [key, 'v'] as const),
      { signal },
    );
    assert.equal(getEventListeners(signal, 'abort').length, 1);
    await held.release(1);
    await waitFor(() => held.waiting.length === 2, { what: 'the window' });
    const cause = new Error('no more');
    controller.abort(cause);
    const settled = await results;
    assert.deepEqual(
      settled.map((result) => (result.status === 'fulfilled' ? 'stored' : [result.reason.code, result.reason.outcome])),
      [
        'stored',
        ['ERR_FABRICKV_CANCELLED', 'unknown'],
        ['ERR_FABRICKV_CANCELLED', 'unknown'],
        ['ERR_FABRICKV_CANCELLED', 'not-applied'],
        ['ERR_FABRICKV_CANCELLED', 'not-applied'],
      ],
    );
    assert.ok(reasonsOf(settled).every((reason) => reason.cause === cause));
    await waitFor(() => peer.last.of('cancel').length === 2, { what: 'the cancels' });
    assert.equal(peer.last.of('put').length, 3);
    peer.answer = reply;
    assert.deepEqual(outcomesOf(await client.mexists(['a'])), [true], 'the window is free again');
  });

  test('a batch that was aborted before it began sends nothing; one that is done has left its signal', async () => {
    await using peer = await TestPeer.start(reply);
    await using client = await connect(peer);
    const results = await client.mget(['a', 'b'], { signal: AbortSignal.abort() });
    assert.deepEqual(outcomesOf(results), ['ERR_FABRICKV_CANCELLED', 'ERR_FABRICKV_CANCELLED']);
    assert.equal(peer.last.received.length, 0);
    const { signal } = new AbortController();
    await client.mexists(['a', 'b'], { signal });
    assert.equal(getEventListeners(signal, 'abort').length, 0);
  });

  test('closing the client ends all of it', async () => {
    await using peer = await TestPeer.start(() => undefined);
    const client = await connect(peer, { maxInFlight: 2 });
    const first = client.mdelete(keysOf(4));
    const second = client.mget(keysOf(4));
    await waitFor(() => peer.last.received.length === 2, { what: 'the window' });
    await client.close();
    const reasons = [...reasonsOf(await first), ...reasonsOf(await second)];
    assert.equal(reasons.length, 8);
    assert.ok(reasons.every(({ code }) => code === 'ERR_FABRICKV_CLOSED'));
    for (const call of [() => client.mget(['a']), () => client.mput([]), () => client.mdelete([])]) {
      assert.equal((await rejection(call())).code, 'ERR_FABRICKV_CLOSED');
    }
  });

  test('after a lost connection it goes on in the next session', async () => {
    await using peer = await TestPeer.start(() => undefined);
    await using client = await connect(peer, { maxInFlight: 3 });
    const results = client.mexists(keysOf(10));
    await waitFor(() => peer.last.received.length === 3, { what: 'the window' });
    peer.answer = reply;
    peer.last.crash();
    assert.deepEqual(outcomesOf(await results), new Array(10).fill(true));
    assert.equal(client.connection.reconnects, 1);
  });

  test('regions are busy from the call to the end; one that is busy already fails its key only', async () => {
    const held = new Held();
    await using peer = await TestPeer.start(held.answer);
    await using client = await connect(peer, { maxInFlight: 1 });
    const [region, waiting, sink, released] = await Promise.all([10, 10, 10, 10].map((size) => client.allocate(size)));
    assert.ok(region && waiting && sink && released);
    await released.release();
    const received = client.getInto('value', sink);
    const results = client.mput([
      ['a', region],
      ['b', { region: waiting, length: 5 }],
      ['c', sink],
      ['d', region],
      ['e', released],
    ]);
    assert.deepEqual([region.busy, waiting.busy], [true, true]);
    for (let answered = 0; answered < 4; answered++) await held.release(1);
    await received;
    const settled = await results;
    assert.deepEqual(
      settled.map((result) => (result.status === 'fulfilled' ? result.value.length : result.reason.code)),
      [10, 5, 'ERR_FABRICKV_REGION_BUSY', 10, 'ERR_FABRICKV_INVALID_ARGUMENT'],
    );
    assert.deepEqual(
      reasonsOf(settled).map(({ outcome }) => outcome),
      ['not-applied', 'not-applied'],
    );
    assert.deepEqual([region.busy, waiting.busy, sink.busy], [false, false, false]);
    const controller = new AbortController();
    const aborted = client.mput(
      [
        ['a', 'x'],
        ['b', waiting],
      ],
      { signal: controller.signal },
    );
    await waitFor(() => held.waiting.length === 1, { what: 'the first put' });
    assert.equal(waiting.busy, true);
    controller.abort();
    await aborted;
    assert.equal(waiting.busy, false, 'one that never set out lets go of its region');
  });
});
