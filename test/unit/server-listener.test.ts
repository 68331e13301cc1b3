import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { parseControlAddress } from '../../src/protocol/address.js';
import { type Listener, listen } from '../../src/server/listener.js';
import { Child } from '../support/child.js';
import { tempDir } from '../support/temp-dir.js';
import { waitFor } from '../support/wait-for.js';

const ANY_PORT = parseControlAddress('127.0.0.1:0');

/** A listener that a test that fails leaves behind neither. */
type Held = Listener & AsyncDisposable;

async function hold(address = ANY_PORT): Promise<Held> {
  const listener = await listen(address);
  return {
    ...listener,
    async [Symbol.asyncDispose]() {
      listener.cut();
      await listener.close();
    },
  };
}

/** What a listener has handed over and reported. */
function accepting(
  listener: Listener,
  connectionsMax = Number.POSITIVE_INFINITY,
): { readonly sockets: Socket[]; readonly errors: Error[]; readonly refused: number } {
  const seen: { sockets: Socket[]; errors: Error[]; refused: number } = { sockets: [], errors: [], refused: 0 };
  listener.accept({
    onConnection: (socket) => seen.sockets.push(socket),
    onError: (error) => seen.errors.push(error),
    connectionsMax,
    onRefused: () => {
      seen.refused += 1;
    },
  });
  return seen;
}

function portOf(listener: Listener): number {
  assert.equal(listener.address.kind, 'tcp');
  return listener.address.kind === 'tcp' ? listener.address.port : 0;
}

/** The loop has polled: both ends are in this process, so what one did the other has seen. */
async function turns(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

test('a port in use names the process that has it', async () => {
  await using listener = await hold();
  const taken = parseControlAddress(`127.0.0.1:${portOf(listener)}`);
  await assert.rejects(listen(taken), {
    code: 'ERR_FABRICKV_ADDRESS_IN_USE',
    message: new RegExp(`127\\.0\\.0\\.1:${portOf(listener)} is in use by .* \\(pid ${process.pid}\\)`),
  });
  await listener.close();
  // And is free afterwards.
  await (await listen(taken)).close();
});

test('an address of another machine, a name that does not resolve and a missing directory are told as such', async () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['192.0.2.1:50051', /192\.0\.2\.1:50051 is not an address of this machine/],
    ['no-such-host.invalid:50051', /name that does not resolve/],
    ['unix:/no/such/directory/x.sock', /directory that does not exist/],
  ];
  for (const [address, message] of cases) {
    await assert.rejects(listen(parseControlAddress(address)), { code: 'ERR_FABRICKV_ADDRESS_UNAVAILABLE', message });
  }
});

test('a socket file that nobody listens on is replaced; one that is listened on is not', async () => {
  await using dir = await tempDir();
  const path = dir.file('kv.sock');
  // A process that is killed leaves its file behind.
  const script = `require('node:net').createServer().listen(process.argv[1], () => process.stderr.write('listening'))`;
  await using child = new Child(process.execPath, { args: ['-e', script, path], stdin: 'open' });
  await waitFor(() => child.stderr.includes('listening'), { what: 'the other process' });
  const address = parseControlAddress(`unix:${path}`);
  await assert.rejects(listen(address), { code: 'ERR_FABRICKV_ADDRESS_IN_USE' });
  child.kill('SIGKILL');
  await child.ended;
  assert.ok(existsSync(path));
  await using listener = await hold(address);
  const { sockets } = accepting(listener);
  const socket = connect({ path });
  await once(socket, 'connect');
  await waitFor(() => sockets.length > 0, { what: 'the connection' });
  socket.destroy();
  listener.cut();
  await listener.close();
  assert.equal(existsSync(path), false, 'it takes its file along');
});

test('a file that is no socket is left alone', async () => {
  await using dir = await tempDir();
  const path = dir.file('precious');
  writeFileSync(path, 'data');
  const listening = hold(parseControlAddress(`unix:${path}`));
  await assert.rejects(listening, {
    code: 'ERR_FABRICKV_ADDRESS_UNAVAILABLE',
    message: /is no socket/,
  });
  assert.equal(readFileSync(path, 'utf8'), 'data');
});

