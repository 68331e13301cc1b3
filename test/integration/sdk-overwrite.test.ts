import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { FULL } from '../support/mode.js';
import { wordOf } from '../support/uniform.js';
import { testSeed } from '../support/values.js';

const OVERWRITER = fileURLToPath(new URL('../support/overwriter.js', import.meta.url));
const READS_EACH_MIN = FULL ? 2000 : 150;
/** How often each reader must have met a new version. */
const CHANGES_MIN = 20;
const TIME_LIMIT_MS = FULL ? 300_000 : 30_000;
const MIB = 1024 * 1024;

describe('I4, I5: a value that is overwritten while it is read', () => {
  test('readers by every path see whole committed versions, never older than the last', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    await using server = await startServer({ args: ['--memory', '256MiB', '--log-level', 'info'] });
    await using client = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp' });
    await using inline = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
    await client.put('hot', Buffer.alloc(100));
    await using writer = new Child(process.execPath, {
      args: [OVERWRITER, server.addr, 'hot', String(seed)],
      stdin: 'open',
    });
    const region = await client.allocate(20 * MIB);

    const seen: string[] = [];
    const read = async (name: string, get: () => Promise<{ bytes: Buffer; version: bigint; release(): void }>) => {
      let [lastVersion, lastWord] = [0n, 0];
      const lengths = new Set<number>();
      let changes = 0;
      const untilMs = performance.now() + TIME_LIMIT_MS;
      for (let count = 0; count < READS_EACH_MIN || changes < CHANGES_MIN; count++) {
        assert.ok(performance.now() < untilMs, `${name} saw ${changes} changes in ${count} reads`);
        const { bytes, version, release } = await get();
        const word = wordOf(bytes);
        assert.ok(word !== undefined, `${name}: a mixture of versions in ${bytes.length} bytes`);
        assert.ok(version >= lastVersion && word >= lastWord, `${name}: version ${version} after ${lastVersion}`);
        if (lastVersion !== 0n)
          assert.equal(version === lastVersion, word === lastWord, `${name}: one version, one value`);
        if (version !== lastVersion) changes += 1;
        [lastVersion, lastWord] = [version, word];
        lengths.add(bytes.length);
        release();
      }
      seen.push(`${name} saw ${changes} versions of ${lengths.size} lengths, up to number ${lastWord}`);
    };
    const whole = async (from: KvClient, inlineThreshold: number) => {
      const value = await from.get('hot', { verify: true, inlineThreshold });
      assert.ok(value !== undefined);
      return { bytes: value.bytes, version: value.version, release: () => value.release() };
    };
    const into = async () => {
      const info = await client.getInto('hot', region, { verify: true, inlineThreshold: 0 });
      assert.ok(info !== undefined);
      return { bytes: region.view(0, info.length), version: info.version, release: () => undefined };
    };
    await Promise.all([
      read('RDMA', () => whole(client, 0)),
      read('inline', () => whole(inline, Number.POSITIVE_INFINITY)),
      read('getInto', into),
    ]);
    writer.process.stdin?.end();
    const ended = await writer.waitForEnd(30_000);
    assert.equal(ended.code, 0, ended.stderr);
    t.diagnostic(`${ended.stdout.toString().trim()} versions were written; ${seen.join('; ')}`);
  });
});
