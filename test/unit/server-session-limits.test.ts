import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { test } from 'node:test';
import { encodeClientFrame, serverSessionMethod } from '../../src/protocol/codec.js';
import type { ClientMessage } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX, FRAME_BYTES_MAX, FRAME_MESSAGES_MAX } from '../../src/protocol/limits.js';
import { GATE_OWN_MAX } from '../../src/server/operation-gate.js';
import { CONNECTIONS_BESIDE_SESSIONS } from '../../src/server/options.js';
import { waitFor } from '../support/wait-for.js';
import type { WireSession } from './support/session-client.js';
import { bytes, EVERYTHING, KEY, putBody } from './support/session-values.js';
import { type InlineServer, serve } from './support/test-server.js';

const MIB = 1024 * 1024;

/** GETs of 64 KiB each. */
function gets(count: number, firstId = 1): ClientMessage[] {
  return Array.from({ length: count }, (_, i) => ({
    operationId: firstId + i,
    get: { key: KEY, inlineMax: EVERYTHING },
  }));
}

/** A session whose client reads nothing. */
async function silent({ newClient }: InlineServer): Promise<WireSession> {
  const session = await newClient().connect();
  session.stream.pause();
  return session;
}

async function heldBack({ server }: InlineServer, times: number): Promise<void> {
  await waitFor(() => (server.counters()['sessionsHeldBack'] ?? 0) >= times, { what: 'the server to hold back' });
}

test('of a client that does not read, two frames are held, and all are answered when it reads', async () => {
  await using served = await serve();
  await (await served.client.connect()).call(1, putBody(bytes(DATA_BYTES_MAX)));
  const session = await silent(served);
  session.send(...gets(64));
  await heldBack(served, 1);
  // A GET in 1.25 MiB: the rest is a field of the message that nobody knows.
  const frames = 8;
  for (let i = 0; i < frames; i++) {
    const get = encodeClientFrame(gets(1, 100 + i));
    const junk = Buffer.alloc(FRAME_BYTES_MAX - get.length);
    junk.set([0xfa, 0x3f]);
    const length = junk.length - 6;
    for (let at = 0; at < 4; at++) junk[2 + at] = ((length >>> (7 * at)) & 0x7f) | (at < 3 ? 0x80 : 0);
    session.sendBytes(Buffer.concat([get, junk]));
  }
  // Others are served meanwhile, and when that has gone on for a while it is what it stays.
  const other = await served.client.connect();
  let received = 0;
  for (let quiet = 0; quiet < 50; ) {
    const { receivedBytes = 0 } = await other.counters();
    quiet = receivedBytes === received ? quiet + 1 : 0;
    received = receivedBytes;
  }
  assert.ok(received <= 2 * FRAME_BYTES_MAX + 0.25 * MIB, `${received} bytes are held`);
  session.stream.resume();
  assert.ok((await session.result(99 + frames)).get);
  await session.settled();
  const { receivedBytes, queuedBytes } = served.server.counters();
  assert.deepEqual([receivedBytes, queuedBytes], [0, 0]);
});

