/**
 * Adds up what the steps of scripts/test.sh left in a directory and prints what failed, what was skipped and why, and the
 * closing line. Ends with 1 when anything failed.
 *
 *   node scripts/test-total.mjs DIRECTORY
 *
 * Each step leaves one file: NAME.json from count-reporter.mjs, NAME.xml (JUnit) from ctest, NAME.step with `passed` or
 * `failed` for what has no tests inside.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { basename, extname, join } from 'node:path';

const [directory] = process.argv.slice(2);
if (directory === undefined) throw new Error('usage: node scripts/test-total.mjs DIRECTORY');

const total = { passed: 0, failed: 0, skipped: 0, failures: [], skips: [] };

/** @param {{ passed: number, failed: number, skipped: number, failures: string[], skips: string[] }} counts */
function add(name, counts) {
  total.passed += counts.passed;
  total.failed += counts.failed;
  total.skipped += counts.skipped;
  total.failures.push(...counts.failures.map((failure) => `${name}: ${failure}`));
  total.skips.push(...counts.skips.map((skip) => `${name}: ${skip}`));
}

function countsOfJUnit(xml) {
  const counts = { passed: 0, failed: 0, skipped: 0, failures: [], skips: [] };
  for (const [, attributes] of xml.matchAll(/<testcase ([^>]*)>/g)) {
    const name = /name="([^"]*)"/.exec(attributes)?.[1] ?? 'a native test';
    const status = /status="([^"]*)"/.exec(attributes)?.[1];
    if (status === 'run') counts.passed += 1;
    else if (status === 'notrun' || status === 'disabled') {
      counts.skipped += 1;
      counts.skips.push(name);
    } else {
      counts.failed += 1;
      counts.failures.push(name);
    }
  }
  return counts;
}

for (const file of readdirSync(directory).sort()) {
  const name = basename(file, extname(file));
  const text = readFileSync(join(directory, file), 'utf8');
  switch (extname(file)) {
    case '.json':
      // A run that was killed has left nothing, which its step file says.
      for (const line of text.split('\n')) if (line !== '') add(name, JSON.parse(line));
      break;
    case '.xml':
      add(name, countsOfJUnit(text));
      break;
    case '.step': {
      const passed = text.trim() === 'passed';
      const what = passed ? { failures: [] } : { failures: [text.trim()] };
      add(name, { passed: passed ? 1 : 0, failed: passed ? 0 : 1, skipped: 0, skips: [], ...what });
      break;
    }
  }
}

for (const skip of total.skips) process.stdout.write(`skipped  ${skip}\n`);
for (const failure of total.failures) process.stdout.write(`FAILED   ${failure}\n`);
process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
process.exitCode = total.failed === 0 ? 0 : 1;
