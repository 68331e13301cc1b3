import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { testSeed } from '../support/values.js';

const LOAD_CLIENT = fileURLToPath(new URL('../support/load-client.js', import.meta.url));
const CLIENTS = 10;
const LOAD_MS = FULL ? 60_000 : 6000;
const ARENA_MIB = 2048;
const MIB = 1024 * 1024;
const RSS_OVER_ARENA_MAX = 200 * MIB;
/** What the server may grow by between the first third of the load and its end. */
const GROWTH_MAX = 32 * MIB;
const LOOP_DELAY_P99_MS_MAX = 50;

function residentBytes(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(line?.[1]) * 1024;
}

describe('ten clients at once', () => {
  test('64 KiB to 64 MiB, mixed: no error, every value checked, the server flat in memory and never blocked', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    await using server = await startServer({ args: ['--memory', `${ARENA_MIB}MiB`, '--log-level', 'info'] });
    await using observer = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    const clients = Array.from(
      { length: CLIENTS },
      (_, writer) =>
        new Child(process.execPath, {
          args: [LOAD_CLIENT, server.addr, String(writer), String(CLIENTS), String(seed + writer), String(LOAD_MS)],
        }),
    );
    try {
      const resident: number[] = [];
      const ended = Promise.all(clients.map((client) => client.waitForEnd(LOAD_MS + 90_000)));
      let over = false;
      void ended.finally(() => {
        over = true;
      });
      while (!over) {
        resident.push(residentBytes(server.pid));
        await Promise.race([ended, sleep(250)]);
      }
      const done = { puts: 0, gets: 0, missing: 0, bytes: 0, full: 0, checked: 0 };
      for (const { code, stdout, stderr } of await ended) {
        assert.equal(code, 0, stderr);
        const one = JSON.parse(stdout.toString()) as typeof done;
        for (const name of Object.keys(done) as (keyof typeof done)[]) done[name] += one[name];
      }
      assert.ok(done.puts > CLIENTS && done.checked > CLIENTS, JSON.stringify(done));
      const counters = await countersWhen(async () => (await observer.ping()).counters, isQuiet, {
        what: 'sessions, windows and quarantine to end',
      });
      const [early, late] = [resident.slice(0, Math.ceil(resident.length / 3)), resident.slice(-4)];
      t.diagnostic(
        `${JSON.stringify(done)}; RSS over the arena: ${Math.round(Math.max(...resident) / MIB - ARENA_MIB)} MiB; ` +
          `event loop delay p99 ${counters['eventLoopDelayP99Us']} µs, max ${counters['eventLoopDelayMaxUs']} µs; ` +
          `transfers begun again: ${counters['transferRetries']}`,
      );
      assert.ok(Math.max(...resident) <= ARENA_MIB * MIB + RSS_OVER_ARENA_MAX, `RSS ${Math.max(...resident)}`);
      assert.ok(Math.min(...late) <= Math.max(...early) + GROWTH_MAX, `RSS grew from ${early} to ${late}`);
      assert.ok((counters['eventLoopDelayP99Us'] ?? Number.NaN) <= LOOP_DELAY_P99_MS_MAX * 1000);
      assert.equal(counters['failures'], 0);
      assert.equal(counters['memoryFreeBytes'], counters['memoryTotalBytes']);
      assert.equal(counters['keys'], 0);
    } finally {
      for (const client of clients) await client[Symbol.asyncDispose]();
    }
  });
});
