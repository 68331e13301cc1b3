import assert from 'node:assert/strict';
import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeStream } from '../../src/client/stream-reader.js';
import { FabricKvError, KvClient, type StreamSource } from '../../src/index.js';
import { OPERATION_TIMEOUT_MS_MAX } from '../../src/protocol/limits.js';
import { SETTLE_SLACK_MS } from '../support/mode.js';
import { waitFor } from '../support/wait-for.js';
import { type Answer, TestPeer } from './client-test-peer.js';

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
    assert.equal(open?.putOpen?.deadlineMs, OPERATION_TIMEOUT_MS_MAX);
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
      else if (message.data && Number(message.data.offset) >= 128 * 1024) session.crash();
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
