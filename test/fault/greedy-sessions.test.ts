import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { MUTATION_RESULTS_MAX } from '../../src/protocol/limits.js';
import { startServer } from '../support/commands.js';
import { FULL } from '../support/mode.js';
import { residentFor } from '../support/resident.js';
import { SmallLoad, type SmallLoadOptions, unfairness } from '../support/small-load.js';

const MIB = 1024 * 1024;
const LOAD_MS = FULL ? 60_000 : 3000;
const GREEDY_MS = FULL ? 20_000 : 1500;
const PROCESSES = FULL ? 4 : 2;
const SESSIONS = FULL ? 200 : 20;
const IN_FLIGHT = 64;
/** The busiest session may have so many times the operations of the one with the fewest. */
const UNFAIRNESS_MAX = 2;
/** What the server may grow by between the first third of the load and its end: the results of mutations that it keeps, and little else. */
const GROWTH_MAX = 32 * MIB + MUTATION_RESULTS_MAX * 250;
/** Sessions with one operation in flight, beside a greedy one. */
const MODEST = 20;
const GREEDY_IN_FLIGHT = 1024;
const LOOP_DELAY_P99_US_MAX = 20_000;

/** Opens processes, and closes them when what is done with them is over. */
async function withLoads(
  each: readonly SmallLoadOptions[],
  run: (loads: readonly SmallLoad[]) => Promise<void>,
): Promise<void> {
  const loads: SmallLoad[] = [];
  try {
    for (const options of each) loads.push(await SmallLoad.open(options));
    await run(loads);
  } finally {
    for (const load of loads) await load[Symbol.asyncDispose]();
  }
}

describe('sessions that share a server', () => {
  test(`${SESSIONS} sessions with ${IN_FLIGHT} in flight each: no error, fair, the server flat in memory`, async (t) => {
    await using server = await startServer({ args: ['--provider', 'none', '--log-level', 'info'] });
    await using observer = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    const options = { addr: server.addr, sessions: SESSIONS / PROCESSES, inFlight: IN_FLIGHT };
    await withLoads(
      Array.from({ length: PROCESSES }, () => options),
      async (loads) => {
        for (const load of loads) load.begin();
        const resident = await residentFor(server.pid, LOAD_MS);
        const done = await Promise.all(loads.map((load) => load.end()));
        const { counters } = await observer.ping();
        const early = resident.slice(0, Math.ceil(resident.length / 3));
        const late = resident.slice(-4);
        const factor = unfairness(done);
        t.diagnostic(
          `${done.flatMap(({ operations }) => operations).reduce((sum, one) => sum + one)} operations, ` +
            `the busiest session had ${factor.toFixed(2)} times those of the last; p99 ${done.map(({ p99Us }) => p99Us)} µs; ` +
            `RSS ${Math.round(Math.max(...early) / MIB)} to ${Math.round(Math.min(...late) / MIB)} MiB; ` +
            `event loop delay p99 ${counters['eventLoopDelayP99Us']} µs, max ${counters['eventLoopDelayMaxUs']} µs`,
        );
        assert.ok(factor <= UNFAIRNESS_MAX, `unfair by ${factor}: ${JSON.stringify(done)}`);
        assert.ok(Math.min(...late) <= Math.max(...early) + GROWTH_MAX, `RSS grew from ${early} to ${late}`);
        assert.equal(counters['failures'], 0);
      },
    );
  });

  test(`beside one session with ${GREEDY_IN_FLIGHT} in flight, ${MODEST} with one each go on, and are treated alike`, async (t) => {
    await using server = await startServer({ args: ['--provider', 'none', '--log-level', 'info'] });
    await using observer = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    const { addr } = server;
    const greedyLoad = { addr, sessions: 1, inFlight: GREEDY_IN_FLIGHT, valueBytes: 16 * 1024 };
    await withLoads([greedyLoad, { addr, sessions: MODEST, inFlight: 1 }], async ([greedy, modest]) => {
      assert(greedy !== undefined && modest !== undefined);
      greedy.begin();
      modest.begin();
      const resident = await residentFor(server.pid, GREEDY_MS);
      const [greedyDone, modestDone] = await Promise.all([greedy.end(), modest.end()]);
      const { counters } = await observer.ping();
      t.diagnostic(
        `greedy: ${greedyDone.operations} operations, p99 ${greedyDone.p99Us} µs; modest: ${Math.min(...modestDone.operations)} to ` +
          `${Math.max(...modestDone.operations)}, p50 ${modestDone.p50Us} µs, p99 ${modestDone.p99Us} µs; ` +
          `RSS up to ${Math.round(Math.max(...resident) / MIB)} MiB; ` +
          `event loop delay p99 ${counters['eventLoopDelayP99Us']} µs, max ${counters['eventLoopDelayMaxUs']} µs`,
      );
      assert.ok(unfairness([modestDone]) <= UNFAIRNESS_MAX, JSON.stringify(modestDone));
      assert.equal(counters['failures'], 0);
      assert.ok((counters['sessionsHeldBack'] ?? 0) > 0, 'the greedy session was never held back');
      if (FULL) assert.ok((counters['eventLoopDelayP99Us'] ?? Number.NaN) <= LOOP_DELAY_P99_US_MAX);
    });
  });
});
