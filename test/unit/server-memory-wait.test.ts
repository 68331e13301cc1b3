import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { ServiceError } from '@grpc/grpc-js';
import { crc32c } from '../../src/fabric/index.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import type { Put } from '../../src/protocol/generated/fabrickv/v1/Put.js';
import { fromServiceError } from '../../src/protocol/rpc-errors.js';
import { fromBigInt } from '../../src/protocol/wire.js';
import { OperationGate } from '../../src/server/operation-gate.js';
import { SharedRun } from '../../src/server/shared-run.js';
import type { Extent } from '../../src/server/store/arena.js';
import { unaryHandlers } from '../../src/server/unary.js';
import { turn } from './support/memory-rail.js';
import { type BenchSession, KEY, MIB, PutBench } from './support/put-bench.js';

const VALUE = Buffer.alloc(1000, 'inline');

function put(more: Partial<Put> = {}): { put: Put } {
  return { put: { key: KEY, value: VALUE, crc32c: crc32c(VALUE), ...more } };
}

/** A bench whose arena is full of what a proof would free, and of which no proof ends before `free`. */
async function crowded(gate = new OperationGate(64, 64)) {
  const bench = await PutBench.open({ arenaBytes: 4 * MIB, gate });
  let reclaims = 0;
  let free: () => void = () => undefined;
  const freed = new Promise<void>((resolve) => {
    free = resolve;
  });
  const callbacks: (() => void)[] = [];
  const barrier = {
    proven: false,
    waitsFor: 'proving' as const,
    whenProven: (callback: () => void) => callbacks.push(callback),
  };
  const extents: Extent[] = (bench.store.arena.allocate(4 * MIB) ?? []).map((extent) => ({ ...extent, barrier }));
  bench.store.arena.release(extents);
  Object.assign(bench.context.dataPlane, {
    reclaim: async () => {
      reclaims += 1;
      await freed;
    },
  });
  return {
    bench,
    reclaims: () => reclaims,
    free: (): void => {
      barrier.proven = true;
      for (const callback of callbacks) callback();
      free();
    },
  };
}

function known(bench: PutBench, session: BenchSession, operationId: number): boolean {
  return bench.history.find(session.clientId, operationId, () => undefined);
}

