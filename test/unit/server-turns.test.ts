import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Turns } from '../../src/server/turns.js';
import { waitFor } from '../support/wait-for.js';

function spinUntil(ms: number): void {
  while (performance.now() < ms);
}

test('everybody gets his turn before anybody gets a second one, however long the first takes', async () => {
  const turns = new Turns();
  const taken: string[] = [];
  const add = (name: string, turnsWanted: number): void => {
    let left = turnsWanted;
    turns.add({
      takeTurn(endsAtMs) {
        taken.push(name);
        // Longer than a round: the others come first in the next one.
        if (name === 'greedy') spinUntil(endsAtMs + 10);
        left -= 1;
        return left > 0;
      },
    });
  };
  add('greedy', 3);
  add('a', 2);
  add('b', 1);
  await waitFor(() => taken.length === 6, { what: 'all turns' });
  assert.deepEqual(taken, ['greedy', 'a', 'b', 'greedy', 'a', 'greedy']);
});

test('who has taken the time of the others has not taken the time of the loop: their turns are in the next round', async () => {
  const turns = new Turns();
  const order: string[] = [];
  turns.add({
    takeTurn(endsAtMs) {
      order.push('greedy');
      setImmediate(() => order.push('loop'));
      spinUntil(endsAtMs + 10);
      return false;
    },
  });
  turns.add({
    takeTurn() {
      order.push('modest');
      return false;
    },
  });
  await waitFor(() => order.length === 3, { what: 'all turns' });
  assert.deepEqual(order, ['greedy', 'loop', 'modest']);
});

test('between two rounds the loop comes to its sockets and timers', async () => {
  const turns = new Turns();
  let rounds = 0;
  let over = false;
  turns.add({
    takeTurn() {
      rounds += 1;
      return !over;
    },
  });
  await new Promise<void>((resolve) => {
    setTimeout(resolve, 1);
  });
  over = true;
  const before = rounds;
  assert.ok(before > 0);
  await waitFor(() => rounds === before + 1, { what: 'the last turn' });
});

test('the time of a round is divided among those who want it', async () => {
  const turns = new Turns();
  const shares: number[] = [];
  for (let i = 0; i < 4; i++) {
    turns.add({
      takeTurn(endsAtMs) {
        shares.push(endsAtMs - performance.now());
        return false;
      },
    });
  }
  await waitFor(() => shares.length === 4, { what: 'four turns' });
  const [first = 0, , , last = 0] = shares;
  // What the first ones have left is the last one's.
  assert.ok(first < last, `${shares}`);
});

test('so much is done straight away, and no more before the next round', async () => {
  const turns = new Turns();
  let straight = 0;
  while (turns.mayGoOn(1024)) straight += 1;
  assert.ok(straight > 0 && straight < 1000, `${straight} KiB`);
  assert.equal(turns.mayGoOn(1), false);
  let taken = false;
  turns.add({
    takeTurn() {
      taken = true;
      return false;
    },
  });
  await waitFor(() => taken, { what: 'a round' });
  assert.ok(turns.mayGoOn(1));
});
