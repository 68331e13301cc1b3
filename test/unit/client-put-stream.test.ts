import assert from 'node:assert/strict';
import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeStream } from '../../src/client/stream-reader.js';
import { FabricKvError, KvClient, type StreamSource } from '../../src/index.js';
import { STREAM_SILENCE_MS_MAX } from '../../src/protocol/limits.js';
import { toSafeInteger } from '../../src/protocol/wire.js';
import { SETTLE_SLACK_MS } from '../support/mode.js';
import { waitFor } from '../support/wait-for.js';
import { type Answer, idOf, type PeerSession, TestPeer } from './client-test-peer.js';

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

/** Takes every PUT. */
const takesAll: Answer = (message, session) => {
  if (message.putOpen) session.result(message, { grant: { extents: [], expiresInMs: 5000 } });
  else if (message.put || message.putCommit) session.result(message, { put: { version: 1, path: 'INLINE' } });
};

/** So many pieces, each so long after the last. */
async function* slowly(count: number, bytes: number, delayMs: number): AsyncGenerator<Buffer> {
  for (let i = 0; i < count; i++) {
    await sleep(delayMs);
    yield Buffer.alloc(bytes, i);
  }
}

describe('the source of a putStream', () => {
  test('that somebody else reads rejects the call, and nothing else', async () => {
    await using peer = await TestPeer.start(takesAll);
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    const locked = new Blob(['text']).stream();
    locked.getReader();
    for (const source of [locked, () => locked] as StreamSource[]) {
      const error = await rejection(client.putStream('k', source));
      assert.equal(error.code, 'ERR_FABRICKV_INVALID_ARGUMENT');
      assert.ok(error.cause instanceof TypeError, String(error.cause));
    }
  });

  test('of a call that cannot begin is ended, whatever it is, and nobody hears of what that throws', async () => {
    const readable = new Readable({ read: () => undefined });
    const web = new Blob(['text']).stream();
    const throwing = {
      [Symbol.asyncIterator]: () => assert.fail('nobody reads it'),
      destroy: () => {
        throw new Error('nobody wants to know');
      },
    };
    const ends: unknown[] = [];
    const generator = {
      [Symbol.asyncIterator]: () => assert.fail('nobody reads it'),
      return: (value: unknown) => Promise.reject(new Error(`nobody wants to know: ${ends.push(value)}`)),
    };
    for (const source of [readable, web, throwing, generator, undefined, 'text', () => readable]) closeStream(source);
    closeStream(createReadStream('/is/missing'));
    assert.equal(readable.destroyed, true);
    assert.equal((await web.getReader().read()).done, true);
    assert.equal(ends.length, 1);
    await sleep(20);
  });

  test('that fails before it is read is the error of the call, and does not end the process', async () => {
    let grant = (): void => undefined;
    await using peer = await TestPeer.start((message, session) => {
      if (message.putOpen) grant = () => takesAll(message, session);
    });
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    const pending = rejection(client.putStream('k', createReadStream('/is/missing'), { length: 1e7 }));
    await waitFor(() => peer.last.of('putOpen').length === 1, { what: 'the request' });
    await sleep(50);
    grant();
    const error = await pending;
    assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_SOURCE', 'not-applied']);
    assert.match(String(error.cause), /ENOENT/);
  });
});

