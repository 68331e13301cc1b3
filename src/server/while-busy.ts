/**
 * Commands that have to be done, on a rail that is full.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { FabricError } from '../fabric/index.js';

/** A rail that is full is asked again after this, each further time after twice as long, */
const RETRY_FIRST_MS = 5;
/** up to this. */
const RETRY_INTERVAL_MS_MAX = 500;

/**
 * Gives a command to a rail again for as long as the rail refuses it with `BUSY`. The rail owns the waiting: what was given
 * to it makes room as it ends, and once it has failed or is closed the command is refused for that.
 *
 * @throws FabricError every other one
 */
export async function whileBusy(command: () => Promise<void>): Promise<void> {
  for (let delayMs = RETRY_FIRST_MS; ; delayMs = Math.min(2 * delayMs, RETRY_INTERVAL_MS_MAX)) {
    try {
      await command();
      return;
    } catch (error) {
      if (!(error instanceof FabricError && error.code === 'BUSY')) throw error;
    }
    await sleep(delayMs);
  }
}