describe('a PUT of one message for which there is no memory', () => {
  test('is stored when there is, and is in flight until then', async () => {
    const { bench, free } = await crowded();
    await using _ = bench;
    const session = bench.session();
    session.say(1, put());
    await turn();
    assert.deepEqual([session.running.size, session.gate.active, session.said], [1, 1, []]);
    session.say(1, put());
    free();
    await session.result(1);
    assert.equal(session.results(1).length, 2, 'the retry has the same result');
    assert.equal(bench.counters.putsInline, 1);
    assert.deepEqual([session.running.size, session.gate.active], [0, 0]);
    assert.ok(bench.isWhole());
  });

  test('has its time, its place in the queue, and can be cancelled; none of them is known then', async () => {
    const { bench, free } = await crowded(new OperationGate(1, 2));
    await using _ = bench;
    const session = bench.session();
    session.say(1, put());
    session.say(2, put({ deadlineMs: 20 }));
    session.say(3, put());
    session.say(4, put());
    assert.equal(session.lastFailure, 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    session.say(3, { cancel: {} });
    assert.ok(session.said.includes('3:quiesced'));
    assert.equal((await session.result(2)).failure?.code, 'ERR_FABRICKV_DEADLINE');
    assert.deepEqual(
      session.failures.map(({ outcome }) => outcome),
      ['not-applied', 'not-applied'],
    );
    for (const operationId of [2, 3, 4]) assert.equal(known(bench, session, operationId), false);
    await session.end();
    assert.equal(known(bench, session, 1), false);
    assert.deepEqual([session.gate.active, session.gate.waiting], [0, 0]);
    free();
    await turn();
    assert.equal(bench.stored(), undefined);
    assert.equal(bench.store.arena.usage.usedBytes, 0);
  });

  test('is known no more when storing it failed', async () => {
    const { bench, free } = await crowded();
    await using _ = bench;
    const session = bench.session();
    session.say(1, put());
    Object.assign(bench.store.arena, {
      write: () => {
        throw Object.assign(new Error('a test'), { code: 'ERR_TEST' });
      },
    });
    session.fail = (_operationId, error) => void session.failures.push(error);
    free();
    await turn();
    await turn();
    assert.equal(session.lastFailure, 'ERR_FABRICKV_INTERNAL');
    assert.equal(known(bench, session, 1), false);
    assert.deepEqual([session.running.size, session.gate.active], [0, 0]);
  });

  test('is asked for again so often and no more while it waits', async () => {
    const { bench, free } = await crowded();
    await using _ = bench;
    const session = bench.session();
    for (let i = 0; i < 1 + 64; i++) session.say(1, put());
    assert.deepEqual(session.said, []);
    session.say(1, put());
    assert.deepEqual(
      [session.lastFailure, session.failures[0]?.outcome],
      ['ERR_FABRICKV_RESOURCE_EXHAUSTED', 'unknown'],
    );
    free();
    await turn();
    assert.equal(session.results(1).filter(({ put: stored }) => stored).length, 1 + 64);
    assert.equal(bench.counters.putsInline, 1);
  });

  test('with a wrong CRC does not wait', async () => {
    const { bench, free, reclaims } = await crowded();
    await using _ = bench;
    const session = bench.session();
    session.say(1, put({ crc32c: 1 }));
    assert.equal(session.lastFailure, 'ERR_FABRICKV_CHECKSUM');
    assert.equal(reclaims(), 0);
    free();
  });
});

describe('a unary PUT for which there is no memory', () => {
  /** Puts, and says what came of it. */
  function caller(bench: PutBench): (key?: string) => Promise<string> {
    Object.assign(bench.context, {
      settings: { maxValueBytes: MIB, maxInFlight: 1, maxWaiting: 1 },
      formatKey: String,
    });
    const { Put: handle } = unaryHandlers(bench.context) as unknown as {
      Put: (call: object, callback: (error: unknown, response?: object) => void) => void;
    };
    const ids = { namespace: 0, clientId: fromBigInt(0n), operationId: fromBigInt(0n) };
    return (key = 'key') =>
      new Promise((resolve) => {
        const request = { ...ids, key: Buffer.from(key), value: VALUE };
        handle({ request, getPeer: () => 'a test' }, (error) =>
          resolve(error === null ? 'stored' : (fromServiceError(error as ServiceError)?.code ?? String(error))),
        );
      });
  }

  test('is stored when there is, or refused when too many wait', async () => {
    const { bench, free } = await crowded();
    await using _ = bench;
    const call = caller(bench);
    const calls = [call(), call('second')];
    await turn();
    assert.equal(await call('third'), 'ERR_FABRICKV_RESOURCE_EXHAUSTED');
    free();
    assert.deepEqual(await Promise.all(calls), ['stored', 'stored']);
    assert.ok(bench.isWhole());
  });

  test('is not stored when the server has stopped meanwhile', async () => {
    const { bench, free } = await crowded();
    await using _ = bench;
    const waiting = caller(bench)();
    await turn();
    bench.context.stopping = new FabricKvError('ERR_FABRICKV_SHUTTING_DOWN');
    free();
    assert.equal(await waiting, 'ERR_FABRICKV_SHUTTING_DOWN');
    assert.deepEqual([bench.stored(), bench.store.arena.usage.usedBytes], [undefined, 0]);
  });
});

test('those who ask for the same work while it is under way share the next run', async () => {
  const ends: (() => void)[] = [];
  const work = new SharedRun(() => new Promise((resolve) => ends.push(resolve)));
  const order: string[] = [];
  const ask = (name: string): Promise<void> => work.run().then(() => void order.push(name));
  const all = ['first', 'second', 'third'].map(ask);
  assert.equal(ends.length, 1);
  ends[0]?.();
  await turn();
  assert.deepEqual([order, ends.length], [['first'], 2]);
  all.push(ask('fourth'));
  ends[1]?.();
  await turn();
  assert.deepEqual([order, ends.length], [['first', 'second', 'third'], 3]);
  ends[2]?.();
  await Promise.all(all);
});
