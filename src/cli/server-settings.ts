/**
 * The settings of kv-server.
 */

import { EVENT_LOOP_SPIN_US_MAX } from '../protocol/limits.js';
import { formatDuration } from '../protocol/units.js';
import {
  A_DURATION,
  A_SIZE,
  exactSize,
  fabricOptionSetting,
  inlineThresholdSetting,
  logSettings,
  providerSetting,
} from './common-settings.js';
import { list, optional, type Resolved, resolveSettings, type SettingInputs, settingError, value } from './settings.js';
import { count, countOrAuto, cpuList, duration, grpcAddress, ipAddress, listOf, rails, size } from './values.js';

const MEMORY_BYTES_MIN = 1024 ** 2;

/** The table of kv-server. */
export const serverSettings = {
  'listen-addr': value({
    placeholder: 'HOST:PORT',
    about: 'where gRPC listens; also unix:/path; port 0 takes a free one',
    expects: 'HOST:PORT, [IPV6]:PORT or unix:/path',
    schema: grpcAddress({ portMin: 0 }),
    default: '127.0.0.1:50051',
  }),
  'advertise-addr': optional({
    placeholder: 'HOST:PORT',
    about: 'the gRPC address that clients are told',
    expects: 'HOST:PORT or [IPV6]:PORT, as clients reach it',
    schema: grpcAddress({ portMin: 1, unix: false }),
    whenUnset: 'the listen address, or with a wildcard the address of the default route',
  }),
  'fabric-addr': list({
    placeholder: 'IP',
    about: 'source address of the data plane; may be repeated',
    expects: 'an IP address of this machine (ip addr lists them)',
    schema: listOf(ipAddress()),
    whenUnset: 'the listen address, or with a wildcard the address of the default route',
    format: (addresses) => addresses.join(' '),
  }),
  memory: value({
    placeholder: 'SIZE',
    about: 'the arena: memory for values, mapped and prefaulted at start',
    expects: `${A_SIZE}, at least 1MiB`,
    schema: size({ minBytes: MEMORY_BYTES_MIN }),
    default: '1GiB',
    format: exactSize,
  }),
  provider: providerSetting,
  rails: value({
    placeholder: 'auto|N|LIST',
    about:
      'NICs of the data plane: all, the first N, or domain names and addresses, separated by commas (fi_info lists them)',
    expects: 'auto, a number from 1 to 64, or a list such as rdmap0s6-rdm,rdmap0s7-rdm or 10.0.0.1,10.0.1.1',
    schema: rails(),
    default: 'auto',
    format: (choice) => (typeof choice === 'object' ? choice.join(',') : String(choice)),
  }),
  'spin-us': value({
    placeholder: 'auto|N',
    about: 'microseconds for which a progress thread spins, yielding, before it sleeps; 0 never spins',
    expects: 'auto or a number from 0 to 100000',
    schema: countOrAuto({ min: 0, max: 100_000 }),
    default: 'auto',
  }),
  'event-loop-spin-us': value({
    placeholder: 'N',
    about:
      'microseconds for which the event loop spins after a lone request, for a lower latency at the cost of a core',
    expects: `a number from 0 to ${EVENT_LOOP_SPIN_US_MAX}`,
    schema: count({ min: 0, max: EVENT_LOOP_SPIN_US_MAX }),
    default: '0',
  }),
  'progress-cpus': optional({
    placeholder: 'LIST',
    about: 'CPUs that the progress threads are bound to, one each, in turn; as in 2,3,8-11',
    expects: 'numbers of CPUs, as in 2,3,8-11 (lscpu -e lists them)',
    schema: cpuList(),
    whenUnset: 'wherever the kernel puts them',
    format: (cpus) => cpus.join(','),
  }),
  'numa-node': optional({
    placeholder: 'N',
    about: "the NUMA node that the arena's memory is to be on, if it has room",
    expects: 'the number of a NUMA node (numactl --hardware lists them)',
    schema: count({ min: 0, max: 1023 }),
    whenUnset: 'wherever the kernel puts it',
  }),
  'max-quarantine': optional({
    placeholder: 'SIZE',
    about: 'freed memory that may wait for the proof that no write can land in it; past it rails are opened anew',
    expects: `${A_SIZE}, no more than --memory`,
    schema: size({ minBytes: 1 }),
    whenUnset: 'a quarter of --memory',
    format: exactSize,
  }),
  'fabric-option': fabricOptionSetting,
  'inline-threshold': inlineThresholdSetting('32KiB'),
  'max-value': optional({
    placeholder: 'SIZE',
    about: 'the longest value that is taken',
    expects: `${A_SIZE}, no more than --memory`,
    schema: size({ minBytes: 1 }),
    whenUnset: 'as much as --memory',
    format: exactSize,
  }),
  'max-sessions': value({
    placeholder: 'N',
    about: 'the most clients at a time',
    expects: 'a number from 1 to 65536',
    schema: count({ min: 1, max: 65_536 }),
    default: '1024',
  }),
  'max-inflight': value({
    placeholder: 'N',
    about: 'the most operations of one session that are worked on at a time; more wait',
    expects: 'a number from 1 to 65536',
    schema: count({ min: 1, max: 65_536 }),
    default: '1024',
  }),
  'max-waiting': value({
    placeholder: 'N',
    about: 'the most operations of one session that wait; more are refused',
    expects: 'a number from 0 to 1000000',
    schema: count({ min: 0, max: 1_000_000 }),
    default: '4096',
  }),
  drain: value({
    placeholder: 'TIME',
    about: 'how long a server that is asked to stop waits for what is in flight',
    expects: A_DURATION,
    schema: duration({ maxMs: 3_600_000 }),
    default: '10s',
    format: formatDuration,
  }),
  ...logSettings('info'),
} as const;

/** kv-server's settings, read and checked against each other. */
export type ServerSettings = Resolved<typeof serverSettings>;

/**
 * Reads kv-server's settings.
 *
 * @throws ERR_FABRICKV_SETTING
 */
export function resolveServerSettings(inputs: SettingInputs): ServerSettings {
  const resolved = resolveSettings(serverSettings, inputs);
  const { memory } = resolved.values;
  for (const name of ['max-value', 'max-quarantine'] as const) {
    const bytes = resolved.values[name];
    if (bytes === undefined || bytes <= memory) continue;
    const source = resolved.entries.find((entry) => entry.name === name)?.source ?? { kind: 'default' };
    const what = `${exactSize(bytes)} is more than --memory, which is ${exactSize(memory)}`;
    throw settingError(name, source, what, `raise --memory, or lower --${name}`);
  }
  return resolved;
}
