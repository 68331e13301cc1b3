import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet, type ServerCounters } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { waitFor } from '../support/wait-for.js';

const COLLECT_GARBAGE = new URL('../support/collect-garbage.js', import.meta.url);
const HOLDER = fileURLToPath(new URL('../support/session-holder.js', import.meta.url));
const SESSIONS = FULL ? 1000 : 60;
const PER_PROCESS = FULL ? 50 : 10;
const MIB = 1024 * 1024;
/** What each session puts. */
const VALUE_BYTES = 256 * 1024;
const READY_TIMEOUT_MS = FULL ? 240_000 : 60_000;
/**
 * What gRPC and libfabric keep of sessions that are gone, beyond what the first round made them keep. Garbage is collected
 * before: when V8 does that by itself is worth 40 MiB either way.
 */
const RESIDENT_GROWTH_MAX = 24 * MIB;

interface Holdings {
  readonly descriptors: number;
  readonly threads: number;
  readonly residentBytes: number;
}

async function collectGarbage(server: TestServer): Promise<void> {
  const after = server.records.length;
  server.kill('SIGUSR2');
  await server.waitForRecord(({ msg }) => msg === 'Garbage collected', undefined, after);
}

function holdingsOf({ pid }: TestServer): Holdings {
  const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
    residentBytes: Number(resident?.[1]) * 1024,
  };
}

describe('I6: many sessions', () => {
  test(`${SESSIONS} sessions are opened, used and dropped, half of them by kill -9, and nothing of them is left`, async (t) => {
    await using server = await startServer({
      args: ['--memory', '512MiB', '--log-level', 'info'],
      env: { NODE_OPTIONS: `--import=${COLLECT_GARBAGE.href}` },
    });
    await using observer = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    const settled = (): Promise<ServerCounters> =>
      countersWhen(
        async () => (await observer.ping()).counters,
        (now) => isQuiet(now) && now['railPeers'] === 0,
        { what: 'all sessions, windows, peers and quarantine to end', timeoutMs: 30_000 },
      );

    const round = async (sessions: number): Promise<void> => {
      const holders = Array.from(
        { length: Math.ceil(sessions / PER_PROCESS) },
        () => new Child(process.execPath, { args: [HOLDER, server.addr, String(PER_PROCESS)], stdin: 'open' }),
      );
      try {
        await waitFor(async () => (await observer.ping()).counters['sessions'] === holders.length * PER_PROCESS + 1, {
          what: 'all sessions',
          timeoutMs: READY_TIMEOUT_MS,
        });
        await Promise.all(
          holders.map(async (holder, index) => {
            // Half of them in the middle of what they do, or just after it.
            if (index % 2 === 0) holder.kill('SIGKILL');
            else holder.process.stdin?.end();
            const { code, signal, stderr } = await holder.waitForEnd(READY_TIMEOUT_MS);
            if (index % 2 === 0) assert.equal(signal, 'SIGKILL');
            else assert.equal(code, 0, stderr);
          }),
        );
      } finally {
        for (const holder of holders) await holder[Symbol.asyncDispose]();
      }
    };

    // What libfabric and V8 keep for so many at a time is allocated in a first round.
    await round(SESSIONS);
    const countersBefore = await settled();
    await collectGarbage(server);
    const before = holdingsOf(server);
    await round(SESSIONS);
    const countersAfter = await settled();
    await collectGarbage(server);
    const after = await waitFor(
      () => {
        const now = holdingsOf(server);
        return now.descriptors <= before.descriptors && now.threads <= before.threads && now;
      },
      { what: `descriptors and threads to be ${JSON.stringify(before)} again`, timeoutMs: 20_000 },
    );
    t.diagnostic(`before ${JSON.stringify(before)}, after ${JSON.stringify(after)}`);
    assert.ok(after.residentBytes - before.residentBytes <= RESIDENT_GROWTH_MAX, 'RSS grew');
    for (const name of ['railPeers', 'railRegionsOpen', 'windowsOpen', 'memoryReservedBytes']) {
      assert.equal(countersAfter[name], countersBefore[name], name);
    }
    // Who was killed before it had deleted its value has left that behind, and nothing else.
    const { keys = 0, memoryUsedBytes = 0, memoryFreeBytes = 0, memoryTotalBytes } = countersAfter;
    assert.equal(memoryUsedBytes, keys * VALUE_BYTES);
    assert.equal(memoryUsedBytes + memoryFreeBytes, memoryTotalBytes);
  });
});
