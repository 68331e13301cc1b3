/**
 * Sizes and times as people write them: `64KiB`, `1GiB`, `250ms`, `5s`.
 */

const SIZE_UNITS: ReadonlyMap<string, number> = new Map(
  Object.entries({
    '': 1,
    b: 1,
    kib: 1024,
    mib: 1024 ** 2,
    gib: 1024 ** 3,
    tib: 1024 ** 4,
    kb: 1000,
    mb: 1000 ** 2,
    gb: 1000 ** 3,
    tb: 1000 ** 4,
  }),
);

const TIME_UNITS_MS: ReadonlyMap<string, number> = new Map(
  Object.entries({
    us: 0.001,
    ms: 1,
    s: 1000,
    m: 60_000,
    min: 60_000,
    h: 3_600_000,
    d: 86_400_000,
  }),
);

const QUANTITY = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i;

/**
 * Reads a size. Units are B, KiB, MiB, GiB, TiB (powers of 1,024) and kB, MB, GB, TB (powers of 1,000), in any case;
 * none means bytes. A fraction is rounded to whole bytes.
 *
 * @returns whole bytes, or undefined when the text is not a size or is over 2^53-1
 */
export function parseSizeBytes(text: string): number | undefined {
  const match = QUANTITY.exec(text.trim());
  const unit = SIZE_UNITS.get((match?.[2] ?? '?').toLowerCase());
  if (match === null || unit === undefined) return undefined;
  const bytes = Number(match[1]) * unit;
  // 1.1 GiB is no whole number of bytes, but a size; half a byte is none.
  const whole = unit === 1 ? bytes : Math.round(bytes);
  return Number.isSafeInteger(whole) ? whole : undefined;
}

/**
 * Reads a duration. Units are us, ms, s, m (or min), h and d; a number without one is refused, because half of the
 * world means seconds and the other half milliseconds.
 *
 * @returns milliseconds, or undefined when the text is not a duration
 */
export function parseDurationMs(text: string): number | undefined {
  const match = QUANTITY.exec(text.trim());
  if (match === null) return undefined;
  if (match[2] === '' && Number(match[1]) === 0) return 0;
  const unit = TIME_UNITS_MS.get((match[2] ?? '').toLowerCase());
  const ms = Number(match[1]) * (unit ?? Number.NaN);
  return Number.isFinite(ms) ? ms : undefined;
}

/** Writes a size with the largest binary unit that leaves a short number: `64KiB`, `1.5GiB`, `17B`. */
export function formatSize(bytes: number): string {
  if (bytes === Number.POSITIVE_INFINITY) return 'max';
  for (const [unit, factor] of [
    ['TiB', 1024 ** 4],
    ['GiB', 1024 ** 3],
    ['MiB', 1024 ** 2],
    ['KiB', 1024],
  ] as const) {
    if (bytes >= factor) return `${Number((bytes / factor).toFixed(2))}${unit}`;
  }
  return `${bytes}B`;
}

/** Writes a duration with the unit that reads best: `250ms`, `5s`, `2m`. */
export function formatDuration(ms: number): string {
  if (ms >= 60_000 && ms % 60_000 === 0) return `${ms / 60_000}m`;
  if (ms >= 1000 && ms % 1000 === 0) return `${ms / 1000}s`;
  return `${ms}ms`;
}
