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

/** A share from 0 to 1, or two parts of a whole, of which it is the first: `0.95` and `95:5` are the same. */
export function ratio(): z.ZodType<number, string> {
  return reading((text) => {
    const match = /^\s*(\d+(?:\.\d+)?)\s*(?::\s*(\d+(?:\.\d+)?)\s*)?$/.exec(text);
    if (match === null) return wrong(`"${text}" is neither a share nor two parts`);
    const first = Number(match[1]);
    if (match[2] === undefined) return first <= 1 ? first : wrong(`"${text}" is more than 1`);
    const whole = first + Number(match[2]);
    return whole > 0 && Number.isFinite(whole) ? first / whole : wrong(`the parts of "${text}" make no whole`);
  });
}

/** Any text up to a length in UTF-8. */
export function shortText({ maxBytes }: { readonly maxBytes: number }): z.ZodType<string, string> {
  return reading((given) => {
    const bytes = Buffer.byteLength(given);
    return bytes > maxBytes ? wrong(`it has ${bytes} bytes, more than ${maxBytes}`) : given;
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

/** `auto`, or a whole number between two numbers. */
export function countOrAuto(range: { readonly min: number; readonly max: number }): z.ZodType<number | 'auto', string> {
  const number = count(range);
  return reading((text) => {
    if (isAuto(text)) return 'auto';
    const read = number.safeParse(text);
    if (read.success) return read.data;
    const what = read.error.issues[0]?.message ?? '';
    return wrong(what.endsWith('is not a whole number') ? `${what}, and not auto` : what);
  });
}

/** The most rails that a host can be told to use; the largest machines have 32. */
const RAILS_MAX = 64;

/** Which rails to use: `auto` for all, a number for so many, or their names or addresses, separated by commas. */
export function rails(): z.ZodType<'auto' | number | readonly string[], string> {
  const number = count({ min: 1, max: RAILS_MAX });
  return reading((text) => {
    if (isAuto(text)) return 'auto';
    if (/^\s*\d+\s*$/.test(text)) {
      const read = number.safeParse(text);
      return read.success ? read.data : wrong(read.error.issues[0]?.message ?? '');
    }
    const names = text.split(',').map((name) => name.trim());
    if (names.includes('')) return wrong(`"${text}" has an empty entry`);
    const strange = names.find((name) => !/^[\w.:%-]+$/.test(name));
    if (strange !== undefined) return wrong(`"${strange}" is neither the name of a rail nor an address`);
    const twice = names.find((name, index) => names.indexOf(name) !== index);
    if (twice !== undefined) return wrong(`"${twice}" is named twice`);
    return names.length > RAILS_MAX ? wrong(`${names.length} rails are more than ${RAILS_MAX}`) : names;
  });
}

/** The highest number of a CPU that Linux can be built for. */
const CPU_MAX = 8191;

/** CPUs as the kernel writes them: `2,3,8-11`. In the order given. */
export function cpuList(): z.ZodType<readonly number[], string> {
  return reading((text) => {
    const cpus = new Set<number>();
    for (const entry of text.split(',')) {
      const match = /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(entry);
      if (match === null) return wrong(`"${entry.trim()}" is neither a CPU nor a range of CPUs`);
      const [first, last] = [Number(match[1]), Number(match[2] ?? match[1])];
      if (last < first) return wrong(`"${entry.trim()}" runs backwards`);
      if (last > CPU_MAX) return wrong(`CPU ${last} is more than ${CPU_MAX}`);
      for (let cpu = first; cpu <= last; cpu++) {
        if (cpus.has(cpu)) return wrong(`CPU ${cpu} is named twice`);
        cpus.add(cpu);
      }
    }
    return [...cpus];
  });
}

function isAuto(text: string): boolean {
  return text.trim().toLowerCase() === 'auto';
}
