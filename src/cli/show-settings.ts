/**
 * What `kv-server config` prints.
 */

import { describeSource, type ResolvedEntry } from './settings.js';
import { createTable } from './table.js';

/** Each setting with its value and source, for people. */
export function settingsAsTable(entries: readonly ResolvedEntry[]): string {
  const rows = entries.map((entry) => [
    `--${entry.name}`,
    entry.value ?? `(${entry.whenUnset})`,
    describeSource(entry.source),
  ]);
  return createTable(['setting', 'value', 'source'], rows);
}

/** The same for programs: `{"memory": {"value": "1GiB", "source": "default"}, …}`; null where there is no value. */
export function settingsAsJson(entries: readonly ResolvedEntry[]): string {
  const object = Object.fromEntries(
    entries.map(({ name, value, source, whenUnset }) => [
      name,
      {
        value: value ?? null,
        source: source.kind,
        from: describeSource(source),
        ...(value === undefined ? { whenUnset } : {}),
      },
    ]),
  );
  return `${JSON.stringify(object, null, 2)}\n`;
}
