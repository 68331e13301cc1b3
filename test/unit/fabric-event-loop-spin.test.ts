import assert from 'node:assert/strict';
import { performance } from 'node:perf_hooks';
import { test } from 'node:test';
import { EventLoopSpin } from '../../src/fabric/index.js';

/** How many turns the event loop takes within so many milliseconds, of which nothing but a timer wakes it. */
async function turnsWithin(ms: number): Promise<number> {
  const before = performance.nodeTiming.uvMetricsInfo.loopCount;
  await new Promise((resolve) => setTimeout(resolve, ms));
  return performance.nodeTiming.uvMetricsInfo.loopCount - before;
}

test('the loop turns for as long as it is to, and then sleeps', async () => {
  const spin = new EventLoopSpin(20_000, () => true);
  const asleep = await turnsWithin(40);
  spin.begin();
  const spinning = await turnsWithin(40);
  const after = await turnsWithin(40);
  assert.ok(spinning > 10 * (asleep + 1), `${spinning} turns, and ${asleep} without`);
  assert.ok(after < spinning / 2, `${after} turns afterwards`);
});

test('it ends when it is wanted no more, and can begin anew', async () => {
  let turns = 0;
  let wanted = 5;
  const spin = new EventLoopSpin(10_000_000, () => {
    turns += 1;
    return turns <= wanted;
  });
  spin.begin();
  await turnsWithin(20);
  assert.equal(turns, 6);
  wanted = 10;
  spin.begin();
  await turnsWithin(20);
  assert.equal(turns, 11);
});

test('0 is never', async () => {
  let asked = 0;
  const spin = new EventLoopSpin(0, () => {
    asked += 1;
    return true;
  });
  spin.begin();
  await turnsWithin(10);
  assert.equal(asked, 0);
});