test('connections that come before they are asked for wait; those that break meanwhile are forgotten', async () => {
  await using listener = await hold();
  const [patient, impatient] = [connect(portOf(listener), '127.0.0.1'), connect(portOf(listener), '127.0.0.1')];
  patient.write('hello');
  await Promise.all([once(patient, 'connect'), once(impatient, 'connect')]);
  await turns();
  // A reset: without a handler its ECONNRESET would end the process.
  impatient.resetAndDestroy();
  await once(impatient, 'close');
  await turns();
  const third = connect(portOf(listener), '127.0.0.1');
  await once(third, 'connect');
  const { sockets, errors } = accepting(listener);
  await waitFor(() => sockets.length >= 2, { what: 'both connections' });
  const [first] = sockets;
  assert.ok(first !== undefined);
  const [data] = (await once(first, 'data')) as [Buffer];
  assert.equal(data.toString(), 'hello', 'what was sent early is there');
  assert.deepEqual(
    errors.filter((error) => !('code' in error && error.code === 'ECONNRESET')),
    [],
  );
  for (const socket of [patient, third]) socket.destroy();
});

test('a connection that breaks later is reported, and ends nothing else', async () => {
  await using listener = await hold();
  const seen = accepting(listener);
  const socket = connect(portOf(listener), '127.0.0.1');
  await once(socket, 'connect');
  await waitFor(() => seen.sockets.length > 0, { what: 'the connection' });
  socket.resetAndDestroy();
  await waitFor(() => seen.errors.length > 0, { what: 'the error' });
  assert.match(String(seen.errors[0]), /ECONNRESET/);
  await listener.close();
});

test('close waits for connections that were handed over, cut ends them', async () => {
  await using listener = await hold();
  const { sockets } = accepting(listener);
  // This one never answers a FIN.
  const socket = connect({ port: portOf(listener), host: '127.0.0.1', allowHalfOpen: true });
  socket.on('error', () => undefined);
  await once(socket, 'connect');
  await waitFor(() => sockets.length > 0, { what: 'the connection' });
  let closed = false;
  void listener.close().then(() => {
    closed = true;
  });
  await turns();
  assert.equal(closed, false);
  listener.cut();
  await waitFor(() => closed, { what: 'the end of the listener' });
  socket.destroy();
});

test('a port that another server has on every address is in use too', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const address = other.address();
  assert.ok(typeof address === 'object' && address !== null);
  await assert.rejects(listen(parseControlAddress(`0.0.0.0:${address.port}`)), { code: 'ERR_FABRICKV_ADDRESS_IN_USE' });
  other.close();
});

test('past the most connections one more is closed at once, until one ends', async () => {
  await using listener = await hold();
  const seen = accepting(listener, 2);
  const clients = [connect(portOf(listener), '127.0.0.1'), connect(portOf(listener), '127.0.0.1')];
  await waitFor(() => seen.sockets.length === 2, { what: 'two connections' });
  const third = connect(portOf(listener), '127.0.0.1').resume();
  await once(third, 'close');
  assert.deepEqual([seen.sockets.length, seen.refused], [2, 1]);
  clients[0]?.destroy();
  seen.sockets[0]?.resume();
  await once(seen.sockets[0] as Socket, 'close');
  const fourth = connect(portOf(listener), '127.0.0.1');
  await waitFor(() => seen.sockets.length === 3, { what: 'the next one' });
  for (const client of [...clients, fourth]) client.destroy();
});

test('one peer is cut, and no other', async () => {
  await using listener = await hold();
  const seen = accepting(listener);
  const [cut, kept] = [connect(portOf(listener), '127.0.0.1'), connect(portOf(listener), '127.0.0.1')];
  await waitFor(() => seen.sockets.length === 2, { what: 'two connections' });
  const ended = once(cut.resume(), 'close');
  assert.ok(listener.cutPeer(`127.0.0.1:${cut.localPort}`));
  await ended;
  await turns();
  assert.equal(listener.cutPeer(`127.0.0.1:${cut.localPort}`), false);
  assert.equal(kept.destroyed, false);
  kept.destroy();
});
