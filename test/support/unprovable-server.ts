/**
 * A server whose rails prove nothing but by their end: `node unprovable-server.js MEMORY_BYTES MAX_QUARANTINE_BYTES`. Prints
 * its address.
 */

import { pino } from 'pino';
import { KvServer } from '../../src/server/index.js';

const [memoryBytes = '0', maxQuarantineBytes = '0'] = process.argv.slice(2);

const server = await KvServer.start({
  listenAddr: '127.0.0.1:0',
  memoryBytes: Number(memoryBytes),
  maxQuarantineBytes: Number(maxQuarantineBytes),
  provider: 'tcp',
  forceQuiescence: 'close-endpoint',
  drainMs: 2000,
  logger: pino({ level: 'info' }, pino.destination({ dest: 2, sync: true })),
});
process.once('SIGTERM', () => {
  void server.stop();
});
process.stdout.write(`${server.boundAddr}\n`);
