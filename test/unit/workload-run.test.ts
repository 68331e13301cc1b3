import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { WorkloadTarget } from '../../src/workload/target.js';
import {
  loadKeys,
  runWorkload,
  type WorkloadOptions,
  type WorkloadProgress,
  type WorkloadResult,
} from '../../src/workload/workload.js';
import { waitFor } from '../support/wait-for.js';

/** Longer than any test: these runs are ended by their signal. */
const FOR_EVER_MS = 600_000;

/** An operation that the test answers. */
interface Asked {
  readonly kind: 'get' | 'put';
  readonly key: string;
  readonly succeed: (length?: number) => void;
  readonly fail: (error: Error) => void;
}

/** A target whose operations end when the test says so. */
class ManualTarget implements WorkloadTarget {
  readonly pending: Asked[] = [];
  begun = 0;

  get(key: Buffer): Promise<number> {
    return new Promise((resolve, reject) => this.#ask('get', key, (length = 10) => resolve(length), reject));
  }

  put(key: Buffer): Promise<void> {
    return new Promise((resolve, reject) => this.#ask('put', key, () => resolve(), reject));
  }

  /** The operation that has waited longest. */
  take(): Asked {
    const asked = this.pending.shift();
    assert.ok(asked !== undefined, 'nothing is in flight');
    return asked;
  }

  #ask(kind: Asked['kind'], key: Buffer, succeed: Asked['succeed'], fail: Asked['fail']): void {
    this.begun += 1;
    this.pending.push({ kind, key: String(key), succeed, fail });
  }
}

function options(more: Partial<WorkloadOptions> = {}): WorkloadOptions {
  return {
    keys: 8,
    keyPrefix: 'k',
    valueBytes: 10,
    concurrency: 4,
    readRatio: 0.5,
    distribution: 'uniform',
    durationMs: FOR_EVER_MS,
    warmupMs: 0,
    seed: 7,
    ...more,
  };
}

/** Whether a promise has settled by now, and how. */
async function settled(promise: Promise<unknown>): Promise<'fulfilled' | 'rejected' | 'pending'> {
  await turn();
  return Promise.race([
    promise.then(
      () => 'fulfilled' as const,
      () => 'rejected' as const,
    ),
    turn('pending' as const),
  ]);
}

describe('a closed loop', () => {
  it('keeps as many in flight as it is told, and counts each once', async () => {
    const target = new ManualTarget();
    const end = new AbortController();
    const running = runWorkload(target, options({ signal: end.signal }));
    const done = { get: 0, put: 0, misses: 0 };
    for (let operation = 0; operation < 500; operation++) {
      assert.equal(target.pending.length, 4);
      const asked = target.take();
      const isMiss = asked.kind === 'get' && operation % 5 === 0;
      done[asked.kind] += 1;
      if (isMiss) done.misses += 1;
      asked.succeed(isMiss ? -1 : 10);
      await turn();
    }
    end.abort();
    assert.equal(await settled(running), 'pending', 'four are in flight');
    for (const asked of target.pending.splice(0)) {
      done[asked.kind] += 1;
      asked.succeed();
    }
    const result = await running;
    assert.equal(target.begun, 504);
    assert.ok(done.get > 150 && done.put > 150, 'the ratio is a half');
    assert.deepEqual(
      [result.operations, result.gets, result.puts, result.misses, result.bytes, result.overdue],
      [504, done.get, done.put, done.misses, 10 * (504 - done.misses), 0],
    );
    assert.deepEqual(
      [result.latency.count, result.getLatency?.count, result.putLatency?.count],
      [504, done.get, done.put],
    );
    assert.ok(result.latency.p50Us <= result.latency.p99Us && result.latency.p99Us <= result.latency.maxUs);
  });

  it('has only GETs or only PUTs at the ends of the ratio', async () => {
    for (const [readRatio, kind] of [
      [1, 'get'],
      [0, 'put'],
    ] as const) {
      const target = new ManualTarget();
      const end = new AbortController();
      const running = runWorkload(target, options({ readRatio, signal: end.signal, concurrency: 1 }));
      for (let operation = 0; operation < 300; operation++) {
        const asked = target.take();
        assert.equal(asked.kind, kind);
        asked.succeed();
        await turn();
      }
      end.abort();
      target.take().succeed();
      const { getLatency, putLatency, operations } = await running;
      assert.equal(operations, 301);
      assert.equal((kind === 'get' ? putLatency : getLatency) === undefined, true);
    }
  });

  it('ends by its duration', async () => {
    const target = new ManualTarget();
    const running = runWorkload(target, options({ concurrency: 1, durationMs: 30 }));
    while (target.pending.length > 0) {
      target.take().succeed();
      await turn();
    }
    const result = await running;
    assert.equal(result.operations, target.begun);
    assert.ok(result.seconds >= 0.03);
  });

  it('counts what began after the warm-up, and nothing else', async () => {
    const target = new ManualTarget();
    const end = new AbortController();
    const warmupMs = 50;
    const beforeMs = performance.now();
    const running = runWorkload(target, options({ concurrency: 1, warmupMs, signal: end.signal }));
    const afterMs = performance.now();
    // When each operation began is known to lie between two looks at the clock, and so does the end of the warm-up.
    let [surelyCounted, perhapsCounted] = [0, 0];
    while (surelyCounted < 3) {
      const fromMs = performance.now();
      target.take().succeed();
      await turn();
      if (performance.now() >= beforeMs + warmupMs) perhapsCounted += 1;
      if (fromMs >= afterMs + warmupMs) surelyCounted += 1;
    }
    end.abort();
    target.take().succeed();
    const { operations } = await running;
    assert.ok(
      operations >= surelyCounted && operations <= perhapsCounted,
      `${surelyCounted} ≤ ${operations} ≤ ${perhapsCounted}`,
    );
    assert.ok(perhapsCounted < target.begun, 'some were of the warm-up');
  });

  it('counts an operation that is late, as late as it is', async () => {
    const target = new ManualTarget();
    const running = runWorkload(target, options({ concurrency: 2, durationMs: 20, readRatio: 1 }));
    const [late] = target.pending.splice(0, 1);
    const startedAtMs = performance.now();
    while (target.pending.length > 0) {
      target.take().succeed();
      await turn();
    }
    await waitFor(() => performance.now() > startedAtMs + 100, { what: 'the clock' });
    assert.equal(await settled(running), 'pending');
    late?.succeed();
    const result = await running;
    assert.equal(result.operations, target.begun);
    assert.ok(result.latency.maxUs >= 100_000 && result.seconds >= 0.1, JSON.stringify(result));
  });
});

describe('an open loop', () => {
  it("counts latency from when an operation was due, not from when the store's turn came", async () => {
    const target = new ManualTarget();
    const end = new AbortController();
    const startedAtMs = performance.now();
    const running = runWorkload(
      target,
      options({ ratePerSecond: 1000, concurrency: 1, readRatio: 1, signal: end.signal }),
    );
    // The store holds the first for 200 ms; the others it answers at once. They were due at 1, 2, … ms.
    await waitFor(() => performance.now() >= startedAtMs + 200, { what: 'the clock' });
    for (let operation = 0; operation < 101; operation++) {
      await waitFor(() => target.pending.length > 0, { what: 'an operation', intervalMs: 1 });
      target.take().succeed();
      await turn();
    }
    end.abort();
    for (const asked of target.pending.splice(0)) asked.succeed();
    const { latency } = await running;
    // Each was due before 101 ms and has ended after 200: a lower bound on any machine.
    assert.ok(latency.count >= 101);
    assert.ok(latency.p50Us >= 99_000, `p50 ${latency.p50Us}`);
  });

  it('begins as many as are due, whatever the store does, and tells what it could not begin', async () => {
    const idle = new ManualTarget();
    const answered = runWorkload(
      idle,
      options({ ratePerSecond: 1000, concurrency: 64, durationMs: 50, warmupMs: 10, readRatio: 1 }),
    );
    while ((await settled(answered)) === 'pending') for (const asked of idle.pending.splice(0)) asked.succeed();
    const result = await answered;
    assert.equal(result.operations + result.overdue, 50);

    const stuck = new ManualTarget();
    const stalled = runWorkload(stuck, options({ ratePerSecond: 1000, concurrency: 3, durationMs: 50, readRatio: 1 }));
    await waitFor(() => stuck.begun === 3, { what: 'three in flight' });
    const startedAtMs = performance.now();
    await waitFor(() => performance.now() > startedAtMs + 60, { what: 'the end of the run' });
    for (const asked of stuck.pending.splice(0)) asked.succeed();
    const { operations, overdue } = await stalled;
    assert.deepEqual([operations, overdue, stuck.begun], [3, 47, 3]);
  });

  it('ends without an operation when none is due', async () => {
    const target = new ManualTarget();
    const running = runWorkload(target, options({ ratePerSecond: 0.001, concurrency: 2, durationMs: 20 }));
    target.take().succeed();
    const { operations, overdue } = await running;
    assert.deepEqual([operations, overdue], [1, 0]);
  });
});

describe('a run that does not come to its end', () => {
  it('fails with the first error, once what is in flight has settled, and begins nothing more', async () => {
    const target = new ManualTarget();
    const running = runWorkload(target, options());
    running.catch(() => undefined);
    const [first, second, third, fourth] = target.pending.splice(0);
    second?.fail(new Error('the second'));
    await turn();
    first?.succeed();
    third?.fail(new Error('the third'));
    assert.equal(await settled(running), 'pending');
    fourth?.succeed();
    await assert.rejects(running, /^Error: the second$/);
    assert.equal(target.begun, 4);
  });

  it('fails also when the target throws instead of answering', async () => {
    const target: WorkloadTarget = {
      get: () => {
        throw new Error('thrown');
      },
      put: () => Promise.resolve(),
    };
    for (const ratePerSecond of [undefined, 1000]) {
      const more = ratePerSecond === undefined ? {} : { ratePerSecond };
      await assert.rejects(runWorkload(target, options({ readRatio: 1, ...more })), /^Error: thrown$/);
    }
  });

  it('ends with what it has when it is aborted, whatever becomes of what was in flight', async () => {
    for (const ratePerSecond of [undefined, 100_000]) {
      const target = new ManualTarget();
      const end = new AbortController();
      const more = ratePerSecond === undefined ? {} : { ratePerSecond };
      const running = runWorkload(target, options({ signal: end.signal, ...more }));
      await waitFor(() => target.pending.length === 4, { what: 'four in flight', intervalMs: 1 });
      target.take().succeed();
      await waitFor(() => target.pending.length === 4, { what: 'the fifth', intervalMs: 1 });
      end.abort();
      for (const asked of target.pending.splice(0)) asked.fail(new Error('closed'));
      const { operations } = await running;
      assert.deepEqual([operations, target.begun], [1, 5]);
    }
  });

  it('does nothing when it is aborted before it begins', async () => {
    const target = new ManualTarget();
    const { operations } = await runWorkload(target, options({ signal: AbortSignal.abort() }));
    assert.deepEqual([operations, target.begun], [0, 0]);
  });

  it('fails with what the progress callback throws', async () => {
    const target = new ManualTarget();
    const running = runWorkload(target, options({ concurrency: 1 }), () => {
      throw new Error('in the callback');
    });
    running.catch(() => undefined);
    await turn(undefined);
    while ((await settled(running)) === 'pending') for (const asked of target.pending.splice(0)) asked.succeed();
    await assert.rejects(running, /^Error: in the callback$/);
  });

  it('refuses numbers that make no sense', async () => {
    for (const wrong of [{ keys: 0 }, { concurrency: 0 }, { readRatio: 1.5 }, { ratePerSecond: 0 }]) {
      await assert.rejects(runWorkload(new ManualTarget(), options(wrong)), RangeError);
    }
  });
});

describe('progress', () => {
  it('is told of what was done so far, and of the latency since the last time', async () => {
    const target = new ManualTarget();
    const end = new AbortController();
    const seen: WorkloadProgress[] = [];
    const running = runWorkload(target, options({ concurrency: 1, signal: end.signal }), (progress) => {
      seen.push(progress);
    });
    for (let operation = 0; operation < 10; operation++) {
      target.take().succeed();
      await turn();
    }
    await waitFor(() => seen.length === 2, { what: 'two times' });
    end.abort();
    target.take().succeed();
    const result: WorkloadResult = await running;
    assert.deepEqual(
      seen.map(({ operations, bytes }) => [operations, bytes]),
      [
        [10, 100],
        [10, 100],
      ],
    );
    assert.ok((seen[0]?.p99Us ?? 0) > 0);
    assert.equal(seen[1]?.p99Us, 0, 'nothing has ended since');
    // What progress has taken is not missing in the result.
    assert.deepEqual([result.operations, result.latency.count], [11, 11]);
  });
});

describe('loading', () => {
  it('puts every key once, as many at a time as it is told', async () => {
    const target = new ManualTarget();
    const loading = loadKeys(target, options({ keys: 20, concurrency: 3 }));
    const keys: string[] = [];
    while (keys.length < 20) {
      assert.equal(target.pending.length, Math.min(3, 20 - keys.length));
      const asked = target.take();
      assert.equal(asked.kind, 'put');
      keys.push(asked.key);
      asked.succeed();
      await turn();
    }
    await loading;
    assert.deepEqual(
      keys,
      Array.from({ length: 20 }, (_, index) => `k${String(index).padStart(2, '0')}`),
    );
  });

  it('fails with the first error, or the reason of the abort, once what is in flight has settled', async () => {
    for (const isAborted of [false, true]) {
      const target = new ManualTarget();
      const end = new AbortController();
      const loading = loadKeys(target, options({ keys: 20, concurrency: 3, signal: end.signal }));
      loading.catch(() => undefined);
      if (isAborted) end.abort(new Error('the first'));
      else target.take().fail(new Error('the first'));
      await turn();
      target.take().succeed();
      assert.equal(await settled(loading), 'pending');
      for (const asked of target.pending.splice(0)) asked.succeed();
      await assert.rejects(loading, /^Error: the first$/);
      assert.equal(target.begun, 3);
    }
  });
});
