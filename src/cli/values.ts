/**
 * What the values of settings look like: text in, typed value out, or a sentence that says what is wrong.
 */

import { isIP } from 'node:net';
import { z } from 'zod';
import { parseControlAddress } from '../protocol/address.js';
import { FabricKvError } from '../protocol/errors.js';
import { OPERATION_TIMEOUT_MS_MAX } from '../protocol/limits.js';
import { formatDuration, formatSize, parseDurationMs, parseSizeBytes } from '../protocol/units.js';

/** What is wrong with a text, in a sentence that quotes it. */
class Wrong {
  constructor(readonly what: string) {}
}

function wrong(what: string): Wrong {
  return new Wrong(what);
}

/** A schema that reads text, or says what is wrong with it. */
function reading<Value>(read: (text: string) => Value | Wrong): z.ZodType<Value, string> {
  return z.string().transform((text, context): Value => {
    const value = read(text);
    if (!(value instanceof Wrong)) return value;
    context.addIssue({ code: 'custom', message: value.what });
    return z.NEVER;
  });
}

/** A size between two sizes, in bytes. */
export function size({ minBytes = 0, maxBytes = Number.MAX_SAFE_INTEGER } = {}): z.ZodType<number, string> {
  return reading((text) => {
    const bytes = parseSizeBytes(text);
    if (bytes === undefined) return wrong(`"${text}" is not a size`);
    if (bytes < minBytes) return wrong(`"${text}" is less than ${formatSize(minBytes)}`);
    if (bytes > maxBytes) return wrong(`"${text}" is more than ${formatSize(maxBytes)}`);
    return bytes;
  });
}

/** An inline threshold: a size, or `max` (Infinity), which sends everything inline. */
export function threshold(): z.ZodType<number, string> {
  return reading((text) => {
    if (text.trim().toLowerCase() === 'max') return Number.POSITIVE_INFINITY;
    return parseSizeBytes(text) ?? wrong(`"${text}" is neither a size nor max`);
  });
}

/** A duration, in milliseconds. */
export function duration({ minMs = 0, maxMs = OPERATION_TIMEOUT_MS_MAX } = {}): z.ZodType<number, string> {
  return reading((text) => {
    const ms = parseDurationMs(text);
    if (ms === undefined) {
      return wrong(`"${text}" ${/^\d+(\.\d+)?$/.test(text.trim()) ? 'has no unit' : 'is not a time'}`);
    }
    if (ms < minMs) return wrong(`"${text}" is less than ${formatDuration(minMs)}`);
    if (ms > maxMs) return wrong(`"${text}" is more than ${formatDuration(maxMs)}`);
    return ms;
  });
}

/** A whole number between two numbers. */
export function count({ min, max }: { readonly min: number; readonly max: number }): z.ZodType<number, string> {
  return reading((text) => {
    if (!/^\d+$/.test(text.trim())) return wrong(`"${text}" is not a whole number`);
    const value = Number(text);
    if (value < min) return wrong(`"${text}" is less than ${min}`);
    if (value > max) return wrong(`"${text}" is more than ${max}`);
    return value;
  });
}

/** One of several words. */
export function oneOf<const Word extends string>(words: readonly [Word, ...Word[]]): z.ZodType<Word, string> {
  return reading((text) => words.find((word) => word === text) ?? wrong(`"${text}" is none of ${words.join(', ')}`));
}

/** A numeric address of this machine. */
export function ipAddress(): z.ZodType<string, string> {
  return reading((given) => (isIP(given) === 0 ? wrong(`"${given}" is not an IP address`) : given));
}

const UNIX_PATH_BYTES_MAX = 107;

/**
 * Where gRPC listens or connects: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`. Port 0 ("any that is free") only makes
 * sense for listening.
 */
export function grpcAddress({ portMin, unix = true }: { portMin: 0 | 1; unix?: boolean }): z.ZodType<string, string> {
  return reading((given) => {
    try {
      const address = parseControlAddress(given);
      if (address.kind === 'tcp')
        return address.port < portMin ? wrong(`"${given}" has no port from 1 to 65535`) : given;
      if (!unix) return wrong(`"${given}" is not a network address`);
      const bytes = Buffer.byteLength(address.path);
      return bytes > UNIX_PATH_BYTES_MAX
        ? wrong(`the path of the Unix socket has ${bytes} bytes; Linux takes 107`)
        : given;
    } catch (error) {
      if (error instanceof FabricKvError) return wrong(error.message);
      throw error;
    }
  });
}

/** libfabric's own variables, as `NAME=VALUE` each. */
export function fabricOptions(): z.ZodType<Readonly<Record<string, string>>, readonly string[]> {
  return z.array(z.string()).transform((given, context) => {
    const options: Record<string, string> = {};
    for (const entry of given) {
      const match = /^([A-Za-z_][A-Za-z0-9_]*)=(.*)$/s.exec(entry);
      if (match?.[1] === undefined) {
        context.addIssue({ code: 'custom', message: `"${entry}" is not NAME=VALUE` });
      } else if (match[1] === 'FI_AV_REMOVE_CLEANUP' && match[2] !== '1') {
        context.addIssue({
          code: 'custom',
          message: 'FI_AV_REMOVE_CLEANUP stays 1: without it nothing stops a write in progress',
        });
      } else {
        options[match[1]] = match[2] ?? '';
      }
    }
    return options;
  });
}

/** A list of which every entry is read by one schema; a mistake names the entry. */
export function listOf<Value>(entry: z.ZodType<Value, string>): z.ZodType<readonly Value[], readonly string[]> {
  return z.array(z.string()).transform((given, context) =>
    given.flatMap((each) => {
      const read = entry.safeParse(each);
      if (read.success) return [read.data];
      context.addIssue({ code: 'custom', message: read.error.issues[0]?.message ?? `"${each}" cannot be used` });
      return [];
    }),
  );
}
