import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { Child, type Finished } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { ROOT } from '../support/paths.js';
import { freePort } from '../support/ports.js';
import { tempDir } from '../support/temp-dir.js';
import { waitFor } from '../support/wait-for.js';

const SCRIPT = `${ROOT}scripts/test-rdma-debug.sh`;
const END_MS = 60_000;

async function debug(addr: string, env: Record<string, string> = {}): Promise<Finished & { readonly text: string }> {
  await using child = new Child(SCRIPT, { args: ['client', addr], env: { SIZE: '3MiB', ...env } });
  const ended = await child.waitForEnd(END_MS);
  return { ...ended, text: ended.stdout.toString() };
}

async function listens(log: string): Promise<boolean> {
  const text = await readFile(log, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  return text.includes('"Listening"');
}

describe('test-rdma-debug.sh', () => {
  it('finds both planes well, and shows the stages of both sides', async () => {
    await using dir = await tempDir();
    const log = dir.file('server.log');
    const port = await freePort();
    await using server = new Child(SCRIPT, {
      args: ['server'],
      env: { PORT: String(port), FABRICKV_SERVER_LOG: log, FABRICKV_MEMORY: '64MiB' },
    });
    await waitFor(() => listens(log), { what: 'the server half to listen', timeoutMs: 30_000 });
    const run = await debug('127.0.0.1', { PORT: String(port), FABRICKV_SERVER_LOG: log });
    assert.equal(run.code, 0, run.text + run.stderr);
    for (const stage of ['put.grant.received', 'get.request.sent'])
      assert.match(run.text, new RegExp(`client {2}${stage}`));
    for (const stage of ['put.published', 'get.write.completed'])
      assert.match(run.text, new RegExp(`server {2}${stage}`));
    assert.match(run.text, /VERDICT: nothing is wrong/);
    server.kill('SIGTERM');
    const ended = await server.waitForEnd(END_MS);
    assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
    assert.match(ended.stdout.toString(), /server {2}get\.done +GET: Transferred value/);
    assert.match(ended.stdout.toString(), /Stopped/);
  });

  it('ends with 3 when there is no server', async () => {
    const run = await debug(`127.0.0.1:${await freePort()}`);
    assert.equal(run.code, 3, run.text);
    assert.match(run.text, /VERDICT: the control plane.*check next/s);
  });

  it('ends with 5 when the session has no data plane, saying why', async () => {
    await using server = await startServer({ args: ['--provider', 'none'] });
    const run = await debug(server.addr);
    assert.equal(run.code, 5, run.text);
    assert.match(run.text, /VERDICT: the data plane.*every value travels inside gRPC/s);
  });

  it('ends with 1 when the server refuses the value', async () => {
    await using server = await startServer({ args: ['--max-value', '1MiB'] });
    const run = await debug(server.addr);
    assert.equal(run.code, 1, run.text);
    assert.match(run.text, /VERDICT: neither plane.*ERR_FABRICKV_VALUE_TOO_LARGE/s);
  });

  it('ends with 2 and its usage when it is called wrongly', async () => {
    for (const args of [[], ['client'], ['both', '127.0.0.1'], ['server', 'extra']]) {
      await using child = new Child(SCRIPT, { args });
      const ended = await child.waitForEnd(END_MS);
      assert.equal(ended.code, 2, args.join(' '));
      assert.match(ended.stderr, /test-rdma-debug\.sh client <server-ip>/);
    }
    const run = await debug('127.0.0.1', { PORT: 'x' });
    assert.equal(run.code, 2);
    const size = await debug('127.0.0.1', { SIZE: 'lots' });
    assert.equal(size.code, 2);
    assert.match(size.stderr, /SIZE=lots is no size/);
  });
});
