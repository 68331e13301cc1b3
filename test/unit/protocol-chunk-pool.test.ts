import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ChunkPool, LARGE_CHUNK_BYTES } from '../../src/protocol/chunk-pool.js';
import { type FrameSink, FrameWriter } from '../../src/protocol/frame-writer.js';
import type { WireWriter } from '../../src/protocol/wire-format.js';
import { configureProperties } from './support/seed.js';

configureProperties(200);

const KIB = 1024;

interface Message {
  readonly fill: number;
  readonly length: number;
}

interface Written {
  readonly bytes: Buffer;
  /** What they were when they were written. */
  readonly copy: Buffer;
  readonly callback: (error?: Error | null) => void;
}

/** A transport that reads a frame until it has called back. */
class SlowSink implements FrameSink {
  readonly queue: Written[] = [];

  write(bytes: Buffer, callback: Written['callback']): void {
    this.queue.push({ bytes, copy: Buffer.from(bytes), callback });
  }

  take(frames: number, error?: Error): void {
    for (const { bytes, copy, callback } of this.queue.splice(0, frames)) {
      assert.ok(bytes.equals(copy), 'a frame was written over before it was taken');
      callback(error);
    }
  }
}

function append({ fill, length }: Message, frame: WireWriter): void {
  frame.reserve(length);
  frame.raw(Buffer.alloc(length, fill));
}

test('the memory of a frame is used again when it has been taken, and never before, whatever its length', () => {
  const say = fc.record({
    kind: fc.constant('say' as const),
    fill: fc.nat(255),
    length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 300 * KIB })),
  });
  const step = fc.oneof(
    say,
    fc.record({ kind: fc.constant('flush' as const) }),
    fc.record({ kind: fc.constant('take' as const), frames: fc.nat(4) }),
    fc.record({ kind: fc.constant('fail' as const) }),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(2), step), { maxLength: 120 }), (steps) => {
      const pool = new ChunkPool(3);
      // Three sessions that share the pool.
      const sessions = [0, 1, 2].map(() => {
        const sink = new SlowSink();
        const writer = new FrameWriter<Message>(sink, append, undefined, undefined, pool);
        return { sink, writer };
      });
      for (const [index, one] of steps) {
        const session = sessions[index];
        assert.ok(session);
        const { sink, writer } = session;
        if (one.kind === 'say') writer.send(one);
        else if (one.kind === 'flush') writer.flush();
        else if (one.kind === 'take') sink.take(one.frames);
        else sink.take(1, new Error('the stream has failed'));
        assert.ok(pool.kept <= 3);
      }
      for (const { sink, writer } of sessions) {
        writer.flush();
        sink.take(sink.queue.length);
      }
    }),
  );
});

test('large frames that follow each other share a chunk, and who has nothing to say keeps none', () => {
  const pool = new ChunkPool(4);
  const sink = new SlowSink();
  const writer = new FrameWriter<Message>(sink, append, undefined, undefined, pool);
  const buffers = new Set<ArrayBufferLike>();
  for (let i = 0; i < 20; i++) {
    writer.send({ fill: i, length: 100 * KIB });
    writer.flush();
    buffers.add(sink.queue[0]?.bytes.buffer ?? new ArrayBuffer(0));
    sink.take(1);
  }
  assert.deepEqual([buffers.size, pool.kept], [1, 1]);
  assert.equal([...buffers][0]?.byteLength, LARGE_CHUNK_BYTES);
});

test('a chunk of which a write has failed is not used again', () => {
  const pool = new ChunkPool(4);
  const sink = new SlowSink();
  const writer = new FrameWriter<Message>(sink, append, undefined, undefined, pool);
  writer.send({ fill: 1, length: 100 * KIB });
  writer.flush();
  sink.take(1, new Error('the stream has failed'));
  assert.equal(pool.kept, 0);
});
