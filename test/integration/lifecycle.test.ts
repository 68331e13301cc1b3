import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Child } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { makeValue } from '../support/values.js';

const LIFECYCLE = fileURLToPath(new URL('../support/lifecycle.js', import.meta.url));
const LENGTH = 64 * 1024 * 1024;
const END_TIMEOUT_MS = 15_000;

const STAGES = [
  'imported',
  'connecting',
  'connected',
  'getting',
  'putting',
  'holding a result',
  'aborted',
  'closing',
  'closed',
] as const;

/** How the process ends there, and what its parent must see: a code, or the signal that it sent to itself. */
const ENDINGS = [
  { ending: 'exit', code: 7, signal: null },
  { ending: 'throw', code: 1, signal: null },
  { ending: 'kill-self', code: null, signal: 'SIGTERM' },
  { ending: 'natural', code: 0, signal: null },
] as const;

describe('a process may end at every stage of a client’s life', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ args: ['--memory', '512MiB', '--log-level', 'info'] });
    const put = await server.client(['put', 'value', '-'], { stdin: makeValue(LENGTH, 1) });
    assert.equal(put.code, 0, put.stderr);
  });
  after(() => server?.[Symbol.asyncDispose]());

  for (const stage of STAGES) {
    for (const { ending, code, signal } of ENDINGS) {
      const isShort = ending !== 'kill-self' || stage === 'getting' || stage === 'connected';
      const skip = FULL || isShort ? false : 'the default of a signal is the same: FABRICKV_TEST_FULL=1 runs it';
      test(`${stage}, ${ending}`, { skip }, async () => {
        await using child = new Child(process.execPath, { args: [LIFECYCLE, server.addr, stage, ending] });
        const ended = await child.waitForEnd(END_TIMEOUT_MS);
        assert.deepEqual({ code: ended.code, signal: ended.signal }, { code, signal }, ended.stderr);
        assert.equal(ended.stdout.toString(), `${stage}\n`);
        if (ending === 'throw') assert.match(ended.stderr, /thrown on purpose/);
        else assert.equal(ended.stderr, '');
      });
    }
  }

  test('I6: the server holds nothing of them afterwards', async () => {
    const counters = await countersWhen(() => server.counters(), isQuiet, { what: 'the sessions to end' });
    assert.equal(counters['operationsInFlight'], 0);
    assert.equal(counters['memoryUsedBytes'], counters['valueBytes']);
  });
});
