/**
 * The native tests once more, over verbs;ofi_rxm: keys that the device chooses, closed regions, wrong keys, killed and
 * stopped peers. Each of their cases is a test here.
 */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Child } from '../support/child.js';
import { ROOT } from '../support/paths.js';
import { WITHOUT_DEVICE } from './place.js';

const TIMEOUT_MS = 75_000;

interface Case {
  readonly name: string;
  /** What it has measured. */
  readonly remarks: readonly string[];
  readonly skipped: string | undefined;
}

/** What native/test/check.h prints: a line for each case as it begins, and indented ones beneath. */
function casesIn(output: string): Case[] {
  return [...output.matchAll(/^ {2}(?<name>\w+)\n(?<beneath>(?: {4}.*\n)*)/gm)].map(({ groups }) => {
    const lines = (groups?.['beneath'] ?? '').split('\n').map((line) => line.trim());
    const skip = lines.find((line) => line.startsWith('skipped: '));
    return {
      name: groups?.['name'] ?? '',
      remarks: lines.filter((line) => line !== '' && line !== skip),
      skipped: skip?.slice('skipped: '.length),
    };
  });
}

/** A program, and what the names of the cases must contain that are run of it: of all the faults there is no time. */
const PROGRAMS: readonly (readonly [string, string?])[] = [
  ['rail_test'],
  ['rail_fault_test', 'killed_peer'],
  ['rail_fault_test', 'frozen_process'],
  ['rail_fault_test', 'not_one_byte_lands'],
];

for (const [name, filter] of PROGRAMS) {
  describe(filter === undefined ? name : `${name} ${filter}`, { skip: WITHOUT_DEVICE }, async () => {
    if (WITHOUT_DEVICE !== false) return;
    // Its own settings would be taken away as a developer's.
    const own = Object.entries(process.env).filter(([variable]) => variable.startsWith('FABRICKV_TEST_'));
    const child = new Child(`${ROOT}native/build-verbs/test/${name}`, {
      args: filter === undefined ? [] : [filter],
      env: Object.fromEntries(own),
    });
    const ended = await child.waitForEnd(TIMEOUT_MS);
    const cases = casesIn(ended.stdout.toString());
    cases.forEach((one, index) => {
      test(one.name, { skip: one.skipped ?? false }, (t) => {
        for (const remark of one.remarks) t.diagnostic(remark);
        // It ends with the first case that fails.
        const failed = index === cases.length - 1 && ended.code !== 0;
        assert.ok(!failed, `${name} ended with ${ended.code ?? ended.signal}: ${ended.stderr}`);
      });
    });
    test('all of it', () => assert.equal(ended.code, 0, ended.stderr));
  });
}
