import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type DataSource,
  type FrameSink,
  FrameWriter,
  QUEUED_BYTES_MAX,
  QUEUED_FRAMES_MAX,
  QueuedBytes,
} from '../../src/protocol/frame-writer.js';
import {
  DATA_BYTES_MAX,
  DATA_IN_FLIGHT_BYTES_MAX,
  FRAME_BYTES_TARGET,
  FRAME_MESSAGES_MAX,
} from '../../src/protocol/limits.js';
import type { WireWriter } from '../../src/protocol/wire-format.js';

/** The writing half of a stream, whose flow the test decides. A message is a name and the end of a line. */
class Sink implements FrameSink {
  readonly frames: string[][] = [];
  private readonly written: (() => void)[] = [];

  write(bytes: Buffer, callback: () => void): void {
    this.frames.push(
      bytes
        .toString()
        .split('\n')
        .slice(0, -1)
        .map((name) => name.trimEnd()),
    );
    this.written.push(callback);
  }

  /** The transport has taken the oldest frames. */
  take(frames: number): void {
    for (const callback of this.written.splice(0, frames)) callback();
  }

  get messages(): string[] {
    return this.frames.flat();
  }
}

function append(message: string, frame: WireWriter): void {
  const bytes = Buffer.from(`${message}\n`);
  frame.reserve(bytes.length);
  for (const byte of bytes) frame.varint(byte);
}

/** A value of so many pieces, and how many of them have been read. */
function source(name: string, pieces: number): DataSource<string> & { read: number } {
  return {
    read: 0,
    next() {
      if (this.read === pieces) return undefined;
      this.read += 1;
      return { message: `${name}${this.read}`, sizeBytes: DATA_BYTES_MAX };
    },
  };
}

const PIECES_IN_FLIGHT = DATA_IN_FLIGHT_BYTES_MAX / DATA_BYTES_MAX;

/** Everything that this turn still has to say has been said. */
async function turn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test('what one turn has to say leaves in one frame', async () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  writer.send('a');
  writer.send('b');
  assert.deepEqual(sink.frames, []);
  await turn();
  writer.send('c');
  await turn();
  assert.deepEqual(sink.frames, [['a', 'b'], ['c']]);
});

test('a frame ends at its size and at its number of messages', async () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  for (let i = 0; i < 5; i++) writer.send(`big${i}`.padEnd(FRAME_BYTES_TARGET / 2));
  assert.deepEqual(sink.frames, [
    ['big0', 'big1'],
    ['big2', 'big3'],
  ]);
  await turn();
  assert.deepEqual(sink.frames[2], ['big4']);

  const many = new Sink();
  const counter = new FrameWriter<string>(many, append);
  for (let i = 0; i < 2 * FRAME_MESSAGES_MAX + 1; i++) counter.send('m');
  await turn();
  assert.deepEqual(
    many.frames.map((frame) => frame.length),
    [FRAME_MESSAGES_MAX, FRAME_MESSAGES_MAX, 1],
  );
});

test('Data goes in order, a piece a frame, up to its cap, and on as the transport takes it', () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  const value = source('a', 10);
  writer.sendData(value);
  assert.equal(value.read, PIECES_IN_FLIGHT);
  assert.deepEqual(
    sink.frames,
    ['a1', 'a2', 'a3', 'a4'].map((piece) => [piece]),
  );
  sink.take(1);
  assert.equal(value.read, PIECES_IN_FLIGHT + 1);
  for (let i = 0; i < 10; i++) sink.take(1);
  assert.deepEqual(
    sink.messages,
    Array.from({ length: 10 }, (_, i) => `a${i + 1}`),
  );
});

test('values take turns', () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  // The first one fills what may be in flight; from then on they alternate.
  writer.sendData(source('a', 8));
  writer.sendData(source('b', 4));
  writer.sendData(source('c', 1));
  while (sink.messages.length < 13) sink.take(1);
  assert.deepEqual(sink.messages.slice(PIECES_IN_FLIGHT), ['a5', 'b1', 'c1', 'a6', 'b2', 'a7', 'b3', 'a8', 'b4']);
});

