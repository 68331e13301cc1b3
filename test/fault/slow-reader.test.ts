import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { countersWhen, type ServerCounters } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { residentFor } from '../support/resident.js';
import { SmallLoad } from '../support/small-load.js';
import { waitFor } from '../support/wait-for.js';

const HOSTILE = fileURLToPath(new URL('../support/hostile-session-client.js', import.meta.url));
const MIB = 1024 * 1024;
const LOAD_MS = FULL ? 20_000 : 1000;
/** The honest client alone, so that what its load makes V8 keep is not taken for what the hostile one does. */
const WARM_MS = FULL ? 10_000 : 500;
const BIG_BYTES = 64 * 1024;
const SESSIONS_MAX = FULL ? 1024 : 128;
const HONEST = 2;
const HONEST_P99_US_MAX = 20_000;
/** What V8 and its collector take under any load. */
const LOAD_BYTES_MAX = 96 * MIB;
/**
 * What one session may hold, by docs/operations.md: 704 KiB of answers, two frames of 1.25 MiB that wait, a part of a third, and 512 KiB
 * that HTTP/2 has received.
 */
const SESSION_BYTES_MAX = 5 * MIB;

interface Hostility {
  readonly mode: 'never-reads' | 'deaf' | 'largest-frames' | 'most-sessions';
  readonly sessions: number;
  /** What the server may grow by. */
  readonly growthMax: number;
  /** When the attack has got where it is going. */
  readonly settled: (counters: ServerCounters) => boolean;
}

/** An honest client beside a hostile one. */
async function besides({ mode, sessions, growthMax, settled }: Hostility, t: TestContext): Promise<ServerCounters> {
  await using server = await startServer({
    args: ['--provider', 'none', '--log-level', 'info', '--max-sessions', String(SESSIONS_MAX)],
  });
  await using observer = await KvClient.connect({
    serverAddr: server.addr,
    provider: 'none',
    inlineThreshold: Number.POSITIVE_INFINITY,
  });
  await observer.put('big', Buffer.alloc(BIG_BYTES, 1));
  await using honest = await SmallLoad.open({ addr: server.addr, sessions: HONEST, inFlight: 4 });
  honest.begin();
  const before = Math.max(...(await residentFor(server.pid, WARM_MS)));
  let text = '';
  await using hostile = new Child(process.execPath, {
    args: [HOSTILE, server.addr, mode, String(sessions)],
    onStdout: (chunk) => {
      text += chunk.toString();
    },
  });
  await waitFor(() => text.includes('begun'), { what: 'the hostile client' });
  const ask = async (): Promise<ServerCounters> => (await observer.ping()).counters;
  await countersWhen(ask, settled, { what: `${mode} to settle`, timeoutMs: 20_000 });
  const resident = await residentFor(server.pid, LOAD_MS);
  const done = await honest.end();
  const counters = await ask();
  assert.deepEqual([hostile.stderr, hostile.process.exitCode], ['', null], 'the hostile client has given up');
  const growth = Math.max(...resident) - before;
  t.diagnostic(
    `honest: ${done.operations} operations, p50 ${done.p50Us} µs, p99 ${done.p99Us} µs, max ${done.maxUs} µs; ` +
      `the server grew by ${Math.round(growth / MIB)} MiB of ${Math.round(growthMax / MIB)}; event loop delay p99 ` +
      `${counters['eventLoopDelayP99Us']} µs, max ${counters['eventLoopDelayMaxUs']} µs; ` +
      `queued ${counters['queuedBytes']}, received ${counters['receivedBytes']}`,
  );
  assert.ok(growth <= growthMax, `the server grew by ${growth} bytes; at most ${growthMax} are its own`);
  if (FULL) assert.ok(done.p99Us <= HONEST_P99_US_MAX, `p99 ${done.p99Us} µs`);
  await hostile[Symbol.asyncDispose]();
  // What it held comes back with its sessions.
  await countersWhen(ask, (now) => now['sessions'] === 1 && now['queuedBytes'] === 0 && now['receivedBytes'] === 0, {
    what: 'what the hostile client held',
    timeoutMs: 20_000,
  });
  return counters;
}

describe('a client that wants the memory of the server', () => {
  const readers = 24;
  test('by never reading its answers, and sending on', async (t) => {
    const counters = await besides(
      {
        mode: 'never-reads',
        sessions: readers,
        growthMax: LOAD_BYTES_MAX + readers * SESSION_BYTES_MAX,
        settled: (now) => now['sessions'] === readers + HONEST + 1 && (now['sessionsHeldBack'] ?? 0) >= readers,
      },
      t,
    );
    assert.equal(counters['failures'], 0);
  });

  test('by never reading its socket, with all the window that there is', async (t) => {
    await besides(
      {
        mode: 'deaf',
        sessions: readers,
        growthMax: LOAD_BYTES_MAX + readers * SESSION_BYTES_MAX,
        settled: (now) => now['sessions'] === readers + HONEST + 1 && (now['sessionsHeldBack'] ?? 0) >= readers,
      },
      t,
    );
  });

  test('by sending frames of the largest size for ever', async (t) => {
    await besides(
      {
        mode: 'largest-frames',
        sessions: 2,
        growthMax: LOAD_BYTES_MAX + 2 * SESSION_BYTES_MAX,
        settled: (now) => (now['failures'] ?? 0) > 100,
      },
      t,
    );
  });

  test('by opening the most sessions', async (t) => {
    const counters = await besides(
      {
        mode: 'most-sessions',
        sessions: 8,
        growthMax: LOAD_BYTES_MAX + SESSIONS_MAX * 0.25 * MIB,
        settled: (now) => now['sessions'] === SESSIONS_MAX && (now['sessionsRefused'] ?? 0) > 0,
      },
      t,
    );
    assert.equal(counters['sessions'], SESSIONS_MAX);
  });
});