describe('the time of a putStream', () => {
  test('does not count while there is nothing but the source to wait for', async () => {
    await using peer = await TestPeer.start(takesAll);
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    for (const [count, bytes] of [
      [3, 100_000],
      [3, 1000],
    ] as const) {
      const stored = await client.putStream('k', slowly(count, bytes, 400), { length: count * bytes, timeoutMs: 300 });
      assert.equal(stored.length, count * bytes);
    }
    const [open] = peer.last.of('putOpen');
    assert.equal(open?.putOpen?.deadlineMs, STREAM_SILENCE_MS_MAX);
    assert.equal((await client.putStream('k', slowly(3, 100_000, 400), { timeoutMs: 300 })).length, 300_000);
  });

  test('counts while the server is silent, before the grant and after the commit, and without a connection', async () => {
    for (const silentFor of ['putOpen', 'putCommit'] as const) {
      await using peer = await TestPeer.start((message, session) => {
        if (message.body !== silentFor) takesAll(message, session);
      });
      await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
      const startMs = performance.now();
      const error = await rejection(client.putStream('k', slowly(1, 100_000, 0), { length: 100_000, timeoutMs: 300 }));
      assert.equal(error.code, 'ERR_FABRICKV_DEADLINE');
      assert.equal(error.outcome, silentFor === 'putOpen' ? 'not-applied' : 'unknown');
      assert.ok(performance.now() - startMs < 600 + SETTLE_SLACK_MS);
      peer.kill();
      const lost = await rejection(client.putStream('k', slowly(1, 1000, 0), { timeoutMs: 300 }));
      assert.equal(lost.code, 'ERR_FABRICKV_CONNECTION_LOST');
    }
  });

  test('runs out when the stream is begun anew again and again, and never comes further', async () => {
    const peer = await TestPeer.start((message, session) => {
      if (message.putOpen) takesAll(message, session);
      else if (message.data && toSafeInteger(message.data.offset, 'offset') >= 128 * 1024) session.crash();
    });
    await using _peer = peer;
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    const startMs = performance.now();
    const source = (): AsyncGenerator<Buffer> => slowly(20, 65_536, 20);
    const error = await rejection(client.putStream('k', source, { length: 20 * 65_536, timeoutMs: 1000 }));
    assert.ok(['ERR_FABRICKV_DEADLINE', 'ERR_FABRICKV_CONNECTION_LOST'].includes(error.code), error.code);
    assert.ok(peer.sessions.length > 2, `${peer.sessions.length} sessions`);
    assert.ok(performance.now() - startMs < 10_000);
  });
});

/** A gate for a source to wait at. */
function gate(): { readonly passed: Promise<void>; readonly open: () => void } {
  let open = (): void => undefined;
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { passed, open };
}

/** What the PutProgress of a session said. */
function progressOf(session: PeerSession): number[] {
  return session
    .of('putProgress')
    .flatMap(({ putProgress }) => (putProgress ? [toSafeInteger(putProgress.bytesWritten, 'bytes_written')] : []));
}

/** Waits until so many bytes have come as Data. */
async function dataCame(session: PeerSession, bytes: number): Promise<void> {
  const came = (): number => session.of('data').reduce((sum, { data }) => sum + (data?.bytes.length ?? 0), 0);
  await waitFor(() => came() === bytes, { what: `${bytes} bytes of Data` });
}

