import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OperationGate } from '../../src/server/operation-gate.js';

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