test('small messages pass a large value', async () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  writer.send('before');
  writer.sendData(source('a', 100));
  assert.deepEqual(sink.messages, ['before', 'a1', 'a2', 'a3', 'a4']);
  writer.send('after');
  await turn();
  assert.equal(sink.messages.at(-1), 'after');
  assert.equal(sink.messages.length, 6);
});

test('no Data after the stream is full, until half of it is gone', async () => {
  const sink = new Sink();
  const told: boolean[] = [];
  const writer = new FrameWriter<string>(sink, append, (writable) => told.push(writable));
  for (let i = 0; i < QUEUED_FRAMES_MAX; i++) {
    assert.deepEqual(told, []);
    writer.send('s');
    writer.flush();
  }
  assert.deepEqual(told, [false]);
  const value = source('a', 2);
  writer.sendData(value);
  assert.equal(value.read, 0);
  // What is small goes all the same.
  writer.send('small');
  await turn();
  assert.equal(sink.messages.at(-1), 'small');
  sink.take(QUEUED_FRAMES_MAX / 2);
  assert.deepEqual([told, value.read], [[false], 0]);
  sink.take(1);
  assert.deepEqual(told, [false, true]);
  assert.deepEqual(sink.messages.slice(-3), ['small', 'a1', 'a2']);
});

test('a stream is full of bytes, too', () => {
  const sink = new Sink();
  const told: boolean[] = [];
  const writer = new FrameWriter<string>(sink, append, (writable) => told.push(writable));
  const frames = QUEUED_BYTES_MAX / FRAME_BYTES_TARGET;
  for (let i = 0; i < frames; i++) writer.send('b'.padEnd(FRAME_BYTES_TARGET - 1));
  assert.equal(sink.frames.length, frames);
  assert.deepEqual(told, [false]);
  sink.take(frames / 2);
  assert.deepEqual(told, [false, true]);
});

test('when all together have too much each has one frame, and what is gone is counted as gone', () => {
  const total = new QueuedBytes(2 * FRAME_BYTES_TARGET);
  const big = 'b'.padEnd(FRAME_BYTES_TARGET - 1);
  const writers = Array.from({ length: 3 }, () => {
    const sink = new Sink();
    const told: boolean[] = [];
    return { sink, told, writer: new FrameWriter<string>(sink, append, (writable) => told.push(writable), total) };
  });
  const [first, second, third] = writers;
  assert(first !== undefined && second !== undefined && third !== undefined);
  first.writer.send(big);
  assert.deepEqual(first.told, []);
  first.writer.send(big);
  assert.deepEqual(first.told, [false], 'the two frames of all are his');
  second.writer.send(big);
  third.writer.send(big);
  assert.deepEqual([second.told, third.told], [[false], [false]], 'one each');
  assert.equal(total.bytes, 4 * FRAME_BYTES_TARGET);
  second.sink.take(1);
  assert.deepEqual(second.told, [false, true], 'whoever has none may have one again');
  first.sink.take(1);
  assert.deepEqual(first.told, [false], 'not while he has one');
  first.writer.forget();
  assert.equal(total.bytes, FRAME_BYTES_TARGET);
  first.sink.take(1);
  third.sink.take(1);
  assert.equal(total.bytes, 0);
});

test('a value that is not wanted any more makes room for the next', () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  let wanted = true;
  const endless = source('a', 1000);
  writer.sendData({ next: () => (wanted ? endless.next() : undefined) });
  writer.sendData(source('b', 2));
  wanted = false;
  sink.take(PIECES_IN_FLIGHT);
  assert.deepEqual(sink.messages.slice(PIECES_IN_FLIGHT), ['b1', 'b2']);
});

test('nothing leaves after the end', async () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  const value = source('a', 100);
  writer.sendData(value);
  writer.send('queued');
  writer.end();
  const written = sink.frames.length;
  writer.send('late');
  writer.sendData(source('b', 1));
  writer.flush();
  sink.take(PIECES_IN_FLIGHT + 1);
  await turn();
  assert.equal(sink.frames.length, written);
  assert.equal(value.read, PIECES_IN_FLIGHT);
});

test('last words are written by a flush before the end', () => {
  const sink = new Sink();
  const writer = new FrameWriter<string>(sink, append);
  writer.send('goodbye');
  writer.flush();
  writer.end();
  assert.deepEqual(sink.messages, ['goodbye']);
});
