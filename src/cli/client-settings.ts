/**
 * The settings of kv-client, the same for all of its commands.
 */

import { EVENT_LOOP_SPIN_US_MAX } from '../protocol/limits.js';
import { formatDuration } from '../protocol/units.js';
import {
  A_DURATION,
  fabricOptionSetting,
  inlineThresholdSetting,
  logSettings,
  providerSetting,
} from './common-settings.js';
import { onOff, optional, type Resolved, value } from './settings.js';
import { count, duration, grpcAddress, ipAddress } from './values.js';

/** The table of kv-client. */
export const clientSettings = {
  'server-addr': value({
    placeholder: 'HOST:PORT',
    about: 'the server; also unix:/path',
    expects: 'HOST:PORT, [IPV6]:PORT or unix:/path',
    schema: grpcAddress({ portMin: 1 }),
    default: '127.0.0.1:50051',
  }),
  timeout: value({
    placeholder: 'TIME',
    about: 'how long an operation may take; of a put of a file or pipe, or a get: how long without progress',
    expects: A_DURATION,
    schema: duration({ minMs: 1 }),
    default: '30s',
    format: formatDuration,
  }),
  'inline-threshold': inlineThresholdSetting("the server's"),
  provider: providerSetting,
  'fabric-addr': optional({
    placeholder: 'IP',
    about: 'source address of the data plane',
    expects: 'an IP address of this machine (ip addr lists them)',
    schema: ipAddress(),
    whenUnset: 'the source address of the route to the server',
  }),
  'fabric-option': fabricOptionSetting,
  'event-loop-spin-us': value({
    placeholder: 'N',
    about: 'microseconds for which the event loop spins while one operation is pending, for a lower latency',
    expects: `a number from 0 to ${EVENT_LOOP_SPIN_US_MAX}`,
    schema: count({ min: 0, max: EVENT_LOOP_SPIN_US_MAX }),
    default: '0',
  }),
  namespace: value({
    placeholder: 'N',
    about: 'the namespace of the key',
    expects: 'a number from 0 to 4294967295',
    schema: count({ min: 0, max: 0xffff_ffff }),
    default: '0',
  }),
  'hex-key': onOff({ about: 'KEY is written in hexadecimal digits, for keys that are not text' }),
  json: onOff({ about: 'print the result, or the error, as one JSON object' }),
  // An operation's failure is told as the command's own error: a warning of the SDK beside it would say it twice.
  ...logSettings('error'),
} as const;

/** kv-client's settings, read. */
export type ClientSettings = Resolved<typeof clientSettings>;
