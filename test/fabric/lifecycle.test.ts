import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { DEADLINE_MS } from './support/peer-process.js';

const PROGRAM = new URL('./support/lifecycle-program.js', import.meta.url);
const STAGES = [
  'mapping',
  'mapped',
  'copying',
  'loaded',
  'opening',
  'open',
  'registering',
  'connecting',
  'writing',
  'closing',
  'closed',
];

/** Exit code and signal that each ending must lead to, whatever is going on. */
const ENDINGS: Record<string, { code: number | null; signal: string | null }> = {
  exit: { code: 7, signal: null },
  natural: { code: 0, signal: null },
  throw: { code: 1, signal: null },
  interrupt: { code: null, signal: 'SIGINT' },
};

for (const [ending, expected] of Object.entries(ENDINGS)) {
  describe(`a process that ends by: ${ending}`, { concurrency: 2 }, () => {
    for (const stage of STAGES) {
      test(`at stage ${stage}`, async () => {
        const child = spawn(process.execPath, [fileURLToPath(PROGRAM), stage, ending], {
          stdio: ['ignore', 'ignore', 'pipe'],
        });
        let stderr = '';
        child.stderr.on('data', (chunk: Buffer) => {
          stderr += chunk.toString();
        });
        const [code, signal] = await once(child, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) });
        assert.deepEqual({ code, signal }, expected, stderr);
        if (ending !== 'throw') assert.equal(stderr, '');
      });
    }
  });
}

describe('a worker that is terminated', { concurrency: 2 }, () => {
  for (const stage of STAGES) {
    test(`at stage ${stage}`, async () => {
      const worker = new Worker(PROGRAM, { argv: [stage, 'natural'] });
      const exited = once(worker, 'exit', { signal: AbortSignal.timeout(DEADLINE_MS) });
      // Some time into the stage, or after its end: neither may matter.
      await new Promise((resolve) => setTimeout(resolve, 100));
      await worker.terminate();
      await exited;
    });
  }
});

test('two workers and the main thread use the addon at once', async () => {
  const workers = [1, 2].map(() => new Worker(PROGRAM, { argv: ['closed', 'natural'] }));
  const exits = workers.map((worker) => once(worker, 'exit', { signal: AbortSignal.timeout(DEADLINE_MS) }));
  for (const [code] of await Promise.all(exits)) assert.equal(code, 0);
});
