import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GATE_OWN_MAX, OperationGate, SharedGate } from '../../src/server/operation-gate.js';

test('so many start, so many wait in order, the rest is refused', () => {
  const gate = new OperationGate(2, 2);
  const log: string[] = [];
  const start = (name: string) => () => log.push(name);
  assert.deepEqual(
    ['a', 'b', 'c', 'd', 'e'].map((name) => gate.enter(start(name))),
    [true, true, true, true, false],
  );
  assert.deepEqual(log, ['a', 'b']);
  assert.deepEqual([gate.active, gate.waiting], [2, 2]);
  gate.leave();
  assert.deepEqual(log, ['a', 'b', 'c']);
  assert.deepEqual([gate.active, gate.waiting], [2, 1]);
  gate.leave();
  gate.leave();
  gate.leave();
  assert.deepEqual(log, ['a', 'b', 'c', 'd']);
  assert.deepEqual([gate.active, gate.waiting], [0, 0]);
});

test('what ends while it waits makes room, and is never started', () => {
  const gate = new OperationGate(1, 1);
  const log: string[] = [];
  const waiting = (): number => log.push('withdrawn');
  gate.enter(() => log.push('first'));
  assert.ok(gate.enter(waiting));
  assert.equal(
    gate.enter(() => log.push('refused')),
    false,
  );
  gate.withdraw(waiting);
  assert.ok(gate.enter(() => log.push('second')));
  gate.withdraw(() => log.push('unknown'));
  gate.leave();
  assert.deepEqual(log, ['first', 'second']);
  gate.leave();
  assert.equal(gate.active, 0);
});

test('a hundred thousand that fail as soon as they start do not end the stack', () => {
  const gate = new OperationGate(1, 100_000);
  let started = 0;
  gate.enter(() => undefined);
  for (let i = 0; i < 100_000; i++) {
    assert.ok(
      gate.enter(() => {
        started += 1;
        gate.leave();
      }),
    );
  }
  gate.leave();
  assert.equal(started, 100_000);
  assert.deepEqual([gate.active, gate.waiting], [0, 0]);
});

test('one whose start throws does not stop the others for ever', () => {
  const gate = new OperationGate(1, 2);
  const log: string[] = [];
  gate.enter(() => undefined);
  gate.enter(() => {
    throw new Error('start');
  });
  gate.enter(() => log.push('next'));
  assert.throws(() => gate.leave(), /start/);
  gate.leave();
  assert.deepEqual(log, ['next']);
});

test('gates that share limits have each what is its own, and wait for nobody else', () => {
  const shared = new SharedGate(GATE_OWN_MAX + 2, GATE_OWN_MAX + 1);
  const [greedy, modest] = [new OperationGate(1000, 1000, shared), new OperationGate(1000, 1000, shared)];
  let started = 0;
  const start = (): void => {
    started += 1;
  };
  const fill = (gate: OperationGate): number => {
    let entered = 0;
    while (gate.enter(() => start())) entered += 1;
    return entered;
  };
  assert.equal(fill(greedy), 2 * GATE_OWN_MAX + 3);
  assert.deepEqual([greedy.active, greedy.waiting], [GATE_OWN_MAX + 2, GATE_OWN_MAX + 1]);
  assert.match(greedy.refusal, /sessions of the server have 17 transfers waiting, this one 17/);
  assert.equal(fill(modest), 2 * GATE_OWN_MAX);
  assert.deepEqual([modest.active, modest.waiting], [GATE_OWN_MAX, GATE_OWN_MAX]);
  // Past the limit nobody has more than his own: two of the greedy one's have to end before one of his begins.
  for (let i = 0; i < 2; i++) greedy.leave();
  assert.equal(greedy.active, GATE_OWN_MAX);
  greedy.leave();
  assert.deepEqual([greedy.active, greedy.waiting], [GATE_OWN_MAX, GATE_OWN_MAX]);
  modest.leave();
  assert.deepEqual([modest.active, modest.waiting], [GATE_OWN_MAX, GATE_OWN_MAX - 1]);
  for (const gate of [greedy, modest]) while (gate.active > 0) gate.leave();
  assert.equal(started, 4 * GATE_OWN_MAX + 3);
  assert.deepEqual([shared.inFlight, shared.waiting], [0, 0]);
});

test('the refusal of a session that has its own limit says that', () => {
  const gate = new OperationGate(1, 0, new SharedGate(10, 10));
  assert.ok(gate.enter(() => undefined));
  assert.equal(
    gate.enter(() => undefined),
    false,
  );
  assert.match(gate.refusal, /the session has 0 transfers waiting \(--max-waiting\)/);
});

test('who waits only for room of everybody`s starts when another gate makes some, and before those who come later', () => {
  const shared = new SharedGate(GATE_OWN_MAX + 1, 100);
  const one = new OperationGate(100, 100, shared);
  const other = new OperationGate(100, 100, shared);
  const started: string[] = [];
  const start = (name: string) => (): void => void started.push(name);
  other.enter(start('other'));
  for (let i = 0; i < GATE_OWN_MAX; i++) one.enter(start('own'));
  assert.ok(one.enter(start('first')));
  assert.ok(one.enter(start('second')));
  assert.equal(one.waiting, 2);
  other.leave();
  assert.deepEqual(started.slice(-1), ['first'], 'nothing of its own has ended');
  assert.ok(one.enter(start('third')));
  one.leave();
  assert.deepEqual(started.slice(-2), ['first', 'second']);
  assert.equal(shared.waiting, 1);
});
