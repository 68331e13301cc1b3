/**
 * The flags that only kv-client bench has.
 */

import { formatDuration } from '../protocol/units.js';
import { A_DURATION, A_SIZE, exactSize } from './common-settings.js';
import { onOff, optional, type SettingValues, value } from './settings.js';
import { count, duration, oneOf, ratio, shortText, size } from './values.js';

/** Each key is a Buffer, of some 150 bytes. */
const KEYS_MAX = 1_000_000;

/** What the SDK lets be in flight. */
const CONCURRENCY_MAX = 4096;

const GIB = 1024 ** 3;
const HOUR_MS = 3_600_000;

/** The table of `kv-client bench`. */
export const benchOptions = {
  keys: value({
    placeholder: 'N',
    about: 'how many different keys',
    expects: `a number from 1 to ${KEYS_MAX}`,
    schema: count({ min: 1, max: KEYS_MAX }),
    default: '10000',
  }),
  'value-size': value({
    placeholder: 'SIZE',
    about: 'the length of each value; all have the same bytes',
    expects: A_SIZE,
    schema: size({ maxBytes: GIB }),
    default: '100B',
    format: exactSize,
  }),
  concurrency: value({
    placeholder: 'N',
    about: 'operations in flight; with --rate, the most of them',
    expects: `a number from 1 to ${CONCURRENCY_MAX}`,
    schema: count({ min: 1, max: CONCURRENCY_MAX }),
    default: '64',
  }),
  ratio: value({
    placeholder: 'SHARE|R:W',
    about: 'the share of GETs',
    expects: 'a number from 0 to 1, or two parts such as 95:5',
    schema: ratio(),
    default: '0.95',
  }),
  duration: value({
    placeholder: 'TIME',
    about: 'how long it measures',
    expects: A_DURATION,
    schema: duration({ minMs: 1, maxMs: 24 * HOUR_MS }),
    default: '10s',
    format: formatDuration,
  }),
  warmup: value({
    placeholder: 'TIME',
    about: 'how long the load runs before that',
    expects: A_DURATION,
    schema: duration({ maxMs: HOUR_MS }),
    default: '1s',
    format: formatDuration,
  }),
  distribution: value({
    placeholder: 'NAME',
    about: 'which keys are taken how often: uniform, zipfian (theta 0.99) or sequential',
    expects: 'uniform, zipfian or sequential',
    schema: oneOf(['uniform', 'zipfian', 'sequential']),
    default: 'zipfian',
  }),
  rate: optional({
    placeholder: 'N',
    about: 'operations a second that are due, whatever the server does; latency counts from when they were due',
    expects: 'a number from 1 to 10000000',
    schema: count({ min: 1, max: 10_000_000 }),
    whenUnset: 'as fast as it goes',
  }),
  prefix: value({
    placeholder: 'TEXT',
    about: 'what its keys begin with; what is stored under them is overwritten',
    expects: 'a text of up to 1,000 bytes',
    schema: shortText({ maxBytes: 1000 }),
    default: 'bench:',
  }),
  keep: onOff({ about: 'leave the keys there at the end, instead of deleting them' }),
} as const;

/** The flags, read. */
export type BenchOptions = SettingValues<typeof benchOptions>;
