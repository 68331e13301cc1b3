import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Deadlines } from '../../src/client/deadlines.js';
import { type Gated, OperationGate } from '../../src/client/operation-gate.js';
import { parseCallOptions, parseClientOptions } from '../../src/client/options.js';
import { PutData } from '../../src/client/put-data.js';
import { SizeMemory } from '../../src/client/size-memory.js';
import { StateMachine } from '../../src/client/state-machine.js';
import { ValueCrc } from '../../src/client/value-crc.js';
import { crc32c } from '../../src/fabric/index.js';
import { appendClientMessage } from '../../src/protocol/codec.js';
import { FrameWriter } from '../../src/protocol/frame-writer.js';
import type { ClientMessage } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { DATA_BYTES_MAX, DATA_IN_FLIGHT_BYTES_MAX } from '../../src/protocol/limits.js';
import { waitFor } from '../support/wait-for.js';

describe('the operation gate', () => {
  class Caller implements Gated {
    admitted = false;
    constructor(private readonly onAdmit: (caller: Caller) => void = () => undefined) {}
    admit(): void {
      assert.equal(this.admitted, false, 'admitted twice');
      this.admitted = true;
      this.onAdmit(this);
    }
  }

  test('admits up to one limit, lets wait up to the other, in order, and then refuses', () => {
    const gate = new OperationGate({ inFlightMax: 2, waitingMax: 2, what: 'operations' });
    const callers = Array.from({ length: 4 }, () => new Caller());
    for (const caller of callers) gate.enter(caller);
    assert.deepEqual(
      callers.map(({ admitted }) => admitted),
      [true, true, false, false],
    );
    assert.throws(() => gate.enter(new Caller()), { code: 'ERR_FABRICKV_RESOURCE_EXHAUSTED' });
    const [first, , third, fourth] = callers;
    assert.ok(first && third && fourth);
    gate.leave(third);
    gate.leave(first);
    gate.leave(first);
    assert.deepEqual([third.admitted, fourth.admitted, gate.inFlight, gate.waiting], [false, true, 2, 0]);
  });

  test('ten thousand that end as soon as they are admitted do not overflow the stack', () => {
    const gate = new OperationGate({ inFlightMax: 1, waitingMax: 20_000, what: 'operations' });
    const first = new Caller();
    gate.enter(first);
    const callers = Array.from({ length: 10_000 }, () => new Caller((caller) => gate.leave(caller)));
    for (const caller of callers) gate.enter(caller);
    gate.leave(first);
    assert.ok(callers.every(({ admitted }) => admitted));
    assert.equal(gate.inFlight, 0);
  });

  test("the server's limit counts too, but never more than the client's", () => {
    const gate = new OperationGate({ inFlightMax: 3, waitingMax: 10, what: 'operations' });
    gate.limitInFlight(1);
    const callers = Array.from({ length: 4 }, () => new Caller());
    for (const caller of callers) gate.enter(caller);
    assert.equal(gate.inFlight, 1);
    gate.limitInFlight(100);
    assert.equal(gate.inFlight, 3);
  });
});

describe('deadlines', () => {
  test('each is kept, never early, and not at all when cancelled', async () => {
    const deadlines = new Deadlines();
    const startMs = performance.now();
    const passed: number[] = [];
    const entry = (ms: number) => ({
      deadlinePlace: -1,
      onDeadline: () => void passed.push(ms, performance.now() - startMs),
    });
    for (const ms of [80, 20, 50]) deadlines.add(entry(ms), startMs + ms);
    const cancelled = entry(30);
    deadlines.cancel(cancelled, deadlines.add(cancelled, startMs + 30));
    assert.equal(deadlines.size, 3);
    // How late they are is up to the machine: those that one late turn finds pass together.
    await waitFor(() => deadlines.size === 0, { what: 'the last deadline' });
    assert.deepEqual(
      [passed[0], passed[2], passed[4]].sort((a = 0, b = 0) => a - b),
      [20, 50, 80],
    );
    for (let index = 0; index < 6; index += 2) {
      const lateMs = (passed[index + 1] ?? 0) - (passed[index] ?? 0);
      assert.ok(lateMs >= 0, `${lateMs} ms late`);
    }
    assert.equal(deadlines.size, 0);
    deadlines.close();
  });

  test('one that adds another while it passes', async () => {
    const deadlines = new Deadlines();
    const second = new Promise<void>((resolve) => {
      deadlines.add(
        {
          deadlinePlace: -1,
          onDeadline: () => void deadlines.add({ deadlinePlace: -1, onDeadline: resolve }, performance.now() + 5),
        },
        performance.now() + 5,
      );
    });
    await second;
    deadlines.close();
  });
});