describe('the room of a putStream', () => {
  const THIRD_MS = STREAM_SILENCE_MS_MAX / 3;

  test('is asked for a short while and renewed while the source is silent, until the commit', async (t) => {
    let commit = (): void => undefined;
    await using peer = await TestPeer.start((message, session) => {
      if (message.putCommit) commit = () => takesAll(message, session);
      else takesAll(message, session);
    });
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    t.mock.timers.enable({ apis: ['setInterval'] });
    const goOn = gate();
    async function* pausing(): AsyncGenerator<Buffer> {
      yield Buffer.alloc(100_000, 1);
      await goOn.passed;
      yield Buffer.alloc(100_000, 2);
    }
    const pending = client.putStream('k', pausing(), { length: 200_000 });
    await waitFor(() => peer.sessions.length === 1, { what: 'the session' });
    const { last } = peer;
    await dataCame(last, 100_000);
    t.mock.timers.tick(THIRD_MS - 1);
    await client.put('after everything that was sent before', 'value');
    assert.deepEqual(progressOf(last), []);
    t.mock.timers.tick(1);
    t.mock.timers.tick(2 * THIRD_MS);
    await waitFor(() => progressOf(last).length >= 3, { what: 'the renewals' });
    goOn.open();
    await waitFor(() => last.of('putCommit').length === 1, { what: 'the commit' });
    t.mock.timers.tick(10 * THIRD_MS);
    commit();
    assert.equal((await pending).length, 200_000);
    t.mock.timers.tick(10 * THIRD_MS);
    await client.put('after everything that was sent before', 'value');
    assert.deepEqual(progressOf(last), [100_000, 100_000, 100_000]);
    assert.equal(last.of('putOpen')[0]?.putOpen?.deadlineMs, STREAM_SILENCE_MS_MAX);
  });

  test('is renewed before it is granted too, and not after the call has ended', async (t) => {
    await using peer = await TestPeer.start((message, session) => {
      if (!message.putOpen) takesAll(message, session);
    });
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    t.mock.timers.enable({ apis: ['setInterval'] });
    const controller = new AbortController();
    const pending = rejection(
      client.putStream('k', slowly(1, 100_000, 0), { length: 100_000, signal: controller.signal }),
    );
    await waitFor(() => peer.sessions[0]?.of('putOpen').length === 1, { what: 'the request' });
    t.mock.timers.tick(THIRD_MS);
    await waitFor(() => progressOf(peer.last).length === 1, { what: 'the renewal' });
    controller.abort();
    assert.equal((await pending).code, 'ERR_FABRICKV_CANCELLED');
    t.mock.timers.tick(10 * THIRD_MS);
    await client.put('after everything that was sent before', 'value');
    assert.deepEqual(progressOf(peer.last), [0]);
  });

  test('is not renewed where all of the value is there: its time is that of any PUT, and no less than a stream`s', async (t) => {
    await using peer = await TestPeer.start((message, session) => {
      if (!message.putOpen) takesAll(message, session);
    });
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    t.mock.timers.enable({ apis: ['setInterval'] });
    const controller = new AbortController();
    const { signal } = controller;
    const pending = [
      client.putStream('k', slowly(1, 100_000, 0), { timeoutMs: 600_000, signal }),
      client.putStream('k', slowly(1, 100_000, 0), { timeoutMs: 20_000, signal }),
      client.put('k', Buffer.alloc(100_000), { signal }),
    ].map(rejection);
    await waitFor(() => peer.sessions[0]?.of('putOpen').length === 3, { what: 'the requests' });
    t.mock.timers.tick(10 * THIRD_MS);
    await client.put('after everything that was sent before', 'value');
    assert.deepEqual(progressOf(peer.last), []);
    const asked = peer.last.of('putOpen').map(({ putOpen }) => putOpen?.deadlineMs ?? 0);
    assert.ok(
      asked.some((ms) => ms > 500_000),
      asked.join(', '),
    );
    assert.ok(
      asked.every((ms) => ms > 25_000),
      asked.join(', '),
    );
    controller.abort();
    for (const error of await Promise.all(pending)) assert.equal(error.code, 'ERR_FABRICKV_CANCELLED');
  });

  for (const restartable of [false, true]) {
    test(`that the server took back ${restartable ? 'is asked for anew, for a function' : 'ends the call'}`, async () => {
      await using peer = await TestPeer.start(takesAll);
      await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
      const silence = gate();
      let begun = 0;
      let closed = 0;
      async function* source(): AsyncGenerator<Buffer> {
        const isFirst = ++begun === 1;
        try {
          yield Buffer.alloc(100_000, begun);
          if (isFirst) await silence.passed;
          yield Buffer.alloc(100_000, begun);
        } finally {
          closed += 1;
        }
      }
      const pending = client.putStream('k', restartable ? source : source(), { length: 200_000 });
      const rejected = restartable ? undefined : rejection(pending);
      await waitFor(() => peer.sessions[0]?.of('data').length === 2, { what: 'the beginning' });
      const { last } = peer;
      await dataCame(last, 100_000);
      const [open] = last.of('putOpen');
      assert.ok(open);
      // As a server does that has heard nothing of a client that was stopped.
      last.result(open, {
        failure: { code: 'ERR_FABRICKV_DEADLINE', message: 'silence', outcome: 'NOT_APPLIED', retryable: true },
      });
      if (rejected === undefined) {
        const stored = await pending;
        assert.deepEqual([begun, stored.length], [2, 200_000]);
        const again = last.of('putOpen')[1];
        assert.ok(again !== undefined && idOf(again) !== idOf(open), 'what was sent before must not be taken for it');
        const sent = last.of('data').filter((message) => idOf(message) === idOf(again));
        const bytes = Buffer.concat(sent.map(({ data }) => data?.bytes ?? Buffer.alloc(0)));
        assert.ok(bytes.equals(Buffer.alloc(200_000, 2)), 'the value is of the second stream alone');
      } else {
        const error = await rejected;
        assert.deepEqual([error.code, error.outcome, begun], ['ERR_FABRICKV_GRANT_ENDED', 'not-applied', 1]);
        assert.match(error.message, /heard nothing .* function/);
        assert.equal(last.of('putCommit').length, 0);
      }
      silence.open();
      await waitFor(() => closed === begun, { what: 'the sources to be closed' });
    });
  }
});
