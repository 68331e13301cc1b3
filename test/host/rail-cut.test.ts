import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Child } from '../support/child.js';
import { startServer } from '../support/commands.js';
import { FULL, withoutNamespaces } from '../support/mode.js';
import { NetworkPair } from '../support/network-pair.js';
import { randomFrom, testSeed } from '../support/values.js';

const LOAD_CLIENT = fileURLToPath(new URL('../support/load-client.js', import.meta.url));
const LOAD_MS = FULL ? 60_000 : 7000;
const CUTS = FULL ? 8 : 1;
const LOST = 'A path to a client has failed; its traffic goes over the others';
const BACK = 'A path to a client is back';

describe('I1, I4, I5: a rail is cut by a firewall in the middle of transfers', { skip: withoutNamespaces() }, () => {
  for (const clientRails of [1, 2]) {
    test(`two rails on the server, ${clientRails} on the client: no value is lost or wrong, and the rail comes back`, async (t) => {
      const seed = testSeed();
      t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
      const random = randomFrom(seed);
      await using pair = await NetworkPair.make();
      const second = await pair.addAddress(pair.server, 11);
      const clientAddrs = [pair.client.ipv4];
      if (clientRails === 2) clientAddrs.push(await pair.addAddress(pair.client, 12));
      await using server = await startServer({
        args: [
          ...['--listen-addr', `${pair.server.ipv4}:0`, '--memory', '512MiB', '--log-level', 'info'],
          ...['--fabric-addr', pair.server.ipv4, '--fabric-addr', second],
        ],
        prefix: pair.server.prefix,
      });
      await using client = new Child('node', {
        args: [LOAD_CLIENT, server.addr, '0', '1', String(seed), String(LOAD_MS), ...clientAddrs],
        prefix: pair.client.prefix,
      });
      await server.waitForRecord(({ msg }) => msg === 'Session opened');
      for (let cut = 0; cut < CUTS; cut++) {
        await sleep(200 + random() * 300);
        const seen = server.records.length;
        await pair.dropAddress(pair.server, second);
        // The load goes on meanwhile: it has the other rail.
        await server.waitForRecord(({ msg }) => msg === LOST, 20_000, seen);
        await sleep(random() * 300);
        await pair.dropNothing(pair.server);
        await server.waitForRecord(({ msg }) => msg === BACK, 20_000, seen);
      }
      const { code, stdout, stderr } = await client.waitForEnd(LOAD_MS + 60_000);
      assert.equal(code, 0, stderr);
      const done = JSON.parse(stdout.toString()) as Record<string, number>;
      t.diagnostic(JSON.stringify(done));
      assert.ok((done['checked'] ?? 0) > 0);
    });
  }
});
