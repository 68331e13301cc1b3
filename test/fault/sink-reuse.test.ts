import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { FabricKvError, KvClient } from '../../src/index.js';
import { startServer, type TestServer } from '../support/commands.js';
import { FULL } from '../support/mode.js';
import { checkStamped, stamp } from '../support/stamped.js';
import { TcpProxy } from '../support/tcp-proxy.js';
import { randomFrom, testSeed } from '../support/values.js';

const MIB = 1024 * 1024;
const KEYS = 8;
const LENGTH_MAX = 24 * MIB;
const ROUNDS = FULL ? 1500 : 30;
/** So little receive memory that every sink is used again at once. */
const RECEIVE_MEMORY = 64 * MIB;
/** Results that are held for a while, so that a late write into one would be seen. */
const HELD_MAX = 2;

interface Held {
  readonly key: number;
  readonly bytes: Buffer;
  release(): void;
}

/** Every value of key `k` has writer `k` and sequence `k`. */
async function store(client: KvClient): Promise<void> {
  for (let key = 0; key < KEYS; key++) {
    const bytes = Buffer.alloc(Math.floor((LENGTH_MAX / KEYS) * (key + 1)) + key);
    stamp(bytes, { writer: key, sequence: key });
    await client.put(`value-${key}`, bytes);
  }
}

function check({ key, bytes }: Held): void {
  assert.deepEqual(checkStamped(bytes), { writer: key, sequence: key });
}

/** Aborts GETs at random moments while the memory of the aborted ones is used for others, and looks at every byte twice. */
async function abortAtRandom(client: KvClient, seed: number): Promise<{ aborted: number; arrived: number }> {
  const random = randomFrom(seed);
  const held: Held[] = [];
  const region = await client.allocate(LENGTH_MAX + KEYS);
  const done = { aborted: 0, arrived: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    await Promise.all(
      Array.from({ length: 4 }, async (_, lane) => {
        const key = Math.floor(random() * KEYS);
        const abortAfterMs = random() < 0.6 ? random() * 12 : undefined;
        const controller = new AbortController();
        const timer = abortAfterMs === undefined ? undefined : setTimeout(() => controller.abort(), abortAfterMs);
        const { signal } = controller;
        try {
          if (lane === 0) {
            await region.quiesced();
            // Until the region is quiet it is the server's; from now on until the next GET it is ours alone.
            region.view(0, 4096).fill(0xee);
            const info = await client.getInto(`value-${key}`, region, { signal });
            assert(info !== undefined);
            check({ key, bytes: region.view(0, info.length), release: () => undefined });
          } else {
            const value = await client.get(`value-${key}`, { signal });
            assert(value !== undefined);
            const one = { key, bytes: value.bytes, release: () => value.release() };
            check(one);
            held.push(one);
          }
          done.arrived += 1;
        } catch (error) {
          if (!(error instanceof FabricKvError && error.code === 'ERR_FABRICKV_CANCELLED')) throw error;
          done.aborted += 1;
          if (lane === 0) {
            await region.quiesced();
            region.buffer.fill(0xab);
            // A late write of the aborted GET would show here, at the latest when the next one has gone.
            await sleep(random() * 5);
            assert.equal(
              region.buffer.findIndex((byte) => byte !== 0xab),
              -1,
              'a late write landed in the region',
            );
          }
        } finally {
          clearTimeout(timer);
        }
      }),
    );
    while (held.length > HELD_MAX) {
      const oldest = held.shift();
      assert(oldest !== undefined);
      check(oldest);
      oldest.release();
    }
  }
  for (const one of held) check(one);
  await region.release();
  return done;
}

/** Stops and continues a process, at random moments, until told otherwise. */
async function stutter({ child }: TestServer, seed: number, isOver: () => boolean): Promise<number> {
  const random = randomFrom(seed);
  let stops = 0;
  while (!isOver()) {
    await sleep(5 + random() * 60);
    child.kill('SIGSTOP');
    await sleep(random() * 40);
    child.kill('SIGCONT');
    stops += 1;
  }
  return stops;
}

describe('I3: GETs are aborted at random points, and their sinks used again at once', () => {
  test('with a server that is stopped and continued', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using client = await KvClient.connect({
      serverAddr: server.addr,
      provider: 'tcp',
      receiveMemory: RECEIVE_MEMORY,
      timeoutMs: 60_000,
    });
    await store(client);
    let over = false;
    const stuttering = stutter(server, seed + 1, () => over);
    const done = await abortAtRandom(client, seed).finally(() => {
      over = true;
    });
    t.diagnostic(`${JSON.stringify(done)}; the server was stopped ${await stuttering} times`);
    assert.ok(done.aborted > ROUNDS / 4 && done.arrived > ROUNDS / 4, JSON.stringify(done));
  });

  test('with a proxy that holds the answers back, and cuts the session now and then', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using proxy = await TcpProxy.start(server.addr);
    await using client = await KvClient.connect({
      serverAddr: proxy.addr,
      provider: 'tcp',
      receiveMemory: RECEIVE_MEMORY,
      timeoutMs: 60_000,
    });
    await store(client);
    const random = randomFrom(seed + 2);
    let over = false;
    const disturbing = (async () => {
      let cuts = 0;
      while (!over) {
        await sleep(5 + random() * 40);
        proxy.holdAnswers();
        await sleep(random() * 30);
        if (random() < 0.1) {
          proxy.cut();
          cuts += 1;
        } else proxy.release();
      }
      proxy.release();
      return cuts;
    })();
    const done = await abortAtRandom(client, seed).finally(() => {
      over = true;
    });
    t.diagnostic(`${JSON.stringify(done)}; the session was cut ${await disturbing} times`);
    assert.ok(done.aborted > ROUNDS / 4 && done.arrived > ROUNDS / 4, JSON.stringify(done));
  });
});
