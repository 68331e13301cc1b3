import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Result } from '../../src/protocol/generated/fabrickv/v1/Result.js';
import {
  MUTATION_CLIENTS_MAX,
  MUTATION_RESULT_KEPT_MS,
  MUTATION_RESULTS_MAX,
  MUTATION_RESULTS_PER_CLIENT_MAX,
} from '../../src/protocol/limits.js';
import { MutationHistory } from '../../src/server/mutation-history.js';

const CLIENT = 7n;

function put(version: number): Result {
  return { put: { version, path: 'INLINE' } };
}

/** What find() says: nothing known, or what it called back with so far. */
function look(history: MutationHistory, client: bigint, operation: number): 'none' | (Result | undefined)[] {
  const results: (Result | undefined)[] = [];
  return history.find(client, operation, (result) => results.push(result)) ? results : 'none';
}

test('a retry gets the first result, and only of its own ids', () => {
  const history = new MutationHistory();
  assert.equal(look(history, CLIENT, 1), 'none');
  history.settle(CLIENT, 1, put(10));
  assert.deepEqual(look(history, CLIENT, 1), [put(10)]);
  assert.deepEqual(look(history, CLIENT, 1), [put(10)]);
  assert.equal(look(history, CLIENT, 2), 'none');
  assert.equal(look(history, 8n, 1), 'none');
});

test('a retry of what is being applied waits for its result', () => {
  const history = new MutationHistory();
  history.begin(CLIENT, 1);
  const first = look(history, CLIENT, 1);
  const second = look(history, CLIENT, 1);
  assert.deepEqual([first, second], [[], []]);
  history.settle(CLIENT, 1, put(10));
  assert.deepEqual([first, second], [[put(10)], [put(10)]]);
});

test('retries of one mutation that wait for it are bounded, and wait for nobody else`s', () => {
  const history = new MutationHistory();
  assert.equal(history.crowd(CLIENT, 1), undefined);
  history.begin(CLIENT, 1);
  for (let i = 0; i < 64; i++) {
    assert.equal(history.crowd(CLIENT, 1), undefined);
    look(history, CLIENT, 1);
  }
  const crowd = history.crowd(CLIENT, 1);
  assert.deepEqual([crowd?.code, crowd?.outcome], ['ERR_FABRICKV_RESOURCE_EXHAUSTED', 'unknown']);
  assert.equal(history.crowd(CLIENT, 2), undefined);
  history.settle(CLIENT, 1, put(10));
  assert.equal(history.crowd(CLIENT, 1), undefined);
});

test('of the retries of what changed nothing one is applied, and the others wait for that', () => {
  const history = new MutationHistory();
  const log: string[] = [];
  const retry = (name: string) => (result: Result | undefined) => {
    log.push(`${name}:${result === undefined ? 'again' : 'result'}`);
    if (result === undefined) history.begin(CLIENT, 1);
  };
  history.begin(CLIENT, 1);
  for (const name of ['a', 'b', 'c']) assert.ok(history.find(CLIENT, 1, retry(name)));
  history.settle(CLIENT, 1, undefined);
  assert.deepEqual(log, ['a:again']);
  history.settle(CLIENT, 1, undefined);
  assert.deepEqual(log, ['a:again', 'b:again']);
  history.settle(CLIENT, 1, put(10));
  assert.deepEqual(log, ['a:again', 'b:again', 'c:result']);
  assert.equal(history.size, 1);
});

test('what changed nothing leaves nothing behind', () => {
  const history = new MutationHistory();
  history.begin(CLIENT, 1);
  history.settle(CLIENT, 1, undefined);
  assert.equal(look(history, CLIENT, 1), 'none');
  assert.equal(history.size, 0);
});

test('to begin what is being applied is a defect', () => {
  const history = new MutationHistory();
  history.begin(CLIENT, 1);
  assert.throws(() => history.begin(CLIENT, 1), /twice/);
  history.begin(CLIENT, 2);
  history.begin(8n, 1);
});

test('results are kept for their time; what is being applied as long as that takes', () => {
  let now = 0;
  const history = new MutationHistory(() => now);
  history.settle(CLIENT, 1, put(10));
  history.begin(CLIENT, 2);
  now = MUTATION_RESULT_KEPT_MS;
  assert.deepEqual(look(history, CLIENT, 1), [put(10)]);
  now += 1;
  assert.equal(look(history, CLIENT, 1), 'none');
  const waiting = look(history, CLIENT, 2);
  assert.deepEqual(waiting, []);
  history.settle(CLIENT, 2, put(20));
  assert.deepEqual(waiting, [put(20)]);
  assert.equal(history.size, 1, 'what has expired went with the next result');
});

test('a client has its last results only', () => {
  const history = new MutationHistory();
  const count = 10 * MUTATION_RESULTS_PER_CLIENT_MAX + 1;
  for (let i = 0; i < count; i++) {
    history.settle(CLIENT, i, put(i));
    assert.ok(history.size <= 2 * MUTATION_RESULTS_PER_CLIENT_MAX);
    const last = i - MUTATION_RESULTS_PER_CLIENT_MAX + 1;
    if (last >= 0 && i % 1000 === 0) assert.deepEqual(look(history, CLIENT, last), [put(last)]);
  }
  assert.equal(look(history, CLIENT, 0), 'none');
});

test('past the most clients the one that was quiet longest goes; what it has being applied stays', () => {
  const history = new MutationHistory();
  history.begin(1n, 99);
  const waiting = look(history, 1n, 99);
  for (let client = 1; client <= MUTATION_CLIENTS_MAX; client++) history.settle(BigInt(client), 5, put(client));
  history.settle(1n, 6, put(1));
  history.settle(100_000n, 5, put(0));
  assert.deepEqual(look(history, 1n, 5), [put(1)]);
  assert.equal(look(history, 2n, 5), 'none');
  for (let client = 200_000; client < 200_000 + MUTATION_CLIENTS_MAX; client++) {
    history.settle(BigInt(client), 5, put(client));
  }
  assert.equal(look(history, 1n, 5), 'none');
  history.settle(1n, 99, put(99));
  assert.deepEqual(waiting, [put(99)]);
});

test('all results together have a limit', () => {
  const history = new MutationHistory();
  const clients = MUTATION_RESULTS_MAX / MUTATION_RESULTS_PER_CLIENT_MAX + 2;
  for (let client = 1; client <= clients; client++) {
    for (let i = 0; i < MUTATION_RESULTS_PER_CLIENT_MAX; i++) history.settle(BigInt(client), i, put(i));
    assert.ok(history.size <= MUTATION_RESULTS_MAX);
  }
  assert.equal(look(history, 1n, 0), 'none');
  assert.deepEqual(look(history, BigInt(clients), 0), [put(0)]);
});