describe('the size memory', () => {
  const key = (name: string): Buffer => Buffer.from(name);

  test('knows lengths by namespace and key, and forgets the ones that were not used for longest', () => {
    const sizes = new SizeMemory();
    sizes.remember(0, key('a'), 5);
    sizes.remember(1, key('a'), 6);
    assert.deepEqual(
      [sizes.lookup(0, key('a')), sizes.lookup(1, key('a')), sizes.lookup(2, key('a'))],
      [5, 6, undefined],
    );
    for (let index = 0; index < 8191; index++) sizes.remember(0, key(`k${index}`), index);
    assert.equal(sizes.lookup(1, key('a')), 6);
    for (let index = 0; index < 8191; index++) sizes.remember(0, key(`l${index}`), index);
    assert.equal(sizes.lookup(0, key('a')), undefined);
    assert.equal(sizes.lookup(0, key('k0')), undefined);
    assert.equal(sizes.lookup(0, key('l0')), 0);
    assert.equal(sizes.lookup(1, key('a')), 6);
    sizes.forget(1, key('a'));
    assert.equal(sizes.lookup(1, key('a')), undefined);
  });

  test('guesses no sink while only small values are seen', () => {
    const sizes = new SizeMemory();
    assert.ok(sizes.guess() > 0);
    for (let index = 0; index < 32; index++) sizes.sawInline(0, key(`${index}`), false);
    assert.equal(sizes.guess(), 0);
    sizes.remember(0, key('large'), 1e6);
    assert.ok(sizes.guess() > 0);
  });
});

describe('state machines', () => {
  test('move along their table and nowhere else', () => {
    const machine = new StateMachine<'a' | 'b'>('thing', 'a', { a: ['b'], b: [] });
    machine.to('b');
    assert.equal(machine.state, 'b');
    assert.throws(() => machine.to('a'), /thing: b → a is not a transition/);
  });
});

describe('options', () => {
  test('defaults', () => {
    const { serverAddr, provider, timeoutMs, connectTimeoutMs, receiveMemory, namespace, maxInFlight, maxWaiting } =
      parseClientOptions({});
    assert.deepEqual(
      { serverAddr, provider, timeoutMs, connectTimeoutMs, receiveMemory, namespace, maxInFlight, maxWaiting },
      {
        serverAddr: '127.0.0.1:50051',
        provider: 'auto',
        timeoutMs: 30_000,
        connectTimeoutMs: 5000,
        receiveMemory: 256 * 1024 * 1024,
        namespace: 0,
        maxInFlight: 1024,
        maxWaiting: 16_384,
      },
    );
  });

  test("a call's options go before the client's", () => {
    const client = { timeoutMs: 5, inlineThreshold: 10, namespace: 3 };
    assert.deepEqual(parseCallOptions(undefined, client), parseCallOptions({}, client));
    const { timeoutMs, inlineThreshold, namespace, verify } = parseCallOptions(
      { timeoutMs: 7, inlineThreshold: 0, namespace: 0, verify: true },
      client,
    );
    assert.deepEqual([timeoutMs, inlineThreshold, namespace, verify], [7, 0, 0, true]);
  });
});

describe('a large inline PUT', () => {
  /** A stream that takes what it is told to take. */
  class TestSink {
    readonly frames: Buffer[] = [];
    readonly written: (() => void)[] = [];
    write(frame: Buffer, onWritten: () => void): void {
      this.frames.push(frame);
      this.written.push(onWritten);
    }
  }

  const putOf = (length: number): { data: PutData; ends: number[]; value: Buffer } => {
    const value = Buffer.alloc(length, 'abc');
    const ends: number[] = [];
    const source = { kind: 'bytes', bytes: value, length } as const;
    const crc = new ValueCrc(true);
    const data = new PutData({
      operationId: 1,
      source,
      crc,
      onPiece: () => undefined,
      onError: (error) => assert.fail(String(error)),
      onEnd: () => void ends.push(crc.fields.crc32c),
    });
    return { data, ends, value };
  };

  test('goes out in pieces of 64 KiB, at most 256 KiB of them at a time', () => {
    const sink = new TestSink();
    const writer = new FrameWriter<ClientMessage>(sink, appendClientMessage);
    const { data } = putOf(1024 * 1024);
    writer.sendData(data);
    assert.equal(sink.frames.length, DATA_IN_FLIGHT_BYTES_MAX / DATA_BYTES_MAX);
    assert.ok(sink.frames.every((frame) => frame.length < DATA_BYTES_MAX + 64));
    sink.written[0]?.();
    assert.equal(sink.frames.length, 5);
    data.stop();
    for (const onWritten of sink.written.slice(1)) onWritten();
    assert.equal(sink.frames.length, 5, 'nothing follows a stop');
  });

  test('says its CRC after the last piece, once', async () => {
    const { data, ends, value } = putOf(DATA_BYTES_MAX * 2 + 1);
    const lengths = [];
    for (let piece = data.next(); piece !== undefined; piece = data.next()) lengths.push(piece.sizeBytes);
    assert.deepEqual(lengths, [DATA_BYTES_MAX, DATA_BYTES_MAX, 1]);
    assert.deepEqual(ends, [], 'the commit would overtake the last piece');
    await sleep(0);
    assert.deepEqual(ends, [crc32c(value)]);
  });
});
