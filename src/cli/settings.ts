/**
 * Settings: each has one row in its command's table. A value comes from the flag, else from the FABRICKV_… variable,
 * else from the entry in the config file, else from the default; where from is kept and told.
 */

import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { FabricKvError } from '../protocol/errors.js';
import { nearest } from './suggestion.js';

/** `value`: one text. `list`: several, the flag repeated. `switch`: on or off. */
export type SettingKind = 'value' | 'list' | 'switch';

/** One row. */
export interface Setting<Value> {
  readonly kind: SettingKind;
  /** What stands for its value in --help, as in `HOST:PORT`. */
  readonly placeholder: string;
  readonly about: string;
  /** What the value may be, for the remedy: "a size such as 64KiB or 1GiB". */
  readonly expects: string;
  readonly schema: z.ZodType<Value>;
  /** As it would be written after the flag; undefined when there is none. */
  readonly default: string | readonly string[] | boolean | undefined;
  /** What holds without a value, for --help and `config`. */
  readonly whenUnset: string;
  /** The value as it would be written after the flag. */
  format(value: Value): string;
}

/** A command's settings by the name of their flag, without the dashes. */
export type SettingsTable = Readonly<Record<string, Setting<unknown>>>;

type ValueOf<Row> = Row extends Setting<infer Value> ? Value : never;

/** The values of a table. */
export type SettingValues<Table extends SettingsTable> = { readonly [Name in keyof Table]: ValueOf<Table[Name]> };

/** Where a value came from. */
export type SettingSource =
  | { readonly kind: 'flag'; readonly name: string }
  | { readonly kind: 'variable'; readonly name: string }
  | { readonly kind: 'file'; readonly name: string; readonly path: string }
  | { readonly kind: 'default' };

/** One setting as `kv-server config` shows it. */
export interface ResolvedEntry {
  readonly name: string;
  /** Undefined when it has neither value nor default. */
  readonly value: string | undefined;
  readonly whenUnset: string;
  readonly source: SettingSource;
}

/** A table's values with their sources. */
export interface Resolved<Table extends SettingsTable> {
  readonly values: SettingValues<Table>;
  readonly entries: readonly ResolvedEntry[];
}

interface RowOptions<Value, Input> {
  readonly placeholder: string;
  readonly about: string;
  readonly expects: string;
  readonly schema: z.ZodType<Value, Input>;
  format?(value: Value): string;
}

/** A row for one value that always has one. */
export function value<Value>(row: RowOptions<Value, string> & { readonly default: string }): Setting<Value> {
  return { format: String, ...row, kind: 'value', whenUnset: row.default };
}

/** A row for one value that may be left out. */
export function optional<Value>(
  row: RowOptions<Value, string> & { readonly whenUnset: string },
): Setting<Value | undefined> {
  const format = row.format ?? String;
  return {
    ...row,
    kind: 'value',
    default: undefined,
    schema: row.schema.optional(),
    format: (given) => (given === undefined ? '' : format(given)),
  };
}

/** A row for a flag that may be repeated. */
export function list<Value>(
  row: RowOptions<Value, readonly string[]> & { readonly whenUnset: string; format(value: Value): string },
): Setting<Value> {
  return { ...row, kind: 'list', default: [] };
}

/** A row for what is on or off; off by default. */
export function onOff(row: { readonly about: string }): Setting<boolean> {
  return {
    ...row,
    kind: 'switch',
    placeholder: '',
    expects: 'true or false',
    schema: z.boolean(),
    default: false,
    whenUnset: 'false',
    format: String,
  };
}

/** The variable of a setting: `listen-addr` → `FABRICKV_LISTEN_ADDR`. */
export function variableOf(name: string): string {
  return `FABRICKV_${name.toUpperCase().replaceAll('-', '_')}`;
}

/** A mistake in a setting: ERR_FABRICKV_SETTING, with the setting and its source in the message and the details. */
export function settingError(name: string, source: SettingSource, what: string, remedy: string): FabricKvError {
  const from = describeSource(source);
  return new FabricKvError('ERR_FABRICKV_SETTING', `${name} (from ${from}): ${what}`, {
    remedy,
    details: { setting: name, source: from },
  });
}

/** A source as messages name it. */
export function describeSource(source: SettingSource): string {
  switch (source.kind) {
    case 'flag':
    case 'variable':
      return source.name;
    case 'file':
      return `"${source.name}" in ${source.path}`;
    case 'default':
      return 'default';
  }
}

