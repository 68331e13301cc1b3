/** Puts a region of zeros: `node put-region.js ADDR KEY LENGTH TIMEOUT_MS`. Logs its stages, and ends with the error's code, if there is one. */

import { pino } from 'pino';
import { FabricKvError, KvClient } from '../../src/index.js';

const [serverAddr = '', key = '', length = '0', timeoutMs = '0'] = process.argv.slice(2);
const level = { level: 'debug', formatters: { level: (label: string) => ({ level: label }) } };
const logger = pino(level, pino.destination({ fd: 2, sync: true }));
const client = await KvClient.connect({ serverAddr, provider: 'tcp', logger });
try {
  await client.put(key, await client.allocate(Number(length)), { timeoutMs: Number(timeoutMs) });
} catch (error) {
  if (!(error instanceof FabricKvError)) throw error;
  process.stdout.write(error.code);
  process.exitCode = 1;
} finally {
  await client.close();
}
