/**
 * For `node --import`: the process collects its garbage on SIGUSR2 and then writes a record `Garbage collected` to standard
 * error. What is left after it is what the process holds, not what V8 has yet to look at.
 */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

process.on('SIGUSR2', () => {
  // What the first run finalizes, sockets for one, is freed by the second.
  collect();
  setImmediate(() => {
    collect();
    process.stderr.write(`${JSON.stringify({ msg: 'Garbage collected' })}\n`);
  });
});
