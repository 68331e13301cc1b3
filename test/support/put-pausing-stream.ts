/**
 * Puts a stream that pauses in its middle: `node put-pausing-stream.js ADDR KEY PATH SOURCE`. PATH is `rdma` or `inline`; SOURCE is `once`, or
 * `again` for a function that begins it anew. Prints "silent" when the beginning has left, waits for its standard input to end, and
 * goes on. Logs its stages, and ends with a line: the CRC of what was stored and how often it was begun, or the error's code.
 */

import { once } from 'node:events';
import { pino } from 'pino';
import { FabricKvError, KvClient } from '../../src/index.js';
import { makeValue } from './values.js';

const MIB = 1024 * 1024;
/** Before the pause, of {@link PAUSING_LENGTH}. */
const BEGINNING_LENGTH = 3 * MIB;
export const PAUSING_LENGTH = 8 * MIB;
export const PAUSING_SEED = 11;

async function main([serverAddr = '', key = '', path = '', source = '']: string[]): Promise<void> {
  const level = { level: 'debug', formatters: { level: (label: string) => ({ level: label }) } };
  const logger = pino(level, pino.destination({ fd: 2, sync: true }));
  const inline = path === 'inline';
  const client = await KvClient.connect({ serverAddr, provider: inline ? 'none' : 'tcp', logger });
  const value = makeValue(PAUSING_LENGTH, PAUSING_SEED);
  let begun = 0;
  const begin = async function* (): AsyncGenerator<Buffer> {
    begun += 1;
    yield value.subarray(0, BEGINNING_LENGTH);
    if (begun === 1) {
      const ended = once(process.stdin.resume(), 'end');
      process.stdout.write('silent\n');
      await ended;
    }
    yield value.subarray(BEGINNING_LENGTH);
  };
  try {
    // Inline, the length has to be known; by RDMA it is not, so that room is asked for bit by bit.
    const options = inline ? { length: value.length } : {};
    const { crc32c } = await client.putStream(key, source === 'again' ? begin : begin(), options);
    process.stdout.write(`${crc32c} ${begun}\n`);
  } catch (error) {
    if (!(error instanceof FabricKvError)) throw error;
    process.stdout.write(`${error.code} ${error.outcome}\n`);
  } finally {
    await client.close();
  }
}

// Its constants are the test's too.
if (process.argv[1] === import.meta.filename) await main(process.argv.slice(2));