test('past the memory for requests that wait, the session with most of it is ended, and no other', async () => {
  await using served = await serve({ limits: { receivedBytesMax: MIB } });
  await (await served.client.connect()).call(1, putBody(bytes(DATA_BYTES_MAX)));
  const modest = await silent(served);
  modest.send(...gets(200));
  await heldBack(served, 1);
  const greedy = await silent(served);
  greedy.send(...gets(FRAME_MESSAGES_MAX));
  await waitFor(() => served.server.counters()['sessionsEndedForMemory'] === 1, { what: 'the end of the greedy one' });
  greedy.stream.resume();
  const { error } = await greedy.ended;
  assert.equal(error?.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
  assert.equal(error.retryable, true);
  modest.stream.resume();
  assert.ok((await modest.result(200)).get);
  assert.equal(served.server.counters()['sessionsEndedForMemory'], 1);
});

test('past the transfers of all sessions each has some of its own', async () => {
  await using served = await serve({ limits: { transfersInFlightMax: 0, transfersWaitingMax: 0 } });
  const open = (operationId: number): ClientMessage => ({
    operationId,
    putOpen: { key: Buffer.from(`k${operationId}`), length: 100, path: 'INLINE' },
  });
  for (const session of [await served.client.connect(), await served.newClient().connect()]) {
    const count = 2 * GATE_OWN_MAX;
    session.send(...Array.from({ length: count + 1 }, (_, i) => open(i + 1)));
    const { failure } = await session.result(count + 1);
    assert.equal(failure?.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    assert.ok((await session.result(GATE_OWN_MAX)).grant);
    // Those that wait come when their own session's end.
    session.send({ operationId: 1, putAbort: {} });
    assert.ok((await session.result(GATE_OWN_MAX + 1)).grant);
  }
  assert.equal(served.server.counters()['transfersWaiting'], 2 * (GATE_OWN_MAX - 1));
});

/** A frame as gRPC sends it. */
function framed(messages: readonly ClientMessage[]): Buffer {
  const frame = encodeClientFrame(messages);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(frame.length, 1);
  return Buffer.concat([head, frame]);
}

test('a session whose last words nobody reads counts as one, until its connection is cut', async () => {
  await using served = await serve({ maxSessions: 1, limits: { lingerMs: 200 } });
  const first = await served.client.connect();
  await first.call(1, putBody(bytes(DATA_BYTES_MAX)));
  first.send({ bye: {} });
  await first.ended;
  // grpc-js would take 16 frames without being asked: this one takes what HTTP/2's window of 64 KiB lets through.
  const connection = connectHttp2(`http://${served.server.boundAddr}`);
  try {
    const stream = connection.request(
      { ':method': 'POST', ':path': serverSessionMethod.path, 'content-type': 'application/grpc', te: 'trailers' },
      { endStream: false },
    );
    connection.on('error', () => undefined);
    stream.on('error', () => undefined);
    stream.write(framed([{ hello: { minVersion: 1, maxVersion: 1, clientId: 1 } }]));
    await once(stream, 'data');
    stream.pause();
    stream.write(framed([...gets(6), { bye: {} }]));
    await waitFor(() => served.server.counters()['sessions'] === 0, { what: 'the end of the session' });
    assert.ok((served.server.counters()['queuedBytes'] ?? 0) > 0);
    const { error } = await served.client.openSession().ended;
    assert.equal(error?.code, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    await waitFor(() => connection.destroyed, { what: 'the cut' });
    await waitFor(() => served.server.counters()['queuedBytes'] === 0, { what: 'the end of what was queued' });
    assert.equal(served.server.counters()['connectionsCut'], 1);
    await served.client.connect();
  } finally {
    connection.destroy();
  }
});

test('a session whose last words are read is left alone', async () => {
  const lingerMs = 100;
  await using served = await serve({ limits: { lingerMs } });
  const session = await served.client.connect();
  await session.call(1, putBody(bytes(DATA_BYTES_MAX)));
  session.send(...gets(4, 2), { bye: {} });
  assert.equal((await session.ended).status, undefined);
  assert.ok((await session.result(5)).get);
  // Another session of the same connection lives on beyond that.
  const untilMs = performance.now() + 2 * lingerMs;
  const next = await served.client.connect();
  while (performance.now() < untilMs) await next.settled();
  assert.equal(served.server.counters()['connectionsCut'], 0);
});

test('past the most connections one more is closed, and sessions go on', async () => {
  await using served = await serve({ maxSessions: 1 });
  const session = await served.client.connect();
  const { port } = new URL(`http://${served.server.boundAddr}`);
  const sockets: Socket[] = [];
  try {
    for (let i = 0; i < CONNECTIONS_BESIDE_SESSIONS; i++) {
      const socket = connect(Number(port), '127.0.0.1');
      sockets.push(socket);
      await once(socket, 'connect');
    }
    const late = connect(Number(port), '127.0.0.1').resume();
    late.on('error', () => undefined);
    await once(late, 'close');
    assert.equal((await session.counters())['connectionsRefused'], 1);
  } finally {
    for (const socket of sockets) socket.destroy();
  }
});
