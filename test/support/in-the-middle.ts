import assert from 'node:assert/strict';

const ATTEMPTS_MAX = 6;

/**
 * For what interrupts a transfer from outside: on a busy machine it can come when the transfer is over already, and then
 * proves nothing. The attempt answers with whether it came in time, and it is made again until one did.
 */
export async function inTheMiddle(attempt: () => Promise<boolean>): Promise<void> {
  for (let attempts = 1; attempts <= ATTEMPTS_MAX; attempts++) if (await attempt()) return;
  assert.fail(`${ATTEMPTS_MAX} transfers were over before they were interrupted; the value is too small`);
}