/** What the settings are read from. */
export interface SettingInputs {
  /** As yargs gives them: text, list of texts, boolean; undefined where the flag is not there. */
  readonly flags: Readonly<Record<string, unknown>>;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * Reads all settings of a table.
 *
 * @throws ERR_FABRICKV_SETTING for the first one that is wrong, naming it, its source and the remedy
 */
export function resolveSettings<Table extends SettingsTable>(table: Table, inputs: SettingInputs): Resolved<Table> {
  const file = readConfigFile(table, inputs);
  const values: Record<string, unknown> = {};
  const entries: ResolvedEntry[] = [];
  for (const [name, row] of Object.entries(table)) {
    const { given, source } = find(name, row, inputs, file);
    const parsed = row.schema.safeParse(given);
    if (!parsed.success) {
      const what = parsed.error.issues[0]?.message ?? 'the value cannot be used';
      throw settingError(name, source, what, `give ${row.expects}`);
    }
    values[name] = parsed.data;
    const isUnset = given === undefined || (Array.isArray(given) && given.length === 0);
    entries.push({
      name,
      value: isUnset ? undefined : row.format(parsed.data),
      whenUnset: row.whenUnset,
      source,
    });
  }
  // Every row of the table has been parsed by its own schema.
  return { values: values as SettingValues<Table>, entries };
}

type Given = string | readonly string[] | boolean | undefined;

interface ConfigFile {
  readonly path: string;
  readonly entries: Readonly<Record<string, unknown>>;
}

function find(
  name: string,
  row: Setting<unknown>,
  { flags, env }: SettingInputs,
  file: ConfigFile | undefined,
): { readonly given: Given; readonly source: SettingSource } {
  const flag = flags[name];
  if (flag !== undefined) {
    const source = { kind: 'flag', name: `--${name}` } as const;
    if (row.kind === 'value' && Array.isArray(flag)) {
      throw settingError(name, source, `it is given ${flag.length} times`, 'give it once');
    }
    return { given: flag as Given, source };
  }
  const variable = env[variableOf(name)];
  // An empty variable is what `VAR= command` and most supervisors leave of one that is not set.
  if (variable !== undefined && variable !== '') {
    const source = { kind: 'variable', name: variableOf(name) } as const;
    return { given: fromVariable(name, row, variable, source), source };
  }
  const entry = file?.entries[name];
  if (file !== undefined && entry !== undefined) {
    const source = { kind: 'file', name, path: file.path } as const;
    return { given: fromFile(name, row, entry, source), source };
  }
  return { given: row.default, source: { kind: 'default' } };
}

function fromVariable(name: string, row: Setting<unknown>, text: string, source: SettingSource): Given {
  if (row.kind === 'list') return text.split(/\s+/).filter((entry) => entry !== '');
  if (row.kind === 'value') return text;
  if (/^(1|true|yes|on)$/i.test(text)) return true;
  if (/^(0|false|no|off)$/i.test(text)) return false;
  throw settingError(name, source, `"${text}" is neither true nor false`, 'give 1 or 0');
}

function fromFile(name: string, row: Setting<unknown>, entry: unknown, source: SettingSource): Given {
  if (row.kind === 'switch' && typeof entry === 'boolean') return entry;
  if (row.kind === 'value' && (typeof entry === 'string' || typeof entry === 'number')) return String(entry);
  if (row.kind === 'list') {
    const texts = z.union([z.string().transform((one) => [one]), z.array(z.string())]).safeParse(entry);
    if (texts.success) return texts.data;
  }
  const wanted = { switch: 'true or false', value: 'a text or a number', list: 'a list of texts' }[row.kind];
  throw settingError(name, source, `${JSON.stringify(entry)} has the wrong type`, `give ${wanted}: ${row.expects}`);
}

function readConfigFile(table: SettingsTable, { flags, env }: SettingInputs): ConfigFile | undefined {
  const flag = flags['config'];
  const path = flag ?? env['FABRICKV_CONFIG'];
  if (path === undefined || path === '') return undefined;
  const source: SettingSource =
    flag === undefined ? { kind: 'variable', name: 'FABRICKV_CONFIG' } : { kind: 'flag', name: '--config' };
  const fail = (what: string, remedy = 'give a file with one JSON object, as in {"memory": "4GiB"}'): FabricKvError =>
    settingError('config', source, what, remedy);
  if (typeof path !== 'string') throw fail('it is given more than once', 'give one file');
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw fail(`cannot read "${path}": ${reasonOf(error)}`, 'give the path of a file that can be read');
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw fail(`"${path}" is not JSON: ${reasonOf(error)}`);
  }
  const object = z.record(z.string(), z.unknown()).safeParse(parsed);
  if (!object.success || Array.isArray(parsed)) throw fail(`"${path}" is no JSON object`);
  for (const name of Object.keys(object.data)) {
    if (Object.hasOwn(table, name)) continue;
    const meant = nearest(name, Object.keys(table));
    const remedy = meant === undefined ? 'entries are named like the flags, without the dashes' : `is it "${meant}"?`;
    throw fail(`"${path}" has the unknown entry "${name}"`, `${remedy} --help lists all`);
  }
  return { path, entries: object.data };
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
