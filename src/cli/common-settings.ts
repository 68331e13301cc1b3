/**
 * The rows that kv-server and kv-client have in common.
 */

import { formatSize } from '../protocol/units.js';
import { list, onOff, optional, value } from './settings.js';
import { fabricOptions, oneOf, threshold } from './values.js';

/** What a size looks like, for remedies. */
export const A_SIZE = 'a size such as 65536, 64KiB, 16MiB or 1GiB';

/** What a duration looks like, for remedies. */
export const A_DURATION = 'a time with its unit, such as 250ms, 5s or 2m';

/** A size so that it can be read back: what {@link formatSize} would round is told in bytes. */
export function exactSize(bytes: number): string {
  if (bytes === Number.POSITIVE_INFINITY) return 'max';
  for (const unit of [1024 ** 3, 1024 ** 2, 1024]) if (bytes !== 0 && bytes % unit === 0) return formatSize(bytes);
  return String(bytes);
}

/** Which provider carries the data plane. */
export const providerSetting = value({
  placeholder: 'NAME',
  about: 'libfabric provider of the data plane: auto takes the best there is, none has no data plane',
  expects: 'auto, efa, verbs, tcp or none',
  schema: oneOf(['auto', 'efa', 'verbs', 'tcp', 'none']),
  default: 'auto',
});

/** libfabric's own variables. */
export const fabricOptionSetting = list({
  placeholder: 'NAME=VALUE',
  about: "one of libfabric's own variables, set before it is loaded; may be repeated",
  expects: 'NAME=VALUE, as in FI_VERBS_GID_IDX=3',
  schema: fabricOptions(),
  whenUnset: 'none',
  format: (options) =>
    Object.entries(options)
      .map(([name, text]) => `${name}=${text}`)
      .join(' '),
});

/** Up to which length values travel inside gRPC messages. */
export function inlineThresholdSetting(whenUnset: string) {
  return optional({
    placeholder: 'BYTES|max|0',
    about: 'values up to it travel inside gRPC messages, larger ones by RDMA; max: all inline; 0: none inline',
    expects: `${A_SIZE}, or max, or 0`,
    schema: threshold(),
    whenUnset,
    format: exactSize,
  });
}

/** The settings of the log. */
export function logSettings<Level extends 'info' | 'error'>(defaultLevel: Level) {
  return {
    'log-level': value({
      placeholder: 'LEVEL',
      about: 'least level of what is logged to stderr; debug shows every stage of every operation',
      expects: 'trace, debug, info, warn, error or silent',
      schema: oneOf(['trace', 'debug', 'info', 'warn', 'error', 'silent']),
      default: defaultLevel,
    }),
    'log-format': value({
      placeholder: 'FORMAT',
      about: 'json (one object a line), pretty, or auto: pretty on a terminal',
      expects: 'auto, json or pretty',
      schema: oneOf(['auto', 'json', 'pretty']),
      default: 'auto',
    }),
    'redact-keys': onOff({ about: 'show keys in logs and output as short hashes' }),
  } as const;
}
